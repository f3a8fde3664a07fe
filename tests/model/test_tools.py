"""Modules like any other: PyTorch's own tools take the models as they are, and give eager mode's numbers."""

import copy
import gc
import pickle
import time

import pytest
import torch
import torch.multiprocessing as mp
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from align_minimal import AlignConfig, AlignModel
from align_minimal.support.outputs import AlignOutput, Batch, TextOutput, VisionOutput
from tests.lab.warm import start_method
from tests.reference.parity import Golden, assert_close, flatten

PARTS = {"model": ["input_ids", "pixel_values", "attention_mask"]}
PARTS |= {"text_model": ["input_ids", "attention_mask"], "vision_model": ["pixel_values"]}


def build():
    file = Golden("model")
    model = file.fill(AlignModel(AlignConfig(**copy.deepcopy(file.config))), torch.float64).eval()
    return model, file.part("pairs/input")


def case(name):
    """A model or one of its towers, its inputs, its options, and what it gives in eager mode."""
    model, inputs = build()
    options = dict(return_loss=True) if name == "model" else {}
    part = model if name == "model" else getattr(model, name)
    inputs = {key: inputs[key] for key in PARTS[name]}
    with torch.no_grad():
        return part, inputs, options, part(**inputs, **options)


def assert_same_output(found, expected):
    assert type(found) is type(expected) and list(found) == list(expected)
    found, expected = flatten(found), flatten(expected)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert tensor.std() > 0.01 or tensor.ndim == 0
        assert_close(found[name], tensor, 1e-12, name)


# torch.export, torch.compile, torch.func, the meta device


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_an_exported_model_gives_the_same_numbers(name, strict):
    part, inputs, options, expected = case(name)
    program = torch.export.export(part, (), inputs | options, strict=strict)
    assert_same_output(program.module()(**inputs, **options), expected)
    assert not [node for node in program.graph.nodes if "isfinite" in str(node.target)]


def test_an_exported_model_takes_any_number_of_pairs(tmp_path):
    model, inputs, options, _ = case("model")
    pairs = torch.export.Dim("pairs", min=2)
    program = torch.export.export(
        model,
        (),
        inputs | options,
        dynamic_shapes={name: {0: pairs} for name in inputs} | {"return_loss": None},
    )
    torch.export.save(program, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    more = {name: torch.cat([x, x.flip(0)]) for name, x in inputs.items()}
    assert_same_output(program.module()(**more, **options), model(**more, **options))


@pytest.mark.parametrize("name", PARTS)
def test_a_compiled_model_is_one_graph_and_gives_the_same_numbers(name):
    part, inputs, options, expected = case(name)
    graphs = []
    torch._dynamo.reset()
    compiled = torch.compile(part, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
    with torch.no_grad():
        assert_same_output(compiled(**inputs, **options), expected)
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_a_compiled_model_has_the_gradients_of_eager_mode():
    model, inputs, options, _ = case("model")
    model(**inputs, **options).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch._dynamo.reset()
    torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs, **options).loss.backward()
    for name, gradient in expected.items():
        assert_close(model.get_parameter(name).grad, gradient, 1e-10, name)


def test_vmap_over_images_gives_the_same_numbers():
    model, inputs = build()
    pixels = inputs["pixel_values"]
    found = torch.func.vmap(lambda x: model.get_image_features(x[None])[0])(pixels)
    assert_close(found, model.get_image_features(pixels), 1e-12)
    both = torch.func.vmap(lambda x: model(inputs["input_ids"], x[None]))(pixels)
    assert type(both) is AlignOutput
    assert_close(both.logits_per_text[..., 0].T, model(inputs["input_ids"], pixels).logits_per_text, 1e-12)


def test_vmap_over_texts_gives_the_same_numbers():
    model, inputs = build()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    found = torch.func.vmap(lambda i, m: model.get_text_features(i[None], m[None])[0])(ids, mask)
    assert_close(found, model.get_text_features(ids, mask), 1e-12)


@pytest.mark.parametrize("name", PARTS)
def test_the_meta_device_and_fake_tensors_give_the_shapes(name):
    part, inputs, options, expected = case(name)
    shapes = {key: x.shape for key, x in flatten(expected).items()}
    meta = copy.deepcopy(part).to("meta")(**{key: x.to("meta") for key, x in inputs.items()}, **options)
    assert {key: x.shape for key, x in flatten(meta).items()} == shapes
    assert {x.device.type for x in flatten(meta).values()} == {"meta"}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = part(**{key: mode.from_tensor(x) for key, x in inputs.items()}, **options)
    assert {key: x.shape for key, x in flatten(fake).items()} == shapes


def test_a_traced_image_tower_gives_the_same_numbers():
    part, inputs, _, expected = case("vision_model")
    part.requires_grad_(False)
    traced = torch.jit.trace(lambda x: part(x).pooler_output, inputs["pixel_values"], check_trace=False)
    assert "isfinite" not in str(traced.graph)
    assert_close(traced(inputs["pixel_values"]), expected.pooler_output, 1e-12)


def test_in_eager_mode_the_checks_of_values_stay():
    model, inputs = build()
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    with pytest.raises(ValueError, match="pixel_values must be finite, but holds nan"):
        model(ids, pixels * torch.nan)
    with pytest.raises(ValueError, match=r"input_ids must lie in \[0, 13\), the vocabulary, but holds 13"):
        model(ids * 0 + 13, pixels)
    with pytest.raises(ValueError, match="inputs_embeds must be finite, but holds inf"):
        model.get_text_features(inputs_embeds=torch.full((1, 2, 8), torch.inf, dtype=torch.float64))
    with torch.no_grad():
        model.temperature.zero_()
    with pytest.raises(ValueError, match=r"temperature must be above 0, not 0\.0"):
        model(ids, pixels, return_loss=True)


def test_types_and_shapes_are_checked_while_tracing_too():
    model, inputs = build()
    with pytest.raises(ValueError, match="pixel_values must be"):
        torch.export.export(model, (inputs["input_ids"], inputs["pixel_values"][0]))


# Outputs as containers


def test_the_two_faces_of_an_output_are_one():
    output = AlignOutput(logits_per_image=1.0, loss=None, text_embeds=2.0)
    output.logits_per_image = 3.0
    assert output["logits_per_image"] == output[0] == 3.0
    output["loss"] = 4.0
    assert output.loss == output[0] == 4.0 and list(output) == ["loss", "logits_per_image", "text_embeds"]
    output.loss = None
    assert output.loss is None and "loss" not in output and output.to_tuple() == (3.0, 2.0)
    output.update(image_embeds=5.0, loss=None)
    output |= {"logits_per_text": 6.0}
    assert output.setdefault("text_embeds", 9.0) == 2.0 and output.setdefault("loss", 7.0) == 7.0
    del output["text_embeds"]
    assert output.text_embeds is None and output.pop("image_embeds") == 5.0 and output.image_embeds is None
    assert dict(output) == {"loss": 7.0, "logits_per_image": 3.0, "logits_per_text": 6.0}
    assert output.to_tuple() == (7.0, 3.0, 6.0)
    with pytest.raises(AttributeError, match="AlignOutput has no 'logits'; it has loss, logits_per_image"):
        _ = output.logits
    output.logits = 8.0
    assert output["logits"] == output[-1] == 8.0


@pytest.mark.parametrize("kind", [AlignOutput, TextOutput, VisionOutput, Batch])
def test_an_output_is_rebuilt_from_its_items(kind):
    """As accelerate (from a dictionary) and DataParallel (from pairs) do."""
    first = kind(last_hidden_state=torch.ones(2), pooler_output=torch.zeros(3))
    twins = [type(first)({k: v for k, v in first.items()}), type(first)((k, first[k]) for k in first)]  # noqa: C416
    twins += [copy.copy(first), copy.deepcopy(first), pickle.loads(pickle.dumps(first)), first.copy()]
    for twin in twins:
        assert isinstance(twin, kind if kind is not Batch else dict) and list(twin) == list(first)
        assert torch.equal(twin["pooler_output"], first["pooler_output"])
    twins[0]["pooler_output"] = torch.ones(1)
    assert torch.equal(first.pooler_output, torch.zeros(3))


def test_a_rebuilt_output_still_has_its_fields_that_are_none():
    output = build()[0](**build()[1])
    twin = type(output)({name: value for name, value in output.items()})  # noqa: C416
    assert twin.loss is None and twin.text_model_output.attentions is None


def test_an_output_is_a_pytree():
    output = build()[0](**build()[1], output_hidden_states=True)
    leaves, spec = pytree.tree_flatten(output)
    assert len(leaves) == len(flatten(output)) and all(isinstance(x, torch.Tensor) for x in leaves)
    twin = pytree.tree_unflatten(leaves, spec)
    assert type(twin) is AlignOutput and type(twin.text_model_output) is TextOutput
    assert_same_output(twin, output)
    double = pytree.tree_map(lambda x: 2 * x, output)
    assert torch.equal(
        double.vision_model_output.hidden_states[1], 2 * output.vision_model_output.hidden_states[1]
    )
    assert len(pytree.tree_leaves(Batch(input_ids=torch.ones(2), text=["a", "b"]))) == 3


def test_outputs_of_several_devices_are_gathered():
    """DataParallel's own gather, whose concatenation needs a GPU, with a stand-in for that one step."""
    from torch.nn.parallel import scatter_gather

    model, inputs = build()
    halves = [model(**{k: x[rows] for k, x in inputs.items()}) for rows in ([0, 1], [1, 2])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            scatter_gather.Gather, "apply", staticmethod(lambda _, __, *tensors: torch.cat(tensors))
        )
        whole = scatter_gather.gather(halves, "cpu", 0)
    assert type(whole) is AlignOutput and type(whole.text_model_output) is TextOutput
    expected = torch.cat([half.text_model_output.last_hidden_state for half in halves])
    assert torch.equal(whole.text_model_output.last_hidden_state, expected)


# Batches


@pytest.mark.parametrize(
    ("args", "options", "dtype"),
    [
        ((torch.float16,), {}, torch.float16),
        (("cpu", torch.float16), {}, torch.float16),
        ((torch.device("cpu"),), dict(dtype=torch.bfloat16), torch.bfloat16),
        ((), dict(dtype=torch.float64), torch.float64),
        ((), dict(device="cpu", non_blocking=True), torch.float32),
        (("cpu",), {}, torch.float32),
    ],
)
def test_a_batch_is_moved_and_only_its_floats_are_cast(args, options, dtype):
    batch = Batch(input_ids=torch.ones(2, 3, dtype=torch.int64), pixel_values=torch.rand(2, 3, 4, 4))
    batch |= dict(mask=torch.ones(2, 3, dtype=torch.bool), names=["a", "b"])
    assert batch.to(*args, **options) is batch
    assert batch.input_ids.dtype == torch.int64 and batch.mask.dtype == torch.bool
    assert batch.pixel_values.dtype == dtype and batch.names == ["a", "b"]
    assert batch.to("meta", torch.float16).input_ids.device.type == "meta"


# DistributedDataParallel


def train(rank, folder, steps=4):
    """One of two processes: a few steps, of which the even ones use the image tower alone."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, inputs = build()
    net = torch.nn.parallel.DistributedDataParallel(model.train(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        output = net(**inputs, return_loss=True)
        assert type(output) is AlignOutput
        loss = output.loss if step % 2 else output.image_embeds[:, 0].sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.save(losses, f"{folder}/{rank}.pt")
    del net, output, loss, optimizer
    gc.collect()  # a wrapper that outlives its group can abort the process
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_finds_unused_parameters_for_several_steps(tmp_path):
    context = mp.start_processes(train, (str(tmp_path),), nprocs=2, join=False, start_method=start_method())
    try:
        end = time.monotonic() + 120
        while not context.join(timeout=10):
            assert time.monotonic() < end, "two processes did not end within two minutes"
    finally:
        for process in context.processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len(first) == 4 and first == second and first[3] < first[1]
