"""The fast path: `model.for_inference()` gives the same numbers, rearranged for serving.

1. **BatchNorm is folded.** In evaluation it is one affine map a channel, and it follows a convolution w
   without a bias:

       bn(w∗x) = γ (w∗x − m) / √(v + ε) + β = (s·w)∗x + (β − s·m),    s = γ / √(v + ε)

   which is a convolution with other weights and a bias: one pass over the activations less.
2. **Channels last, activations in place**: a depthwise convolution reads a pixel's channels side by side.
3. **As many images at a time as fit the cache.** Early blocks have large activations and small weights, late
   ones small activations and large weights. So each stage takes the batch in parts of its own size: early a
   few images, to keep what one layer wrote in the cache for the next (beyond 32 MB it would even be mapped
   and unmapped by the kernel at every layer); late many, to read the weights less often.
4. **Weights are packed once.** A 1×1 convolution is a matrix product over pixels; its weights are brought
   into the order that the product reads when the model is made, not at every call. Depthwise convolutions
   have TensorFlow's padding in the kernel.
5. **Padding is not computed.** A masked column changes nothing in [CLS]. Texts go through the tower in groups
   of like length, each cut after its longest.

But: it can be neither trained, saved nor moved to another device, and gives no gradients; keep the model that
it was made from. Hidden states of what is padding are zeros where they are not computed.
"""

from __future__ import annotations

import copy
import functools
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..bert import AlignTextModel
from ..efficientnet import AlignVisionModel, ConvNorm, MBConv, SqueezeExcite
from ..model import AlignModel
from ..support.checks import check_pixel_values, check_text
from ..support.outputs import ModelOutput

CACHE = 12 * 2**20  # bytes of a stage's widest activation at a time
SMALL = 2**16  # numbers: of smaller weights, the overhead of packed ones outweighs what they save
GROUP = 16 * 768  # texts × hidden size at a time: fewer of a large model's, whose padding costs more


def fold_batch_norm(layer: ConvNorm) -> None:
    """Put the normalization into the convolution, in place; computed in float64.

    >>> from align_minimal import AlignVisionConfig
    >>> layer, x = ConvNorm(3, 8, 3, AlignVisionConfig()).eval(), torch.rand(1, 3, 5, 5)
    >>> before = layer(x)
    >>> fold_batch_norm(layer)
    >>> layer.bn, torch.allclose(layer(x), before, atol=1e-6)
    (Identity(), True)
    """
    conv, bn = layer.conv, layer.bn
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()  # s, (C_out,)
    weight = conv.weight.double() * scale[:, None, None, None]  # (C_out, C_in/groups, k, k)
    bias = bn.bias.double() - scale * bn.running_mean.double()
    conv.weight, conv.bias = (nn.Parameter(x.to(conv.weight.dtype), False) for x in (weight, bias))
    layer.bn = nn.Identity()


def pad_the_kernel(layer: ConvNorm) -> None:
    """TensorFlow's padding without a copy of the padded activations, in place, for stride 2.

    It pads k//2 − 1 before and k//2 after. With one row and column of zeros before the kernel's own, the
    windows start one pixel earlier and see the same: so k//2 on both sides, which convolutions do themselves.

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
    """float32: what a tower computed in half precision goes on in single.

    >>> single((torch.zeros(1, dtype=torch.bfloat16), None))
    (tensor([0.]), None)
    """
    return tuple(map(single, x)) if isinstance(x, tuple) else x if x is None else x.float()


def pack(weight: Tensor) -> Tensor | None:
    """(C_out, C_in) in the order in which oneDNN's matrix product reads it; None if small or without oneDNN.

    >>> pack(torch.eye(4)) is None
    True
    """
    if weight.numel() <= SMALL or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    operators = torch.ops.mkldnn
    if weight.dtype == torch.bfloat16:
        known = operators._is_mkldnn_bf16_supported()  # not by every processor
    else:
        known = weight.dtype == torch.float32
    if not known or not hasattr(operators, "_linear_pointwise"):
        return None
    return operators._reorder_linear_weight(weight.detach().contiguous())


class PackedLinear(nn.Module):
    """nn.Linear, its weights packed where they can be. (…, C_in) → (…, C_out)

    The operators are PyTorch's own, but not of its public interface: torch.compile uses them on CPUs.

    >>> layer, x = nn.Linear(8, 4), torch.rand(2, 8)
    >>> torch.allclose(PackedLinear(layer.weight, layer.bias)(x), layer(x), atol=1e-6)
    True
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.packed, self.bias = pack(weight), bias
        self.weight = weight if self.packed is None else None  # not both: they are most of the model

    def __deepcopy__(self, memo: dict) -> PackedLinear:
        return self  # packed weights cannot be copied, and nothing here ever changes

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class PointwiseConv(nn.Module):
    """A folded 1×1 convolution, as the matrix product that it is. (B, C_in, H, W) → (B, C_out, H, W).

    >>> conv, x = nn.Conv2d(8, 4, 1), torch.rand(1, 8, 3, 3)
    >>> torch.allclose(PointwiseConv(conv)(x), conv(x), atol=1e-6)
    True
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.out_channels = conv.out_channels
        self.linear = PackedLinear(conv.weight.flatten(1), conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ServedSqueezeExcite(nn.Module):
    """SqueezeExcite without a reduction that is slow in bfloat16, and in place. (B, C, H, W) → the same.

    >>> layer, x = SqueezeExcite(96, 4, F.silu), torch.rand(2, 96, 5, 5)
    >>> torch.allclose(ServedSqueezeExcite(layer)(x.clone()), layer(x), atol=1e-6)
    True
    """

    def __init__(self, layer: SqueezeExcite):
        super().__init__()
        self.reduce, self.expand = PointwiseConv(layer.reduce), PointwiseConv(layer.expand)
        self.activation = layer.activation

    def forward(self, x: Tensor) -> Tensor:
        gate = F.avg_pool2d(x, x.shape[2:])  # (B, C, 1, 1)
        gate = self.activation(self.reduce(gate))  # (B, squeezed, 1, 1)
        return x.mul_(torch.sigmoid(self.expand(gate)))


class ServedVisionModel(nn.Module):
    """An AlignVisionModel, folded: float32 pixels (B, 3, H, W), whatever its dtype → the same outputs.

    >>> from align_minimal import AlignVisionConfig
    >>> tower = AlignVisionModel(AlignVisionConfig(width_coefficient=0.1, depth_coefficient=0.1)).eval()
    >>> ServedVisionModel(tower, torch.bfloat16)(torch.rand(5, 3, 32, 32)).pooler_output.shape
    torch.Size([5, 32])
    """

    def __init__(self, tower: AlignVisionModel, dtype: torch.dtype | None):
        super().__init__()
        for layer in tower.modules():
            if isinstance(layer, ConvNorm):
                fold_batch_norm(layer)
                if layer.pad_first and layer.conv.groups > 1:
                    pad_the_kernel(layer)
                if layer.activation is F.silu:
                    layer.activation = functools.partial(F.silu, inplace=True)
        tower.to(dtype=dtype, memory_format=torch.channels_last)
        for layer in tower.modules():
            if isinstance(layer, ConvNorm) and layer.conv.kernel_size == (1, 1):
                pointwise = PointwiseConv(layer.conv)
                layer.conv = pointwise if pointwise.linear.packed is not None else layer.conv
            elif isinstance(layer, MBConv):
                layer.squeeze_excite = ServedSqueezeExcite(layer.squeeze_excite)
        self.tower = tower
        self.stages: list[nn.Sequential] = [nn.Sequential()]  # each but the last ends where stride is 2
        for block in tower.blocks:
            self.stages[-1].append(block)
            if block.depthwise.conv.stride == (2, 2):
                self.stages.append(nn.Sequential())

    @torch.no_grad()
    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple:
        """As AlignVisionModel.forward, each stage a part of the batch at a time."""
        if pixel_values is None:
            return self.tower(None)  # says what is missing
        check_pixel_values(pixel_values, self.tower.config)
        dtype = self.tower.stem.conv.weight.dtype
        x = in_parts(self.tower.stem, pixel_values.to(dtype, memory_format=torch.channels_last))
        hidden_states = [x]
        for stage in self.tower.blocks if output_hidden_states else self.stages:
            x = in_parts(stage, x)
            if output_hidden_states:
                hidden_states.append(x)
        pool = torch.mean if self.tower.config.pooling_type == "mean" else torch.amax
        last = single(x)
        output = ModelOutput(
            last_hidden_state=last,
            pooler_output=pool(last, (2, 3)),
            hidden_states=single(tuple(hidden_states)) if output_hidden_states else None,
        )
        return output if return_dict is not False else output.to_tuple()


def in_parts(stage: nn.Module, x: Tensor) -> Tensor:
    """stage(x); on a CPU, so many images at a time that its widest activation stays below CACHE bytes.

    >>> in_parts(nn.Conv2d(3, 8, 1), torch.rand(5, 3, 32, 32)).shape
    torch.Size([5, 8, 32, 32])
    """
    widest = max(getattr(layer, "out_channels", 0) for layer in stage.modules())
    size = x[:, :1].numel() * widest * x.element_size()
    parts = x.chunk(max(1, math.ceil(size / CACHE)) if x.device.type == "cpu" else 1)  # of like sizes
    return stage(x) if len(parts) == 1 else torch.cat([stage(part) for part in parts])


class ServedTextModel(nn.Module):
    """An AlignTextModel that does not compute what is padding on the right: ids (B, T) → the same outputs.

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
    ) -> ModelOutput | tuple:
        """As AlignTextModel.forward; in groups where the mask (B, T) shows what is padding."""
        if inputs_embeds is not None:
            inputs_embeds = inputs_embeds.to(self.tower.embeddings.word.weight.dtype)
        inputs = (input_ids, token_type_ids, position_ids, inputs_embeds)
        check_text(self.tower.config, input_ids, attention_mask, *inputs[1:])
        if attention_mask is None or attention_mask.ndim != 2 or output_attentions or output_hidden_states:
            options = head_mask, inputs_embeds, output_attentions, output_hidden_states
            output = self.tower(input_ids, attention_mask, token_type_ids, position_ids, *options)
            output = ModelOutput(**{name: single(value) for name, value in output.__dict__.items()})
        else:
            output = self.in_groups(attention_mask, head_mask, *inputs)
        return output if return_dict is not False else output.to_tuple()

    def in_groups(self, mask: Tensor, head_mask: Tensor | None, *inputs: Tensor | None) -> ModelOutput:
        """GROUP / hidden size texts of like length at a time, on a CPU, cut after the longest; then zeros."""
        B, T = mask.shape
        lengths = ((mask != 0) * torch.arange(1, T + 1, device=mask.device)).amax(1)  # (B,)
        lengths[lengths == 0] = T  # masked throughout, it attends evenly to all of its tokens
        last = mask.new_zeros(B, T, self.tower.config.hidden_size, dtype=torch.float32)  # (B, T, H)
        pooled = None if self.tower.pooler is None else last.new_zeros(B, last.shape[2])
        count = max(1, GROUP // last.shape[2]) if mask.device.type == "cpu" else B
        for rows in lengths.argsort().split(count):
            t = int(lengths[rows].max())
            # position_ids may be one row for all texts
            ids, types, positions, embeds = (
                x if x is None else x[:, :t] if len(x) < B else x[rows, :t] for x in inputs
            )
            part = self.tower(ids, mask[rows, :t], types, positions, head_mask, embeds)
            last[rows, :t] = single(part.last_hidden_state)
            if pooled is not None:
                pooled[rows] = single(part.pooler_output)
        return ModelOutput(last_hidden_state=last, pooler_output=pooled, hidden_states=None, attentions=None)


class ServedModel(AlignModel):
    """What AlignModel.for_inference returns: an AlignModel over both served towers.

    >>> served = AlignModel.from_pretrained("emoji").for_inference()
    >>> type(served).__name__, served.get_image_features(torch.rand(3, 3, 64, 64)).shape
    ('ServedModel', torch.Size([3, 160]))
    """

    def __init__(self, model: AlignModel, dtype: torch.dtype | None):
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, not {dtype}")
        nn.Module.__init__(self)  # AlignModel's own would draw new weights
        model = copy.deepcopy(model).requires_grad_(False).eval()
        self.config = model.config
        self.text_model = ServedTextModel(model.text_model, dtype)
        self.vision_model = ServedVisionModel(model.vision_model, dtype)
        self.text_projection, self.temperature = model.text_projection, model.temperature
        super().train(False)

    def train(self, mode: bool = True) -> ServedModel:
        """RuntimeError: it has no BatchNorm any more."""
        if mode:
            raise RuntimeError(
                "a model made by for_inference cannot be trained; train the one it was made from"
            )
        return super().train(False)

    def _apply(self, convert, recurse: bool = True) -> ServedModel:
        """What `to`, `cuda`, `half`, … call. RuntimeError if it would change anything: weights are packed."""
        after = convert(self.temperature.detach())
        if (after.device, after.dtype) != (self.temperature.device, self.temperature.dtype):
            raise RuntimeError("a model made by for_inference cannot be moved or converted; do so before")
        return self

    def save_pretrained(self, directory) -> None:
        """RuntimeError: no other program would know what was folded."""
        raise RuntimeError("a model made by for_inference cannot be saved; save the one it was made from")

    def for_inference(self, dtype: torch.dtype | None = None) -> AlignModel:
        """Itself; RuntimeError if asked for a dtype, as what was rounded stays rounded."""
        if dtype is not None:
            raise RuntimeError("this model was made by for_inference; call it on the original for a dtype")
        return self
