"""Runs that take seconds, for the tests of the queue, and what a store holds of them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from twinslib.base.files import read_about, read_json, read_npz, write_json
from twinslib.compute.networks import Networks
from twinslib.compute.queue import sweep
from twinslib.compute.worker import Worker
from twinslib.evidence import rows
from twinslib.specs.jobs import Job, Plan, Report, Task
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import method
from twinslib.specs.reading import canonical_json
from twinslib.specs.run import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.store import Store

EPS = 16 / 255
CLEAN = EvalSpec(kind="clean", images=20)


def tiny_jobs(methods: Sequence[str] = ("at", "twins_trades"), *, lr: float = 0.05, epochs: int = 2) -> list[Job]:
    """A source and a few fine-tunes: toy images, a tiny network, all kinds of evaluation."""
    data = dict(image_size=16, augment="crop", val_images=20, train_images=60)
    same = {"model": ModelSpec(arch="tiny_resnet"), "attack": AttackSpec(eps=EPS, step_size=EPS / 2, steps=2),
            "optim": OptimSpec(epochs=epochs, batch_size=20, lr=lr, val_every=1, val_steps=2)}
    source = RunSpec(data=DataSpec(name="toy_source", **data), method=method("at"), **same)
    evals = (EvalSpec(kind="clean", images=40), EvalSpec(kind="pgd", images=40, eps=EPS, steps=3, batch_size=10),
             EvalSpec(kind="autoattack", images=6, eps=EPS, attacks=("apgd-ce",), batch_size=3))
    tunes = [RunSpec(data=DataSpec(name="toy_target", **data), method=method(name), source=source, **same) for name in methods]
    return [Job("tiny", source, evals[:1], ship=True), *(Job("tiny", t, evals) for t in tunes)]


BARE = replace(tiny_jobs(("at",), epochs=1)[1].spec, source=None)  # one epoch from random weights


def compute(store: Store, jobs: Sequence[Job] | Plan, **options) -> Report:
    return sweep(Worker(store, "cpu"), jobs, **options)


def until_done(store: Store, jobs: Sequence[Job], **options) -> int:
    """How many sweeps it takes where each has no time: one step or block a time."""
    for turn in range(1, 200):
        if not compute(store, jobs, budget=0.0, **options).left:
            return turn
    raise AssertionError("no end")


def networks(store: Store) -> Networks:
    return Networks(store, "cpu")


def do(store: Store, task: Task, stop: bool = False) -> None:
    Worker(store, "cpu").do(task, ship=False, stop=lambda: stop, on_step=lambda done, total: None)


def contents(store: Store, *jobs: Job) -> dict[str, object]:
    """Everything that must not depend on how often a sweep was interrupted, by file, with the tables of `jobs`: all of it but
    provenance, and digests that hold it."""
    if jobs:
        rows.write(store, jobs, "tiny")
    kept = [p for p in sorted(store.root.rglob("*")) if p.is_file() and not p.name.startswith(".")
            and "work" not in p.relative_to(store.root).parts]
    return {str(p.relative_to(store.root)): content(p) for p in kept}


def content(path: Path) -> object:
    if path.suffix == ".npz":
        about = read_about(path)
        about.pop("provenance", None)
        arrays = {name: (v.dtype, v.shape, v.tobytes()) for name, v in read_npz(path).items() if name != "seconds"}
        return arrays | about
    if path.suffix == ".json":
        return {key: value for key, value in read_json(path).items() if key != "provenance"}
    return path.read_bytes()


def record(store: Store, spec: RunSpec, *epochs: tuple[float | None, float | None]) -> Path:
    """Leave the record of a finished run with (clean, robust) validation accuracy per epoch; None: not measured."""
    found = [{"epoch": i, **{k: v for k, v in zip(("val_clean_acc", "val_robust_acc"), pair, strict=True) if v is not None}}
             for i, pair in enumerate(epochs, start=1)]
    path = store.root / "runs" / f"{spec.hash}.json"
    write_json(path, {"spec": json.loads(canonical_json(spec)), "epochs": found})
    return path
