"""The blocks in C give MBConv's numbers for every shape; where they cannot be compiled, nothing is lost."""

import copy
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from align_minimal import AlignVisionConfig, AlignVisionModel
from align_minimal.efficientnet import BlockSpec, ConvNorm, MBConv
from align_minimal.using import fused
from align_minimal.using.fused import FusedBlock, FusedBlocks, library
from align_minimal.using.inference import ServedBlock, ServedVisionModel, fold_batch_norm
from tests.reference.parity import assert_alive, assert_close, healthy, relative_error

compiled = pytest.mark.skipif(library() is None, reason="needs a C compiler")
S = library().slice_size() if library() else 0


def block_of(kernel=3, c_in=8, ratio=6, c_out=8, stride=1, centered=False) -> MBConv:
    torch.manual_seed(kernel * c_in + c_out)
    spec = BlockSpec(kernel, c_in, c_out, stride, ratio, stride == 1 and c_in == c_out, centered, 0.0)
    return healthy(MBConv(spec, AlignVisionConfig()).eval(), sample=torch.randn(4, c_in, 12, 12))


def folded(block: MBConv) -> MBConv:
    block = copy.deepcopy(block)
    for layer in block.modules():
        if isinstance(layer, ConvNorm):
            fold_batch_norm(layer)
    return block


def in_c(block: MBConv, dtype: torch.dtype = torch.float32) -> FusedBlock:
    return FusedBlock(folded(block).to(dtype))


@torch.no_grad()
def check(block: MBConv, x: torch.Tensor) -> None:
    expected = copy.deepcopy(block).double()(x.double()).float()
    assert_alive(expected / x.std())
    assert_close(in_c(block)(x), expected, 2e-6)


CASES = {
    "as in B0": (dict(), 14, 14),
    "channels that fill no slice": (dict(c_in=20, c_out=20), 9, 11),
    "fewer channels than a register holds": (dict(c_in=3, c_out=5, ratio=1), 6, 6),
    "wide": (dict(c_in=96, c_out=64), 7, 7),
    "kernel 5": (dict(kernel=5, c_in=24, c_out=24), 13, 9),
    "kernel 7": (dict(kernel=7), 10, 10),
    "an even kernel": (dict(kernel=4), 10, 10),
    "ratio 1": (dict(ratio=1, c_in=32, c_out=16), 15, 15),
    "ratio 1 at stride 2": (dict(ratio=1, stride=2), 15, 14),
    "stride 2 of an even side": (dict(stride=2, c_out=24), 12, 10),
    "stride 2 of an odd side": (dict(stride=2, kernel=5), 13, 11),
    "stride 2, centered": (dict(stride=2, centered=True), 13, 12),
    "stride 2, centered, kernel 5": (dict(stride=2, kernel=5, centered=True), 10, 11),
    "one pixel": (dict(kernel=5), 1, 1),
    "fewer pixels than a tile": (dict(), 2, 2),
    "one row": (dict(), 1, 30),
    "one column": (dict(c_out=16), 30, 1),
    "many pixels": (dict(c_in=16, c_out=40), 40, 37),
    "many pixels to few": (dict(stride=2), 50, 47),
}


@compiled
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_a_block_is_mbconv(case, images):
    sizes, h, w = CASES[case]
    block = block_of(**sizes)
    check(block, torch.randn(images, sizes.get("c_in", 8), h, w))


@compiled
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", [case for case in CASES if case != "fewer channels than a register holds"])
def test_a_block_in_bfloat16_is_mbconv_but_for_rounding(case):
    sizes, h, w = CASES[case]
    block = block_of(**sizes)
    x = torch.randn(3, sizes.get("c_in", 8), h, w)
    found = in_c(block, torch.bfloat16)(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert 1e-4 < relative_error(found.float(), block(x)) < 1e-2


@compiled
def test_silu_far_from_zero():
    block = block_of()
    for scale in (10, 100, 1e4):  # exp(88) is the largest that float32 holds
        check(block, torch.randn(2, 8, 9, 9) * scale)


@compiled
@torch.no_grad()
@pytest.mark.parametrize("sizes", [dict(), dict(ratio=1, c_in=S + 8)], ids=str)
def test_what_is_not_a_number_stays_in_its_image(sizes):
    block = in_c(block_of(**sizes))
    for image in range(3):
        x = torch.randn(3, sizes.get("c_in", 8), 9, 9)
        x[image] = torch.nan
        assert block(x).isnan().all((1, 2, 3)).tolist() == [i == image for i in range(3)]
        assert block(x).isnan().any((1, 2, 3)).sum() == 1


@compiled
@torch.no_grad()
def test_a_picture_of_one_colour_has_exact_means():
    block = block_of(ratio=1, c_in=32, c_out=16)
    x = torch.full((1, 32, 144, 144), 0.37)
    assert_close(in_c(block)(x), copy.deepcopy(block).double()(x.double()).float(), 2e-6)


@torch.no_grad()
def test_a_picture_of_one_colour_has_exact_means_by_operators_too():
    block = block_of(ratio=1, c_in=32, c_out=16)
    x = torch.full((1, 32, 144, 144), 0.37).contiguous(memory_format=torch.channels_last)
    expected = copy.deepcopy(block).double()(x.double()).float()
    assert_close(ServedBlock(folded(block))(x), expected, 2e-6)


@compiled
@torch.no_grad()
def test_defaults_and_autocast_of_the_caller_do_not_reach_into_it():
    tower = AlignVisionModel(AlignVisionConfig(width_coefficient=0.1, depth_coefficient=0.1)).eval()
    tower = healthy(tower, sample=torch.randn(4, 3, 64, 64))
    served, x = ServedVisionModel(copy.deepcopy(tower), None), torch.randn(2, 3, 64, 64)
    expected = tower(x).pooler_output
    try:
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            assert_close(served(x).pooler_output, expected, 1e-5)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative_error(served(x).pooler_output, expected) < 3e-2
    with pytest.raises(RuntimeError, match="meta"):
        served.stages[0](torch.rand(2, 8, 9, 9, device="meta"))


@torch.no_grad()
def test_a_kernel_of_1_is_left_to_pytorch():
    sizes = dict(width_coefficient=0.1, depth_coefficient=0.1, kernel_sizes=[3, 1, 5, 3, 5, 5, 3])
    tower = AlignVisionModel(AlignVisionConfig(**sizes)).eval()
    served = ServedVisionModel(copy.deepcopy(tower), None)
    assert not any(isinstance(block, FusedBlock) for block in served.tower.blocks)


@compiled
@torch.no_grad()
def test_blocks_in_one_call_are_the_blocks_one_by_one_whatever_the_number_of_threads():
    blocks = [
        in_c(block_of(c_out=16)),
        in_c(block_of(c_in=16, stride=2)),
        in_c(block_of()),
        in_c(block_of(5)),
    ]
    x, threads = torch.randn(2, 8, 20, 21), torch.get_num_threads()
    expected = x
    for block in blocks:
        expected = block(expected)
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            assert torch.equal(FusedBlocks(*blocks)(x), expected), count
    finally:
        torch.set_num_threads(threads)
    assert FusedBlocks(*blocks)(x[:0]).shape == (0, *expected.shape[1:])


@compiled
@torch.no_grad()
def test_several_threads_may_call_at_once():
    block, inputs = in_c(block_of(c_in=32, c_out=32)), torch.randn(12, 1, 32, 24, 24)
    expected = [block(x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        for found, theirs in zip(threads.map(block, inputs), expected, strict=True):
            assert torch.equal(found, theirs)


@compiled
@torch.no_grad()
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_for_every_length_of_a_register(lanes, tmp_path, monkeypatch):
    """As AVX-512 has 16: there, slices and tiles are larger. With threads of its own, as beyond Linux."""
    flags = [f"-DLANES={lanes}", "-O0", "-U__linux__"]
    monkeypatch.setitem(fused.PROCESSORS, torch.backends.cpu.get_cpu_capability(), flags)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    libraries = {dtype: library.__wrapped__(dtype) for dtype in (torch.float32, torch.bfloat16)}
    monkeypatch.setattr(fused, "library", lambda dtype=torch.float32: libraries[dtype])
    assert fused.library().slice_size() == 2 * lanes
    for case in ("channels that fill no slice", "wide", "many pixels", "one row"):
        sizes, h, w = CASES[case]
        block, x = block_of(**sizes), torch.randn(2, sizes.get("c_in", 8), h, w)
        check(block, x)
        assert relative_error(in_c(block, torch.bfloat16)(x.bfloat16()).float(), block(x)) < 1e-2


@compiled
@torch.no_grad()
def test_a_picture_that_is_too_small_is_an_error_as_in_the_model():
    tower = AlignVisionModel(AlignVisionConfig(width_coefficient=0.1, depth_coefficient=0.1)).eval()
    served = ServedVisionModel(copy.deepcopy(tower), None)
    assert isinstance(served.stages[0], FusedBlocks)
    for model in (tower, served):
        with pytest.raises(RuntimeError, match="ernel"):
            model(torch.rand(1, 3, 4, 4))


@compiled
@torch.no_grad()
def test_a_tower_may_end_with_a_stride():
    config = AlignVisionConfig(width_coefficient=0.1, depth_coefficient=0.1, strides=[1, 2, 2, 2, 1, 2, 2])
    tower = healthy(AlignVisionModel(config).eval(), sample=torch.randn(4, 3, 80, 80))
    x = torch.randn(2, 3, 80, 80)
    expected = tower(x).last_hidden_state
    assert_close(ServedVisionModel(copy.deepcopy(tower), None)(x).last_hidden_state, expected, 1e-5)


# ---- compiling ---------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Where the compiled file may lie: with Python's own, or in the user's cache. Both are empty."""
    monkeypatch.setitem(fused.PROCESSORS, torch.backends.cpu.get_cpu_capability(), ["-O0"])  # sooner done
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "python"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "python", tmp_path / "cache"


def files(folder: Path) -> list[str]:
    return [path.suffix for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


@compiled
def test_it_is_compiled_once(folders, monkeypatch):
    python, cache = folders
    assert library.__wrapped__() is not None
    with monkeypatch.context() as patch:
        patch.setattr(fused, "_compile_into", lambda path, command: pytest.fail("compiled again"))
        assert library.__wrapped__() is not None
    monkeypatch.setenv("CC", "false")
    assert library.__wrapped__() is None  # who does not want C gets none, though there is a library
    assert files(python) == [".so"] and files(cache) == []


@compiled
@pytest.mark.parametrize("obstacle", ["no folder", "no library"])
def test_where_python_s_folder_does_not_do_it_lies_in_the_user_s_cache(folders, obstacle, monkeypatch):
    python, cache = folders
    if obstacle == "no folder":
        python.write_text("in its place")
    else:

        def damaged(path: Path, command: list[str]) -> None:
            path.parent.mkdir(parents=True)
            path.write_bytes(b"no library")

        with monkeypatch.context() as patch:
            patch.setattr(fused, "_compile_into", damaged)
            assert library.__wrapped__() is None
        shutil.rmtree(cache)
    assert library.__wrapped__() is not None
    assert files(cache) == [".so"]


@pytest.mark.parametrize("compiler", ["false", "no-such-program", "true", f"{sys.executable} -c exit(3)"])
def test_without_a_compiler_there_is_no_library_and_nothing_is_left(folders, compiler, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    assert library.__wrapped__() is None
    assert [files(folder) for folder in folders] == [[], []]
    monkeypatch.setattr(fused, "library", library.__wrapped__)
    tower = AlignVisionModel(AlignVisionConfig(width_coefficient=0.1, depth_coefficient=0.1)).eval()
    served = ServedVisionModel(copy.deepcopy(tower), None)
    assert not any(isinstance(block, FusedBlock) for block in served.tower.blocks)
