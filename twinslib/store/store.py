"""What is finished: the records, masks, votes and courses of one preset on disk, and what is still to be done.

results/<preset>/
    runs/<run>.json         spec, split and per-epoch rows of a finished training run
    votes/<run>-<…>.npz     votes under noise of a finished certification
    masks/<run>.npz         boolean per test image for every finished evaluation of that run
    diverged/<run>.json     why a training run (or, <run>-<…>.json, a measurement) ended without numbers, with its rows until then
    courses/<run>.npz       what was measured during a run that is followed: masks by epoch, norms and angles by step
    provenance/<run>.json   when, where, with what
    splits/<set>.npz        indices of training, validation and test images
    weights/<run>.safetensors, .json   source networks that other runs start from
    work/                   (not committed) checkpoints, fine-tuned weights, blocks of unfinished evaluations, the lock

Finished means finished: everything appears by atomic rename, and a run's JSON is written last. A run that diverges is finished
too: it is not trained again until its file in diverged/ is deleted, and nothing that stands on it is tried.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..base import paths
from ..base.files import read_json, read_npz
from ..specs.jobs import Job, Task
from ..specs.labels import DIVERGED, NOT_RUN, SOURCE_DIVERGED
from ..specs.measure import CertifySpec, EvalSpec
from ..specs.reading import canonical_json
from ..specs.run import DataSpec, RunSpec
from .votes import Votes, load_votes


class Store:
    """Results of one preset on disk."""

    def __init__(self, preset: str, *, root: Path | None = None) -> None:
        self.preset = preset
        self.root = Path(root) if root is not None else paths.results_dir() / preset

    def run(self, spec: RunSpec) -> dict | None:
        """The finished run's record, or None."""
        return self._record(self.root / "runs" / f"{spec.hash}.json", spec)

    @staticmethod
    def _record(path: Path, spec: RunSpec) -> dict | None:
        record = read_json(path) if path.exists() else None
        if record is not None and record["spec"] != json.loads(canonical_json(spec)):
            raise ValueError(f"expected the spec of run {spec.hash} in {path}, got another one; restore or delete the file")
        return record

    def masks(self, spec: RunSpec, evaluation: EvalSpec) -> dict[str, np.ndarray] | None:
        """Boolean per test image for each stage of an evaluation (one stage but for AutoAttack), or None."""
        path = self.root / "masks" / f"{spec.hash}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as stored:
            keys = [k for k in stored.files if k.startswith(evaluation.hash + "/")]
            return {k.split("/", 1)[1]: stored[k] for k in keys if not k.endswith("/spec")} or None

    def votes(self, spec: RunSpec, certification: CertifySpec) -> Votes | None:
        """The counts of a finished certification, or None."""
        path = self.votes_path(spec, certification)
        return load_votes(path) if path.exists() else None

    def votes_path(self, spec: RunSpec, certification: CertifySpec) -> Path:
        """Where the votes of a finished certification lie."""
        return self.root / "votes" / f"{spec.hash}-{certification.hash}.npz"

    def course(self, spec: RunSpec) -> dict[str, np.ndarray] | None:
        """Arrays of a finished run that was followed (`follow.Follower.arrays`), or None."""
        path = self.root / "courses" / f"{spec.hash}.npz"
        return read_npz(path) if self.run(spec) is not None and path.exists() else None

    def weights_path(self, spec: RunSpec, at: str = "last") -> Path | None:
        """Where the final weights of a run lie, shipped or in the work folder; None if they have to be trained.

        Args:
            at: "best" for those of the epoch that is best on the validation images.
        """
        name = spec.hash if at == "last" else f"{spec.hash}-{at}"
        for path in (self.root / folder / f"{name}.safetensors" for folder in ("weights", "work")):
            if path.exists():
                return path
        return None

    def provenance(self, task: Task) -> dict | None:
        """When, where and with what a task was done, or None."""
        path = self.root / "provenance" / f"{task.spec.hash}.json"
        entry = read_json(path).get(task.kind) if path.exists() else None
        return None if entry is None or entry.get("unfinished") or entry.get("outcome") else entry

    def diverged(self, spec: RunSpec, measurement: EvalSpec | CertifySpec | None = None) -> str | None:
        """Why the training of a run, or a measurement of it, ended without a result: something was no longer finite. None where
        it has not been tried or did not; for a finished run, why its weights could not be made again."""
        record = self._diverged(spec, measurement)
        if record is not None:
            return record["diverged"]
        path = self.root / "provenance" / f"{spec.hash}.json"  # where earlier versions left it
        return read_json(path).get("train", {}).get("diverged") if measurement is None and path.exists() else None

    def kept_in(self, task: Task) -> Path:
        """The file that says that a task diverged; without it the task is done again."""
        path = self.diverged_path(task.spec, task.evaluation)
        return path if path.exists() else self.root / "provenance" / f"{task.spec.hash}.json"

    def epochs(self, spec: RunSpec) -> list[dict]:
        """The per-epoch rows of a finished run, or of one that diverged until then; none where it has not been trained."""
        return ((self.run(spec) or self._diverged(spec) or {}).get("epochs")) or []

    def _diverged(self, spec: RunSpec, measurement: EvalSpec | CertifySpec | None = None) -> dict | None:
        return self._record(self.diverged_path(spec, measurement), spec)

    def diverged_path(self, spec: RunSpec, measurement: EvalSpec | CertifySpec | None = None) -> Path:
        """Where it is recorded that a run, or a measurement of it, diverged."""
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
        if what it starts from did, or `NOT_RUN`. A job that waits for a choice diverged if all candidates did."""
        if not job.settled:
            words = {self._absent(c) for c in job.candidates} or {NOT_RUN}
            return NOT_RUN if NOT_RUN in words else DIVERGED if DIVERGED in words else SOURCE_DIVERGED
        return DIVERGED if measurement is not None and self.diverged(job.spec, measurement) else self._absent(job.spec)

    def _absent(self, spec: RunSpec) -> str:
        lost = self.lost_to(spec)
        return NOT_RUN if lost is None else DIVERGED if lost == spec else SOURCE_DIVERGED

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
            if any(record is None and self._absent(s) == NOT_RUN for s, record in records):
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
            evals = [e for e in job.evals if self.masks(job.spec, e) is None]
            evals += [c for c in job.certs if not self.votes_path(job.spec, c).exists()]
            evals = [e for e in evals if not self.diverged(job.spec, e)]
            lost = any(self.weights_path(job.spec, e.at) is None for e in evals if e.at != "start")
            start = any(e.at == "start" for e in evals)  # measured on the source's weights
            chain, spec = [], job.spec if self.run(job.spec) is None or lost else job.spec.source if start else None
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

    def work_path(self, name: str) -> Path:
        """A file in the work folder, which is made if needed."""
        folder = self.root / "work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for one sweep; a second one is refused (the lock dies with its process)."""
        with open(self.work_path("lock"), "a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise ValueError(f"expected no other sweep on the store {self.preset!r}, got one by process "
                                 f"{handle.read().strip() or 'unknown'}; wait for it or stop it, nothing was changed") from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            for folder in ("runs", "masks", "votes", "courses", "diverged", "provenance", "splits", "weights", "work"):
                for left_over in (self.root / folder).glob(".*.tmp"):  # of a process killed while it wrote
                    left_over.unlink(missing_ok=True)
            yield


def validation_score(epochs: Sequence[dict], spec: RunSpec, by: str = "mean") -> float:
    """Mean of clean and robust accuracy (or the one that was measured) on the validation images, at the last measurement.

    Args:
        by: "robust" for robust accuracy alone, where it was measured.
    """
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
