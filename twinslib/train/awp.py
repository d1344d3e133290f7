"""Adversarial weight perturbation: training at weights that are a little worse than they are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def perturbed(model: torch.nn.Module, loss: Callable[[], torch.Tensor], gamma: float) -> Iterator[None]:
    """Inside, each weight with two or more dimensions stands at w + gamma ||w|| g / ||g||, g its gradient of `loss()`.

    AWP (Wu, Xia and Wang 2020) with one ascent step, as in its code (csdongxian/AWP): norms are per tensor, biases and the
    affine parameters of norms stay. The pass that finds g leaves buffers (running statistics) as they were. On leaving, the
    weights have their old values exactly; the official code subtracts after the optimiser's step instead, so that its weight
    decay acts on w + v.

    Args:
        loss: runs the network and returns what training minimises.
    """
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    old = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w, g in zip(weights, gradients, strict=True):
            if g is not None:
                w.add_(g * (gamma * w.norm() / g.norm().clamp(min=1e-20)))
    try:
        yield
    finally:
        with torch.no_grad():
            for w, value in zip(weights, old, strict=True):
                w.copy_(value)
