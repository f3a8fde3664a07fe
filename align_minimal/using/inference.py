"""The fast path: `model.for_inference()` returns a model that computes the same numbers faster.

1. **BatchNorm is folded into the convolution before it.** In evaluation mode, BatchNorm multiplies each
   channel by a constant and adds another. The convolution w before it has no bias, so:

       bn(w∗x) = γ (w∗x − m) / √(v + ε) + β = (s·w)∗x + (β − s·m),    s = γ / √(v + ε)

   The result is again a convolution, with other weights and a bias. It saves one pass over the activations.
2. **Channels lie last in memory.** A depthwise convolution then finds the channels of a pixel side by side,
   and each pixel is a row of a matrix.
3. **Only as many images at a time as fit the processor's cache.** The first stages have large activations and
   small weights, the last stages small activations and large weights. So each stage divides the batch into
   parts of its own size. The first stages take few images at a time: what one layer wrote is still in the
   cache when the next layer reads it (and beyond 32 MB, the operating system would provide the memory anew
   for every layer). The last stages take many images, so that the weights are read less often.
4. **Weights are packed once, and activations are fused.** A 1×1 convolution is a matrix product over pixels.
   Its weights, and those of the depthwise convolutions, are put into the order in which they are read when
   the model is made, not at every call. SiLU and the sigmoid are computed while the sums are still in
   registers. Depthwise convolutions have TensorFlow's padding inside the kernel.
5. **The gate goes into the weights** where there are few of them and many pixels: squeeze-excite then needs
   no pass of its own over the activations (GatedProject).
6. **Where there is a C compiler, the image tower's blocks are one function in C** (fused.py; float32 and
   bfloat16, on a CPU). It does what 1 to 5 do, and two things that operators called one by one cannot do:
   the widest activations never leave a thread's cache, and threads seldom wait for each other. The classes
   below, which take PyTorch's operators, are for all other cases.
7. **Padding is not computed.** A masked token changes nothing in [CLS], so only real tokens go through the
   tower (unpadded.py), texts of similar length together.

Leaves out: training, saving, gradients and moving to another device. Keep the model that it was made from.
The hidden states of padding on the right are zeros.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..bert import AlignTextModel
from ..efficientnet import AlignVisionModel, ConvNorm, MBConv
from ..model import AlignModel
from ..support.checks import check_pixel_values, check_text
from ..support.outputs import TextOutput, VisionOutput
from .fused import FusedBlock, FusedBlocks, can_be_fused
from .unpadded import encode_unpadded, real_lengths

CACHE = 12 * 2**20  # bytes that the widest activation of a stage may take at a time
SMALL = 2**16  # numbers in the weights of a projection, up to which its gate is multiplied into them
FUSED = {None: "none", F.silu: "swish", torch.sigmoid: "sigmoid"}  # oneDNN's names
GROUP = 32 * 768  # texts in a group × hidden size: their activations should fit the cache, too


def fold_batch_norm(layer: ConvNorm) -> None:
    """Put the normalization into the convolution before it, in place. Computed in float64.

    >>> from align_minimal import AlignVisionConfig
    >>> layer, x = ConvNorm(3, 8, 3, AlignVisionConfig()).eval(), torch.rand(1, 3, 5, 5)
    >>> before = layer(x)
    >>> fold_batch_norm(layer)
    >>> layer.bn, torch.allclose(layer(x), before, atol=1e-6)
    (Identity(), True)
    """
    conv, bn = layer.conv, layer.bn
    tensors = conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var
    weight, gamma, beta, mean, variance = (x.detach().cpu().double() for x in tensors)  # MPS has no float64
    scale = gamma / (variance + bn.eps).sqrt()  # s, (C_out,)
    weight = weight * scale[:, None, None, None]  # (C_out, C_in/groups, k, k)
    bias = beta - scale * mean
    conv.weight, conv.bias = (nn.Parameter(x.to(conv.weight), False) for x in (weight, bias))
    layer.bn = nn.Identity()


def pad_the_kernel(layer: ConvNorm) -> None:
    """Move TensorFlow's padding at stride 2 into the kernel, in place: no padded copy of the activations.

    TensorFlow pads k//2 − 1 pixels before the image and k//2 after it, which a convolution cannot do by
    itself. Here the kernel gets one more row and column of zeros at its start. Its windows then start one
    pixel earlier and see the same numbers, so the padding is k//2 on both sides, which a convolution can do.

    >>> from align_minimal import AlignVisionConfig
    >>> layer, x = ConvNorm(8, 8, 5, AlignVisionConfig(), stride=2, groups=8).eval(), torch.rand(1, 8, 9, 9)
    >>> before = layer(x)
    >>> pad_the_kernel(layer)
    >>> layer.pad_first, torch.allclose(layer(x), before, atol=1e-6)
    (None, True)
    """
    conv = layer.conv
    conv.weight = nn.Parameter(F.pad(conv.weight, (1, 0, 1, 0)), False)  # (C_out, C_in/groups, k+1, k+1)
    conv.padding = (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2)
    layer.pad_first = None


def single(x: Tensor | tuple | None) -> Tensor | tuple | None:
    """Tensors as float32, also within a tuple: a tower may have computed in half precision.

    >>> single((torch.zeros(1, dtype=torch.bfloat16), None))
    (tensor([0.]), None)
    """
    return tuple(map(single, x)) if isinstance(x, tuple) else x if x is None else x.float()


def known_to_onednn(weight: Tensor) -> bool:
    """Whether oneDNN, the library behind PyTorch's layers on a CPU, computes with such weights here.

    >>> known_to_onednn(torch.zeros(2, 2, dtype=torch.float64))
    False
    """
    operators = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(operators, "_linear_pointwise") or not hasattr(operators, "_convolution_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return operators._is_mkldnn_bf16_supported()  # not by every processor
    return weight.dtype == torch.float32


class PackedLinear(nn.Module):
    """activation(x·Wᵀ + b) with packed weights, where oneDNN knows them. (…, C_in) → (…, C_out)

    The operators belong to PyTorch, though not to its public interface: torch.compile uses them on CPUs.

    >>> layer, x = nn.Linear(8, 4), torch.rand(2, 8)
    >>> torch.allclose(PackedLinear(layer.weight, layer.bias, F.silu)(x), F.silu(layer(x)), atol=1e-6)
    True
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation: Callable | None = None):
        super().__init__()
        self.fused = FUSED.get(activation) if known_to_onednn(weight) else None
        self.bias, self.activation = bias, activation
        self.weight = weight.detach()
        if self.fused:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())

    def __deepcopy__(self, memo: dict) -> PackedLinear:
        return self  # packed weights cannot be copied, and nothing here changes after it is made

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.fused, [], "")
        x = F.linear(x, self.weight, self.bias)
        return x if self.activation is None else self.activation(x)


class DepthwiseConv(nn.Module):
    """A folded depthwise convolution and its activation. (B, C, H, W) → (B, C, H', W').

    >>> conv, x = nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.rand(1, 8, 5, 5)
    >>> torch.allclose(DepthwiseConv(conv, F.silu)(x), F.silu(conv(x)), atol=1e-6)
    True
    """

    def __init__(self, conv: nn.Conv2d, activation: Callable | None):
        super().__init__()
        self.conv, self.activation = conv, activation
        self.fused = FUSED.get(activation) if known_to_onednn(conv.weight) else None
        if self.fused:
            padding = [k // 2 for k in conv.kernel_size] if conv.padding == "same" else conv.padding
            self.shape = padding, conv.stride, conv.dilation, conv.groups
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self.shape)

    def __deepcopy__(self, memo: dict) -> DepthwiseConv:
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            convolve = torch.ops.mkldnn._convolution_pointwise
            return convolve(x, self.weight, self.conv.bias, *self.shape, self.fused, [], "")
        x = self.conv(x)
        return x if self.activation is None else self.activation(x)


class GatedProject(nn.Module):
    """The projection of x, gated by squeeze-excite. x (B, H, W, C), gate (B, C) → (B, H, W, C_out).

    A gate multiplies the columns of the projection's weights as well as it multiplies the channels of x:
    W (g · x) = (W · diag(g)) x. Where the weights are few and the pixels many, that is much less to multiply.

    >>> weight, bias, x, gate = (torch.rand(*shape) for shape in ((4, 8), (4,), (2, 3, 3, 8), (2, 8)))
    >>> expected = F.linear(x * gate[:, None, None], weight, bias)
    >>> torch.allclose(GatedProject(weight, bias)(x, gate), expected, atol=1e-6)
    True
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.weight, self.bias, self.packed = weight.detach(), bias, None
        if weight.numel() > SMALL or not known_to_onednn(weight):
            self.packed = PackedLinear(weight, bias)
            self.weight = None  # keep one of the two: both would double the memory

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed(x.mul_(gate[:, None, None]))
        project = torch.ops.mkldnn._linear_pointwise
        weights = self.weight * gate[:, None]  # (B, C_out, C)
        each = [project(x[i : i + 1], weights[i], self.bias, "none", [], "") for i in range(len(x))]
        return each[0] if len(each) == 1 else torch.cat(each)


class ServedBlock(nn.Module):
    """An MBConv, folded. (B, C_in, H, W) → (B, C_out, H', W'), both with channels last in memory.

    Seen as (B, H, W, C), which moves nothing, each pixel is a row, and a 1×1 convolution a matrix product.

    >>> from align_minimal import AlignVisionConfig, AlignVisionModel
    >>> tower = AlignVisionModel(AlignVisionConfig(width_coefficient=0.1)).eval()
    >>> block, x = tower.blocks[-1], torch.rand(2, 32, 6, 6)
    >>> before = block(x)
    >>> for layer in (block.expand, block.depthwise, block.project):
    ...     fold_batch_norm(layer)
    >>> torch.allclose(ServedBlock(block)(x), before, atol=1e-6)
    True
    """

    def __init__(self, block: MBConv):
        super().__init__()

        def linear(conv: nn.Conv2d, activation: Callable) -> PackedLinear:
            return PackedLinear(conv.weight.flatten(1), conv.bias, activation)

        excite, project = block.squeeze_excite, block.project.conv
        self.expand = None if block.expand is None else linear(block.expand.conv, block.expand.activation)
        self.depthwise = DepthwiseConv(block.depthwise.conv, block.depthwise.activation)
        self.reduce = linear(excite.reduce, excite.activation)
        self.to_gate = linear(excite.expand, torch.sigmoid)
        self.project = GatedProject(project.weight.flatten(1), project.bias)
        self.residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1)  # (B, H, W, C_in)
        h = rows if self.expand is None else self.expand(rows)  # (B, H, W, C)
        h = self.depthwise(h.permute(0, 3, 1, 2))  # (B, C, H', W')
        # Of each row first: one sum over many equal numbers would round each time the same way.
        mean = F.avg_pool2d(F.avg_pool2d(h, (1, h.shape[3])), (h.shape[2], 1)).flatten(1)  # (B, C)
        gate = self.to_gate(self.reduce(mean))  # (B, C)
        h = self.project(h.permute(0, 2, 3, 1), gate)  # (B, H', W', C_out)
        return (h.add_(rows) if self.residual else h).permute(0, 3, 1, 2)


class ServedVisionModel(nn.Module):
    """An AlignVisionModel made faster: float32 pixels (B, 3, H, W), whatever its dtype → the same outputs.

    >>> from align_minimal import AlignVisionConfig
    >>> tower = AlignVisionModel(AlignVisionConfig(width_coefficient=0.1, depth_coefficient=0.1)).eval()
    >>> ServedVisionModel(tower, torch.bfloat16)(torch.rand(5, 3, 32, 32)).pooler_output.shape
    torch.Size([5, 32])
    """

    def __init__(self, tower: AlignVisionModel, dtype: torch.dtype | None):
        super().__init__()
        fused = can_be_fused(tower, dtype)
        for layer in tower.modules():
            if isinstance(layer, ConvNorm):
                fold_batch_norm(layer)
                if layer.pad_first and layer.conv.groups > 1 and not fused:
                    pad_the_kernel(layer)
        tower.to(dtype=dtype, memory_format=torch.channels_last)
        # Each stage but the last ends with a block of stride 2.
        ends = [block.depthwise.conv.stride == (2, 2) for block in tower.blocks]
        tower.blocks = nn.ModuleList(map(FusedBlock if fused else ServedBlock, tower.blocks))
        self.tower = tower
        in_turn = FusedBlocks if fused else nn.Sequential
        self.undivided = [in_turn(*tower.blocks)]
        self.stages: list[nn.Sequential] = [in_turn()]
        for block, end in zip(tower.blocks, ends, strict=True):
            self.stages[-1].append(block)
            if end:
                self.stages.append(in_turn())

    @torch.no_grad()
    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> VisionOutput | tuple:
        """As AlignVisionModel.forward, but each stage takes the batch in parts."""
        if pixel_values is None:
            return self.tower(None)  # raises the error that says what is missing
        check_pixel_values(pixel_values, self.tower.config)
        dtype = self.tower.stem.conv.weight.dtype
        x = in_parts(self.tower.stem, pixel_values.to(dtype, memory_format=torch.channels_last))
        hidden_states = [x] if output_hidden_states else []
        stages = self.stages if len(x) > 1 else self.undivided
        for stage in self.tower.blocks if output_hidden_states else stages:
            x = in_parts(stage, x)
            if output_hidden_states:
                hidden_states.append(x)
        pool = torch.mean if self.tower.config.pooling_type == "mean" else torch.amax
        last = single(x)
        output = VisionOutput(
            last_hidden_state=last,
            pooler_output=pool(last, (2, 3)),
            hidden_states=single(tuple(hidden_states)) if output_hidden_states else None,
        )
        return output if return_dict is not False else output.to_tuple()


def in_parts(stage: nn.Module, x: Tensor) -> Tensor:
    """stage(x). On a CPU, in parts so small that the stage's widest activation stays below CACHE bytes.

    >>> in_parts(nn.Conv2d(3, 8, 1), torch.rand(5, 3, 32, 32)).shape
    torch.Size([5, 8, 32, 32])
    """
    widest = max(getattr(layer, "out_channels", 0) for layer in stage.modules())
    size = x[:, :1].numel() * widest * x.element_size()
    count = max(1, math.ceil(size / CACHE)) if x.device.type == "cpu" else 1
    parts = x.chunk(count)  # of equal size, or nearly
    return stage(x) if len(parts) == 1 else torch.cat([stage(part) for part in parts])


class ServedTextModel(nn.Module):
    """An AlignTextModel that does not compute the padding on the right: ids (B, T) → the same outputs.

    >>> from align_minimal import AlignTextConfig
    >>> tower = AlignTextModel(AlignTextConfig(vocab_size=9, hidden_size=8, num_attention_heads=2))
    >>> served = ServedTextModel(tower.eval().requires_grad_(False), None)
    >>> served(torch.tensor([[2, 5, 0, 0]]), torch.tensor([[1, 1, 0, 0]])).last_hidden_state[0, 2:].norm()
    tensor(0.)
    """

    def __init__(self, tower: AlignTextModel, dtype: torch.dtype | None):
        super().__init__()
        self.tower = tower.to(dtype)
        for layer in self.tower.modules():
            for name, inner in layer.named_children():
                if isinstance(inner, nn.Linear):
                    setattr(layer, name, PackedLinear(inner.weight, inner.bias))

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TextOutput | tuple:
        """As AlignTextModel.forward, but in groups of texts where a mask (B, T) says what is padding."""
        if inputs_embeds is not None:
            inputs_embeds = inputs_embeds.to(self.tower.embeddings.word.weight.dtype)
        inputs = (input_ids, token_type_ids, position_ids, inputs_embeds)
        check_text(self.tower.config, input_ids, attention_mask, *inputs[1:])
        if attention_mask is None or attention_mask.ndim != 2 or output_attentions or output_hidden_states:
            options = head_mask, inputs_embeds, output_attentions, output_hidden_states
            output = self.tower(input_ids, attention_mask, token_type_ids, position_ids, *options)
            output = TextOutput({name: single(value) for name, value in output.items()})
        else:
            output = self.in_groups(attention_mask, head_mask, *inputs)
        return output if return_dict is not False else output.to_tuple()

    def in_groups(self, mask: Tensor, head_mask: Tensor | None, *inputs: Tensor | None) -> TextOutput:
        """On a CPU, GROUP / hidden size texts of similar length at a time, cut after the longest."""
        B, T = mask.shape
        lengths = real_lengths(mask)  # (B,)
        last = mask.new_zeros(B, T, self.tower.config.hidden_size, dtype=torch.float32)  # (B, T, H)
        count = max(1, GROUP // last.shape[2]) if mask.device.type == "cpu" else B
        for rows in lengths.argsort().split(count):
            t = int(lengths[rows].max())
            # position_ids may be one row for all texts
            part = [x if x is None else x[:, :t] if len(x) < B else x[rows, :t] for x in inputs]
            last[rows, :t] = single(encode_unpadded(self.tower, mask[rows, :t], *part, head_mask))
        pooler, dtype = self.tower.pooler, self.tower.embeddings.word.weight.dtype
        pooled = None if pooler is None else single(torch.tanh(pooler(last[:, 0].to(dtype))))
        return TextOutput(last_hidden_state=last, pooler_output=pooled)


class ServedModel(AlignModel):
    """What AlignModel.for_inference returns: an AlignModel with both of the faster towers.

    >>> served = AlignModel.from_pretrained("emoji").for_inference()
    >>> type(served).__name__, served.get_image_features(torch.rand(3, 3, 64, 64)).shape
    ('ServedModel', torch.Size([3, 160]))
    """

    def __init__(self, model: AlignModel, dtype: torch.dtype | None):
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, not {dtype}")
        nn.Module.__init__(self)  # not AlignModel's, which would draw random weights
        model = copy.deepcopy(model).requires_grad_(False).eval()
        self.config = model.config
        self.text_model = ServedTextModel(model.text_model, dtype)
        self.vision_model = ServedVisionModel(model.vision_model, dtype)
        self.text_projection, self.temperature = model.text_projection, model.temperature
        super().train(False)

    def train(self, mode: bool = True) -> ServedModel:
        """RuntimeError for mode=True: it has no BatchNorm any more."""
        if mode:
            raise RuntimeError(
                "a model made by for_inference cannot be trained; train the one it was made from"
            )
        return super().train(False)

    def _apply(self, convert, recurse: bool = True) -> ServedModel:
        """Called by `to`, `cuda`, `half`, …: RuntimeError if it would change anything: weights are packed."""
        after = convert(self.temperature.detach())
        if (after.device, after.dtype) != (self.temperature.device, self.temperature.dtype):
            raise RuntimeError("a model made by for_inference cannot be moved or converted; do so before")
        return self

    def save_pretrained(self, directory) -> None:
        """RuntimeError: other programs expect the weights before folding."""
        raise RuntimeError("a model made by for_inference cannot be saved; save the one it was made from")

    def for_inference(self, dtype: torch.dtype | None = None) -> AlignModel:
        """Itself. RuntimeError for a dtype: a number that was rounded once stays rounded."""
        if dtype is not None:
            raise RuntimeError("this model was made by for_inference; call it on the original for a dtype")
        return self
