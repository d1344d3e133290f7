"""One TWINS-AT step as one would write it down first: the yardstick for speed, and an independent check of the result.

Two batch norms at each place, a switch between them, one pass per wing, PGD on the live network in eval mode. Ordinary
good PyTorch: gradients of the attack for the image only, nothing waits for the device. It shares no code with twinslib.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn


class TwoBatchNorms(nn.Module):
    """An adaptive and a frozen batch norm; `wing` names the one in use."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.adaptive, self.frozen = norm, copy.deepcopy(norm)
        self.wing = "adaptive"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.wing)(x)


def two_wings(model: nn.Module) -> nn.Module:
    """A copy of `model` with two batch norms at each place of one."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, TwoBatchNorms(child))
    return model


def norms(model: nn.Module) -> Iterator[TwoBatchNorms]:
    return (module for module in model.modules() if isinstance(module, TwoBatchNorms))


def set_mode(model: nn.Module, training: bool) -> None:
    """Training or eval mode; the frozen batch norms stay in eval mode."""
    model.train(training)
    for norm in norms(model):
        norm.frozen.eval()


def set_wing(model: nn.Module, wing: str) -> None:
    for norm in norms(model):
        norm.wing = wing


class TextbookStep:
    """Attack, two passes, one backward pass, one SGD step (Liu et al. 2023, TWINS-AT).

    Args:
        model: made by `two_wings`; trained in place.
        autocast: bfloat16 by `torch.autocast`; otherwise float32.
        others: as in `twinslib.config`, eps and step_size in [0, 1] pixels.
    """

    def __init__(self, model: nn.Module, *, eps: float, step_size: float, steps: int, twins_weight: float, lr: float,
                 momentum: float, weight_decay: float, autocast: bool) -> None:
        self.model, self.eps, self.step_size, self.steps = model, eps, step_size, steps
        self.twins_weight, self.autocast = twins_weight, autocast
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)

    def precision(self, x: torch.Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast)

    def attack(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """PGD on the adaptive wing in eval mode: uniform start in the Linf ball, the last iterate."""
        set_mode(self.model, False)
        set_wing(self.model, "adaptive")
        start = torch.empty_like(x).uniform_(-self.eps, self.eps, generator=generator)
        x_adv = (x + start).clamp(0, 1)
        for _ in range(self.steps):
            x_adv.requires_grad_()
            with self.precision(x):
                loss = F.cross_entropy(self.model(x_adv), y)
            gradient, = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + self.step_size * gradient.sign()
            x_adv = (x + (x_adv - x).clamp(-self.eps, self.eps)).clamp(0, 1)
        return x_adv

    def __call__(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Images (B, 3, S, S) in [0, 1] and labels (B,); returns the loss, on the device."""
        x_adv = self.attack(x, y, generator)
        set_mode(self.model, True)
        half = len(x) // 2
        self.optimizer.zero_grad()
        with self.precision(x):
            set_wing(self.model, "frozen")
            frozen = F.cross_entropy(self.model(x_adv[:half]), y[:half])
            set_wing(self.model, "adaptive")
            adaptive = F.cross_entropy(self.model(x_adv[half:]), y[half:])
            loss = self.twins_weight * frozen + adaptive
        loss.backward()
        self.optimizer.step()
        return loss.detach()
