"""Augmentation as batched tensor code on the images' device: uint8 in, float32 in [0, 1] out."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import choose
from ..specs.choices import AUGMENTATIONS

_PAD = 4  # zero border of the random crop, in pixels; the usual recipe for 32-pixel images


def centre(images: Tensor, size: int | None) -> Tensor:
    """The middle of images (…, S, S) at `size` pixels; all of them for None."""
    side = images.shape[-1]
    if size is None or size >= side:
        return images
    a = (side - size) // 2
    return images[..., a:a + size, a:a + size].contiguous()


def to_float(images: Tensor) -> Tensor:
    """Turn uint8 images into float32 in [0, 1]."""
    return images.to(torch.float32, copy=True).div_(255)


def augment(images: Tensor, kind: str, generator: torch.Generator | None = None, *, size: int | None = None) -> Tensor:
    """Return augmented images, float32 in [0, 1], computed on the images' device without a host synchronisation.

    Kinds: "none"; "crop", a random crop after a border of 4 zero pixels; "crop_flip", the same and a horizontal flip
    with probability 1/2; "resized_crop_flip", 8 to 100 % of the area at a ratio of 3/4 to 4/3, resized bilinearly
    without antialiasing, and flipped (the sampling of torchvision's RandomResizedCrop, but from the packed square, not
    from the whole image); "center_crop".

    Args:
        images: (B, 3, S, S) uint8.
        generator: source of randomness on the images' device; needed by all kinds but "none" and "center_crop".
        size: side of the result, by default S; only "resized_crop_flip" and "center_crop" can change it.
    """
    choose(kind, AUGMENTATIONS, "augment kind")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"expected images (B, C, S, S) uint8, got shape {tuple(images.shape)} of {images.dtype}")
    side = images.shape[3]
    size = side if size is None else size
    if size < 1 or (size > side and kind != "resized_crop_flip") or (size != side and "crop" in kind.split("_")[:1]):
        raise ValueError(f"expected a size that {kind!r} can make of {side} pixels, got {size}; leave size out")
    if kind == "none":
        if size != side:
            raise ValueError(f"expected size {side} for 'none', got {size}; use 'center_crop'")
        return to_float(images)
    if kind == "center_crop":
        return to_float(centre(images, size))
    if generator is None:
        raise ValueError(f"expected a torch.Generator on {images.device} for {kind!r}, got None")
    if kind == "resized_crop_flip":
        boxes = _crop_boxes(len(images), side, generator, images.device)
        return _resize_boxes(images, *boxes, _random_flags(images, generator), size)
    return to_float(_random_crop(images, generator, flip=kind == "crop_flip"))


def _random_flags(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (len(images),), generator=generator, device=images.device, dtype=torch.bool)


def _random_crop(images: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    batch, channels, side, _ = images.shape
    device = images.device
    span = torch.arange(side, device=device)
    offsets = torch.randint(2 * _PAD + 1, (2, batch, 1), generator=generator, device=device)
    rows, columns = offsets[0] + span, offsets[1] + span
    if flip:
        columns = torch.where(_random_flags(images, generator)[:, None], columns.flip(1), columns)
    wide = side + 2 * _PAD
    padded = F.pad(images, (_PAD,) * 4).flatten(2)
    flat = (rows[:, :, None] * wide + columns[:, None, :]).flatten(1)
    return padded.gather(2, flat[:, None, :].expand(-1, channels, -1)).view(batch, channels, side, side)


def _crop_boxes(batch: int, side: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
    """Sample (top, left, height, width), each (B,) in whole pixels: the first of ten tries that fits, or all."""
    tries = torch.rand(2, batch, 10, generator=generator, device=device)
    area = side * side * (0.08 + 0.92 * tries[0])
    ratio = torch.exp((2 * tries[1] - 1) * math.log(4 / 3))
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths <= side) & (heights <= side) & (widths > 0) & (heights > 0)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    none = ~fits.any(1)
    width = widths.gather(1, first)[:, 0].masked_fill(none, side)
    height = heights.gather(1, first)[:, 0].masked_fill(none, side)
    place = torch.rand(2, batch, generator=generator, device=device)
    top = (place[0] * (side - height + 1)).floor().clamp_(max=side - height)
    left = (place[1] * (side - width + 1)).floor().clamp_(max=side - width)
    return top, left, height, width


def _resize_boxes(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut one box (B,) out of each image and resize it bilinearly to (size, size), mirrored where `flip`."""
    side = images.shape[3]
    steps = (torch.arange(size, device=images.device) + 0.5) / size

    def coordinates(start: Tensor, length: Tensor) -> Tensor:  # pixel centres, kept inside the box, as -1..1
        centre = start[:, None] + steps * length[:, None]
        inside = torch.minimum(torch.maximum(centre, start[:, None] + 0.5), (start + length)[:, None] - 0.5)
        return inside * (2 / side) - 1

    y, x = coordinates(top, height), coordinates(left, width)
    x = torch.where(flip[:, None], x.flip(1), x)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1).float()
    return F.grid_sample(to_float(images), grid, mode="bilinear", padding_mode="border", align_corners=False)
