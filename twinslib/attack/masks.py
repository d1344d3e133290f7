"""Clean, PGD and AutoAttack accuracy as one boolean per test image; every number here is computed in float32.

Images are attacked in blocks of `batch_size`. The random numbers of a block depend on (seed, attack, number of the
block) only, so a caller may compute blocks one at a time, in any order and after any interruption (`block` is the
number of the first), and get the masks of an undisturbed run.

`forward` is a callable from float32 images (B, 3, S, S) in [0, 1] to logits, in eval mode, with frozen parameters, on
the device of the images. Robust accuracy under any attack is an upper bound of the robust accuracy.

An image counts as broken where its logits or its gradient turn out not finite under attack, since then it was not
attacked; a network whose gradient is finite on no image is refused (`Diverged`), for its accuracy would say nothing.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..base.errors import Diverged, integer
from ..nets.arithmetic import full_float32
from ..nets.copies import device_of
from .pgd import Forward, finite, input_gradient, logits_of, pgd, pgd_robust_mask

log = logging.getLogger(__name__)
TRIED = 8  # images whose gradients tell a network that cannot be attacked from one that is broken everywhere
MEND = "mend the layer that it comes from, such as a root at 0 or a division by 0"


def block_seed(seed: int, purpose: str, block: int) -> int:
    """Seed of one block, in 0..2^63 - 1; the streams of different seeds, purposes and blocks are unrelated.

    >>> block_seed(0, "pgd", 1)
    3946584418323278954
    """
    digest = hashlib.sha256(f"{integer(seed, 'seed')}/{purpose}/{block}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def clean_mask(forward: Forward, images: Tensor, labels: Tensor, *, batch_size: int) -> Tensor:
    """True where the clean image is classified correctly.

    >>> images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    >>> clean_mask(lambda x: torch.stack([1 - x[:, 0, 0, 0], x[:, 0, 0, 0]], 1), images, [0, 0], batch_size=2)
    tensor([ True, False])

    Args:
        images: uint8, shape (N, 3, S, S), a tensor on the device of the network or a NumPy array.
        labels: integers, shape (N,), each below the number of logits; a tensor, an array or a list.
        batch_size: images per forward pass; changes nothing but rounding.
    Returns:
        bool, shape (N,), on the CPU.
    Raises:
        ValueError, TypeError: wrong shape or type, a label outside the logits, a network in training mode
            or not in float32, or one that does not return logits alone.
        Diverged: logits that are not finite.
    """
    images, labels = tensors(forward, images, labels)
    with full_float32(images.device):
        masks = [clean_logits(forward, x, labels).argmax(1) == y for _, x, y in blocks(forward, images, labels, batch_size, 0)]
        return torch.cat(masks).cpu()


def pgd_mask(forward: Forward, images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int,
             restarts: int = 1, threat: str = "linf", seed: int = 0, batch_size: int, block: int = 0) -> Tensor:
    """True where the prediction is right on the clean image and on every PGD iterate of every restart.

    See `clean_mask` for images, labels, result and errors, `pgd.pgd_robust_mask` for the attack. `Diverged` here
    stands for a network without finite gradients; logits that are not finite break the image.

    Args:
        seed: of the random starts, which are the same for every network.
        batch_size: images per block; part of what names the result.
        block: number of the first block in images.
    """
    images, labels = tensors(forward, images, labels)
    masks = []
    with full_float32(images.device):
        for number, x, y in blocks(forward, images, labels, batch_size, block):
            clean_logits(forward, x[:1], labels)
            generator = torch.Generator(x.device).manual_seed(block_seed(seed, "pgd", number))
            mask = pgd_robust_mask(forward, x, y, eps=eps, step_size=step_size, steps=steps, restarts=restarts,
                                   threat=threat, generator=generator)
            if eps > 0 and steps > 0 and not mask.any():
                check_attackable(forward, x, y)
            masks.append(mask)
        return torch.cat(masks).cpu()


def pgd_losses(forward: Forward, images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int,
               threat: str = "linf", seed: int = 0, batch_size: int) -> tuple[Tensor, Tensor]:
    """(True where the prediction is right at PGD's last iterate, cross-entropy there in nats), each (N,), on the CPU.

    Every image is attacked to the end, so that losses can be averaged; see `pgd_mask` for the arguments and errors,
    `pgd.pgd` for the attack. `Diverged` stands for a gradient or logits that are not finite.
    """
    images, labels = tensors(forward, images, labels)
    masks, losses = [], []
    with full_float32(images.device):
        for number, x, y in blocks(forward, images, labels, batch_size, 0):
            clean_logits(forward, x[:1], labels)
            generator = torch.Generator(x.device).manual_seed(block_seed(seed, "pgd", number))
            x_adv = pgd(forward, x, y, eps=eps, step_size=step_size, steps=steps, threat=threat, generator=generator)
            check_attacked(x_adv)
            logits = clean_logits(forward, x_adv, labels)
            masks.append(logits.argmax(1) == y)
            losses.append(torch.nn.functional.cross_entropy(logits, y, reduction="none"))
        return torch.cat(masks).cpu(), torch.cat(losses).cpu()


def check_attacked(x_adv: Tensor) -> None:
    """Refuse what `pgd.pgd` returns where a gradient was not finite."""
    failed = int((~finite(x_adv)).sum())
    if failed:
        raise Diverged(f"expected finite gradients with respect to the images, got NaN or infinity on {failed} of "
                       f"{len(x_adv)} images; {MEND}")


def tensors(forward: Forward, images: Tensor | np.ndarray,
             labels: Tensor | np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Both as tensors, labels in int64 where they are integers; arrays and lists go to the device of the network."""
    network = device_of(forward) if isinstance(forward, nn.Module) else torch.device("cpu")
    device = images.device if isinstance(images, Tensor) else network
    images, labels = _tensor(images, "images").to(device), _tensor(labels, "labels").to(device)
    integers = labels.dtype != torch.bool and torch.can_cast(labels.dtype, torch.int64)
    return images, labels.long() if integers else labels


def _tensor(values: object, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    try:
        return torch.from_numpy(np.require(values, requirements=("C", "W")))
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected {name} as a tensor or an array, got a {type(values).__name__}: {error}") from None


def blocks(forward: Forward, images: Tensor, labels: Tensor, batch_size: int,
            first: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Check the arguments, then yield (number, x float32 contiguous NCHW in [0, 1], y) block by block."""
    if isinstance(forward, nn.Module):
        training = next((name or "the network" for name, m in forward.named_modules() if m.training), None)
        if training is not None:
            raise ValueError(f"expected a network in eval mode, got {training} in training mode; use eval_mode(model)")
        other = next((name for name, p in forward.named_parameters() if p.dtype != torch.float32), None)
        if other is not None:
            raise ValueError(f"expected a float32 network, got {other} in {forward.get_parameter(other).dtype}; robust "
                             "accuracy is measured in float32 only")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        hint = "; use permute(0, 3, 1, 2)" if images.ndim == 4 and images.shape[-1] == 3 else ""
        raise TypeError(f"expected uint8 images of shape (N, 3, S, S), got {tuple(images.shape)} in {images.dtype}{hint}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or len(labels) == 0:
        raise TypeError(f"expected int64 labels of shape ({len(images)},), at least one, got {tuple(labels.shape)} in "
                        f"{labels.dtype}")
    batch_size, first = integer(batch_size, "batch_size", 1), integer(first, "block", 0)
    for i, start in enumerate(range(0, len(images), batch_size)):
        x = images[start:start + batch_size].float().div_(255).contiguous()
        yield first + i, x, labels[start:start + batch_size]


def clean_logits(forward: Forward, x: Tensor, y: Tensor) -> Tensor:
    """Logits, checked (NaN would otherwise count as a prediction of class 0); y may be the labels of more images."""
    with torch.no_grad():
        logits = logits_of(forward, x)
    if logits.dtype != torch.float32 or logits.shape[1] < 2:
        raise ValueError(f"expected float32 logits of at least 2 classes, got {logits.shape[1]} in {logits.dtype}; "
                         "evaluate a float32 copy of the network")
    if not torch.isfinite(logits).all():
        raise Diverged("expected finite logits, got NaN or infinity; check the weights")
    if y.min() < 0 or y.max() >= logits.shape[1]:
        raise ValueError(f"expected labels in 0..{logits.shape[1] - 1}, the classes of the network, got "
                         f"{int(y.min())}..{int(y.max())}; replace the head or choose the matching data")
    return logits


def check_attackable(forward: Forward, x: Tensor, y: Tensor) -> None:
    """Refuse a network that has a finite gradient on none of the first images; asked where nothing stands."""
    if not finite(input_gradient(forward, x[:TRIED], y[:TRIED])).any():
        raise Diverged("expected finite gradients with respect to the images, got NaN or infinity on every image "
                       f"that was tried; {MEND}")


@contextmanager
def frozen(forward: Forward) -> Iterator[None]:
    """No parameter asks for a gradient inside (FAB runs a full backward pass, which would fill them)."""
    parameters = [p for p in forward.parameters() if p.requires_grad] if isinstance(forward, nn.Module) else []
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
