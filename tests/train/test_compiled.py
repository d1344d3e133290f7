"""A compiled attack is kept only where it is faster and the same, and a resumed run goes on as it began."""

import copy
import functools

import pytest
import torch
from torch import nn

from tests.train.made import batch, equal, network, spec, trained, winged
from twinslib.nets.fold import FoldedCopy
from twinslib.train import compiled, step
from twinslib.train.compiled import compile_if_faster


class Slow(nn.Module):
    """Takes a number of seconds on a clock of its own and passes on what comes."""

    clock = 0.0

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Slow.clock += self.seconds
        return x


def made_faster(network: nn.Module, **options) -> nn.Module:
    """In place of `torch.compile`: the same in half the time."""
    out = copy.deepcopy(network)
    out[0].seconds /= 2
    return out


def made_slower(network: nn.Module, **options) -> nn.Module:
    out = copy.deepcopy(network)
    out[0].seconds *= 2
    return out


def made_wrong(network: nn.Module, **options) -> nn.Module:
    out = made_faster(network)
    nn.init.normal_(out[3].weight)
    return out


def not_made(network: nn.Module, **options) -> nn.Module:
    raise RuntimeError("no C++ compiler")


@pytest.mark.parametrize("compiler,kept", [(made_faster, True), (made_slower, False), (made_wrong, False), (not_made, False)])
def test_kept_where_faster_and_the_same(compiler, kept: bool, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(compiled.time, "perf_counter", lambda: Slow.clock)
    found = FoldedCopy(nn.Sequential(Slow(1.0), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 10)))
    plain, images = found.network, batch(8)[0]
    assert compile_if_faster(found, images) == kept == (found.network is not plain)
    if compiler is made_slower:
        assert compile_if_faster(found, images, always=True)


def test_trained_with_a_compiled_attack(monkeypatch, tmp_path) -> None:
    """Torch's own tracing, without a C++ compiler: weights of training up to rounding, stopped and resumed bit for bit, whatever
    would be measured later; an update of the weights reaches the attack."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    always = functools.partial(compile_if_faster, always=True)
    monkeypatch.setattr(step, "compile_if_faster", lambda *args, **more: always(*args))
    run = spec("twins_at", optim={"epochs": 2, "val_every": 0})
    plain, whole = trained(run), trained(run, compiled=True)
    assert whole[0].compiled and not plain[0].compiled
    start, one, other = (torch.cat([p.detach().flatten() for p in model.parameters()])
                         for model in (winged(run, network()), plain[1], whole[1]))
    assert (one - other).norm() < 0.05 * (one - start).norm()
    again = trained(run, compiled=True, stops=[2, 4], checkpoint=tmp_path / "c")
    assert again[0].compiled and equal(again[1], whole[1])
