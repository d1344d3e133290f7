"""Reading the courses of runs: rates and angles by layer, losses by epoch, best and last epoch, gaps.

Frames hold fractions and radians. Nothing here chooses by test images.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..base import stats
from ..specs.jobs import Job
from ..specs.labels import NOT_RUN, unique
from ..specs.run import RunSpec
from ..store.store import Store
from .frame import contrast

KEYS = ["dataset", "method", "seed"]
LAST = 5  # measured epochs whose mean stands for the end of training (Rice et al. 2020)
RATES = ("lr_over_w2", "angle")


@dataclasses.dataclass(frozen=True)
class Course:
    """A finished run with its arrays (`follow.Follower.arrays`) and its per-epoch rows; or one that diverged, without arrays,
    with the rows until then and what is said in place of its numbers (`absent`)."""

    spec: RunSpec
    arrays: dict[str, np.ndarray]
    epochs: list[dict]
    train_images: int
    absent: str = ""

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.train_images // self.spec.optim.batch_size)

    @property
    def keys(self) -> list:
        return [self.spec.data.name, self.spec.method.name, self.spec.seed]


def finished(store: Store, jobs: Sequence[Job]) -> list[Course]:
    """The courses of those of `jobs` that are followed and finished, or have diverged, in their order.

    Raises:
        ValueError: two runs for one data set, method and seed, or runs of one data set on other test images.
    """
    out, splits = {}, {}
    for job in jobs:
        arrays = store.course(job.spec) if job.spec.follow and job.settled else None
        absent = store.absent(job) if job.spec.follow and arrays is None else ""
        if arrays is None and absent in ("", NOT_RUN):
            continue
        images = (store.run(job.spec) or {"train_images": 0})["train_images"]
        course = Course(job.spec, arrays or {}, store.epochs(job.spec), images, absent)
        if out.setdefault(tuple(course.keys), course).spec != job.spec:
            raise ValueError(f"expected one run per data set, method and seed, got two for {', '.join(map(str, course.keys))}")
        d = job.spec.data
        images = (d.image_size, d.crop, d.exclude, d.split_seed, job.spec.follow.test_images)
        if splits.setdefault(d.name, images) != images:
            raise ValueError(f"expected all runs on {d.name} on the same test images, got {images} and {splits[d.name]}")
    return list(out.values())


def lost(courses: Sequence[Course]) -> dict[tuple[str, str, int], str]:
    """KEYS of the runs that diverged -> what stands for them; frames of several runs carry it in their attrs, as `lost`."""
    return {tuple(c.keys): c.absent for c in courses if c.absent}


def _with_lost(frame: pd.DataFrame, courses: Sequence[Course]) -> pd.DataFrame:
    frame.attrs["lost"] = lost(courses)
    return frame


def quantities(courses: Sequence[Course]) -> pd.DataFrame:
    """One line per run, recorded step and layer: KEYS, layer, depth (0-based place in the network), convolution (False for
    linear layers), epoch (real number, of the step), lr, `dynamics.QUANTITIES`, lr_over_w2 = lr / ||w||^2 and relative_step =
    lr ||g|| / ||w||."""
    frames = []
    for course in courses:
        a = course.arrays
        if "w_norm" not in a:
            continue
        steps, layers = a["w_norm"].shape
        frame = pd.DataFrame(dict(zip(KEYS, course.keys, strict=True)), index=range(steps * layers))
        frame["layer"], frame["depth"] = np.tile(a["layers"], steps), np.tile(np.arange(layers), steps)
        frame["convolution"] = frame["depth"] < layers - 1  # the head is the last layer and the only linear one
        frame["step"] = np.repeat(a["steps"], layers)
        frame["epoch"], frame["lr"] = frame["step"] / course.steps_per_epoch, np.repeat(a["lr"], layers)
        for name in ("w_norm", "g_norm", "g_first", "g_second", "cos_wg", "angle"):
            frame[name] = a[name].reshape(-1).astype(np.float64)
        frame["lr_over_w2"] = frame["lr"] / frame["w_norm"] ** 2
        frame["relative_step"] = frame["lr"] * frame["g_norm"] / frame["w_norm"]
        frames.append(frame)
    empty = pd.DataFrame(columns=[*KEYS, "layer", "depth", "convolution"])
    return _with_lost(pd.concat(frames, ignore_index=True) if frames else empty, courses)


def rates(courses: Sequence[Course]) -> pd.DataFrame:
    """One line per run: KEYS, and of each of RATES the median over convolutions of the mean over recorded steps."""
    frame = quantities(courses)
    if frame.empty:
        return pd.DataFrame(columns=[*KEYS, *RATES])
    layers = frame[frame["convolution"]].groupby([*KEYS, "layer"], sort=False)[list(RATES)].mean()
    return layers.groupby(level=KEYS, sort=False).median().reset_index()


def ratios(courses: Sequence[Course], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """`rates` of a method over those of its baseline, same data set and seed: dataset, method, baseline, seed, RATES."""
    frame = rates(courses).set_index(KEYS)
    lines = []
    for method, baseline in pairs:
        for dataset, name, seed in frame.index:
            if name == method and (dataset, baseline, seed) in frame.index:
                found = frame.loc[(dataset, method, seed)] / frame.loc[(dataset, baseline, seed)]
                lines.append([dataset, method, baseline, seed, *found[list(RATES)]])
    return pd.DataFrame(lines, columns=["dataset", "method", "baseline", "seed", *RATES])


def drift(courses: Sequence[Course]) -> pd.DataFrame:
    """How far the statistics of the deployed network have moved: KEYS, epoch, layer, depth, mean_drift (old standard
    deviations), log_var_drift (see `dynamics.statistics_drift`)."""
    frames = []
    for course in courses:
        a = course.arrays
        if "drift_epoch" in a and len(a["drift_epoch"]):
            layers = list(dict.fromkeys(a["drift_layer"]))
            frames.append(pd.DataFrame(dict(zip(KEYS, course.keys, strict=True)) | {
                "epoch": a["drift_epoch"], "layer": a["drift_layer"], "depth": [layers.index(name) for name in a["drift_layer"]],
                "mean_drift": a["drift_mean"], "log_var_drift": a["drift_log_var"]}))
    columns = [*KEYS, "epoch", "layer", "depth", "mean_drift", "log_var_drift"]
    return _with_lost(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns), courses)


def stable(course: Course) -> bool:
    """True if no epoch's training loss exceeds the first's and the run has not diverged."""
    losses = [row["train_loss"] for row in course.epochs]
    return not course.absent and all(math.isfinite(loss) and loss <= losses[0] for loss in losses)


def early_losses(courses: Sequence[Course], epochs: int) -> pd.DataFrame:
    """PGD loss on the fixed training images after each of epochs 0 to `epochs`: KEYS, epoch, loss (nats, mean over images)."""
    lines = [[*course.keys, int(epoch), float(losses.mean())] for course in courses if "train_loss" in course.arrays
             for epoch, losses in zip(course.arrays["epoch"], course.arrays["train_loss"], strict=True) if epoch <= epochs]
    return _with_lost(pd.DataFrame(lines, columns=[*KEYS, "epoch", "loss"]), courses)


def training_losses(courses: Sequence[Course], smooth: int = 5) -> pd.DataFrame:
    """Training loss of the deployed wing at the recorded steps, as the mean of the last `smooth` lines: KEYS, epoch, loss.

    For two-wing methods the loss of the adaptive half (its weight is 1), for a split batch that of the second half."""
    frames = []
    for course in courses:
        a = course.arrays
        if "losses" not in a:
            continue
        halves = course.spec.method.halves
        weight = 1 + course.spec.method.twins_weight if course.spec.method.normalize_loss and halves else 1.0
        loss = pd.Series(a["losses"][:, 1 if halves else 0].astype(np.float64) * weight)
        frames.append(pd.DataFrame(dict(zip(KEYS, course.keys, strict=True)) | {
            "epoch": a["steps"] / course.steps_per_epoch, "loss": loss.rolling(smooth, min_periods=1).mean()}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*KEYS, "epoch", "loss"])


def escape_times(courses: Sequence[Course], baseline: str = "at") -> pd.DataFrame:
    """Epochs until a recorded training loss (not smoothed: the start is left within steps) first falls below a threshold:
    KEYS, threshold, epochs (infinite if never).

    The threshold of a data set and seed lies halfway between the baseline's first loss and the lowest that it reaches, so it
    is the same for all methods."""
    frame, lines = training_losses(courses, smooth=1), []
    for (dataset, seed), group in frame.groupby(["dataset", "seed"], sort=False):
        base = group.loc[group["method"] == baseline, "loss"]
        if base.empty:
            continue
        threshold = (base.iloc[0] + base.min()) / 2
        for method, mine in group.groupby("method", sort=False):
            below = mine.loc[mine["loss"] < threshold, "epoch"]
            lines.append([dataset, method, seed, threshold, below.iloc[0] if len(below) else math.inf])
    return _with_lost(pd.DataFrame(lines, columns=[*KEYS, "threshold", "epochs"]), courses)


def best_epoch(rows: Sequence[dict]) -> int:
    """The epoch with the highest robust accuracy on the validation images, the first of equals.

    Args:
        rows: per-epoch rows of a run, which hold no test numbers.
    Raises:
        ValueError: no row has `val_robust_acc`.
    """
    measured = _validated(rows)
    return max(measured, key=lambda row: row["val_robust_acc"])["epoch"]


def early_stop(rows: Sequence[dict], patience: int) -> int:
    """The epoch that early stopping returns: training ends when `patience` validation measurements in a row have not beaten
    the best before them, and the best so far is kept.

    Raises:
        ValueError: patience below 1, or no row has `val_robust_acc`.
    """
    if patience < 1:
        raise ValueError(f"expected patience of at least 1 measurement, got {patience}")
    best, since = None, 0
    for row in _validated(rows):
        if best is None or row["val_robust_acc"] > best["val_robust_acc"]:
            best, since = row, 0
        else:
            since += 1
            if since == patience:
                break
    return best["epoch"]


def _validated(rows: Sequence[dict]) -> list[dict]:
    measured = [row for row in rows if "val_robust_acc" in row]
    if not measured:
        raise ValueError("expected robust accuracy on validation images in the epochs, got none; set val_images and val_every")
    return measured


def robust_at(course: Course, epoch: int) -> np.ndarray:
    """Mask of the robust test images after `epoch` epochs.

    Raises:
        ValueError: not measured then.
    """
    return _at(course, "test_robust", epoch)


def until(course: Course, epoch: int) -> Course:
    """The course as it would be had it ended after `epoch` epochs."""
    kept = course.arrays["epoch"] <= epoch
    arrays = {name: values[kept] if name == "epoch" or name.startswith(("test_", "train_")) else values
              for name, values in course.arrays.items()}
    return dataclasses.replace(course, arrays=arrays, epochs=[row for row in course.epochs if row["epoch"] <= epoch])


def last_epochs(course: Course) -> np.ndarray:
    """Mean of the robust masks of the last LAST measured epochs, of all after the start where there are fewer, one value per
    test image."""
    return _last(course, "test_robust")


def gap_values(course: Course) -> np.ndarray:
    """Per test image, robust at the epoch that is best on validation images minus `last_epochs`."""
    return robust_at(course, best_epoch(course.epochs)) - last_epochs(course)


def gaps(courses: Sequence[Course]) -> pd.DataFrame:
    """Best, last and gap of robust test accuracy, a line per data set and method over its seeds.

    Returns:
        dataset, method, seeds, n, epochs (list: best epoch of each seed), and for each of best, last, gap and clean_best,
        clean_last a column NAME with NAME_low and NAME_high: 95 % intervals over seeds and images (`stats.crossed_mean`).
    """
    lines, names = [], ("best", "last", "gap", "clean_best", "clean_last")
    groups: dict[tuple[str, str], list[Course]] = {}
    for course in courses:
        if "test_robust" in course.arrays:
            groups.setdefault(tuple(course.keys[:2]), []).append(course)
    for key, group in groups.items():
        best = [best_epoch(course.epochs) for course in group]
        columns = [[robust_at(c, e), last_epochs(c), gap_values(c), _at(c, "test_clean", e), _last(c, "test_clean")]
                   for c, e in zip(group, best, strict=True)]
        numbers = [x for values in zip(*columns, strict=True) for x in stats.crossed_mean(np.stack(values))[:3]]
        lines.append([*key, len(group), len(columns[0][0]), best, *numbers])
    return pd.DataFrame(lines, columns=["dataset", "method", "seeds", "n", "epochs",
                                        *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))])


def gap_differences(courses: Sequence[Course], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """gap(method) - gap(baseline) on the same test images and seeds: dataset, method, baseline, seeds, n, value, low, high."""
    measured = {tuple(c.keys): c for c in courses if "test_robust" in c.arrays}
    lines = []
    for (method, baseline), dataset in itertools.product(pairs, unique(d for d, _, _ in measured)):
        both = [(c, measured[dataset, baseline, s]) for (d, m, s), c in measured.items()
                if (d, m) == (dataset, method) and (dataset, baseline, s) in measured]
        if both:
            found = contrast(*([gap_values(c) for c in some] for some in zip(*both, strict=True)))
            lines.append([dataset, method, baseline, found.seeds, *found[:1], *found[2:5]])
    return pd.DataFrame(lines, columns=["dataset", "method", "baseline", "seeds", "n", "value", "low", "high"])


def _last(course: Course, name: str) -> np.ndarray:
    return course.arrays[name][course.arrays["epoch"] > 0][-LAST:].mean(0)  # epoch 0 is before training


def _at(course: Course, name: str, epoch: int) -> np.ndarray:
    place = np.flatnonzero(course.arrays["epoch"] == epoch)
    if not len(place):
        raise ValueError(f"expected {name} after epoch {epoch} of run {course.spec.hash}, got it only after "
                         f"{course.arrays['epoch'].tolist()}; make val_every a multiple of every")
    return course.arrays[name][place[0]].astype(np.float64)
