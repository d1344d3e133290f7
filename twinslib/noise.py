"""Gaussian noise on training images, in [0, 1] pixels and before the network's own normalisation."""

import torch

from .config import NoiseSpec


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
