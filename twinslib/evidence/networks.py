"""Finished networks of the grid of adversarial fine-tuning: masks over test images and what each network cost.

Cost is counted by the training loop (`passes.Passes`): images forward and backward, one half of a pass each. Measurements on
validation images are not in it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..base import stats
from ..base.files import read_json
from ..specs.jobs import Job, Task
from ..specs.labels import DIVERGED, NOT_RUN
from ..specs.measure import EvalSpec
from ..specs.run import RunSpec
from ..store.store import Store
from ..studies.finetuning import STUDY
from . import course
from .frame import Row, of_evaluation

COLUMNS = ["dataset", "part", "method", "start", "arch", "norm", "width", "train_images", "trained_threat", "schedule", "lr",
           "seed", "at", "epoch", "attack", "threat", "eps", "value", "low", "high", "n", "images_given", "images_whole",
           "seconds", "seconds_whole", "processor", "processor_whole", "run"]


@dataclass(frozen=True, eq=False)
class Network:
    """One network of a finished run: the start, that of the epoch best on validation images, or the last.

    Args:
        epoch: after which it was taken, 0 for the start.
        spent: images passed (forward plus backward, one half each) by the run up to that epoch.
        spent_before: the same for the training of its start; None where that is not ours or not stored, 0 for random weights.
        seconds, seconds_before: wall time likewise, in proportion to the passes for an epoch before the last.
        processor, processor_before: processor time of the process likewise, which other work on a machine lengthens little; NaN
            where it is not recorded. It says nothing about work on a GPU.
        masks: evaluation -> boolean per test image, of AutoAttack what all its attacks left.
        gone: evaluation -> what is said in its place, where it or the run diverged.
        train_images: of the run; 0 where unknown.
    """

    job: Job
    at: str
    epoch: int
    split: str
    spent: float
    spent_before: float | None
    seconds: float
    seconds_before: float | None
    masks: Mapping[EvalSpec, np.ndarray]
    train_images: int = 0
    processor: float = math.nan
    processor_before: float | None = math.nan
    gone: Mapping[EvalSpec, str] = field(default_factory=dict)

    @property
    def spec(self) -> RunSpec:
        return self.job.spec

    @property
    def part(self) -> str:
        return dict(self.job.labels)["part"]

    @property
    def key(self) -> tuple:
        """(data set, method, seed)."""
        return self.spec.data.name, self.spec.method.name, self.spec.seed

    @property
    def whole(self) -> float | None:
        """Passes with those of the start."""
        return None if self.spent_before is None else self.spent + self.spent_before

    def mask(self, attack: str, threat: str, eps: float, images: int = 1) -> np.ndarray | None:
        """Of an evaluation on at least so many images, the one with most; None where there is none."""
        found = [m for e, m in self.masks.items() if e.attack_name == attack and len(m) >= images
                 and (e.kind == "clean" or (e.threat == threat and math.isclose(e.eps, eps, rel_tol=1e-6)))]
        return max(found, key=len, default=None)

    @property
    def rows(self) -> list[Row]:
        """What is measured of it."""
        return [of_evaluation(self.job, e, mask, self.split, e.attack_name) for e, mask in self.masks.items()]


def finished(store: Store, jobs: Sequence[Job]) -> list[Network]:
    """The networks of `jobs` of this study that are trained and measured at least once, and those that diverged (without
    masks and cost), in their order."""
    out = []
    for job in (job for job in jobs if job.study == STUDY):
        record = store.run(job.spec) if job.settled else None
        if record is None:
            for at in ("start", "best", "last"):
                gone = {e: word for e in job.evals if e.at == at and (word := store.absent(job, e)) != NOT_RUN}
                if gone:
                    out.append(Network(job, at, 0, "", *[math.nan] * 4, masks={}, gone=gone))
            continue
        rows, (seconds, processor) = record["epochs"], _times(store, job.spec)
        nothing = None if job.spec.weights else 0.0
        before = _spent(store, job.spec.source) if job.spec.source else nothing
        times_before = _times(store, job.spec.source) if job.spec.source else (nothing, nothing)
        for at in ("start", "best", "last"):
            masks = {e: m for e in job.evals if e.at == at and (m := _mask(store, job.spec, e)) is not None}
            gone = {e: word for e in job.evals if e.at == at and e not in masks and (word := store.absent(job, e)) != NOT_RUN}
            if not masks and not gone and not (at == "last" and dict(job.labels)["part"] == "start"):
                continue
            epoch = {"start": 0, "last": len(rows)}[at] if at != "best" else course.best_epoch(rows)
            spent, total = images_passed(rows[:epoch]), images_passed(rows)
            share = spent / total if total else math.nan
            out.append(Network(job, at, epoch, record["split"], spent, before, seconds * share, times_before[0], masks,
                               record["train_images"], processor * share, times_before[1], gone))
    return out


def rows_of(store: Store, jobs: Sequence[Job], dataset: str, methods: Sequence[str]) -> dict[str, list[dict]]:
    """Per-epoch rows of the first finished seed of each method of the main part, none where there is none; those of a run that
    diverged end with a row that holds only what is said of it (`absent`)."""
    out: dict[str, list[dict]] = {name: [] for name in methods}
    for job in _main(jobs):
        s = job.spec
        if s.data.name == dataset and out.get(s.method.name) == []:
            word = NOT_RUN if store.run(s) else store.absent(job)
            out[s.method.name] = store.epochs(s) + ([{"absent": word}] if word != NOT_RUN else [])
    return out


def course_of(store: Store, jobs: Sequence[Job], dataset: str, method: str) -> dict[str, np.ndarray]:
    """What was kept of the course of a method of the main part (`follow.Follower.arrays`), {} where it is not finished."""
    return next((found for job in _main(jobs) if (job.spec.data.name, job.spec.method.name) == (dataset, method)
                 and (found := store.course(job.spec))), {})


def training_images(store: Store, jobs: Sequence[Job], dataset: str) -> int:
    """Training images of the main part, the unit of a pass over the training set; 1 where nothing says how many."""
    main = [job.spec for job in _main(jobs) if job.spec.data.name == dataset]
    counts = ((store.run(spec) or {}).get("train_images") or spec.data.train_images for spec in main)
    return next((count for count in counts if count), 1)


def class_names(store: Store, jobs: Sequence[Job], dataset: str) -> list[str]:
    """As stored with the first start network of ours on that data set; [] where there is none yet."""
    paths = (store.root / "weights" / f"{job.spec.hash}.json" for job in jobs if job.ship and job.spec.data.name == dataset)
    return next((read_json(path)["classes"] for path in paths if path.exists()), [])


def _main(jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if job.study == STUDY and dict(job.labels)["part"] == "main"]


def images_passed(rows: Sequence[dict]) -> float:
    """Images that went forward and backward in these epochs, one half for each way."""
    return sum(row["forward_images"] + row["backward_images"] for row in rows) / 2


def _spent(store: Store, spec: RunSpec) -> float | None:
    record = store.run(spec)
    return images_passed(record["epochs"]) if record else None


def _times(store: Store, spec: RunSpec) -> tuple[float, float]:
    """Seconds of training on the clock and of the processor, NaN where not recorded."""
    found = store.provenance(Task(spec)) or {}
    return found.get("seconds", math.nan), found.get("processor_seconds", math.nan)


def _mask(store: Store, spec: RunSpec, e: EvalSpec) -> np.ndarray | None:
    stages = store.masks(spec, e)
    return stages[e.attack_name] if stages else None


def frame(networks: Sequence[Network]) -> pd.DataFrame:
    """One line per network and measurement, `COLUMNS`: accuracies as fractions with exact 95 % intervals over the n test images,
    images passed with the start given and with its training (NaN where that is not ours). What diverged has no accuracy; the
    frame's attrs hold what is said of it by run, as `lost`."""
    lines, lost = [], {}
    for m in networks:
        s = m.spec
        whole = math.nan if m.whole is None else m.whole
        seconds_whole = math.nan if m.seconds_before is None else m.seconds + m.seconds_before
        processor_whole = math.nan if m.processor_before is None else m.processor + m.processor_before
        lost |= dict.fromkeys([s.hash] * bool(m.gone), next(iter(m.gone.values()), ""))
        for e, mask in (m.masks | m.gone).items():
            gone = e in m.gone
            found = [math.nan] * 3 if gone else stats.clopper_pearson(int(mask.sum()), len(mask))
            clean = e.kind == "clean"
            lines.append([
                s.data.name, m.part, s.method.name, dict(m.job.labels)["start"], s.model.arch, s.model.norm,
                s.model.width or 0, m.train_images or s.data.train_images or 0, s.attack.threat, s.optim.schedule, s.optim.lr,
                s.seed, m.at, m.epoch, e.attack_name,
                "none" if clean else e.threat, 0.0 if clean else e.eps, *found[:3],
                e.images if gone else len(mask), m.spent, whole, m.seconds, seconds_whole, m.processor, processor_whole, s.hash])
    out = pd.DataFrame(lines, columns=COLUMNS)
    out.attrs["lost"] = lost
    return out


def lost(frame: pd.DataFrame) -> dict[str, str]:
    """method -> what is said of it, of the methods of which no line of `frame` has an accuracy."""
    words = frame.attrs.get("lost", {})
    return {method: words.get(mine["run"].iloc[0], DIVERGED) for method, mine in frame.groupby("method", sort=False)
            if mine["value"].isna().all()}
