"""What the tests of training share: specs, small networks with statistics of their own, images, runs, comparisons."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.nets.made import shake, tiny
from twinslib.data.sets import DeviceSet
from twinslib.nets.norms import twinsify
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.train.loop import History, fit
from twinslib.train.step import OutOfTime

LAMBDA = 0.4
KINDS = (  # methods that train differently
    "natural", "at", "trades", "twins_at", "twins_trades", "two_adaptive", "at_split", "frozen_at", "twins_attack_alternating",
    "distill", "feature_distill", "l2sp", "joint", "linear_probe", "at_awp", "free_at")


def spec(name: str = "twins_at", *, optim: dict | None = None, **switches) -> RunSpec:
    """A short run of a method on toy images, with a source run where the method needs one."""
    if name.startswith("twins"):
        switches = {"twins_weight": LAMBDA} | switches
    optim = OptimSpec(**({"epochs": 2, "batch_size": 8, "lr": 0.05, "val_every": 2} | (optim or {})))
    data, model = DataSpec(name="toy_target", image_size=16, augment="crop"), ModelSpec(arch="tiny_resnet")
    source = None
    if name not in ("natural", "at", "trades", "twins_at", "twins_trades"):  # those need none
        source = RunSpec(data=replace(data, name="toy_source"), model=model, method=method("at"), attack=AttackSpec(steps=1),
                         optim=optim)
    return RunSpec(data=data, model=model, method=method(name, **switches), attack=AttackSpec(steps=2), optim=optim,
                   source=source)


def winged(run: RunSpec, model: nn.Module) -> nn.Module:
    """The network with the branches of the run's method."""
    second = "frozen" if run.method.wings == "twins" else "adaptive"
    return twinsify(model, share_affine=run.method.share_affine, second=second) if run.method.two_branches else model


def network(seed: int = 0, classes: int = 10) -> nn.Module:
    """A tiny network whose statistics and affine parameters differ from their initial values."""
    return shake(tiny(seed, classes), seed)


def batch(n: int, dtype: torch.dtype = torch.float32, seed: int = 5, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 16, 16, generator=g).to(dtype), torch.randint(0, classes, (n,), generator=g)


def device_set(n: int = 20, val: int = 10) -> DeviceSet:
    """Random images of 16 pixels; validation and test images are the same ones."""
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (n + val, 3, 16, 16), generator=g, dtype=torch.uint8)
    y = torch.randint(0, 10, (n + val,), generator=g)
    return DeviceSet(x[:n], y[:n], x[n:], y[n:], x[n:], y[n:], tuple("0123456789"))


def equal(a: nn.Module | Mapping, b: nn.Module | Mapping) -> bool:
    """The same names in the same order, with the same values: networks, dicts of tensors or of arrays."""
    a, b = (value.state_dict() if isinstance(value, nn.Module) else value for value in (a, b))
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def gradients(loss: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True), strict=True))


def close(found: Mapping | nn.Module, wanted: Mapping | nn.Module, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    """Every tensor of the first agrees with that of the second, by name; of networks the parameters and buffers."""
    found, wanted = (value.state_dict() if isinstance(value, nn.Module) else value for value in (found, wanted))
    assert found.keys() == wanted.keys()
    for name, got in found.items():
        torch.testing.assert_close(got, wanted[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def trained(run: RunSpec, data: DeviceSet | None = None, *, model: nn.Module | None = None, stops: Iterable[int] = (),
            checkpoint: Path | None = None, **options) -> tuple[History, nn.Module]:
    """(history, network) of the run from one start, stopped after the steps `stops` and each time resumed in a new network;
    the global random state stays where it is."""
    left, done, random = sorted(stops), [0], torch.get_rng_state()
    watch = options.pop("on_step", lambda step, total: None)

    def on_step(step: int, total: int) -> None:
        done[0] = step
        watch(step, total)

    while True:
        with torch.random.fork_rng(devices=[]):
            net = winged(run, network()) if model is None else model
            more = {"start": network(1, 10), "source": device_set() if run.method.source_weight else None} | options
        try:
            history = fit(run, net, device_set() if data is None else data, device="cpu", checkpoint=checkpoint,
                          on_step=on_step, stop=lambda: bool(left) and done[0] == left[0], **more)
            break
        except OutOfTime:
            left.pop(0)
    assert not left and torch.equal(random, torch.get_rng_state())
    return history, net
