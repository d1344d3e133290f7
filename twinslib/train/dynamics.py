"""How the weights move in training: norms, gradients of each wing, effective learning rates, angles, drift of statistics.

TWINS explains its gain by a higher effective learning rate: batch statistics make the loss blind to the scale of the weights
before them, so their gradient shrinks as they grow, and the frozen wing breaks that tie. The paper's own formula is not known to
us; lr / ||w||^2 (as in arXiv 2102.03497, by the same first author) stands beside all other quantities that could be meant.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..base.errors import choose
from ..nets.copies import duplicate
from ..nets.norms import TwinNorm, freeze_statistics

QUANTITIES = ("w_norm", "g_norm", "g_first", "g_second", "cos_wg", "angle")


def followed_layers(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """name -> weight of each convolution and linear layer, in the order of the network."""
    return {name: module.weight for name, module in model.named_modules()
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)}


@dataclass
class Recorder:
    """Rides on `step.Step`: every `every`-th step it keeps one line of QUANTITIES per layer, without changing a weight.

    w_norm is ||w|| before the step; g_norm the norm of the gradient of the whole loss, without weight decay; g_first and
    g_second those of the weighted losses of the two halves (equal to g_norm and 0 where the batch is not split); cos_wg the
    cosine of weight and whole gradient; angle the angle in radians between the weights before and after the optimiser step,
    momentum and decay included. With each line goes the loss of the first and of the second half, with the weights they have
    in the sum (the whole loss and 0 where the batch is not split).

    Args:
        every: steps between lines. Each line costs a backward pass per half where the batch is split.
    """

    every: int
    layers: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)  # (2,), on the device until asked for
    lines: list[torch.Tensor] = field(default_factory=list)  # (layers, QUANTITIES), on the device until asked for
    drift: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"expected every >= 1, got {self.every}")

    def wants(self, count: int) -> bool:
        """True if step `count` is to be recorded."""
        return count % self.every == 0

    def before(self, model: torch.nn.Module, losses: torch.Tensor) -> None:
        """Called with the network and the weighted losses of the halves, shape (1,) or (2,), before the backward pass."""
        weights = followed_layers(model)
        self.layers = list(weights)
        self._weights = list(weights.values())
        self._old = [w.detach().clone() for w in self._weights]
        parts = [torch.autograd.grad(loss, self._weights, retain_graph=True, allow_unused=True)
                 for loss in (losses if len(losses) == 2 else ())]
        self._halves = [torch.stack([_norm(g) if g is not None else w.new_zeros(())
                                     for g, w in zip(part, self._weights, strict=True)]) for part in parts]
        self._losses = torch.stack([*losses.detach(), losses.new_zeros(())][:2]).float()

    def gradients(self) -> None:
        """Called after the backward pass, before the optimiser."""
        w_norm, g_norm = (torch.stack([_norm(t) for t in ts]) for ts in (self._old, [w.grad for w in self._weights]))
        inner = torch.stack([(w * p.grad).sum() for w, p in zip(self._old, self._weights, strict=True)])
        halves = self._halves or [g_norm, torch.zeros_like(g_norm)]
        self._line = [w_norm, g_norm, *halves, inner / (w_norm * g_norm).clamp(min=torch.finfo(inner.dtype).tiny)]

    def after(self, count: int, lr: float) -> None:
        """Called after the optimiser's step `count`, taken with rate `lr`."""
        angles = torch.stack([angle(old, new.detach()) for old, new in zip(self._old, self._weights, strict=True)])
        self.lines.append(torch.stack([*self._line, angles], dim=1).detach())
        self.losses.append(self._losses)
        self.steps.append(count)
        self.lr.append(lr)
        del self._weights, self._old, self._halves, self._line, self._losses

    def measure_drift(self, model: torch.nn.Module, epoch: int, start: dict[str, torch.Tensor]) -> None:
        """Keep how far the adaptive statistics are from those in `start` (a `statistics` of before training)."""
        self.drift += [{"epoch": epoch, "layer": name, **how_far} for name, how_far in statistics_drift(start, statistics(model))]

    def arrays(self) -> dict[str, np.ndarray]:
        """layers (L,), steps (T,), lr (T,), losses (T, 2), and each of QUANTITIES (T, L) in float32."""
        lines, losses = ([t.float().cpu() for t in ts] for ts in (self.lines, self.losses))  # those of a resumed run are there
        values = torch.stack(lines).numpy() if lines else np.zeros((0, len(self.layers), len(QUANTITIES)))
        return {"layers": np.array(self.layers), "steps": np.array(self.steps), "lr": np.array(self.lr),
                "losses": torch.stack(losses).numpy() if losses else np.zeros((0, 2), np.float32),
                **{name: values[:, :, i].astype(np.float32) for i, name in enumerate(QUANTITIES)}}

    def state_dict(self) -> dict:
        """For a checkpoint; plain types and tensors."""
        return {"layers": self.layers, "steps": self.steps, "lr": self.lr, "lines": [line.cpu() for line in self.lines],
                "losses": [loss.cpu() for loss in self.losses], "drift": self.drift}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, list(value))


def statistics(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """layer -> (2, C): running mean and variance of each batch norm, of its adaptive wing where it has two."""
    out = {}
    for name, module in model.named_modules():
        twin = isinstance(module, TwinNorm)
        if twin or (isinstance(module, _BatchNorm) and not name.endswith((".adaptive", ".frozen"))):
            norm = module.adaptive if twin else module
            out[name] = torch.stack([norm.running_mean, norm.running_var]).detach().clone()
    return out


def statistics_drift(before: dict[str, torch.Tensor], now: dict[str, torch.Tensor]) -> list[tuple[str, dict[str, float]]]:
    """Per layer: `mean_drift`, the mean over channels of |mean now - mean before| in old standard deviations; `log_var_drift`,
    the mean of |log(var now / var before)|; over channels whose old variance is above 1e-12 times the largest.
    """
    if before.keys() != now.keys():
        raise ValueError(f"expected the batch norms {', '.join(before)}, got {', '.join(now)}")
    out = []
    for name, old in before.items():
        live = (old[1] > 1e-12 * old[1].max()) & (now[name][1] > 0)
        (m0, v0), (m1, v1) = old[:, live].double(), now[name][:, live].double()
        out.append((name, {"mean_drift": ((m1 - m0).abs() / v0.sqrt()).mean().item(),
                           "log_var_drift": (v1.log() - v0.log()).abs().mean().item()}))
    return out


def scale_check(model: torch.nn.Module, layer: str, factors: Sequence[float], x: torch.Tensor, y: torch.Tensor) -> pd.DataFrame:
    """Weight and gradient of one convolution when it is multiplied by each of `factors`, in a copy in float64.

    With "batch" statistics after it the loss does not depend on the factor, so ||w|| ||g|| is constant and g is at right angles
    to w (van Laarhoven 2017, arXiv 1706.05350). With "frozen" ones, those of `x` at factor 1, so that both networks are alike
    there, neither holds. The small constant of the norms is set to 1e-12, without which the law holds for large variances only.

    Args:
        layer: name, as in `followed_layers`, of a layer that a batch norm follows.
        x, y: images (B, 3, S, S) in [0, 1] and labels (B,), for the cross-entropy.
    Returns:
        statistics (batch or frozen), factor, w_norm, g_norm, product (of both norms), cos_wg; a line for each.
    """
    choose(layer, followed_layers(model), "layer")
    if len(factors) == 0 or min(factors) <= 0:
        raise ValueError(f"expected positive factors, got {list(factors)}")
    model, x = duplicate(model).double(), x.double()
    freeze_statistics(model)  # refuses a network without batch norm
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.eps, norm.momentum = 1e-12, None  # None: running statistics are the mean over batches since the reset
        norm.reset_running_stats()
    with torch.no_grad():
        model.train()(x)
    weight, lines = followed_layers(model)[layer], []
    one = weight.detach().clone()
    for name, prepare in (("batch", torch.nn.Module.train), ("frozen", freeze_statistics)):
        net = prepare(duplicate(model).train())
        weight = followed_layers(net)[layer]
        for factor in factors:
            weight.data.copy_(factor * one)
            (g,) = torch.autograd.grad(F.cross_entropy(net(x), y), weight)
            w_norm, g_norm = _norm(weight).item(), _norm(g).item()
            cos = (weight.detach() * g).sum().item() / (w_norm * g_norm)
            lines.append([name, float(factor), w_norm, g_norm, w_norm * g_norm, cos])
    return pd.DataFrame(lines, columns=["statistics", "factor", "w_norm", "g_norm", "product", "cos_wg"])


def angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Angle between two tensors in radians, accurate for small ones: 2 atan2(|u - v|, |u + v|) of the unit vectors (Kahan).

    >>> angle(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])).item()
    1.5707963705062866
    """
    u, v = (t.double().flatten() / t.double().norm().clamp(min=1e-300) for t in (a, b))
    return (2 * torch.atan2((u - v).norm(), (u + v).norm())).to(a.dtype)


def _norm(t: torch.Tensor) -> torch.Tensor:
    return t.detach().norm()
