"""Gaussian noise on images, in [0, 1] pixels and before the network's own normalisation: in training, to re-estimate
statistics under it, and to see how far stored statistics are from those that it brings."""

import itertools

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.augment import to_float
from ..nets.copies import duplicate
from ..specs.choices import MISMATCHES
from ..specs.run import NoiseSpec


def levels(spec: NoiseSpec, n: int, generator: torch.Generator) -> torch.Tensor:
    """The sigma of each of n images, shape (n,), on the generator's device.

    >>> levels(NoiseSpec(sigmas=(0.25,)), 3, torch.Generator())
    tensor([0.2500, 0.2500, 0.2500])
    """
    device = generator.device
    if spec.draw == "uniform":
        low, high = min(spec.sigmas), max(spec.sigmas)
        return low + (high - low) * torch.rand(n, generator=generator, device=device)
    several = n if spec.draw == "image" else 1
    index = torch.randint(len(spec.sigmas), (several,), generator=generator, device=device)
    sigmas = torch.stack([torch.full((), sigma, device=device) for sigma in spec.sigmas])  # sending a list would wait
    return sigmas[index].expand(n)


def noisy(x: torch.Tensor, spec: NoiseSpec, generator: torch.Generator) -> torch.Tensor:
    """x + sigma e with e standard normal, sigma as `spec` draws it; x is (N, 3, S, S) in [0, 1], the result is not clipped."""
    sigma = levels(spec, len(x), generator).to(x.dtype).view(-1, 1, 1, 1)
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype).mul_(sigma).add_(x)


def reestimated(model: torch.nn.Module, images: torch.Tensor, sigma: float, *, seed: int,
                batch_size: int = 250) -> torch.nn.Module:
    """A copy of a network whose batch norms hold the statistics of `images` with N(0, sigma^2) noise; nothing else changes,
    frozen wings neither.

    Each statistic is the mean over batches of the batch's own mean and unbiased variance; labels are not used. Networks
    without batch norm come back equal.

    Args:
        images: uint8, (N, 3, S, S), two at least, on the device of the network; a last batch that is not whole is left out.
    """
    if len(images) < 2:
        raise ValueError(f"expected at least two images to estimate statistics on, got {len(images)}")
    model, size = duplicate(model), min(batch_size, len(images))
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


def mismatch(model: torch.nn.Module, images: torch.Tensor, sigma: float, *, seed: int = 0,
             batch_size: int = 250) -> dict[str, dict[str, float]]:
    """How far the statistics that each batch norm meets on `images` with N(0, sigma^2) noise are from those that it stores.

    The network runs in eval mode, as it is certified, so a layer meets what the layers before it pass on. With stored (m, v),
    met (m', v') and the norm's own eps added to each variance, means over channels of: mean_shift |m' - m| / sqrt(v);
    log_variance |log(v' / v)|; divergence, of the two normal distributions, (v'/v + (m' - m)^2/v - 1 - log(v'/v)) / 2;
    wasserstein (m' - m)^2 + (sqrt v' - sqrt v)^2.

    Args:
        images: uint8, (N, 3, S, S), on the device of the network, all of which are used. sigma: 0 for clean images.
    Returns:
        name of each batch norm that images pass (frozen wings do not), in the order of the network -> MISMATCHES.
    """
    if len(images) == 0:
        raise ValueError("expected at least one image to measure statistics on, got none")
    model = duplicate(model).eval()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    sums: dict[str, list] = {name: [0, 0.0, 0.0] for name in norms}

    def count(name: str, x: torch.Tensor) -> None:
        x = x.detach().double().transpose(0, 1).flatten(1)
        total = sums[name]
        total[0], total[1], total[2] = total[0] + x.shape[1], total[1] + x.sum(1), total[2] + x.square().sum(1)

    for name, module in norms.items():
        module.register_forward_pre_hook(lambda _, inputs, name=name: count(name, inputs[0]))
    with torch.no_grad():
        for number, part in enumerate(images.split(batch_size)):
            generator = torch.Generator(part.device).manual_seed(1_000_003 * seed + number)
            x = to_float(part)
            model(noisy(x, NoiseSpec(sigmas=(sigma,)), generator) if sigma else x)
    out = {}
    for name, module in norms.items():
        n, total, squares = sums[name]
        if n == 0:
            continue
        m, v = module.running_mean.double(), module.running_var.double() + module.eps
        met = total / n
        var = (squares / n - met.square()).clamp(min=0) + module.eps
        shift = (met - m).square()
        values = (shift.sqrt() / v.sqrt(), (var / v).log().abs(), (var / v + shift / v - 1 - (var / v).log()) / 2,
                  shift + (var.sqrt() - v.sqrt()).square())
        out[name] = {key: value.mean().item() for key, value in zip(MISMATCHES, values, strict=True)}
    return out
