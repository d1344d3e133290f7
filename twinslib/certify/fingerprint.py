"""What a network computes, told by its logits on fixed images: the name under which its votes are kept.

A hash of weights is not enough. `Pos(net)` and `Neg(net)`, GELU for ReLU, another upsampling and another branch all have the
weights of another function. Logits are compared with a tolerance, since another processor, batch size or number of threads
rounds in another way.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..base.errors import Diverged
from ..base.logits import FLOAT, IMAGES, TOLERANCE, distance

AGAIN = {"bfloat16": 2 ** -8}  # the same batch on one machine: one step of the numbers; measured: 0


def fixed_images(shape: tuple[int, ...], count: int = 2 * IMAGES) -> Tensor:
    """Float32 images in [0, 1], the same on every machine: from nearly plain colours to nothing but noise, and again."""
    generator, ones = torch.Generator().manual_seed(0), [1] * (len(shape) - 1)
    plain = torch.rand((count, shape[0], *ones), generator=generator)
    noise = torch.rand((count, *shape), generator=generator)
    share = (torch.arange(count) % IMAGES + 1) / IMAGES
    return torch.lerp(plain, noise, share.view(-1, 1, *ones))


def fingerprint(run: Callable[[Tensor], Tensor], shape: tuple[int, ...], precision: str) -> np.ndarray:
    """Logits on the first `IMAGES` fixed images, float32 (IMAGES, classes); refuses what cannot be certified.

    The images are seen twice, in other company and alone: an answer must depend on nothing but its image.

    Args:
        run: images on the CPU, float32 (B, *shape), to logits (B, classes), as they are certified.
    Raises:
        ValueError: logits that depend on the other images of the batch, on its size, on chance or on what was asked before.
        Diverged: logits that are not finite.
    """
    images, others = fixed_images(shape).split(IMAGES)
    company = torch.where((torch.arange(IMAGES) % 2 == 0).view(-1, *[1] * len(shape)), images, others)
    before = _random_states()
    first, mixed, alone, again = (_numbers(run(x)) for x in (images, company, images[:1], images))
    last = _numbers(run(images[-1:]))
    noise, loose = distance(first, again), TOLERANCE.get(precision, FLOAT)
    if _random_states() != before or noise > AGAIN.get(precision, FLOAT):
        raise ValueError("expected a network that answers an image twice with the same logits, got one that draws random "
                         "numbers or changes in its forward pass: votes could not be repeated or continued; turn dropout, "
                         "random crops and the like off")
    tight = max(FLOAT, 2 * noise)  # a batch of the same shape rounds alike, whatever else is in it
    for got, expected, limit in ((mixed[::2], first[::2], tight), (alone, first[:1], loose), (last, first[-1:], loose)):
        if distance(got, expected) > limit:
            raise ValueError("expected a network that answers each image on its own, got logits that change by "
                             f"{distance(got, expected):.2g} of their size with the other images of the batch or their number: "
                             "copies depend on each other and nothing can be certified; use running statistics, and leave out "
                             "what mixes the batch")
    return first.astype(np.float32)


def _numbers(logits: Tensor) -> np.ndarray:
    values = logits.double().cpu().numpy()
    if not np.isfinite(values).all():
        raise Diverged("expected finite logits on fixed images in [0, 1], got NaN or infinity; check the weights")
    return values


def _random_states() -> tuple:
    """Of all generators that a forward pass may draw from without saying so."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    state = np.random.get_state()  # noqa: NPY002  that of others
    return (*(s.numpy().tobytes() for s in (torch.get_rng_state(), *cuda)), state[1].tobytes(), state[2], random.getstate())
