"""Reading the courses of runs: rates and angles by layer, losses by epoch, best and last epoch, gaps.

Frames hold fractions and radians. Nothing here chooses by test images.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from ..base import stats
from ..specs.jobs import Job
from ..specs.labels import NOT_RUN, unique
from ..specs.run import RunSpec
from ..store.store import Store
from .frame import contrast

KEYS = ["dataset", "method", "seed"]
LAST = 5  # measured epochs whose mean stands for the end of training (Rice et al. 2020: of the last five epochs)
RATES = ("lr_over_w2", "relative_step", "angle")
MEANS = ["w_norm", "g_norm", "cos_wg", "g_first", "g_second"]


@dataclasses.dataclass(frozen=True)
class Course:
    """A run with its arrays (`follow.Follower.arrays`) and its per-epoch rows; or one that is not there, without arrays, with the
    rows until it diverged and what is said in place of its numbers (`absent`)."""

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

    @property
    def best(self) -> int:
        """The epoch that is best on the validation images (`best_epoch`)."""
        return best_epoch(self.epochs)

    @property
    def ending(self) -> np.ndarray:
        """The last LAST measured epochs, of all after the start where there are fewer."""
        return self.arrays["epoch"][self.arrays["epoch"] > 0][-LAST:]  # epoch 0 is before training

    def at(self, name: str, epoch: int) -> np.ndarray:
        """What was measured of each image after an epoch. ValueError: not measured then."""
        place = np.flatnonzero(self.arrays["epoch"] == epoch)
        if not len(place):
            raise ValueError(f"expected {name} after epoch {epoch} of run {self.spec.hash}, got it only after "
                             f"{self.arrays['epoch'].tolist()}; make val_every a multiple of every")
        return self.arrays[name][place[0]].astype(np.float64)

    def end(self, name: str = "test_robust") -> np.ndarray:
        """The same as mean over `ending`."""
        return self.arrays[name][np.isin(self.arrays["epoch"], self.ending)].mean(0)

    @property
    def gap(self) -> np.ndarray:
        """Per test image, robust at the best epoch minus `end`."""
        return self.at("test_robust", self.best) - self.end()


def read(store: Store, jobs: Sequence[Job]) -> list[Course]:
    """The courses of those of `jobs` that are followed, in their order. ValueError: two runs for one data set, method and seed of
    which something is known, or such runs of one data set on other test images."""
    out: dict[RunSpec, Course] = {}
    runs, splits = {}, {}
    for job in (job for job in jobs if job.spec.follow):
        arrays = store.course(job.spec) if job.settled else None
        images = (store.run(job.spec) or {"train_images": 0})["train_images"]
        course = Course(job.spec, arrays or {}, store.epochs(job.spec), images, store.absent(job) if arrays is None else "")
        out.setdefault(job.spec, course)
        if course.absent == NOT_RUN:
            continue
        if runs.setdefault(tuple(course.keys), job.spec) != job.spec:
            raise ValueError(f"expected one run per data set, method and seed, got two for {', '.join(map(str, course.keys))}")
        d = job.spec.data
        images = (d.image_size, d.crop, d.exclude, d.split_seed, job.spec.follow.test_images)
        if splits.setdefault(d.name, images) != images:
            raise ValueError(f"expected all runs on {d.name} on the same test images, got {images} and {splits[d.name]}")
    return list(out.values())


def finished(store: Store, jobs: Sequence[Job]) -> list[Course]:
    """Those that are finished or have diverged."""
    return [c for c in read(store, jobs) if c.absent != NOT_RUN]


def lost(courses: Sequence[Course]) -> dict[tuple[str, str, int], str]:
    """KEYS of the runs that diverged -> what stands for them."""
    return {tuple(c.keys): c.absent for c in courses if c.absent not in ("", NOT_RUN)}


def _joined(parts: Iterable[tuple[Course, dict]], *columns: str) -> pd.DataFrame:
    """KEYS and these columns of all runs, from (run, column -> values)."""
    frames = [pd.DataFrame(dict(zip(KEYS, c.keys, strict=True)) | values) for c, values in parts]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*KEYS, *columns])


def quantities(courses: Sequence[Course]) -> pd.DataFrame:
    """One line per run, recorded step and layer: KEYS, layer, depth (0-based place in the network), convolution (False for
    linear layers), epoch (real number, of the step), lr, `dynamics.QUANTITIES`, lr_over_w2 = lr / ||w||^2 and relative_step =
    lr ||g|| / ||w||."""
    def values(c: Course) -> dict:
        a, (steps, layers) = c.arrays, c.arrays["w_norm"].shape
        depth, step = np.tile(np.arange(layers), steps), np.repeat(a["steps"], layers)
        return {"layer": np.tile(a["layers"], steps), "depth": depth, "convolution": depth < layers - 1,  # the head is linear
                "step": step, "epoch": step / c.steps_per_epoch, "lr": np.repeat(a["lr"], layers),
                **{name: a[name].reshape(-1).astype(np.float64) for name in (*MEANS, "angle")}}

    frame = _joined(((c, values(c)) for c in courses if "w_norm" in c.arrays), "layer", "depth", "convolution", "step", "epoch",
                    "lr", *MEANS, "angle")
    return frame.assign(lr_over_w2=frame["lr"] / frame["w_norm"] ** 2,
                        relative_step=frame["lr"] * frame["g_norm"] / frame["w_norm"])


def by_layer(courses: Sequence[Course]) -> pd.DataFrame:
    """One line per run and convolution: KEYS, layer, place (1-based among the convolutions), and means over recorded steps of
    RATES, w_norm, g_norm and |cos_wg|; g_first and g_second, norms of the gradients of the halves' losses, each with weight 1
    (NaN where the batch is whole); growth = last over first w_norm."""
    frame = quantities(courses)
    groups = frame[frame["convolution"].astype(bool)].assign(cos_wg=frame["cos_wg"].abs()).groupby([*KEYS, "layer"], sort=False)
    out = groups[[*RATES, *MEANS]].mean()
    out = out.assign(growth=groups["w_norm"].last() / groups["w_norm"].first()).reset_index()
    out.insert(4, "place", out.groupby(KEYS, sort=False).cumcount() + 1)
    for c in courses:
        m, mine = c.spec.method, (out[KEYS] == c.keys).all(axis=1)
        total = 1 + m.twins_weight if m.normalize_loss else 1.0
        weights = (m.twins_weight / total, 1 / total) if m.halves else (math.nan, math.nan)
        out.loc[mine, ["g_first", "g_second"]] /= np.array(weights)
    return out


def rates(courses: Sequence[Course]) -> pd.DataFrame:
    """One line per run: KEYS, and of each of RATES and of growth the median over convolutions of `by_layer`."""
    return by_layer(courses).groupby(KEYS, sort=False)[[*RATES, "growth"]].median().reset_index()


def against(frame: pd.DataFrame, pairs: Iterable[tuple[str, str]], how: Callable) -> pd.DataFrame:
    """`how` of the columns of each method and its baseline, both with the same other levels of the index (data set, seed, place,
    epoch ...): dataset, method, baseline, other levels, columns."""
    levels = [name for name in frame.index.names if name not in ("dataset", "method")]
    out = [pd.DataFrame(columns=["dataset", "method", "baseline", *levels, *frame.columns])]
    for method, baseline in pairs:
        mine, theirs = (frame[frame.index.get_level_values("method") == m].droplevel("method") for m in (method, baseline))
        both = mine.index.intersection(theirs.index, sort=False)
        found = how(mine.loc[both], theirs.loc[both]).reset_index().assign(method=method, baseline=baseline)
        out.append(found[out[0].columns])
    return pd.concat([part for part in out if len(part)] or out[:1], ignore_index=True)


def ratios(courses: Sequence[Course], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """`rates` of a method over those of its baseline, same data set and seed: dataset, method, baseline, seed, RATES."""
    return against(rates(courses).set_index(KEYS)[[*RATES]], pairs, operator.truediv)


def drift(courses: Sequence[Course]) -> pd.DataFrame:
    """How far the statistics of the deployed network have moved: KEYS, epoch, layer, depth, mean_drift (old standard
    deviations), log_var_drift (see `dynamics.statistics_drift`)."""
    return _joined(((c, {"epoch": c.arrays["drift_epoch"], "layer": c.arrays["drift_layer"],
                         "depth": pd.factorize(c.arrays["drift_layer"])[0], "mean_drift": c.arrays["drift_mean"],
                         "log_var_drift": c.arrays["drift_log_var"]}) for c in courses if len(c.arrays.get("drift_epoch", ()))),
                   "epoch", "layer", "depth", "mean_drift", "log_var_drift")


def stable(course: Course) -> bool:
    """True if no epoch's training loss exceeds the first's and the run has not diverged."""
    losses = [row["train_loss"] for row in course.epochs]
    return not course.absent and all(math.isfinite(loss) and loss <= losses[0] for loss in losses)


def early_losses(courses: Sequence[Course], epochs: int) -> pd.DataFrame:
    """PGD loss on the fixed training images after each of epochs 0 to `epochs`: KEYS, epoch, loss (nats, mean over images)."""
    lines = [[*course.keys, int(epoch), float(losses.mean())] for course in courses if "train_loss" in course.arrays
             for epoch, losses in zip(course.arrays["epoch"], course.arrays["train_loss"], strict=True) if epoch <= epochs]
    return pd.DataFrame(lines, columns=[*KEYS, "epoch", "loss"])


def training_losses(courses: Sequence[Course]) -> pd.DataFrame:
    """Training loss of the deployed wing at the recorded steps: KEYS, epoch, loss.

    For two-wing methods the loss of the adaptive half (its weight is 1), for a split batch that of the second half."""
    def values(c: Course) -> dict:
        m = c.spec.method
        weight = 1 + m.twins_weight if m.normalize_loss and m.halves else 1.0
        return {"epoch": c.arrays["steps"] / c.steps_per_epoch,
                "loss": c.arrays["losses"][:, 1 if m.halves else 0].astype(np.float64) * weight}

    return _joined(((c, values(c)) for c in courses if "losses" in c.arrays), "epoch", "loss")


def escape_times(courses: Sequence[Course], baseline: str = "at") -> pd.DataFrame:
    """Epochs until a recorded training loss (not smoothed: the start is left within steps) first falls below a threshold:
    KEYS, threshold, epochs (infinite if never).

    The threshold of a data set and seed lies halfway between the baseline's first loss and the lowest that it reaches, so it
    is the same for all methods."""
    frame, lines = training_losses(courses), []
    for (dataset, seed), group in frame.groupby(["dataset", "seed"], sort=False):
        base = group.loc[group["method"] == baseline, "loss"]
        if base.empty:
            continue
        threshold = (base.iloc[0] + base.min()) / 2
        for method, mine in group.groupby("method", sort=False):
            below = mine.loc[mine["loss"] < threshold, "epoch"]
            lines.append([dataset, method, seed, threshold, below.iloc[0] if len(below) else math.inf])
    return pd.DataFrame(lines, columns=[*KEYS, "threshold", "epochs"])


def validated(rows: Sequence[dict]) -> list[dict]:
    """Per-epoch rows of a run that hold robust accuracy on its validation images. ValueError: none has it."""
    measured = [row for row in rows if "val_robust_acc" in row]
    if not measured:
        raise ValueError("expected robust accuracy on validation images in the epochs, got none; set val_images and val_every")
    return measured


def best_epoch(rows: Sequence[dict]) -> int:
    """The epoch with the highest robust accuracy on the validation images, the first of equals (`validated`)."""
    return max(validated(rows), key=lambda row: row["val_robust_acc"])["epoch"]


def until(course: Course, epoch: int) -> Course:
    """The course as it would be had it ended after `epoch` epochs."""
    kept = course.arrays["epoch"] <= epoch
    arrays = {name: values[kept] if name == "epoch" or name.startswith(("test_", "train_")) else values
              for name, values in course.arrays.items()}
    return dataclasses.replace(course, arrays=arrays, epochs=[row for row in course.epochs if row["epoch"] <= epoch])


def by_key(courses: Iterable[Course]) -> dict[tuple[str, str], list[Course]]:
    """Finished runs with robust test accuracy, by data set and method."""
    out: dict[tuple[str, str], list[Course]] = {}
    for c in courses:
        if "test_robust" in c.arrays:
            out.setdefault(tuple(c.keys[:2]), []).append(c)
    return out


def gaps(courses: Sequence[Course]) -> pd.DataFrame:
    """Of robust test accuracy best, last and gap, then clean_best and clean_last, over the seeds of a data set and method:
    dataset, method, measure, seeds, n, value, low, high (95 % over seeds and images, `stats.crossed_mean`)."""
    lines = []
    for key, group in by_key(courses).items():
        each = {"best": [c.at("test_robust", c.best) for c in group], "last": [c.end() for c in group],
                "gap": [c.gap for c in group], "clean_best": [c.at("test_clean", c.best) for c in group],
                "clean_last": [c.end("test_clean") for c in group]}
        lines += [[*key, name, len(group), len(values[0]), *stats.crossed_mean(np.stack(values))[:3]]
                  for name, values in each.items()]
    return pd.DataFrame(lines, columns=["dataset", "method", "measure", "seeds", "n", "value", "low", "high"])


def gap_differences(courses: Sequence[Course], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """gap(method) - gap(baseline) on the same test images and seeds: dataset, method, baseline, seeds, n, value, low, high."""
    measured = {key: {c.spec.seed: c for c in group} for key, group in by_key(courses).items()}
    lines = []
    for (method, baseline), dataset in itertools.product(pairs, unique(d for d, _ in measured)):
        ours, theirs = (measured.get((dataset, name), {}) for name in (method, baseline))
        both = [seed for seed in ours if seed in theirs]
        if both:
            found = contrast(*([side[seed].gap for seed in both] for side in (ours, theirs)))
            lines.append([dataset, method, baseline, found.seeds, *found[:1], *found[2:5]])
    return pd.DataFrame(lines, columns=["dataset", "method", "baseline", "seeds", "n", "value", "low", "high"])
