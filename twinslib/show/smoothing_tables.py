"""Certified accuracy in tables, from certifications (`evidence.cells`); nothing is drawn or trained here. What only one notebook
shows is in `cell_tables`.

Frames hold fractions and radii (L2, [0, 1] pixels), tables are text: accuracy in percent with 95 % intervals, "not run" where a
cell is missing.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..base import certified, stats
from ..evidence.accuracy import said
from ..evidence.cells import Measured, absent, clean, grid_radius, planned, stack
from ..evidence.rows import COLUMNS, keys
from ..specs.jobs import Job
from ..specs.labels import NOT_RUN, dataset_label, method_label, unique
from ..store.store import Store
from ..studies.rules import Cell, cell
from ..studies.smoothing import CROSSED
from .origins import validated
from .tables import number

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)  # shown where a certification had no list of its own
KEY = ["dataset", "cell", "sigma"]
NORMS = {"batch": "batch norm", "group": "group norm", "layer": "layer norm"}
NAMES = {"clean": "clean", "mixed": "mixed", "mixed_batch": "mixed, per batch", "weak": "clean, weaker",
         "strong": "clean, stronger", "frozen": "clean, frozen statistics",
         "probe": "linear probe", "random": "none", CROSSED: "robust (notebook 01)"}
CONSTANT = "best constant answer"
MARK = ("†: close to a constant answer, so that certificates say little about the images: in at least one seed, the share of the "
        "images for which one class is chosen is nearer to all of them than to the share of the most frequent label. The "
        f"{CONSTANT} is chance: always the most frequent label, certified as far as the draws can reach.")


def name(part: str) -> str:
    """Readable name of a pre-training or fine-tuning: σ 0.5 for noise0.5, the method's for one of notebook 01."""
    if part.startswith("noise"):
        return "own σ" if part == "noise*" else f"σ {float(part.removeprefix('noise')):g}"
    return NAMES.get(part, method_label(part))


def cell_names(dataset: str, c: Cell) -> dict[str, str]:
    """The first columns of a line about a cell."""
    return {"data set": dataset_label(dataset), "pre-training": name(c.pretraining), "fine-tuning": name(c.finetuning),
            "norm": NORMS.get(c.norm, "norms of its own") + (", re-estimated" if c.restat else "")}


def dagger(constant: bool) -> str:
    """The mark of what is close to a constant answer (`MARK`)."""
    return " †" if constant else ""


def estimates(found: Sequence[Measured]) -> pd.DataFrame:
    """One line per data set, cell, noise level, number of draws, measure and radius, over the seeds that are finished.

    measure: certified_acc at each radius that was asked for, acr (the mean of the largest such radius that is certified),
    abstain_rate where draws did not depend on labels. ceiling: the largest radius that the draws can give. chance: what the best
    constant answer earns there. one_class: share of the class that is chosen most often, and constant: whether it is close to a
    constant answer, both of the seed where it is most so (`cells.Measured`). value, se and low, high (95 %): over images with one
    seed (for accuracies exact, Clopper-Pearson), else over seeds and images (`stats.crossed_mean`). A cell of which nothing is
    finished at a level has a line without a value for each measure, and absent says why.
    """
    groups: dict[tuple, dict[int, Measured]] = {}
    done = {m.key for m in found if not m.absent}
    for m in (m for m in found if not m.absent or m.key not in done):
        c = m.certification
        groups.setdefault((*m.key, c.n, c.alpha, c.images, tuple(c.radii) or RADII, c.stop_if_wrong), {})[m.seed] = m
    out = []
    for (dataset, c, sigma, n, alpha, images, radii, stopped), by_seed in groups.items():
        several = list(by_seed.values())
        first, ceiling = several[0], several[0].certification.plan.ceiling
        head = [dataset, c, sigma, n, alpha, ceiling, images]
        if first.absent:
            nothing = [0, 0.0, False, *[math.nan] * 6, absent(several, dataset, [(c, sigma)])]
            out += [[*head, measure, *nothing] for measure in ("certified_acc", "acr")]
            continue
        about = [len(several), max(m.one_class for m in several), any(m.constant for m in several)]
        exact = certified.certified_accuracy(first.certified, radii) if len(several) == 1 else ()
        numbers = [(a.accuracy, a.standard_error, a.low, a.high) for a in exact] or [
            _numbers(values) for values in np.moveaxis(stack(by_seed, radii).astype(float), -1, 0)]
        out += [[*head, "certified_acc", *about, r, first.earned(r), *each, ""] for r, each in zip(radii, numbers, strict=True)]
        top = first.chance * max((r for r in radii if r <= ceiling), default=0)
        out.append([*head, "acr", *about, math.nan, top, *_numbers(grid_radius(by_seed, radii)), ""])
        if not stopped:
            abstains = np.stack([m.certified.prediction == certified.ABSTAIN for m in several]).astype(float)
            out.append([*head, "abstain_rate", *about, math.nan, 0.0, *_numbers(abstains), ""])
    return pd.DataFrame(out, columns=[*KEY, "n", "alpha", "ceiling", "images", "measure", "seeds", "one_class", "constant",
                                      "radius", "chance", "value", "se", "low", "high", "absent"])


def on_images(m: Measured, index: np.ndarray) -> Measured:
    """The same of some of its images alone, by their numbers in the data set."""
    kept = np.isin(m.certified.index, index)
    some = m.certified._replace(**{name: values[kept] for name, values in m.certified._asdict().items() if name != "label_used"})
    asked = dataclasses.replace(m.certification, images=int(kept.sum()))
    return dataclasses.replace(m, certification=asked, certified=some, shares=m.shares._make(v[kept] for v in m.shares),
                               chosen=None if m.chosen is None else m.chosen[kept])


def _numbers(values: np.ndarray) -> tuple[float, float, float, float]:
    """(mean, standard error, low, high) of values of shape (seeds, N): variances of the mean over images and, with several, over
    seeds add up; the interval is wider than 1.96 errors, since few seeds know their variance badly."""
    found, (seeds, n) = stats.crossed_mean(values), values.shape
    variance = values.mean(0).var(ddof=1) / n + (values.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0)
    return found.estimate, math.sqrt(variance), max(found.low, 0.0), found.high


def main_lines(frame: pd.DataFrame) -> pd.DataFrame:
    """Of `estimates`, the lines with the number of draws that most finished cells have."""
    each = frame.dropna(subset="value").drop_duplicates([*KEY, "n"])["n"].value_counts()
    return frame[(frame["n"] == each.index[0]) | frame["value"].isna()] if len(each) else frame


def family(frame: pd.DataFrame, dataset: str, c: Cell, sigmas: Sequence[float], measure: str = "certified_acc") -> pd.DataFrame:
    """Of `estimates`, the lines of a cell at each noise level, noise* as the network made for that level."""
    here = frame[(frame["dataset"] == dataset) & (frame["measure"] == measure)]
    return pd.concat([here[(here["sigma"] == s) & (here["cell"] == c.at(s))] for s in sigmas] or [here[:0]])


def rows(store: Store, jobs: Sequence[Job], found: Sequence[Measured], study: str) -> pd.DataFrame:
    """Tidy rows, one per number and seed: the columns of `rows.rows`, then pretraining, finetuning, restat, sigma, draws, alpha.

    eps is the radius; attack none; metric clean_acc, certified_acc, acr (see `estimates`) or abstain_rate. A certification that
    diverged is one row, an acr without value, and images says so.
    """
    out = []
    for row in clean(store, jobs):
        c, n = cell(row.method), len(row.hits)
        out.append([*keys(store, study, row.spec), "clean_acc", "none", 0.0, float(row.hits.mean()), n, row.spec.hash, "none",
                    f"{row.split}[:{n}]", c.pretraining, c.finetuning, False, 0.0, 0, math.nan])
    for m in (m for m in found if m.absent != NOT_RUN):
        tail = [m.cell.pretraining, m.cell.finetuning, m.cell.restat, m.sigma, m.certification.n, m.certification.alpha]
        lines = estimates([m])
        for line in lines[lines["value"].notna() | (lines["measure"] == "acr")].itertuples():
            out.append([*keys(store, study, m.spec), line.measure, "l2", line.radius, line.value, line.images, m.spec.hash,
                        "none", m.absent or f"{m.split}[:{line.images}]", *tail])
    return pd.DataFrame(out, columns=[*COLUMNS, "pretraining", "finetuning", "restat", "sigma", "draws", "alpha"])


def settings(jobs: Sequence[Job]) -> pd.DataFrame:
    """One line per pre-training and fine-tuning: noise, data, norms and schedule, straight from the specs."""
    lines: dict[tuple, dict] = {}
    for job in jobs:
        labels, s = dict(job.labels), job.spec
        if not labels or labels["pretraining"] == CROSSED:
            continue
        part = labels.get("finetuning", labels["pretraining"])
        sigmas = s.noise.sigmas if s.noise else ()
        everything = "all" if s.method.wings == "single" else "all, statistics frozen"
        line = lines.setdefault((job.ship, part, s.data.name), {
            "stage": "pre-training" if job.ship else "fine-tuning", "name": name(part), "data set": dataset_label(s.data.name),
            "training images": s.data.train_images or f"all but {s.data.val_images}", "network": s.model.arch, "norms": [],
            "noise levels σ": ", ".join(f"{x:g}" for x in sigmas) or "none",
            "drawn for each": s.noise.draw if len(sigmas) > 1 else "",
            "trains": everything if s.method.trains == "all" else "head",
            "lr": s.optim.lr, "epochs": s.optim.epochs, "batch": s.optim.batch_size, "seeds": []})
        line["norms"].append(s.model.norm)
        line["seeds"].append(str(s.seed))
    return pd.DataFrame([line | {k: ", ".join(unique(line[k])) for k in ("norms", "seeds")} for line in lines.values()])


def certifications(jobs: Sequence[Job]) -> str:
    """How everything is certified, in one sentence, from the specs."""
    specs = [m.certification for m in planned(jobs)]
    if not specs:
        return "Nothing is certified."
    images, n, n0 = (" or ".join(f"{v:,}" for v in sorted({getattr(c, k) for c in specs})) for k in ("images", "n", "n0"))
    alphas = " or ".join(map(str, sorted({c.alpha for c in specs})))
    top = "; ".join(f"{max(c.plan.ceiling / c.sigma for c in specs if c.n == k):.2f} σ at n = {k:,}"
                    for k in sorted({c.n for c in specs}))
    stopped = any(c.stop_if_wrong for c in specs)
    return (f"Certified: the first {images} test images of a fixed order, {n0} draws to choose the class and at most n = {n} to "
            f"bound its probability, α = {alphas} for each image, in {' or '.join(unique(c.precision for c in specs))}; draws "
            f"end when every requested radius is settled. No radius can exceed {top}."
            + (" Where abstention is not reported, images whose class is wrong get no further draws." if stopped else ""))


def sources_table(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Accuracy without noise of each start network on its source's validation images, after its last epoch."""
    lines = []
    for job in jobs:
        labels, found = dict(job.labels), validated(store, job)
        if job.ship and labels and labels["pretraining"] != CROSSED:
            lines.append({"pre-training": name(labels["pretraining"]), "norm": NORMS.get(job.spec.model.norm, "its own"),
                          "data set": dataset_label(job.spec.data.name), "classes": found.get("classes", ""),
                          "clean, validation": f"{100 * found['val_clean_acc']:.1f}" if found else store.absent(job),
                          "images": found.get("images", "")})
    return pd.DataFrame(lines)


def certified_table(frame: pd.DataFrame, store: Store, jobs: Sequence[Job], sigma: float) -> pd.DataFrame:
    """Certified accuracy at one noise level: a line for each planned cell of the grid that is certified at it, with accuracy
    without noise, at each of RADII, the average certified radius and the share of the class that is chosen most often; marked
    where it is close to a constant answer, and for each data set what the best constant answer earns."""
    without, lines, main = clean(store, jobs), [], main_lines(frame)
    for dataset, c in unique((m.dataset, m.cell) for m in planned(jobs) if m.sigma == sigma and m.cell.pretraining != CROSSED):
        right = [row.hits.mean() for row in without if (row.dataset, row.method) == (dataset, str(c))]
        word = f"{100 * np.mean(right):.1f}" if right else said(family(main, dataset, c, [sigma]))
        lines.append(cell_names(dataset, c) | certified_line(main, dataset, c, sigma) | {"no noise": "" if c.restat else word})
    here = main[(main["sigma"] == sigma) & main["cell"].map(lambda c: c.pretraining != CROSSED) & main["value"].notna()]
    for dataset, mine in here.groupby("dataset", sort=False):
        earned = dict(zip(mine["radius"], mine["chance"], strict=True))
        lines.append({
            "data set": dataset_label(dataset), "pre-training": CONSTANT, "one class": "100 %",
            **{f"r {r:g}": f"{100 * earned[r]:.1f}" if r in earned else NOT_RUN for r in RADII},
            "ACR ± SE": f"{mine.loc[mine['measure'] == 'acr', 'chance'].max():.3f}"})
    columns = ["pre-training", "fine-tuning", "norm", "seeds", "no noise", *(f"r {r:g}" for r in RADII), "ACR ± SE", "one class"]
    return pd.DataFrame(lines, columns=["data set", *columns]).fillna("")


def certified_line(frame: pd.DataFrame, dataset: str, c: Cell, sigma: float, radii: Sequence[float] = RADII) -> dict[str, str]:
    """Of `estimates`, cells of text about a network at one noise level: seeds, certified accuracy at each radius, average radius
    with its standard error, share of the class that is chosen most often, and what the best constant answer earns."""
    mine, acr = family(frame, dataset, c, [sigma]), next(family(frame, dataset, c, [sigma], "acr").itertuples(), None)
    at, word = {r.radius: r for r in mine.itertuples()}, said(mine)
    line = {"seeds": str(acr.seeds if acr else 0), **{f"r {r:g}": number(at.get(r), missing=word) for r in radii}}
    if not acr or not acr.seeds:
        return line | dict.fromkeys(("ACR ± SE", "one class", CONSTANT), word)
    mark = dagger(acr.constant)
    return line | {"ACR ± SE": f"{acr.value:.3f} ± {acr.se:.3f}{mark}", "one class": f"{100 * acr.one_class:.0f} %{mark}",
                   CONSTANT: f"{100 * mine['chance'].max():.1f}"}


def caption(frame: pd.DataFrame) -> str:
    """What the intervals stand for, from the certifications themselves."""
    main = main_lines(frame).dropna(subset="value")
    if main.empty:
        return "No certification is finished yet."
    seeds, images = main["seeds"].max(), "/".join(f"{n:,}" for n in sorted(main["images"].unique()))
    over = "the test images (exact, Clopper-Pearson)" if seeds == 1 else "seeds and test images"
    return (f"{images} test images, n = {main['n'].iloc[0]:,}, α = {main['alpha'].iloc[0]:g}; up to {seeds} seed"
            f"{'' if seeds == 1 else 's'}. Intervals: 95 % over {over}. r: L2 radius in [0, 1] pixels. ACR: mean of the largest "
            "radius asked for that is certified, 0 where the answer is wrong or missing. One class: the largest share of the "
            f"images for which one class is chosen. {MARK}")


def sanity(found: Sequence[Measured]) -> dict[str, bool]:
    """What must hold for certified numbers to be believed, over all finished certifications."""
    bounded, coherent, splits = True, True, {}
    for m in (m for m in found if not m.absent):
        answered = m.certified.prediction != certified.ABSTAIN
        bounded &= bool((m.certified.radius <= m.certification.plan.ceiling).all())
        coherent &= bool((answered == (m.certified.radius > 0)).all())
        splits.setdefault(m.dataset, set()).add(m.split)
    return {"no radius is above what its draws can give": bounded,
            "every answer has a radius, no abstention has one": coherent,
            "all cells of a data set stand on the same test images": all(len(s) == 1 for s in splits.values())}
