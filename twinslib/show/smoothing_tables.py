"""Certified accuracy in tables, from finished certifications (`evidence.cells`); nothing is drawn or trained here. What only one
notebook shows is in `norm_tables` (04) and `level_tables` (05).

Frames hold fractions and radii (L2, [0, 1] pixels), tables are text: accuracy in percent with 95 % intervals, "not run" where a
cell is missing.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..base import certified, stats
from ..evidence.cells import Measured, absent, clean_masks, grid_radius, lost, planned, stack
from ..evidence.rows import COLUMNS
from ..specs.jobs import Job
from ..specs.labels import NOT_RUN, dataset_label, method_label, unique
from ..store.store import Store
from ..studies.rules import Cell
from ..studies.smoothing import CROSSED, cell_of
from .origins import validated
from .tables import number

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)  # shown where a certification had no list of its own
KEY = ["dataset", "pretraining", "finetuning", "norm", "restat", "sigma"]
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


def norm_name(norm: str, restat: bool = False) -> str:
    return NORMS[norm] + (", re-estimated" if restat else "")


def dagger(constant: bool) -> str:
    """The mark of what is close to a constant answer (`MARK`)."""
    return " †" if constant else ""


def estimates(found: Sequence[Measured]) -> pd.DataFrame:
    """One line per data set, cell, noise level, number of draws, measure and radius, over the seeds that are finished.

    measure: certified_acc at each radius that was asked for, acr (the mean of the largest such radius that is certified),
    abstain_rate where draws did not depend on labels. ceiling: the largest radius that the draws can give. chance: what the best
    constant answer earns there. one_class: share of the class that is chosen most often, and constant: whether it is close to a
    constant answer, both of the seed where it is most so (`cells.Measured`). value, se and low, high (95 %): over images with one
    seed (for accuracies exact, Clopper-Pearson), else over seeds and images (`stats.crossed_mean`). What diverged has no line;
    the frame's attrs hold `cells.lost` as `lost`.
    """
    groups: dict[tuple, dict[int, Measured]] = {}
    for m in (m for m in found if not m.absent):
        c = m.certification
        key = m.dataset, m.cell, m.sigma, c.n, c.alpha, c.images, tuple(c.radii) or RADII, c.stop_if_wrong
        groups.setdefault(key, {})[m.seed] = m
    out = []
    for (dataset, cell, sigma, n, alpha, images, radii, stopped), by_seed in groups.items():
        first, several = next(iter(by_seed.values())), list(by_seed.values())
        ceiling = first.certification.plan.ceiling
        head = [dataset, cell.pretraining, cell.finetuning, cell.norm, cell.restat, sigma, n, alpha, ceiling, images,
                len(several), max(m.one_class for m in several), any(m.constant for m in several)]
        chances = {r: first.chance if r <= ceiling else 0.0 for r in radii}
        exact = certified.certified_accuracy(first.certified, radii) if len(several) == 1 else ()
        numbers = [(a.accuracy, a.standard_error, a.low, a.high) for a in exact] or [
            _numbers(values) for values in np.moveaxis(stack(by_seed, radii).astype(float), -1, 0)]
        out += [[*head, "certified_acc", r, chances[r], *found_] for r, found_ in zip(radii, numbers, strict=True)]
        top = first.chance * max((r for r in radii if r <= ceiling), default=0)
        out.append([*head, "acr", math.nan, top, *_numbers(grid_radius(by_seed, radii))])
        if not stopped:
            abstains = np.stack([m.certified.prediction == certified.ABSTAIN for m in several]).astype(float)
            out.append([*head, "abstain_rate", math.nan, 0.0, *_numbers(abstains)])
    frame = pd.DataFrame(out, columns=[*KEY, "n", "alpha", "ceiling", "images", "seeds", "one_class", "constant", "measure",
                                       "radius", "chance", "value", "se", "low", "high"])
    frame.attrs["lost"] = lost(found)
    return frame


def said(frame: pd.DataFrame, dataset: str, *needed: tuple[Cell, float]) -> str:
    """What stands for a number of `estimates` that is not there."""
    return absent(frame.attrs.get("lost", {}), dataset, needed)


def _numbers(values: np.ndarray) -> tuple[float, float, float, float]:
    """(mean, standard error, low, high) of values of shape (seeds, N): variances of the mean over images and, with several, over
    seeds add up; the interval is wider than 1.96 errors, since few seeds know their variance badly."""
    found, (seeds, n) = stats.crossed_mean(values), values.shape
    variance = values.mean(0).var(ddof=1) / n + (values.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0)
    return found.estimate, math.sqrt(variance), max(found.low, 0.0), found.high


def main_lines(frame: pd.DataFrame) -> pd.DataFrame:
    """Of `estimates`, the lines with the number of draws that most cells have."""
    if frame.empty:
        return frame
    each = frame.drop_duplicates([*KEY, "n"])["n"].value_counts()
    return frame[frame["n"] == each.index[0]]


def rows(store: Store, jobs: Sequence[Job], found: Sequence[Measured], study: str) -> pd.DataFrame:
    """Tidy rows, one per number and seed: the columns of `rows.rows`, then pretraining, finetuning, restat, sigma, draws, alpha.

    eps is the radius; attack none; metric clean_acc, certified_acc, acr (see `estimates`) or abstain_rate. A certification that
    diverged is one row, an acr without value, and images says so.
    """
    extra = ["pretraining", "finetuning", "restat", "sigma", "draws", "alpha"]
    out = []
    for (dataset, cell, seed), mask in clean_masks(store, jobs).items():
        job = next(j for j in jobs if cell_of(j) == cell and (j.spec.data.name, j.spec.seed) == (dataset, seed))
        images = f"{store.run(job.spec)['split']}[:{len(mask)}]"
        out.append([*_keys(store, study, dataset, job.spec, cell), "clean_acc", "none", 0.0, float(mask.mean()), len(mask),
                    job.spec.hash, "none", images, cell.pretraining, cell.finetuning, False, 0.0, 0, math.nan])
    for m in found:
        tail = [m.cell.pretraining, m.cell.finetuning, m.cell.restat, m.sigma, m.certification.n, m.certification.alpha]
        run = m.spec.hash
        if m.absent:
            out.append([*_keys(store, study, m.dataset, m.spec, m.cell), "acr", "l2", math.nan, math.nan, m.certification.images,
                        run, "none", m.absent, *tail])
        for line in estimates([m]).itertuples():
            out.append([*_keys(store, study, m.dataset, m.spec, m.cell), line.measure, "l2", line.radius, line.value, line.images,
                        run, "none", f"{m.split}[:{line.images}]", *tail])
    return pd.DataFrame(out, columns=[*COLUMNS, *extra])


def _keys(store: Store, study: str, dataset: str, spec, cell: Cell) -> list:
    return [study, store.preset, dataset, spec.model.arch, cell.norm, spec.method.name, spec.seed]


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
    specs = [p.certification for p in planned(jobs)]
    if not specs:
        return "Nothing is certified."
    draws = sorted({c.n for c in specs})
    images, n, n0 = (" or ".join(f"{v:,}" for v in sorted({getattr(c, k) for c in specs})) for k in ("images", "n", "n0"))
    alphas = " or ".join(map(str, sorted({c.alpha for c in specs})))
    top = "; ".join(f"{max(c.plan.ceiling / c.sigma for c in specs if c.n == k):.2f} σ at n = {k:,}" for k in draws)
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
            lines.append({"pre-training": name(labels["pretraining"]), "norm": norm_name(job.spec.model.norm),
                          "data set": dataset_label(job.spec.data.name), "classes": found.get("classes", ""),
                          "clean, validation": f"{100 * found['val_clean_acc']:.1f}" if found else store.absent(job),
                          "images": found.get("images", "")})
    return pd.DataFrame(lines)


def certified_table(frame: pd.DataFrame, store: Store, jobs: Sequence[Job], sigma: float) -> pd.DataFrame:
    """Certified accuracy at one noise level: a line for each planned cell of the grid that is certified at it, with accuracy
    without noise, at each of RADII, the average certified radius and the share of the class that is chosen most often; marked
    where it is close to a constant answer, and for each data set what the best constant answer earns."""
    masks, lines = clean_masks(store, jobs), []
    here = main_lines(frame)
    here = here[(here["sigma"] == sigma) & (here["pretraining"] != CROSSED)]
    for dataset, cell in unique((p.dataset, p.cell) for p in planned(jobs)
                                if p.certification.sigma == sigma and p.cell.pretraining != CROSSED):
        mine = here[(here[KEY] == [dataset, *dataclasses.astuple(cell), sigma]).all(axis=1)]
        word = said(frame, dataset, (cell, sigma))
        at = {r.radius: r for r in mine[mine["measure"] == "certified_acc"].itertuples()}
        acr = next(mine[mine["measure"] == "acr"].itertuples(), None)
        clean = [m.mean() for (d, c, _), m in masks.items() if (d, c) == (dataset, cell)]
        line = {"data set": dataset_label(dataset), "pre-training": name(cell.pretraining), "fine-tuning": name(cell.finetuning),
                "norm": norm_name(cell.norm, cell.restat), "seeds": str(acr.seeds) if acr else "0",
                "no noise": "" if cell.restat else f"{100 * np.mean(clean):.1f}" if clean else word}
        line |= {f"r {r:g}": number(at.get(r), missing=word) for r in RADII}
        lines.append(line | {"ACR ± SE": radius_text(acr, word), "one class": one_class_text(acr, word)})
    for dataset in unique(here["dataset"]):
        mine = here[here["dataset"] == dataset]
        earned = dict(zip(mine["radius"], mine["chance"], strict=True))
        lines.append(dict.fromkeys(lines[0], "") | {
            "data set": dataset_label(dataset), "pre-training": CONSTANT, "one class": "100 %",
            **{f"r {r:g}": f"{100 * earned[r]:.1f}" if r in earned else NOT_RUN for r in RADII},
            "ACR ± SE": f"{mine.loc[mine['measure'] == 'acr', 'chance'].max():.3f}"})
    return pd.DataFrame(lines)


def radius_text(acr, word: str = NOT_RUN) -> str:
    """Average certified radius with its standard error, from a line of `estimates`, else what is said in its place."""
    return f"{acr.value:.3f} ± {acr.se:.3f}{dagger(acr.constant)}" if acr else word


def one_class_text(line, word: str = NOT_RUN) -> str:
    """Share of the class that is chosen most often, likewise."""
    return f"{100 * line.one_class:.0f} %{dagger(line.constant)}" if line else word


def caption(frame: pd.DataFrame) -> str:
    """What the intervals stand for, from the certifications themselves."""
    if frame.empty:
        return "No certification is finished yet."
    main = main_lines(frame)
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
