"""What the tests of networks share: small networks, statistics that are not the initial ones, hooks, comparisons."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from twinslib.nets.models import make_model


def tiny(seed: int = 0, classes: int = 4, **changes) -> nn.Module:
    """A `Classifier` for images of 16 pixels, whose head is network.fc with 32 features."""
    return make_model("tiny_resnet", classes, seed=seed, **changes)


def small() -> nn.Module:
    """A cheap network with two batch norms, for images of 8 pixels."""
    torch.manual_seed(0)
    stem, body = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 6, 3)
    return nn.Sequential(stem, nn.BatchNorm2d(4), nn.ReLU(), body, nn.BatchNorm2d(6), nn.Flatten())


def equal(a: nn.Module | Mapping, b: nn.Module | Mapping) -> bool:
    """The same names with the same values, of two networks or dicts of tensors."""
    a, b = (value.state_dict() if isinstance(value, nn.Module) else value for value in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affine weights, different in every layer and wing; other weights change a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                module.running_mean.add_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.mul_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def hooked(layer: nn.Module, kind: str = "forward") -> nn.Module:
    """The layer with a hook that changes what passes."""
    hook = {"forward": lambda m, inputs, out: out * 1.5, "forward_pre": lambda m, inputs: (inputs[0] * 1.5,),
            "full_backward": lambda m, gradient, _: (gradient[0] * 1.5,)}[kind]
    getattr(layer, f"register_{kind}_hook")(hook)
    return layer


def overridden(layer: nn.Module) -> nn.Module:
    """The layer with `forward` replaced on the instance, by a function that holds the old one."""
    old = layer.forward
    layer.forward = lambda x: old(x) * 1.5
    return layer


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
