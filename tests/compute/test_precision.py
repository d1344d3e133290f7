"""What is begun in one precision goes on in it, whatever the hardware of the second call; what a provenance entry says."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from tests.compute.made import compute, do
from twinslib.compute import provenance
from twinslib.evidence import cells
from twinslib.nets import arithmetic
from twinslib.nets.checkpoint import load_weights
from twinslib.specs.jobs import Job, Task
from twinslib.specs.measure import CertifySpec
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.store import Store
from twinslib.store.votes import load_votes
from twinslib.train.step import OutOfTime, Step

SPEC = RunSpec(data=DataSpec(name="toy_target", image_size=16, train_images=40, val_images=10), method=method("at"),
               model=ModelSpec(arch="tiny_resnet"), optim=OptimSpec(epochs=2, batch_size=20, val_every=0, precision="bfloat16"))
CERT = CertifySpec(sigma=0.25, images=4, n=80, n0=16, alpha=0.01, precision="bfloat16")
TRAIN, CERTIFY = Task(SPEC), Task(SPEC, CERT)


def hardware(monkeypatch, has_bfloat16: bool) -> None:
    monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device: has_bfloat16)


@pytest.mark.parametrize("first", [True, False], ids=["begun in bfloat16", "begun in float32"])
def test_begun_and_finished_elsewhere(first: bool, tmp_path, monkeypatch) -> None:
    """A run and a certification that move to other hardware half-way end as they would have where they began."""
    used = "bfloat16" if first else "float32"
    kept = {}
    for name, second in (("moved", not first), ("stayed", first)):
        store = Store("toy", root=tmp_path / name)
        for task in (TRAIN, CERTIFY):
            hardware(monkeypatch, first)
            with pytest.raises(OutOfTime):
                do(store, task, stop=True)
            hardware(monkeypatch, second)
            do(store, task)
        kept[name] = store
    records = [{k: v for k, v in store.run(SPEC).items() if k != "provenance"} for store in kept.values()]
    assert records[0] == records[1]
    votes = [store.votes(SPEC, CERT) for store in kept.values()]
    assert (votes[0].votes == votes[1].votes).all() and {v.precision for v in votes} == {used}
    assert {kept["moved"].provenance(task)["precision"] for task in (TRAIN, CERTIFY)} == {used}
    assert load_weights(kept["moved"].weights_path(SPEC))[1]["precision"] == used


def test_what_a_spec_asks_for_is_used_where_it_is_there(monkeypatch) -> None:
    """The step runs under autocast where the hardware has bfloat16, in float32 elsewhere; a spec in float32 always is."""
    seen = []
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 14 * 14, 10))
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    x, y = torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64)
    float32 = dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, precision="float32"))
    for there, spec in ((True, SPEC), (False, SPEC), (True, float32)):
        hardware(monkeypatch, there)
        step = Step(network, dataclasses.replace(spec, method=method("natural")), "cpu")
        step(x, y, 0, 0.01)
    assert seen == [torch.bfloat16, torch.float32, torch.float32]


def test_a_sweep_says_what_bfloat16_means(store: Store, monkeypatch, caplog) -> None:
    """One line at the start, where a spec asks for it; votes made in float32 for want of it are taken for what they are."""
    hardware(monkeypatch, False)
    caplog.set_level("INFO")
    jobs = [Job("x", SPEC, (), certs=(CERT,), labels=(("pretraining", "mixed"), ("finetuning", "clean"), ("norm", "batch")))]
    compute(store, jobs)
    lines = [r.message for r in caplog.records if "bfloat16" in r.message]
    assert lines == [arithmetic.in_words({"bfloat16"}, "cpu")] and "float32" in lines[0]
    (found,) = cells.finished(store, jobs)
    assert load_votes(store.path(Task(SPEC, CERT))).precision == "float32" and len(found.certified.radius) == 4


def test_provenance_entry() -> None:
    """An entry is JSON: times, versions, device, precision and what is added; no host, user or folder."""
    entry = provenance.record("2026-01-01T00:00:00+00:00", 1.234, "cpu", weights="abc")
    text = json.dumps(entry)
    assert entry["started"] < entry["ended"] and entry["seconds"] == 1.23 and entry["weights"] == "abc"
    assert entry["device"] == "cpu" and entry["threads"] == 1 and entry["peak_memory_mib"] > 10
    assert set(entry["versions"]) == set(provenance.PACKAGES) and entry["versions"]["torch"][0].isdigit()
    for private in (os.uname().nodename, str(Path.home()), str(Path(__file__).parents[2])):
        assert private not in text


@pytest.mark.parametrize(("device", "initialized", "resets"), [("cuda:1", True, 1), ("cuda", False, 0), ("cpu", True, 0)])
def test_peak_is_that_of_the_task(device: str, initialized: bool, resets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task begins with a peak of its own, on its own GPU; torch refuses that before the first use of one."""
    seen = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", seen.append)
    assert provenance.begin(device) <= provenance.now() and seen == [device] * resets
