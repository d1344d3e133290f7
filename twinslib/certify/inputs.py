"""What a certification is given, taken in the forms that users have and checked before any work."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..attack.pgd import Forward
from ..base.errors import choose
from ..base.files import check_writable
from ..base.sequential import Plan
from ..nets.copies import device_of

PRECISIONS = {"float32": (torch.float32,), "float64": (torch.float64,), "bfloat16": (torch.bfloat16, torch.float32)}


def as_tensors(forward: Forward, images: object, labels: object) -> tuple[Tensor, Tensor | None]:
    """Images and labels as tensors: arrays of images on the network's device, labels of any integers as int64."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "uif":
        images = torch.tensor(np.ascontiguousarray(images), device=device_of(forward) if isinstance(forward, nn.Module) else None)
    if not isinstance(images, Tensor):
        raise TypeError(f"expected images as one tensor or array, got {type(images).__name__}; use torch.stack")
    if labels is not None and not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(np.array(labels), device=images.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"expected int64 labels of shape ({len(images)},), got {type(labels).__name__} ({error})") from None
    whole = labels is not None and not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return images, labels.long() if whole else labels


def check_arguments(forward: Forward, images: Tensor, plan: Plan, labels: Tensor | None, indices: Sequence[int] | None,
                    precision: str, batch_size: int, save_every: float, file: str | Path | None) -> np.ndarray:
    """Refuse what would spoil the guarantee or fail later; returns the indices."""
    if not callable(forward) or not isinstance(plan, Plan):
        raise TypeError(f"expected a network and a plan, got {type(forward).__name__} and {type(plan).__name__}; make a plan "
                        "with certify_plan, sequential_plan or exact_plan")
    dtypes = PRECISIONS[choose(precision, PRECISIONS, "precision")]
    if isinstance(forward, nn.Module):
        for name, module in forward.named_modules():
            if module.training:
                raise ValueError(f"expected a network in eval mode, got {name or 'the network'} in training mode, where copies "
                                 "depend on each other and on chance; use eval_mode(model)")
            if isinstance(module, _BatchNorm) and module.running_mean is None:
                raise ValueError(f"expected batch norms with running statistics, got none in {name}, where copies depend on each "
                                 "other and nothing can be certified; use another norm")
        for name, tensor in (*forward.named_parameters(), *forward.named_buffers()):
            if tensor.is_floating_point() and tensor.dtype not in dtypes:
                raise ValueError(f"expected a network in {precision}, got {name} in {tensor.dtype}; say in which precision it is "
                                 "certified, or convert it")
            if tensor.device.type != images.device.type:
                raise ValueError(f"expected the network on {images.device}, the device of the images, got {name} on "
                                 f"{tensor.device}")
    if images.ndim < 2 or len(images) == 0 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise TypeError("expected at least one image, uint8 of shape (N, 3, S, S) or floats of shape (N, ...), got "
                        f"{tuple(images.shape)} in {images.dtype}")
    if plan.sound and images.dtype != torch.uint8:
        raise TypeError(f"expected uint8 images for a sound plan, whose noise is on whole 8-bit levels, got {images.dtype}")
    if images.is_floating_point() and not (images.amin() >= 0 and images.amax() <= 1):
        raise ValueError(f"expected images in [0, 1], got {images.amin():g}..{images.amax():g}; divide by 255, and normalise "
                         "inside the network, or sigma and radii are in other units")
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1]):
        raise TypeError(f"expected int64 labels of shape ({len(images)},), got {tuple(labels.shape)} in {labels.dtype}")
    indices = indices.cpu() if isinstance(indices, Tensor) else indices
    index = np.arange(len(images)) if indices is None else np.asarray(indices)
    if index.dtype.kind not in "iu" or index.shape != (len(images),) or len(set(index.tolist())) < len(index) or index.min() < 0:
        raise ValueError(f"expected {len(images)} different indices of at least 0, one per image, got shape {index.shape} of "
                         f"{index.dtype}, or an image twice")
    if batch_size < 1 or not save_every >= 0:
        raise ValueError(f"expected batch_size to be an integer of at least 1 and save_every of at least 0, got {batch_size} and "
                         f"{save_every:g}")
    if file is not None:
        check_writable(file)
    return index.astype(np.int64)


def checksums(images: Tensor) -> np.ndarray:
    """CRC-32 of the pixels of each image, uint32 (N,)."""
    return np.array([zlib.crc32(image.contiguous().numpy().data) for image in images.cpu()], np.uint32)
