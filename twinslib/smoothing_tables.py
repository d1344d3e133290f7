"""Certified accuracy in tables and sentences, from finished certifications (`smoothing_cells`); nothing is drawn or trained here.

Frames hold fractions and radii (L2, [0, 1] pixels), tables are text: accuracy in percent with 95 % intervals, "not run" where a
cell is missing.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from . import certified, noise, public, stats
from .checkpoint import atomic_write
from .report import NOT_RUN, dataset_label, method_label, percent, points, unique
from .rules import Cell
from .runs import Job, Store
from .smoothing_cells import (
    Measured,
    cell_of,
    clean_masks,
    grid_radius,
    planned,
    select,
    stack,
    statistics,
)
from .smoothing_claims import costs
from .smoothing_grid import CROSSED
from .table import COLUMNS

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)  # shown where a certification had no list of its own
KEY = ["dataset", "pretraining", "finetuning", "norm", "restat", "sigma"]
NORMS = {"batch": "batch norm", "group": "group norm", "layer": "layer norm"}
NAMES = {"clean": "clean", "mixed": "mixed", "mixed_batch": "mixed, per batch", "weak": "clean, weaker",
         "strong": "clean, stronger", "frozen": "clean, frozen statistics",
         "probe": "linear probe", "random": "none", CROSSED: "robust (notebook 01)"}
SHOWN = ("-", "clean", "frozen", "noise0.5")  # fine-tunings whose statistics are shown; -: the start network
STRENGTHS = ("probe", "weak", "clean", "strong")  # fine-tunings on clean images, by how much they can change
NOTHING = "No certification is finished yet."


# -- names --------------------------------------------------------------------------------------------------------------
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


# -- frames -------------------------------------------------------------------------------------------------------------
def estimates(found: Sequence[Measured]) -> pd.DataFrame:
    """One line per data set, cell, noise level, number of draws, measure and radius, over the seeds that are finished.

    measure: certified_acc at each radius that was asked for, acr (the mean of the largest such radius that is certified),
    abstain_rate where draws did not depend on labels. ceiling: the largest radius that the draws can give. value, se and low,
    high (95 %): over images with one seed (for accuracies exact, Clopper-Pearson), else over seeds and images
    (`stats.crossed_mean`).
    """
    groups: dict[tuple, dict[int, Measured]] = {}
    for m in found:
        c = m.certification
        key = m.dataset, m.cell, m.sigma, c.n, c.alpha, c.images, c.radii, c.stop_if_wrong
        groups.setdefault(key, {})[m.seed] = m
    out = []
    for (dataset, cell, sigma, n, alpha, images, radii, stopped), by_seed in groups.items():
        radii = tuple(radii) or RADII
        first = next(iter(by_seed.values()))
        head = [dataset, cell.pretraining, cell.finetuning, cell.norm, cell.restat, sigma, n, alpha,
                first.certification.plan.ceiling, images, len(by_seed)]
        points_ = certified.certified_accuracy(first.certified, radii) if len(by_seed) == 1 else None
        values = stack(by_seed, radii).astype(float)
        for i, r in enumerate(radii):
            numbers = (points_[i].accuracy, points_[i].standard_error, points_[i].low, points_[i].high) if points_ else (
                _numbers(values[..., i]))
            out.append([*head, "certified_acc", r, *numbers])
        out.append([*head, "acr", math.nan, *_numbers(grid_radius(by_seed, radii))])
        if not stopped:
            abstains = np.stack([m.certified.prediction == certified.ABSTAIN for m in by_seed.values()]).astype(float)
            out.append([*head, "abstain_rate", math.nan, *_numbers(abstains)])
    return pd.DataFrame(out, columns=[*KEY, "n", "alpha", "ceiling", "images", "seeds", "measure", "radius", "value", "se", "low",
                                      "high"])


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

    eps is the radius; attack none; metric clean_acc, certified_acc, acr (see `estimates`) or abstain_rate.
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


# -- what was asked for -------------------------------------------------------------------------------------------------
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
                      "clean, validation": f"{100 * measured['val_clean_acc']:.1f}" if measured else NOT_RUN,
                      "images": record["val_images"] if record else ""})
    return pd.DataFrame(lines)


# -- accuracies ---------------------------------------------------------------------------------------------------------
def certified_table(frame: pd.DataFrame, store: Store, jobs: Sequence[Job], sigma: float,
                    radii: Sequence[float] = RADII) -> pd.DataFrame:
    """Certified accuracy at one noise level: a line for each planned cell of the grid that is certified at it, with accuracy
    without noise, at each radius, and the average certified radius."""
    masks, lines = clean_masks(store, jobs), []
    kept = {tuple(line[k] for k in (*KEY, "measure", "radius")): line
            for line in main_lines(frame).fillna({"radius": -1.0}).to_dict("records")}
    for dataset, cell in unique((p.dataset, p.cell) for p in planned(jobs)
                                if p.certification.sigma == sigma and p.cell.pretraining != CROSSED):
        key = (dataset, cell.pretraining, cell.finetuning, cell.norm, cell.restat, sigma)
        clean = [m for (d, c, _), m in masks.items() if (d, c) == (dataset, dataclasses.replace(cell, restat=False))]
        acr = kept.get((*key, "acr", -1.0))
        line = {"data set": dataset_label(dataset), "pre-training": name(cell.pretraining), "fine-tuning": name(cell.finetuning),
                "norm": norm_name(cell.norm, cell.restat), "seeds": str(acr["seeds"]) if acr else "0",
                "no noise": f"{100 * np.mean([m.mean() for m in clean]):.1f}" if clean and not cell.restat else ""
                if cell.restat else NOT_RUN}
        for r in radii:
            found = kept.get((*key, "certified_acc", r))
            line[f"r {r:g}"] = percent(found["value"], found["low"], found["high"]) if found else NOT_RUN
        line["ACR ± SE"] = f"{acr['value']:.3f} ± {acr['se']:.3f}" if acr else NOT_RUN
        lines.append(line)
    return pd.DataFrame(lines)


def caption(frame: pd.DataFrame) -> str:
    """What the intervals stand for, from the certifications themselves."""
    if frame.empty:
        return NOTHING
    main = main_lines(frame)
    seeds, images = main["seeds"].max(), "/".join(f"{n:,}" for n in sorted(main["images"].unique()))
    over = ("the test images (exact, Clopper-Pearson)" if seeds == 1 else "seeds and test images")
    return (f"{images} test images, n = {main['n'].iloc[0]:,}, α = {main['alpha'].iloc[0]:g}; up to {seeds} seed"
            f"{'' if seeds == 1 else 's'}. Intervals: 95 % over {over}. r: L2 radius in [0, 1] pixels. ACR: mean of the largest "
            "radius asked for that is certified, 0 where the answer is wrong or missing.")


# -- notebook 04 --------------------------------------------------------------------------------------------------------
def losses(found: Sequence[Measured], dataset: str, sigmas: Sequence[float], radius: float = 0.25) -> pd.DataFrame:
    """Mixed pre-training, by noise level: certified accuracy at `radius` after fine-tuning with noise of the level and on clean
    images, for each norm and for batch norm with frozen or re-estimated statistics; and what is lost (lost, low, high: paired,
    95 %). NaN where something is missing."""
    out = []
    for sigma in sigmas:
        for norm, kind in (("batch", "plain"), ("batch", "restat"), ("batch", "frozen"), ("group", "plain"), ("layer", "plain")):
            fine = "frozen" if kind == "frozen" else "clean"
            cell = Cell(pretraining="mixed", finetuning=fine, norm=norm, restat=kind == "restat")
            best = Cell(pretraining="mixed", finetuning="noise*", norm=norm).at(sigma)
            chosen = select(found, dataset, [(cell, sigma), (best, sigma)], (radius,))
            numbers, seeds, images = [math.nan] * 5, 0, 0
            if chosen:
                after, before = (stack(chosen[c, sigma], (radius,))[..., 0].astype(float) for c in (cell, best))
                lost = stats.crossed_mean(before - after)
                numbers, (seeds, images) = [before.mean(), after.mean(), *lost[:3]], after.shape
            out.append([dataset, sigma, norm, kind, radius, images, seeds, *numbers])
    return pd.DataFrame(out, columns=["dataset", "sigma", "norm", "statistics", "radius", "images", "seeds", "noisy", "clean",
                                      "lost", "low", "high"])


LABELS = {("batch", "plain"): "batch norm", ("batch", "restat"): "batch norm,\nre-estimated",
          ("batch", "frozen"): "batch norm,\nfrozen", ("group", "plain"): "group norm", ("layer", "plain"): "layer norm"}


def loss_table(frame: pd.DataFrame) -> pd.DataFrame:
    """`losses` as text; "recovered": the share of plain batch norm's loss that is not lost, where that is clearly above 0."""
    lines = []
    for row in frame.itertuples():
        plain = frame[(frame["sigma"] == row.sigma) & (frame["norm"] == "batch") & (frame["statistics"] == "plain")]
        base = plain["lost"].iloc[0]
        other = row.statistics != "plain" and plain["low"].iloc[0] > 0 and not math.isnan(row.lost)
        lines.append({
            "σ": f"{row.sigma:g}", "norm": LABELS[row.norm, row.statistics].replace("\n", " "), "seeds": str(row.seeds),
            f"certified at r {row.radius:g} after noisy fine-tuning": _share(row.noisy),
            "after clean fine-tuning": _share(row.clean),
            "lost (points)": NOT_RUN if math.isnan(row.lost) else points(row.lost, row.low, row.high),
            "recovered": f"{100 * (base - row.lost) / base:.0f} %" if other else ""})
    return pd.DataFrame(lines)


def loss_reading(frame: pd.DataFrame) -> str:
    """What each norm loses, by noise level."""
    out = []
    for sigma, group in frame.groupby("sigma", sort=True):
        done = group.dropna(subset="lost")
        if len(done):
            parts = "; ".join(f"{LABELS[r.norm, r.statistics]} {100 * r.lost:.1f}".replace("\n", " ")
                              + ("" if r.low > 0 or r.high < 0 else " (unclear)") for r in done.itertuples())
            out.append(f"σ {sigma:g}: {parts}")
    missing = int(frame["lost"].isna().sum())
    tail = f" Not run: {missing} of {len(frame)}." if missing else ""
    return (f"Points of certified accuracy at r {frame['radius'].iloc[0]:g} lost from noisy to clean fine-tuning, unclear where "
            f"the interval contains 0: {'. '.join(out)}.{tail}" if out else NOTHING)


def mismatch_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The four measures of mismatch (`noise.mismatch`), mean over layers and seeds, by network and noise level."""
    lines = [{"network": mismatch_name(cell), "data set": dataset_label(dataset), "noise σ": f"{sigma:g}",
              "layers": group["layer"].nunique(), **{LONG[k]: f"{group[k].mean():.3g}" for k in noise.MISMATCHES}}
             for (dataset, cell, sigma), group in frame.groupby(["dataset", "cell", "sigma"], sort=False)]
    return pd.DataFrame(lines, columns=["network", "data set", "noise σ", "layers", *LONG.values()])


LONG = {"mean_shift": "shift of the mean / sd", "log_variance": "|log ratio of variances|", "divergence": "Gaussian divergence",
        "wasserstein": "Wasserstein²"}


def mismatch_name(text: str) -> str:
    """mixed/-/batch: the start network itself."""
    pretraining, finetuning, _ = text.split("/")
    return f"{name(pretraining)}, before transfer" if finetuning == "-" else f"{name(pretraining)} → {name(finetuning)}"


def mismatch_reading(frame: pd.DataFrame, sigma: float = 0.5) -> str:
    """Which network's stored statistics are farthest from those that noise brings."""
    here = frame[frame["sigma"] == sigma]
    if here.empty:
        return "No statistics are measured yet."
    mean = here.groupby("cell", sort=False)["divergence"].mean().sort_values(ascending=False)
    parts = "; ".join(f"{mismatch_name(c)} {x:.3g}" for c, x in mean.items())
    return f"Mean Gaussian divergence over layers at σ {sigma:g}, largest first: {parts}."


def transfer_reading(found: Sequence[Measured], dataset: str, sigma: float, radius: float = 0.25) -> str:
    """Mixed minus clean and minus one-level pre-training after clean fine-tuning, for each norm, paired."""
    out = []
    for norm in NORMS:
        cells = [Cell(pretraining=p, finetuning="clean", norm=norm) for p in ("mixed", "clean", f"noise{float(sigma)}")]
        for other in cells[1:]:
            chosen = select(found, dataset, [(cells[0], sigma), (other, sigma)], (radius,))
            if chosen:
                ours, theirs = (stack(chosen[c, sigma], (radius,))[..., 0].astype(float) for c in (cells[0], other))
                out.append(f"{NORMS[norm]}, against {name(other.pretraining)} {points(*stats.crossed_mean(ours - theirs)[:3])}")
    return (f"{dataset_label(dataset)}, clean fine-tuning, certified at σ {sigma:g} and r {radius:g}, mixed pre-training minus "
            f"another in points: {'; '.join(out)}." if out else NOTHING)


# -- notebook 05 --------------------------------------------------------------------------------------------------------
ONE = Cell(pretraining="mixed", finetuning="clean", norm="group")
MANY = {"one σ → same σ": Cell(pretraining="noise*", finetuning="noise*", norm="group"),
        "clean → same σ": Cell(pretraining="clean", finetuning="noise*", norm="group"),
        "mixed → same σ": Cell(pretraining="mixed", finetuning="noise*", norm="group")}


def family(frame: pd.DataFrame, dataset: str, cell: Cell, sigmas: Sequence[float],
           measure: str = "certified_acc") -> pd.DataFrame:
    """Of `estimates`, the lines of a cell at each noise level, noise* as the network made for that level."""
    out = []
    for sigma in sigmas:
        c = cell.at(sigma)
        out.append(frame[(frame["dataset"] == dataset) & (frame["sigma"] == sigma) & (frame["pretraining"] == c.pretraining)
                         & (frame["finetuning"] == c.finetuning) & (frame["norm"] == c.norm) & (frame["restat"] == c.restat)
                         & (frame["measure"] == measure)])
    return pd.concat(out) if out else frame.iloc[:0]


def envelope(lines: pd.DataFrame) -> pd.DataFrame:
    """For each radius the line of the best noise level (the smallest of equals)."""
    ordered = lines.sort_values(["radius", "value", "sigma"], ascending=[True, False, True], kind="stable")
    return ordered.drop_duplicates("radius")


def levels(jobs: Sequence[Job], cell: Cell = ONE) -> list[float]:
    """Noise levels that a cell is planned to be certified at."""
    return sorted({p.certification.sigma for p in planned(jobs) if p.cell == cell})


def envelope_table(found: Sequence[Measured], dataset: str, sigmas: Sequence[float],
                   radii: Sequence[float] = RADII) -> pd.DataFrame:
    """For each radius the best noise level of the one network and of each family of several, and one minus several in points."""
    lines = []
    for label, cell in MANY.items():
        chosen = select(found, dataset, [(c.at(s), s) for s in sigmas for c in (ONE, cell)], radii)
        for i, r in enumerate(radii):
            line = {"data set": dataset_label(dataset), "one network": f"{name(ONE.pretraining)} → {name(ONE.finetuning)}",
                    "one for each level": label, "r": f"{r:g}", "seeds": "0", "one": NOT_RUN, "several": NOT_RUN,
                    "difference (points)": NOT_RUN}
            if chosen:
                best = []
                for c in (ONE, cell):
                    masks = {s: stack(chosen[c.at(s), s], radii)[..., i].astype(float) for s in sigmas}
                    s = max(sigmas, key=lambda s, masks=masks: masks[s].mean())
                    best.append((s, masks[s]))
                (a, ours), (b, theirs) = best
                line |= {"seeds": str(len(ours)), "one": f"{100 * ours.mean():.1f} (σ {a:g})",
                         "several": f"{100 * theirs.mean():.1f} (σ {b:g})",
                         "difference (points)": points(*stats.crossed_mean(ours - theirs)[:3])}
            lines.append(line)
    return pd.DataFrame(lines)


def envelope_reading(frame: pd.DataFrame) -> str:
    """How the one network stands against several, by family, from `envelope_table`."""
    out = []
    for label, group in frame.groupby("one for each level", sort=False):
        done = group[group["difference (points)"] != NOT_RUN]
        if len(done):
            out.append(f"against {label} the difference is " + ", ".join(
                f"{text.split(' ')[0]} at r {r}" for r, text in zip(done["r"], done["difference (points)"], strict=True)))
    return "One network (mixed → clean), points: " + "; ".join(out) + "." if out else NOTHING


def cost_table(store: Store, found: Sequence[Measured], dataset: str, sigmas: Sequence[float]) -> pd.DataFrame:
    """Image passes of training (one training pass counts as three) and of certification at all noise levels, one network
    against one for each level; means over seeds."""
    lines = []
    for label, cell in {"one network": ONE, **MANY}.items():
        chosen = select(found, dataset, [(c.at(s), s) for s in sigmas for c in (ONE, cell)], ())
        seeds = list(next(iter(chosen.values()))) if chosen else []
        spent = np.array([[costs([chosen[c.at(s), s][seed] for s in sigmas], store) for c in (ONE, cell)] for seed in seeds])
        if not seeds:
            lines.append(dict.fromkeys(("training", "certification", "all", "one / these"), NOT_RUN) | {"networks": label})
            continue
        one, mine = spent.mean(0)
        lines.append({"networks": label, "training": f"{mine[0] / 1e6:.3g} M", "certification": f"{mine[1] / 1e6:.3g} M",
                      "all": f"{mine.sum() / 1e6:.3g} M", "one / these": f"{one.sum() / mine.sum():.2f}"})
    return pd.DataFrame(lines, columns=["networks", "training", "certification", "all", "one / these"])


def abstention_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of test images without an answer, for cells certified without a look at the labels."""
    lines = frame[frame["measure"] == "abstain_rate"]
    return pd.DataFrame([{"data set": dataset_label(r.dataset), "pre-training": name(r.pretraining),
                          "fine-tuning": name(r.finetuning), "norm": norm_name(r.norm, r.restat),
                          "σ": f"{r.sigma:g}", "n": f"{r.n:,}", "images": f"{r.images:,}",
                          "abstains ± SE": f"{100 * r.value:.1f} ± {100 * r.se:.1f}"} for r in lines.itertuples()],
                        columns=["data set", "pre-training", "fine-tuning", "norm", "σ", "n", "images", "abstains ± SE"])


def strengths(frame: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """Average certified radius, mean over the noise levels, by pre-training and strength of clean fine-tuning (`STRENGTHS`), with
    its learning rate times epochs; reference: fine-tuned with noise of each level."""
    main = main_lines(frame)
    acr = main[(main["measure"] == "acr") & (main["norm"] == "group") & ~main["restat"]]
    optims = {(job.spec.data.name, cell_of(job).finetuning): job.spec.optim for job in jobs if cell_of(job)}
    wanted = unique((p.dataset, p.cell.pretraining, p.cell.finetuning) for p in planned(jobs)
                    if p.cell.finetuning in STRENGTHS and p.cell.norm == "group")
    out = []
    for dataset in unique(d for d, *_ in wanted):
        sigmas = sorted({p.certification.sigma for p in planned(jobs) if (p.dataset, p.cell) == (dataset, ONE)})
        for pretraining in ("mixed", "clean"):
            for fine in (*(f for f in STRENGTHS if (dataset, pretraining, f) in wanted), "noise*"):
                cells = [Cell(pretraining=pretraining, finetuning=fine, norm="group").at(s) for s in sigmas]
                values = [acr[(acr["dataset"] == dataset) & (acr["sigma"] == s) & (acr["pretraining"] == c.pretraining)
                              & (acr["finetuning"] == c.finetuning)]["value"] for c, s in zip(cells, sigmas, strict=True)]
                whole = bool(values) and all(len(v) for v in values)
                optim = optims.get((dataset, fine))
                out.append([dataset, pretraining, fine, optim.lr if optim else math.nan, optim.epochs if optim else math.nan,
                            float(np.mean([v.iloc[0] for v in values])) if whole else math.nan])
    return pd.DataFrame(out, columns=["dataset", "pretraining", "finetuning", "lr", "epochs", "acr"])


def strength_reading(frame: pd.DataFrame) -> str:
    """How much of the noisy reference each strength keeps, mixed pre-training."""
    out = []
    for dataset, group in frame[frame["pretraining"] == "mixed"].groupby("dataset", sort=False):
        reference = group.loc[group["finetuning"] == "noise*", "acr"]
        done = group[group["finetuning"] != "noise*"].dropna(subset="acr")
        if len(reference) and reference.iloc[0] > 0 and len(done):
            kept = "; ".join(f"{name(r.finetuning)} (lr {r.lr:g}, epochs {r.epochs:.0f}) {100 * r.acr / reference.iloc[0]:.0f} %"
                             for r in done.itertuples())
            out.append(f"{dataset_label(dataset)}: of the average certified radius of fine-tuning with noise, mixed pre-training "
                       f"keeps {kept}")
    return ". ".join(out) + "." if out else NOTHING


def crossed_table(frame: pd.DataFrame, jobs: Sequence[Job], radii: Sequence[float] = (0.0, 0.25, 0.5)) -> pd.DataFrame:
    """Certified accuracy of the networks of notebook 01, which saw no noise, by noise level."""
    lines = []
    for p in planned(jobs):
        if p.cell.pretraining != CROSSED:
            continue
        mine = family(frame, p.dataset, p.cell, [p.certification.sigma])
        at = {r.radius: r for r in mine.itertuples()}
        lines.append({"data set": dataset_label(p.dataset), "method": method_label(p.cell.finetuning),
                      "σ": f"{p.certification.sigma:g}", "seeds": str(mine["seeds"].max() if len(mine) else 0)} | {
                          f"r {r:g}": percent(at[r].value, at[r].low, at[r].high) if r in at else NOT_RUN for r in radii})
    return pd.DataFrame(lines).drop_duplicates() if lines else pd.DataFrame(columns=["data set", "method", "σ"])


def crossed_reading(frame: pd.DataFrame, jobs: Sequence[Job]) -> str:
    """The best level of each method, and how many radii it reaches."""
    out, cells = [], unique((p.dataset, p.cell) for p in planned(jobs) if p.cell.pretraining == CROSSED)
    for dataset, cell in cells:
        acr = family(frame, dataset, cell, levels(jobs, cell), "acr")
        if len(acr):
            best = acr.loc[acr["value"].idxmax()]
            out.append(f"{method_label(cell.finetuning)} {best['value']:.3f} (σ {best['sigma']:g})")
    return f"Largest average certified radius of each method over its noise levels: {'; '.join(out)}." if out else NOTHING


def confidence_reading(found: Sequence[Measured], dataset: str, sigmas: Sequence[float]) -> str:
    """Share of images whose label gets more than half of the votes, and nearly all."""
    out = []
    for sigma in sigmas:
        shares = label_shares(found, dataset, ONE, sigma)
        if len(shares):
            half, sure = (100 * np.mean(shares > share) for share in (0.5, 0.99))
            out.append(f"σ {sigma:g}: above one half for {half:.0f} % of the images, above 0.99 for {sure:.0f} %")
    return f"Votes for the label, one network (mixed → clean): {'; '.join(out)}." if out else NOTHING


def label_shares(found: Sequence[Measured], dataset: str, cell: Cell, sigma: float) -> np.ndarray:
    """Share of votes for the label of every image and seed, of the certification with most draws that did not look at labels."""
    mine = [m for m in found if (m.dataset, m.cell, m.sigma) == (dataset, cell.at(sigma), sigma)
            and not m.certification.stop_if_wrong]
    most = max((m.certification.n for m in mine), default=0)
    return np.concatenate([m.shares.label for m in mine if m.certification.n == most]) if mine else np.empty(0)


def public_table(frame: pd.DataFrame, jobs: Sequence[Job], dataset: str) -> pd.DataFrame:
    """Envelope over noise levels, ours and public, at the radii that most publish; what differs stands beside."""
    radii = (0.25, 0.5, 0.75, 1.0)
    lines = []
    for label, cell in {"one network, mixed → clean": ONE, **MANY}.items():
        best = envelope(family(main_lines(frame), dataset, cell, levels(jobs)))
        at = {r.radius: f"{100 * r.value:.1f}" for r in best.itertuples()}
        spec = next((p for p in planned(jobs) if p.dataset == dataset and p.cell == ONE), None)
        about = best.iloc[0] if len(best) else None
        lines.append({"who": "ours", "method": label, "network": spec.spec.model.arch if spec else "",
                      **{f"r {r:g}": at.get(r, NOT_RUN) for r in radii},
                      "images": f"first {about['images']:,} of a fixed order" if about is not None else "",
                      "n": f"{about['n']:,}" if about is not None else "",
                      "α": f"{about['alpha']:g}" if about is not None else "", "source": ""})
    theirs = public.smoothing_rows().query("dataset == 'CIFAR-10' and metric == 'certified_acc' and sigma.isna()")
    for (method, source), group in theirs.groupby(["method", "source"], sort=False):
        at, first = dict(zip(group["radius"], group["value"], strict=True)), group.iloc[0]
        lines.append({"who": "public", "method": method, "network": first["network"],
                      **{f"r {r:g}": f"{100 * at[r]:.1f}" if r in at else "" for r in radii}, "images": first["images"],
                      "n": first["n"], "α": first["alpha"], "source": source})
    return pd.DataFrame(lines)


def _share(value: float) -> str:
    return NOT_RUN if math.isnan(value) else f"{100 * value:.1f}"


def _list(values: Sequence) -> str:
    return " or ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in values)


def shown_statistics(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Of the stored mismatches those of mixed pre-training, first seed: start network, clean, frozen and noisy fine-tuning."""
    frame = statistics(store)
    hashes = {job.spec.hash for job in jobs}
    frame = frame[frame["run"].isin(hashes) & frame["cell"].isin([f"mixed/{f}/batch" for f in SHOWN])]
    return frame[frame["seed"] == frame.groupby("cell")["seed"].transform("min")]


def sanity(found: Sequence[Measured]) -> dict[str, bool]:
    """What must hold for certified numbers to be believed, over all finished certifications."""
    bounded, coherent, splits = True, True, {}
    for m in found:
        answered = m.certified.prediction != certified.ABSTAIN
        bounded &= bool((m.certified.radius <= m.certification.plan.ceiling).all())
        coherent &= bool((answered == (m.certified.radius > 0)).all())
        splits.setdefault(m.dataset, set()).add(m.split)
    return {"no radius is above what its draws can give": bounded,
            "every answer has a radius, no abstention has one": coherent,
            "all cells of a data set stand on the same test images": all(len(s) == 1 for s in splits.values())}
