"""Gaussian noise on images, in [0, 1] pixels and before the network's own normalisation: in training, and to re-estimate
statistics under it."""

import copy
import itertools

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from .config import NoiseSpec
from .data import to_float


def levels(spec: NoiseSpec, n: int, generator: torch.Generator) -> torch.Tensor:
    """The sigma of each of n images, shape (n,), on the generator's device."""
    device = generator.device
    if spec.draw == "uniform":
        low, high = min(spec.sigmas), max(spec.sigmas)
        return low + (high - low) * torch.rand(n, generator=generator, device=device)
    several = n if spec.draw == "image" else 1
    index = torch.randint(len(spec.sigmas), (several,), generator=generator, device=device)
    return torch.tensor(spec.sigmas, device=device)[index].expand(n)


def noisy(x: torch.Tensor, spec: NoiseSpec, generator: torch.Generator) -> torch.Tensor:
    """x + sigma e with e standard normal, sigma as `spec` draws it; x is (N, 3, S, S) in [0, 1], the result is not clipped."""
    sigma = levels(spec, len(x), generator).to(x.dtype).view(-1, 1, 1, 1)
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype).mul_(sigma).add_(x)


def reestimated(model: torch.nn.Module, images: torch.Tensor, sigma: float, *, seed: int,
                batch_size: int = 250) -> torch.nn.Module:
    """A copy of a network whose batch norms hold the statistics of `images` with N(0, sigma^2) noise; nothing else changes.

    Each statistic is the mean over batches of the batch's own mean and unbiased variance; labels are not used. Networks
    without batch norm come back equal.

    Args:
        images: uint8, (N, 3, S, S), on the device of the network; a last batch that is not whole is left out.
    Raises:
        ValueError: fewer images than a batch of two.
    """
    if len(images) < 2:
        raise ValueError(f"expected at least two images to estimate statistics on, got {len(images)}")
    model, size = copy.deepcopy(model), min(batch_size, len(images))
    modules = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for module in modules:
        module.reset_running_stats()
        module.momentum = None  # cumulative mean
        module.train()
    with torch.no_grad():
        for count in itertools.count():
            part = images[count * size:(count + 1) * size]
            if len(part) < size:
                break
            generator = torch.Generator(part.device).manual_seed(1_000_003 * seed + count)
            model(noisy(to_float(part), NoiseSpec(sigmas=(sigma,)), generator))
    for module in modules:
        module.eval()
    return model
