"""What happens to an image at random before it is learnt from: the paper's crop and flip, or more."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZE = 346 / 289  # section 5: resized to 346 × 346, of which 289 × 289 are seen


def crop_and_flip(pixels: Tensor, size: int, flip: Tensor, draw: torch.Generator) -> Tensor:
    """The paper's augmentation: a random crop, mirrored where `flip`. (B, C, R, R) → (B, C, size, size)

    >>> flip = torch.tensor([True, False])
    >>> crop_and_flip(torch.zeros(2, 3, 10, 10), 8, flip, torch.Generator()).shape
    torch.Size([2, 3, 8, 8])
    """
    room = pixels.shape[-1] - size + 1
    tops, lefts = torch.randint(room, (2, len(pixels)), generator=draw).tolist()
    crops = [x[:, t : t + size, s : s + size] for x, t, s in zip(pixels, tops, lefts, strict=True)]
    crops = torch.stack(crops)
    return torch.where(flip[:, None, None, None], crops.flip(-1), crops)


def distort(pixels: Tensor, size: int, flip: Tensor, draw: torch.Generator) -> Tensor:
    """For small sets of drawings: turned, stretched, sheared, moved, tinted, blurred, on any background.

    (B, 4, R, R) red, green, blue times alpha, and alpha, in [0, 255] → (B, 3, size, size) in [0, 255].

    >>> flip = torch.tensor([True, False])
    >>> distort(torch.zeros(2, 4, 10, 10), 8, flip, torch.Generator()).shape
    torch.Size([2, 3, 8, 8])
    """
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=draw)

    angle = uniform(-0.35, 0.35)  # radians, about 20 degrees
    scale, stretch = uniform(0.8, 1.25), uniform(-0.12, 0.12).exp()
    cos, sin, shear = angle.cos() * scale, angle.sin() * scale, uniform(-0.15, 0.15)
    mirror = torch.where(flip, -1.0, 1.0)
    x_row = torch.stack([mirror * cos * stretch, shear - sin, uniform(-0.12, 0.12)], dim=1)
    y_row = torch.stack([mirror * sin, cos / stretch, uniform(-0.12, 0.12)], dim=1)
    grid = F.affine_grid(torch.stack([x_row, y_row], dim=1), [count, 4, size, size], align_corners=False)
    rgba = F.grid_sample(pixels.float() / 255, grid, align_corners=False)  # (B, 4, size, size), 0 outside

    one = (1, 1, 1)
    background = torch.where(uniform(0, 1, *one) < 0.5, 1.0, uniform(0, 1, 3, 1, 1))
    rgb = rgba[:, :3] + (1 - rgba[:, 3:]) * background  # (B, 3, size, size)
    grey = rgb.mean(dim=1, keepdim=True)
    saturation = torch.where(uniform(0, 1, *one) < 0.1, 0.0, uniform(0.5, 1.5, *one))
    rgb = grey + saturation * (rgb - grey)
    rgb = rgb * uniform(0.75, 1.2, 3, 1, 1) + uniform(-0.1, 0.1, *one)
    blurred = F.avg_pool2d(rgb, 3, stride=1, padding=1, count_include_pad=False)
    return torch.where(uniform(0, 1, *one) < 0.2, blurred, rgb).clamp(0, 1) * 255


AUGMENTATIONS = {"paper": ("RGB", crop_and_flip), "drawings": ("RGBa", distort)}  # mode to decode to, then
