"""What is finished: the records, masks, votes and courses of one preset on disk, and what is still to be done.

results/<preset>/
    runs/<run>.json         spec, split, per-epoch rows and provenance of a finished training run
    masks/<run>-<…>.npz     boolean per test image of a finished evaluation, and its provenance
    votes/<run>-<…>.npz     votes under noise of a finished certification, and its provenance
    diverged/<run>.json     why a training run (or, <run>-<…>.json, a measurement) ended without numbers, with its rows until then
    courses/<run>.npz       what was measured during a run that is followed: masks by epoch, norms and angles by step
    splits/<set>.npz        indices of training, validation and test images
    weights/<run>.safetensors, .json   source networks that other runs start from
    work/                   (not committed) checkpoints, fine-tuned weights, blocks of unfinished evaluations, leases

Finished means finished: everything appears by atomic rename, with its provenance and a digest inside, and a run's JSON is written
last. A run that diverges is finished too: it is not trained again until its file in diverged/ is deleted, and nothing that stands
on it is tried.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..base import paths
from ..base.files import read_about, read_json, read_npz, refused, remove_forgotten
from ..specs.jobs import Job, Task
from ..specs.labels import DIVERGED, NOT_RUN, SOURCE_DIVERGED
from ..specs.measure import CertifySpec, EvalSpec
from ..specs.reading import canonical_json
from ..specs.run import DataSpec, RunSpec
from .leases import Leases
from .votes import Votes, load_votes


class Store:
    """Results of one preset on disk."""

    def __init__(self, preset: str, *, root: Path | None = None) -> None:
        self.given, self.preset = preset, Path(preset).name  # of a study of one's own the folder is given
        self.root = Path(root) if root is not None else paths.results_dir() / self.preset

    def __repr__(self) -> str:
        counts = (f"{sum(1 for _ in (self.root / folder).glob('*'))} {what}" for folder, what in (
            ("runs", "runs"), ("masks", "evaluations"), ("votes", "certifications"), ("diverged", "diverged")))
        return f"Store({self.preset}, {self.root}: {', '.join(counts)})"

    def run(self, spec: RunSpec) -> dict | None:
        """The finished run's record, or None. ValueError: it is damaged, of another run, or holds numbers that cannot be."""
        return self._record(self.path(Task(spec)), spec)

    @staticmethod
    def _record(path: Path, spec: RunSpec) -> dict | None:
        record = read_json(path) if path.exists() else None
        if record is not None:
            if record.get("spec") != json.loads(canonical_json(spec)):
                raise refused(path, f"the spec of run {spec.hash}", "another one")
            check_epochs(path, record.get("epochs", []))
        return record

    def path(self, task: Task) -> Path:
        """Where the result of a task lies once it is there."""
        e = task.evaluation
        folder, ending = ("runs", "json") if e is None else ("votes" if e.kind == "certify" else "masks", "npz")
        return self.root / folder / f"{task.name}.{ending}"

    def masks(self, spec: RunSpec, evaluation: EvalSpec) -> dict[str, np.ndarray] | None:
        """Boolean per test image for each stage of an evaluation (one stage but for AutoAttack), or None. ValueError: the file is
        damaged or belongs to another evaluation."""
        path = self.path(Task(spec, evaluation))
        if not path.exists():
            return None
        found = read_npz(path, about(Task(spec, evaluation)))
        check_masks(path, found)
        return found

    def has(self, task: Task) -> bool:
        """Whether the result of a task is there, with the course of a run that is followed."""
        followed = task.evaluation is None and task.spec.follow
        return self.path(task).exists() and (not followed or self._course(task.spec).exists())

    def votes(self, spec: RunSpec, certification: CertifySpec) -> Votes | None:
        """The counts of a finished certification, or None. ValueError: the file is damaged, or of another run or
        certification."""
        path = self.path(Task(spec, certification))
        if not path.exists():
            return None
        votes, c = load_votes(path, about(Task(spec, certification))), certification
        asked = dataclasses.asdict(c.plan) | {"seed": c.seed, "precision": c.precision, "images": c.images}
        got = votes.settings | {"images": len(votes.index)}
        if c.precision == "bfloat16" and got["precision"] == "float32":  # on a device without it
            asked["precision"] = "float32"
        differs = [f"{key}: {got[key]} there, {value} asked for" for key, value in asked.items() if got[key] != value]
        if differs:
            raise refused(path, "votes of the certification that it is named after", "; ".join(differs))
        return votes

    def course(self, spec: RunSpec) -> dict[str, np.ndarray] | None:
        """Arrays of a finished run that was followed (`follow.Follower.arrays`), or None."""
        path = self._course(spec)
        return read_npz(path, {"run": spec.hash}) if self.run(spec) is not None and path.exists() else None

    def _course(self, spec: RunSpec) -> Path:
        return self.root / "courses" / f"{spec.hash}.npz"

    def weights_path(self, spec: RunSpec, at: str = "last") -> Path | None:
        """Where the final weights of a run lie, shipped or in the work folder; None if they have to be trained. `at`: "best" for
        those of the epoch that is best on the validation images."""
        name = spec.hash if at == "last" else f"{spec.hash}-{at}"
        for path in (self.root / folder / f"{name}.safetensors" for folder in ("weights", "work")):
            if path.exists():
                return path
        return None

    def provenance(self, task: Task) -> dict | None:
        """When, where and with what a task was done, or None."""
        path = self.path(task)
        found = (read_json if task.evaluation is None else read_about)(path) if path.exists() else {}
        return found.get("provenance")

    def diverged(self, spec: RunSpec, measurement: EvalSpec | CertifySpec | None = None) -> str | None:
        """Why the training of a run, or a measurement of it, ended without a result: something was no longer finite. None where
        it has not been tried or did not; for a finished run, why its weights could not be made again."""
        record = self._diverged(spec, measurement)
        return record["diverged"] if record else None

    def epochs(self, spec: RunSpec) -> list[dict]:
        """The per-epoch rows of a finished run, or of one that diverged until then; none where it has not been trained."""
        return ((self.run(spec) or self._diverged(spec) or {}).get("epochs")) or []

    def _diverged(self, spec: RunSpec, measurement: EvalSpec | CertifySpec | None = None) -> dict | None:
        return self._record(self.diverged_path(spec, measurement), spec)

    def diverged_path(self, spec: RunSpec, measurement: EvalSpec | CertifySpec | None = None) -> Path:
        """Where it is recorded that a run, or a measurement of it, diverged; without this file it is done again."""
        return self.root / "diverged" / (f"{spec.hash}-{measurement.hash}.json" if measurement else f"{spec.hash}.json")

    def lost_to(self, spec: RunSpec) -> RunSpec | None:
        """The run, this one or one that it starts from, without whose weights this one has no network: it diverged."""
        while spec is not None and (self.run(spec) is None or self.weights_path(spec) is None):
            if self.diverged(spec):
                return spec
            spec = spec.source
        return None

    def absent(self, job: Job, measurement: EvalSpec | CertifySpec | None = None) -> str:
        """What stands in place of the result of a job, or of one measurement, that is not there: `DIVERGED`, `SOURCE_DIVERGED`
        if what it starts from did, or `NOT_RUN`. A job that waits for a choice diverged if no candidate that could be chosen is
        still to run: all did, or of each pair that is compared one."""
        if not job.settled:
            words = {self._absent(c) for c in job.candidates}
            if any(map(self._open, job.candidates)) or words <= {NOT_RUN}:
                return NOT_RUN
            return DIVERGED if DIVERGED in words else SOURCE_DIVERGED
        return DIVERGED if measurement is not None and self.diverged(job.spec, measurement) else self._absent(job.spec)

    def waiting(self, jobs: Sequence[Job]) -> int:
        """How many of `jobs` wait for a choice that will come."""
        return sum(job.waits and self.absent(job) == NOT_RUN for job in jobs)

    def _absent(self, spec: RunSpec) -> str:
        lost = self.lost_to(spec)
        return NOT_RUN if lost is None else DIVERGED if lost == spec else SOURCE_DIVERGED

    def _open(self, spec: RunSpec) -> bool:
        """Not run, and not lost."""
        return not self.path(Task(spec)).exists() and self._absent(spec) == NOT_RUN

    def changes(self, jobs: Sequence[Job], ended: Iterable[Task]) -> bool:
        """Whether tasks that just ended change which jobs there are: one diverged, or was the last that a choice waits for."""
        trained = {task.spec for task in ended if task.evaluation is None}
        waits = {job.candidates for job in jobs if not job.settled and not trained.isdisjoint(job.candidates)}
        return any(map(self.diverged, trained)) or any(not any(map(self._open, specs)) for specs in waits)

    def best(self, candidates: Sequence[RunSpec], by: str = "mean", over: Sequence[RunSpec] = ()) -> RunSpec | None:
        """Of runs that differ in hyper-parameters the one with the best last validation measurement: the mean of clean and
        robust accuracy (the first of equals). None while one of them is missing; one that diverged is never chosen, so None
        too if all did.

        Args:
            by: "robust" for robust accuracy alone.
            over: rivals, one for each candidate; the best is then the one furthest ahead of its rival.
        Raises:
            ValueError: a finished candidate has no validation measurement.
        """
        scores = {}
        for spec, *rival in zip(candidates, over, strict=True) if over else ((spec,) for spec in candidates):
            records = [(s, self.run(s)) for s in (spec, *rival)]
            if any(map(self._open, (spec, *rival))):
                return None
            if all(record is not None for _, record in records):
                own, *other = (validation_score(record["epochs"], s, by) for s, record in records)
                scores[spec] = own - sum(other)
        return max(scores, key=scores.__getitem__, default=None)

    def missing(self, jobs: Sequence[Job]) -> list[Task]:
        """Tasks that are not done, in order: sources first, each training before its evaluations, AutoAttack after all else
        of its seed (it costs most and changes least). What diverged is done, and what needs the weights of such a run cannot
        be."""
        tasks: list[Task] = []
        for job in (job for job in jobs if job.settled):
            evals = [e for e in job.measurements if not self.has(Task(job.spec, e)) and not self.diverged(job.spec, e)]
            lost = any(self.weights_path(job.spec, e.at) is None for e in evals if e.at != "start")
            start = any(e.at == "start" for e in evals)  # measured on the source's weights
            chain, spec = [], job.spec if not self.has(Task(job.spec)) or lost else job.spec.source if start else None
            while spec is not None and (spec is job.spec or self.run(spec) is None or self.weights_path(spec) is None):
                chain.insert(0, Task(spec))
                spec = spec.source
            if any(self.diverged(task.spec) for task in chain):  # what is left is measured on weights that are there
                trained = self.run(job.spec) is not None
                chain, evals = [], [e for e in evals if trained and e.at != "start" and self.weights_path(job.spec, e.at)]
            tasks += chain
            tasks += [Task(job.spec, e) for e in evals]
        late = [t.evaluation is not None and t.evaluation.kind == "autoattack" for t in tasks]
        order = sorted(range(len(tasks)), key=lambda i: (tasks[i].spec.seed, late[i]))
        return list(dict.fromkeys(tasks[i] for i in order))

    def finished(self, task: Task) -> bool:
        """Whether nothing of a task is left to do: its result is there (of a training with its weights), or never will be."""
        if task.evaluation is None:
            networks = ("last", "best") if task.spec.optim.keep_best else ("last",)
            return bool(self.diverged(task.spec)) or (self.has(task) and all(self.weights_path(task.spec, at) for at in networks))
        return self.has(task) or bool(self.diverged(task.spec, task.evaluation))

    def ready(self, task: Task) -> bool:
        """Whether the weights that a task begins with are there, and the record of their run, which is written after them."""
        measured = task.evaluation is not None and task.evaluation.at != "start"
        needed = task.spec if measured else task.spec.source
        at = task.evaluation.at if measured else "last"
        return needed is None or (self.path(Task(needed)).exists() and self.weights_path(needed, at) is not None)

    def work_path(self, name: str) -> Path:
        """A file in the work folder, which is made if needed."""
        folder = self.root / "work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    @property
    def leases(self) -> Leases:
        """Who is at which task."""
        return Leases(self.root / "work" / "leases")

    def tidy(self) -> None:
        """Delete what killed processes forgot: half-written files, leases, and what was kept for tasks that are finished."""
        self.leases.remove_forgotten()
        remove_forgotten(self.root)
        for path in self.root.glob("work/*"):
            with contextlib.suppress(FileNotFoundError):  # another process was first
                if path.suffix != ".safetensors" and path.name not in ("leases", "workers", "aside") and self._is_over(path):
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    def forget(self, task: Task) -> None:
        """Delete what is kept of an unfinished task: when it began, checkpoint, votes, blocks."""
        for ending in (".json", ".ckpt", ".npz"):
            self.work_path(f"{task.name}{ending}").unlink(missing_ok=True)
        shutil.rmtree(self.work_path(task.name), ignore_errors=True)

    def _is_over(self, path: Path) -> bool:
        """Whether what a file of the work folder was kept for is finished, and nobody is at it."""
        name = path.name.split(".")[0]
        if (self.root / "diverged" / f"{name}.json").exists():
            return True
        if self.leases.holder(name):
            return False
        if "-" in name:
            return any((self.root / folder / f"{name}.npz").exists() for folder in ("masks", "votes"))
        made = [self.root / folder / f"{name}.safetensors" for folder in ("weights", "work")]
        return (self.root / "runs" / f"{name}.json").exists() and any(  # else its weights are being made again
            weights.exists() and weights.stat().st_mtime >= path.stat().st_mtime for weights in made)


def about(task: Task) -> dict:
    """What the file of a measurement says that it belongs to."""
    return {"run": task.spec.hash, "measurement": json.loads(canonical_json(task.evaluation))}


def check_masks(path: Path, masks: Mapping[str, np.ndarray], images: int | None = None) -> None:
    """Refuse masks that are not a boolean for each of (as many) test images."""
    for name, mask in masks.items():
        if mask.dtype != bool or mask.ndim != 1 or (images is not None and len(mask) != images):
            raise refused(path, f"a boolean for each of {images or 'the'} test images", f"{mask.dtype} {mask.shape} in {name}")


def check_epochs(path: Path, rows: Sequence[dict]) -> None:
    """Refuse rows with numbers that cannot be: not finite, or accuracies outside [0, 1]."""
    for row in rows:
        for name, value in row.items():
            if not isinstance(value, int | float) or not math.isfinite(value) or (name.endswith("_acc") and not 0 <= value <= 1):
                raise refused(path, f"a finite {name}, accuracies within 0 and 1", f"{value!r} in epoch {row.get('epoch')}")


def validation_score(epochs: Sequence[dict], spec: RunSpec, by: str = "mean") -> float:
    """Mean of clean and robust accuracy (or the one that was measured) on the validation images, at the last measurement. `by`:
    "robust" for robust accuracy alone, where it was measured."""
    measured = [row for row in epochs if "val_clean_acc" in row]
    if not measured:
        raise ValueError(f"expected validation accuracy of run {spec.hash} to choose hyper-parameters by, got none; set "
                         "val_images and val_every")
    last = measured[-1]
    if by == "robust" and "val_robust_acc" in last:
        return last["val_robust_acc"]
    values = [last[k] for k in ("val_clean_acc", "val_robust_acc") if k in last]
    return sum(values) / len(values)


def split_name(spec: DataSpec) -> str:
    """Name of the file of indices: the set, and a hash of what they were chosen by."""
    chosen = json.dumps([spec.image_size, list(spec.exclude), spec.train_images, spec.val_images, spec.split_seed])
    return f"{spec.name}-{hashlib.sha256(chosen.encode()).hexdigest()[:8]}"
