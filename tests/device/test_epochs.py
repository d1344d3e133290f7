"""Training on a device that is not there: no host waits for it within an epoch, and it trains as the CPU does, bit for bit."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.device.made import META, Waits, absent
from tests.train.made import device_set, equal, network, spec, winged
from twinslib.data.sets import DeviceSet
from twinslib.specs.method import METHODS
from twinslib.specs.run import FollowSpec, NoiseSpec, RunSpec
from twinslib.train import loop
from twinslib.train.step import OutOfTime


def run_of(name: str, **optim) -> RunSpec:
    """One epoch of two batches of a method, with a line of the recorder for each step."""
    run = spec(name, optim={"val_every": 0, "epochs": 1} | optim, **({"replays": 2} if METHODS[name].replays > 1 else {}))
    quiet = run.method.awp_gamma or run.method.trains == "head"
    attack = replace(run.attack, steps=1, threat="l2" if "l2" in name else "linf", eps_warmup=0.5 if "warmup" in name else 0.0)
    return replace(run, attack=attack, noise=NoiseSpec(sigmas=(0.25, 0.5)) if "noise" in name else None,
                   follow=FollowSpec(record_every=int(not quiet)))


def on(device: torch.device | str, data: DeviceSet) -> DeviceSet:
    return replace(data, **{name: value.to(device) for name, value in vars(data).items() if isinstance(value, Tensor)})


def trained(run: RunSpec, device: torch.device | str, **options) -> tuple[loop.History, dict[str, Tensor]]:
    """(history, weights on the CPU) of a run on a device."""
    net, data = winged(run, network().to(device)), on(device, device_set(12, 4))  # a move to `meta` would undo ties
    start = network(1, 10).to(device) if run.method.needs_origin else None
    history = loop.fit(run, net, data, device=device, start=start, source=data if run.method.source_weight else None, **options)
    return history, net.to("cpu").state_dict()


def within(monkeypatch, waits: Waits, fault: Callable[[Tensor], object] = lambda x: None) -> list[Counter]:
    """What will have been counted in each epoch, from its first batch to where its row is made; `fault` sees each batch."""
    found, before = [], []
    augment, row = loop.augment, loop._epoch_row

    def batch(*args, **kwargs) -> Tensor:
        if len(before) == len(found):
            before.append(Counter(waits.counted))
        x = augment(*args, **kwargs)
        fault(x)
        return x

    def end(*args) -> dict:
        found.append(waits.counted - before[-1])
        return row(*args)

    monkeypatch.setattr(loop, "augment", batch)
    monkeypatch.setattr(loop, "_epoch_row", end)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_no_wait_within_an_epoch(name: str, monkeypatch) -> None:
    """From the first batch of an epoch to its last the host neither reads from the device nor sends anything to it."""
    run = run_of(name)
    want, weights = trained(run, "cpu")
    with absent(monkeypatch) as waits:
        epochs = within(monkeypatch, waits)
        got, found = trained(run, META)
    assert epochs == [Counter()]
    assert got.epochs == want.epochs and equal(got.course, want.course) and equal(found, weights)


@pytest.mark.parametrize(("kind", "fault"), [
    ("read", lambda x: x.sum().item()), ("read", lambda x: x[x > 0.5]), ("read", lambda x: x.nonzero()),
    ("read", lambda x: x.cpu()), ("read", lambda x: torch.equal(x, x)), ("read", lambda x: x.sum().tolist()),
    ("sent", lambda x: x[torch.tensor([0])]), ("sent", lambda x: torch.zeros(2).to(x.device)),
    ("sent", lambda x: x.sum().copy_(torch.zeros(())))])
def test_a_wait_is_seen(kind: str, fault: Callable, monkeypatch) -> None:
    """One in each of two steps is counted, where it is."""
    with absent(monkeypatch) as waits:
        epochs = within(monkeypatch, waits, fault)
        trained(run_of("natural"), META)
    assert epochs == [Counter({(kind, "train.loop.fit"): 2})]


@pytest.mark.parametrize(("error", "fault"), [
    ("two devices", lambda x: x + torch.ones(1)), ("two devices", lambda x: torch.ones(9)[torch.zeros_like(x).long()]),
    ("two devices", lambda x: torch.cat((x, torch.ones_like(x, device="cpu")))),
    ("generator of cpu", lambda x: torch.rand(2, device=x.device, generator=torch.Generator())),
    ("generator of meta", lambda x: torch.rand(2, generator=torch.Generator(x.device))),
    ("without values", lambda x: torch.tensor([1.0], device=x.device))])
def test_a_second_device_is_refused(error: str, fault: Callable, monkeypatch) -> None:
    """As torch refuses it on a GPU; what is made from a list is sent there, too."""
    with absent(monkeypatch) as waits, pytest.raises(RuntimeError, match=f"{error}.* train.loop.fit"):
        within(monkeypatch, waits, fault)
        trained(run_of("natural"), META)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("name", ["joint", "free_at"])
def test_measured_and_resumed(name: str, monkeypatch, tmp_path: Path) -> None:
    """All that is measured between the epochs, and a run that is stopped twice and goes on from its file, is as on the CPU."""
    run = run_of(name, val_every=1, val_steps=1, epochs=2)
    run = replace(run, data=replace(run.data, val_images=4), optim=replace(run.optim, keep_best=True),
                  follow=FollowSpec(record_every=1, train_images=3, test_images=4, steps=1, features=3, feature_epochs=(0, 2)))
    want, weights = trained(run, "cpu")
    with absent(monkeypatch):
        stops = iter([True, False, True])
        for _ in range(2):
            with pytest.raises(OutOfTime):
                trained(run, META, checkpoint=tmp_path / "c", stop=lambda: next(stops, False))
        got, found = trained(run, META, checkpoint=tmp_path / "c")
        best = {key: value.cpu() for key, value in got.best.items()}
    assert got.epochs == want.epochs and equal(got.course, want.course) and equal(found, weights) and equal(best, want.best)
