"""Networks of the grid of adversarial fine-tuning: masks over test images and what each network cost.

Cost is counted by the training loop (`passes.Passes`): images forward and backward, one half of a pass each. Measurements on
validation images are not in it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..base import stats
from ..specs.jobs import Job, Task
from ..specs.labels import NOT_RUN
from ..specs.measure import EvalSpec
from ..specs.run import RunSpec
from ..store.store import Store
from ..studies.finetuning import STUDY
from . import accuracy, course
from .frame import Row, of_evaluation

UNSAID = "not recorded"
COSTS = ["images_given", "images_whole", "seconds", "seconds_whole", "processor", "processor_whole"]
COLUMNS = ["dataset", "part", "method", "start", "arch", "norm", "width", "train_images", "trained_threat", "schedule", "lr",
           "seed", "at", "epoch", "attack", "threat", "eps", "value", "low", "high", "n", *COSTS, "run"]


class Cost(NamedTuple):
    """Of training: images passed (forward plus backward, one half each), seconds on the clock, and of the processor, which other
    work lengthens little, and which say nothing about a GPU. NaN where unknown."""

    images: float = math.nan
    seconds: float = math.nan
    processor: float = math.nan


@dataclass(frozen=True, eq=False)
class Network:
    """One network of a run: the start, that of the epoch best on validation images, or the last."""

    job: Job
    at: str
    epoch: int = 0  # after which it was taken, 0 for the start
    split: str = ""
    given: Cost = Cost()  # of the run up to that epoch; seconds in proportion to the images
    before: Cost = Cost()  # of the training of its start; nothing for random weights
    masks: Mapping[EvalSpec, np.ndarray] = field(default_factory=dict)  # boolean per test image, after all of AutoAttack
    gone: Mapping[EvalSpec, str] = field(default_factory=dict)  # what is said in their place
    train_images: int = 0  # 0 where unknown
    precision: tuple[str, str] = (UNSAID, UNSAID)  # of training, of the run alone and with its start

    @property
    def spec(self) -> RunSpec:
        return self.job.spec

    @property
    def part(self) -> str:
        return dict(self.job.labels)["part"]

    @property
    def rows(self) -> list[Row]:
        """What is measured of it."""
        return [of_evaluation(self.job, e, mask, self.split) for e, mask in self.masks.items()]


def read(store: Store, jobs: Sequence[Job]) -> list[Network]:
    """Every network of `jobs` of this study that is to be measured, and the trained starts, in their order."""
    out = []
    for job in (job for job in jobs if job.study == STUDY):
        record = store.run(job.spec) if job.settled else None
        for at in ("start", "best", "last"):
            evals = [e for e in job.evals if e.at == at]
            masks = {e: m[e.attack_name] for e in evals if record and (m := store.masks(job.spec, e))}
            gone = {e: store.absent(job, e) for e in evals if e not in masks}
            if record and (evals or at == "last"):
                rows = record["epochs"]
                epoch = {"start": 0, "last": len(rows)}[at] if at != "best" else course.best_epoch(rows)
                whole, spent = _cost(store, job.spec), images_passed(rows[:epoch])
                share = spent / whole.images if whole.images else math.nan
                source = Cost(0, 0, 0) if job.spec.weights is None else Cost()
                out.append(Network(job, at, epoch, record["split"], Cost(spent, whole.seconds * share, whole.processor * share),
                                   _cost(store, job.spec.source) if job.spec.source else source, masks, gone,
                                   record["train_images"], _precision(store, job.spec, at)))
            elif evals:
                out.append(Network(job, at, gone=gone, train_images=job.spec.data.train_images or 0))
    return out


def finished(store: Store, jobs: Sequence[Job]) -> list[Network]:
    """Those that are trained and measured at least once, and those that diverged (without masks and cost)."""
    return [n for n in read(store, jobs) if n.masks or set(n.gone.values()) - {NOT_RUN}]


def rows_of(store: Store, jobs: Sequence[Job], dataset: str, methods: Sequence[str]) -> dict[str, list[dict]]:
    """Per-epoch rows of the first finished seed of each method of the main part, none where there is none; those of a run that
    diverged end with a row that holds only what is said of it (`absent`)."""
    out: dict[str, list[dict]] = {name: [] for name in methods}
    for job in _main(jobs, dataset):
        if out.get(job.spec.method.name) == []:
            word = NOT_RUN if store.run(job.spec) else store.absent(job)
            out[job.spec.method.name] = store.epochs(job.spec) + ([{"absent": word}] if word != NOT_RUN else [])
    return out


def course_of(store: Store, jobs: Sequence[Job], dataset: str, method: str) -> dict[str, np.ndarray]:
    """What was kept of the course of a method of the main part (`follow.Follower.arrays`), {} where it is not finished."""
    specs = (job.spec for job in _main(jobs, dataset) if job.spec.method.name == method)
    return next((found for spec in specs if (found := store.course(spec))), {})


def _main(jobs: Sequence[Job], dataset: str) -> list[Job]:
    return [job for job in jobs if job.study == STUDY and dict(job.labels)["part"] == "main" and job.spec.data.name == dataset]


def images_passed(rows: Sequence[dict]) -> float:
    """Images that went forward and backward in these epochs, one half for each way."""
    return sum(row["forward_images"] + row["backward_images"] for row in rows) / 2


def _cost(store: Store, spec: RunSpec) -> Cost:
    """Of a whole run."""
    record, took = store.run(spec), store.provenance(Task(spec)) or {}
    return Cost(images_passed(record["epochs"]) if record else math.nan, took.get("seconds", math.nan),
                took.get("processor_seconds", math.nan))


def _precision(store: Store, spec: RunSpec, at: str) -> tuple[str, str]:
    """Of a run alone, and with its start: float32, or bfloat16 and float32; of a start itself twice its own, "" if not ours."""
    own, start = ((store.provenance(Task(s)) or {}).get("precision", UNSAID) if s else "" for s in (spec, spec.source))
    return (start, start) if at == "start" else (own, " and ".join(sorted({own, start} - {""})))


def frame(networks: Sequence[Network]) -> pd.DataFrame:
    """One line per network and measurement: `COLUMNS`, with accuracies as fractions with exact 95 % intervals over the n test
    images and costs with the start given and included; absent, which is said in place of a value that is not there; and row, the
    measurement itself (`frame.Row`); and the precision of training, the start given (precision) and included
    (precision_whole)."""
    lines = []
    for m in networks:
        s, costs = m.spec, [x for a, b in zip(m.given, m.before, strict=True) for x in (a, a + b)]
        for e, mask in {**m.masks, **dict.fromkeys(m.gone)}.items():
            row = of_evaluation(m.job, e, mask, m.split)
            found = [math.nan] * 3 if mask is None else stats.clopper_pearson(int(mask.sum()), len(mask))[:3]
            lines.append([
                s.data.name, m.part, s.method.name, dict(m.job.labels)["start"], s.model.arch, s.model.norm, s.model.width or 0,
                m.train_images, s.attack.threat, s.optim.schedule, s.optim.lr, s.seed, m.at, m.epoch, row.attack,
                "none" if e.kind == "clean" else e.threat, 0.0 if e.kind == "clean" else e.eps, *found,
                e.images if mask is None else len(mask), *costs, s.hash, m.gone.get(e, ""), row, *m.precision])
    return pd.DataFrame(lines, columns=[*COLUMNS, "absent", "row", "precision", "precision_whole"])


def known(frame: pd.DataFrame) -> pd.DataFrame:
    """Lines of what is finished or has diverged."""
    return frame[frame["absent"] != NOT_RUN]


def averages(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`accuracy.one_line` of each attack for all lines that are the same in the columns `by`, its ends cut to what an accuracy
    can be, with the number of seeds."""
    if frame.empty:
        columns = [*by, "attack", "threat", "eps", "seed", "seeds", "n", "value", "low", "high", "absent"]
        return pd.DataFrame(columns=columns).astype({"eps": float})
    names = frame[[*by]].astype(str).agg("\t".join, axis=1)
    rows = frame.assign(method=names, run=frame["run"] + names, images=frame["absent"], metric="accuracy")
    out = accuracy.one_line(accuracy.estimates(rows)).reset_index(drop=True)
    out[[*by]] = out["method"].str.split("\t", expand=True).to_numpy()
    seeds = out["seed"].str.extract(r"mean of (\d+)", expand=False).fillna("1").astype(int)
    return out.assign(seeds=seeds, low=out["low"].clip(0, 1), high=out["high"].clip(0, 1))
