"""A finished store made up for tests: records, masks, votes and courses of every job of a plan; nothing is trained or drawn."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from twinslib.base.files import write_json, write_npz
from twinslib.specs.jobs import Job, Task
from twinslib.specs.measure import CertifySpec, EvalSpec
from twinslib.specs.reading import canonical_json
from twinslib.specs.run import RunSpec
from twinslib.store import store as store_store
from twinslib.store.store import Store
from twinslib.store.votes import Votes
from twinslib.studies import plan as studies_plan
from twinslib.studies import presets, rules

LAYERS = ("conv1", "layer1.conv", "layer2.conv", "fc")
ENTRY = {"seconds": 60.0, "processor_seconds": 50.0, "device": "cpu", "commit": "0" * 40, "changed": False,
         "versions": {"torch": "2"}}


def plan(number: str) -> tuple[Callable, dict]:
    """The toy jobs of a notebook, as a function of what is chosen, and its parameters."""
    return studies_plan.plan("toy", number)[0], presets.parameters(presets.notebook(number))


def fill(store: Store, jobs: Sequence[Job]) -> None:
    """Leave what the finished settled `jobs` and their sources leave."""
    for job in (job for job in jobs if job.settled):
        spec, chain = job.spec, []
        while spec is not None:
            chain, spec = [*chain, spec], spec.source
        for spec in chain:
            if store.run(spec) is None:
                train(store, spec)
        for e in job.evals:
            put(store.path(Task(job.spec, e)), masks(job.spec, e))
        for c in job.certs:
            path = store.root / "votes" / f"{job.spec.hash}-{c.hash}.npz"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                votes(job.spec, c).save(path, store_store.about(Task(job.spec, c)))


def finish(store: Store, spec: RunSpec, masks: Mapping[EvalSpec, object] | None = None, *, course: Mapping | None = None,
           stamps: Mapping[str, str] | None = None, entries: Mapping[EvalSpec, dict] | None = None, **record: object) -> None:
    """Leave what one finished run leaves that began when the rules had these stamps (None: before there were rules).

    Args:
        masks: by evaluation, of AutoAttack by stage. course: its arrays, where it is followed. entries: their provenance.
        record: further fields of the run's record.
    """
    train = {"seconds": 1.0} | ({} if stamps is None else {"rules": stamps})
    described = {"spec": json.loads(canonical_json(spec)), "split": f"{spec.data.name}-0", "provenance": train} | record
    path = store.path(Task(spec))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(described))
    for e, found in (masks or {}).items():
        task, found = Task(spec, e), found if isinstance(found, dict) else {e.attack_name: found}
        stages = {name: np.array(mask, bool) for name, mask in found.items()}
        if entries:
            write_npz(store.path(task), stages, store_store.about(task) | {"provenance": entries[e]})
        else:
            put(store.path(task), stages)
    if course:
        put(store.root / "courses" / f"{spec.hash}.npz", course)


def put(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays in a file that says nothing of itself; `write_npz` would wait for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def prove(store: Store, spec: RunSpec, **entry: object) -> None:
    """Leave the record of a run with this in its provenance."""
    record = store.run(spec) or {"spec": json.loads(canonical_json(spec))}
    write_json(store.path(Task(spec)), record | {"provenance": record.get("provenance", {}) | entry})


def diverge(store: Store, spec: RunSpec, why: str = "NaN", **record: object) -> None:
    """Leave what a training leaves that ended without a result."""
    write_json(store.diverged_path(spec), {"spec": json.loads(canonical_json(spec)), "diverged": why} | record)


def random(spec: RunSpec, *words: object) -> np.random.Generator:
    return np.random.default_rng([int(spec.hash, 16), *(len(str(w)) for w in words)])


def train(store: Store, spec: RunSpec) -> None:
    o, rows, rng = spec.optim, [], random(spec)
    attacked = spec.method.attacks
    for epoch in range(1, o.epochs + 1):
        row = {"epoch": epoch, "lr": o.lr, "train_loss": 2.0 - 0.1 * epoch, "train_acc": 0.4, "forward_images": 1000,
               "backward_images": 1000}
        if o.val_every and (epoch % o.val_every == 0 or epoch == o.epochs):
            row["val_clean_acc"] = 0.5 + 0.1 * rng.random()
            row |= {"val_robust_acc": 0.3 + 0.1 * rng.random()} if attacked else {}
        rows.append(row)
    images = spec.data.train_images or 500
    write_json(store.root / "runs" / f"{spec.hash}.json",
               {"spec": json.loads(canonical_json(spec)), "split": store_store.split_name(spec.data), "epochs": rows,
                "classes": 10, "train_images": images, "val_images": spec.data.val_images, "weights": "0" * 64,
                "provenance": ENTRY | {"rules": rules.stamps()}})
    weights = store.root / "weights" / f"{spec.hash}.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.touch()
    write_json(weights.with_suffix(".json"), {"classes": [f"class {i}" for i in range(10)]})
    if spec.follow:
        write_npz(store.root / "courses" / f"{spec.hash}.npz", course(spec, images))


def course(spec: RunSpec, images: int) -> dict[str, np.ndarray]:
    f, epochs, rng, out = spec.follow, spec.optim.epochs, random(spec, "course"), {}
    due = [e for e in range(epochs + 1) if e % f.every == 0 or e <= f.dense or e == epochs]
    for part, n in (("train", f.train_images), ("test", f.test_images)):
        if n:
            clean = rng.random((len(due), n)) < 0.6
            out |= {"epoch": np.array(due), f"{part}_clean": clean, f"{part}_robust": clean & (rng.random((len(due), n)) < 0.7)}
    if f.train_images:
        out["train_loss"] = np.linspace(2, 1, len(due))[:, None] + 0.1 * rng.random((len(due), f.train_images)).astype(np.float32)
    if f.record_every:
        steps = np.arange(0, epochs * -(-images // spec.optim.batch_size), f.record_every)
        shape = len(steps), len(LAYERS)
        out |= {name: 0.1 + rng.random(shape) for name in ("w_norm", "g_norm", "g_first", "g_second", "cos_wg", "angle")}
        out |= {"layers": np.array(LAYERS), "steps": steps, "lr": np.full(len(steps), spec.optim.lr),
                "losses": np.linspace(2, 1, len(steps))[:, None] + 0.1 * rng.random((len(steps), 2))}
        drift = [(e, layer) for e in range(1, epochs + 1) for layer in LAYERS[:3]]
        out |= {"drift_epoch": np.array([e for e, _ in drift]), "drift_layer": np.array([layer for _, layer in drift]),
                "drift_mean": rng.random(len(drift)), "drift_log_var": rng.random(len(drift))}
    if f.features:
        shape = len(f.feature_epochs), f.features, 8
        out |= {"feature_epoch": np.array(f.feature_epochs), "feature_label": np.arange(f.features) % 10,
                "features_clean": rng.random(shape).astype(np.float16), "features_attacked": rng.random(shape).astype(np.float16)}
    return out


def masks(spec: RunSpec, e: EvalSpec) -> dict[str, np.ndarray]:
    """Nested: the stronger an attack, the fewer images of one order are left."""
    value = random(spec).random(10_000)[:e.images]
    if e.kind == "clean":
        stages = {"none": value < 0.6}
    elif e.kind == "pgd":
        stages = {e.attack_name: value < 0.5 - e.eps}
    else:
        names = ["+".join(e.attacks[:i + 1]) for i in range(len(e.attacks))]
        stages = {name: value < 0.4 - e.eps - 0.02 * i for i, name in enumerate(names)}
    return stages


def votes(spec: RunSpec, c: CertifySpec) -> Votes:
    plan, n, rows = c.plan, c.images, np.arange(c.images)
    label = rows % 10
    share = random(spec, "votes").random(n)
    looks = np.array(plan.looks)
    counts, pilot = np.zeros((n, 10), np.int32), np.zeros((n, 10), np.int32)
    pilot[rows, label] = plan.n0
    history = np.floor(share[:, None] * looks).astype(np.int32)
    counts[rows, label] = history[:, -1]
    counts[rows, (label + 1) % 10] = looks[-1] - history[:, -1]
    return Votes(plan, c.seed, c.precision, "0" * 16, "cpu-64", rows, label, rows, label, pilot, counts, np.full(n, looks[-1]),
                 history, np.ones(n, bool), np.zeros(n))
