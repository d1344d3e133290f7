"""Certified accuracy in tables, from finished certifications (`smoothing_cells`); nothing is drawn or trained here. What only one
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
from ..base.files import atomic_write
from ..evidence.cells import Measured, absent, clean_masks, grid_radius, lost, planned, stack
from ..evidence.rows import COLUMNS
from ..specs import labels
from ..specs.labels import dataset_label, method_label, percent, unique
from ..store import store as store_store
from ..store.jobs import Job
from ..store.store import Store
from ..studies.rules import Cell
from ..studies.smoothing import CROSSED, cell_of

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)  # shown where a certification had no list of its own
KEY = ["dataset", "pretraining", "finetuning", "norm", "restat", "sigma"]
NORMS = {"batch": "batch norm", "group": "group norm", "layer": "layer norm"}
NAMES = {"clean": "clean", "mixed": "mixed", "mixed_batch": "mixed, per batch", "weak": "clean, weaker",
         "strong": "clean, stronger", "frozen": "clean, frozen statistics",
         "probe": "linear probe", "random": "none", CROSSED: "robust (notebook 01)"}
NOTHING = "No certification is finished yet."
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


def cell_name(cell: Cell) -> str:
    """mixed → clean, group norm."""
    return f"{name(cell.pretraining)} → {name(cell.finetuning)}, {norm_name(cell.norm, cell.restat)}"


def dagger(constant: bool) -> str:
    """The mark of what is close to a constant answer (`MARK`)."""
    return " †" if constant else ""


def estimates(found: Sequence[Measured]) -> pd.DataFrame:
    """One line per data set, cell, noise level, number of draws, measure and radius, over the seeds that are finished.

    measure: certified_acc at each radius that was asked for, acr (the mean of the largest such radius that is certified),
    abstain_rate where draws did not depend on labels. ceiling: the largest radius that the draws can give. chance: what the best
    constant answer earns there. one_class: share of the class that is chosen most often, and constant: whether it is close to a
    constant answer, both of the seed where it is most so (`smoothing_cells.Measured`). value, se and low,
    high (95 %): over images with one seed (for accuracies exact, Clopper-Pearson), else over seeds and images
    (`stats.crossed_mean`). What diverged has no line; the frame's attrs hold `smoothing_cells.lost` as `lost`.
    """
    groups: dict[tuple, dict[int, Measured]] = {}
    for m in (m for m in found if not m.absent):
        c = m.certification
        key = m.dataset, m.cell, m.sigma, c.n, c.alpha, c.images, c.radii, c.stop_if_wrong
        groups.setdefault(key, {})[m.seed] = m
    out = []
    for (dataset, cell, sigma, n, alpha, images, radii, stopped), by_seed in groups.items():
        radii = tuple(radii) or RADII
        first = next(iter(by_seed.values()))
        ceiling = first.certification.plan.ceiling
        head = [dataset, cell.pretraining, cell.finetuning, cell.norm, cell.restat, sigma, n, alpha, ceiling, images,
                len(by_seed), max(m.one_class for m in by_seed.values()), any(m.constant for m in by_seed.values())]
        within = [r for r in radii if r <= ceiling]
        points_ = certified.certified_accuracy(first.certified, radii) if len(by_seed) == 1 else None
        values = stack(by_seed, radii).astype(float)
        for i, r in enumerate(radii):
            numbers = (points_[i].accuracy, points_[i].standard_error, points_[i].low, points_[i].high) if points_ else (
                _numbers(values[..., i]))
            out.append([*head, "certified_acc", r, first.chance if r in within else 0.0, *numbers])
        out.append([*head, "acr", math.nan, first.chance * max(within, default=0.0), *_numbers(grid_radius(by_seed, radii))])
        if not stopped:
            abstains = np.stack([m.certified.prediction == certified.ABSTAIN for m in by_seed.values()]).astype(float)
            out.append([*head, "abstain_rate", math.nan, 0.0, *_numbers(abstains)])
    frame = pd.DataFrame(out, columns=[*KEY, "n", "alpha", "ceiling", "images", "seeds", "one_class", "constant", "measure",
                                       "radius", "chance", "value", "se", "low", "high"])
    frame.attrs["lost"] = lost(found)
    return frame


def said(frame: pd.DataFrame, dataset: str, *needed: tuple[Cell, float]) -> str:
    """What stands for a number of `estimates` that is not there."""
    return absent(frame.attrs.get("lost", {}), dataset, needed)


def lost_text(frame: pd.DataFrame) -> str:
    """What diverged in words: mixed → clean, group norm (CIFAR-10, σ 0.25, 0.5)."""
    levels: dict[tuple[str, Cell], list[float]] = {}
    for dataset, cell, sigma in frame.attrs.get("lost", {}):
        levels.setdefault((dataset, cell), []).append(sigma)
    return labels.lost_text(f"{cell_name(cell)} ({dataset_label(dataset)}, σ {', '.join(f'{s:g}' for s in sorted(set(sigmas)))})"
                            for (dataset, cell), sigmas in levels.items())


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
    """Tidy rows, one per number and seed: the columns of `table.rows`, then pretraining, finetuning, restat, sigma, draws, alpha.

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


def write_rows(store: Store, frame: pd.DataFrame, number: str) -> None:
    """Write rows/certified_<number>.csv of the store, whole or not at all."""
    path = store.root / "rows" / f"certified_{number}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda tmp: frame.to_csv(tmp, index=False))


def settings(jobs: Sequence[Job]) -> pd.DataFrame:
    """One line per pre-training and fine-tuning: noise, data, norms and schedule, straight from the specs."""
    lines: dict[tuple, dict] = {}
    for job in jobs:
        labels, s = dict(job.labels), job.spec
        if not labels or labels["pretraining"] == CROSSED:
            continue
        part = labels.get("finetuning", labels["pretraining"])
        key = ("pre-training" if job.ship else "fine-tuning", part, s.data.name)
        levels = "none" if s.noise is None else ", ".join(f"{x:g}" for x in s.noise.sigmas)
        line = lines.setdefault(key, {
            "stage": key[0], "name": name(part), "data set": dataset_label(s.data.name),
            "training images": s.data.train_images or f"all but {s.data.val_images}", "network": s.model.arch, "norms": [],
            "noise levels σ": levels, "drawn for each": "" if s.noise is None or len(s.noise.sigmas) == 1 else s.noise.draw,
            "trains": {"all": "all" if s.method.wings == "single" else "all, statistics frozen", "head": "head"}[s.method.trains],
            "lr": s.optim.lr, "epochs": s.optim.epochs, "batch": s.optim.batch_size, "seeds": []})
        for column, value in (("norms", s.model.norm), ("seeds", s.seed)):
            line[column] += [value] if value not in line[column] else []
    return pd.DataFrame([line | {k: ", ".join(map(str, line[k])) for k in ("norms", "seeds")} for line in lines.values()])


def certifications(jobs: Sequence[Job]) -> str:
    """How everything is certified, in one sentence, from the specs."""
    specs = [p.certification for p in planned(jobs)]
    if not specs:
        return "Nothing is certified."
    images, draws, n0, alphas = (sorted({getattr(c, k) for c in specs}) for k in ("images", "n", "n0", "alpha"))
    top = "; ".join(f"{max(c.plan.ceiling / c.sigma for c in specs if c.n == n):.2f} σ at n = {n:,}" for n in draws)
    stopped = any(c.stop_if_wrong for c in specs)
    return (f"Certified: the first {_list(images)} test images of a fixed order, {_list(n0)} draws to choose the class and at "
            f"most n = {_list(draws)} to bound its probability, α = {_list(alphas)} for each image, in "
            f"{_list(unique(c.precision for c in specs))}; draws end when every requested radius is settled. No radius can "
            f"exceed {top}."
            + (" Where abstention is not reported, images whose class is wrong get no further draws." if stopped else ""))


def sources_table(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Accuracy without noise of each start network on its source's validation images, after its last epoch."""
    lines = []
    for job in jobs:
        labels = dict(job.labels)
        if not job.ship or not labels or labels["pretraining"] == CROSSED:
            continue
        record, measured = store.run(job.spec), {}
        for epoch in record["epochs"] if record else ():
            measured = epoch if "val_clean_acc" in epoch else measured
        lines.append({"pre-training": name(labels["pretraining"]), "norm": norm_name(job.spec.model.norm),
                      "data set": dataset_label(job.spec.data.name), "classes": record["classes"] if record else "",
                      "clean, validation": f"{100 * measured['val_clean_acc']:.1f}" if measured else store.absent(job),
                      "images": record["val_images"] if record else ""})
    return pd.DataFrame(lines)


def certified_table(frame: pd.DataFrame, store: Store, jobs: Sequence[Job], sigma: float,
                    radii: Sequence[float] = RADII) -> pd.DataFrame:
    """Certified accuracy at one noise level: a line for each planned cell of the grid that is certified at it, with accuracy
    without noise, at each radius, the average certified radius and the share of the class that is chosen most often; marked where
    it is close to a constant answer, and for each data set what the best constant answer earns."""
    masks, lines = clean_masks(store, jobs), []
    kept = {tuple(line[k] for k in (*KEY, "measure", "radius")): line
            for line in main_lines(frame).fillna({"radius": -1.0}).to_dict("records")}
    for dataset, cell in unique((p.dataset, p.cell) for p in planned(jobs)
                                if p.certification.sigma == sigma and p.cell.pretraining != CROSSED):
        key = (dataset, cell.pretraining, cell.finetuning, cell.norm, cell.restat, sigma)
        clean = [m for (d, c, _), m in masks.items() if (d, c) == (dataset, dataclasses.replace(cell, restat=False))]
        acr, word = kept.get((*key, "acr", -1.0)), said(frame, dataset, (cell, sigma))
        line = {"data set": dataset_label(dataset), "pre-training": name(cell.pretraining), "fine-tuning": name(cell.finetuning),
                "norm": norm_name(cell.norm, cell.restat), "seeds": str(acr["seeds"]) if acr else "0",
                "no noise": f"{100 * np.mean([m.mean() for m in clean]):.1f}" if clean and not cell.restat else ""
                if cell.restat else word}
        for r in radii:
            found = kept.get((*key, "certified_acc", r))
            line[f"r {r:g}"] = percent(found["value"], found["low"], found["high"]) if found else word
        line["ACR ± SE"] = f"{acr['value']:.3f} ± {acr['se']:.3f}" + dagger(acr["constant"]) if acr else word
        line["one class"] = f"{100 * acr['one_class']:.0f} %" + dagger(acr["constant"]) if acr else word
        lines.append(line)
    here = main_lines(frame)
    here = here[(here["sigma"] == sigma) & (here["pretraining"] != CROSSED)]
    for dataset in unique(here["dataset"]):
        mine = here[here["dataset"] == dataset]
        earned = dict(zip(mine["radius"], mine["chance"], strict=True))
        lines.append(dict.fromkeys(lines[0], "") | {
            "data set": dataset_label(dataset), "pre-training": CONSTANT, "one class": "100 %",
            **{f"r {r:g}": f"{100 * earned[r]:.1f}" if r in earned else store_store.NOT_RUN for r in radii},
            "ACR ± SE": f"{mine.loc[mine['measure'] == 'acr', 'chance'].max():.3f}"})
    return pd.DataFrame(lines)


def caption(frame: pd.DataFrame) -> str:
    """What the intervals stand for, from the certifications themselves."""
    if frame.empty:
        return lost_text(frame) or NOTHING
    main = main_lines(frame)
    seeds, images = main["seeds"].max(), "/".join(f"{n:,}" for n in sorted(main["images"].unique()))
    over = ("the test images (exact, Clopper-Pearson)" if seeds == 1 else "seeds and test images")
    return (f"{images} test images, n = {main['n'].iloc[0]:,}, α = {main['alpha'].iloc[0]:g}; up to {seeds} seed"
            f"{'' if seeds == 1 else 's'}. Intervals: 95 % over {over}. r: L2 radius in [0, 1] pixels. ACR: mean of the largest "
            "radius asked for that is certified, 0 where the answer is wrong or missing. One class: the largest share of the "
            f"images for which one class is chosen. {MARK} {lost_text(frame)}").strip()


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


def _list(values: Sequence) -> str:
    return " or ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in values)
