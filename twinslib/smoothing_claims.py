"""Verdicts on claims about certified accuracy (`rules.CERTIFIED`): cells of the smoothing grid, compared image by image."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import compare, plan, stats
from .config import RunSpec
from .effects import NOT, NOT_TESTED, PARTLY, REPRODUCED, Effect, Finding, gather
from .report import dataset_label, points, unique
from .rules import CERTIFIED, Cell, Rule, cell
from .runs import Job, Store, Task
from .smoothing_cells import Measured, cell_of, clean_masks, finished, grid_radius, select, stack, statistics

MEASURES = CERTIFIED
MISMATCH_SIGMA = 0.5  # noise level at which the mismatch of statistics is compared
Needed = list[tuple[Cell, float]]


@dataclass(frozen=True)
class CellEffect(Effect):
    """An effect between two cells; `where` says at which noise and radius. Unit radius: a mean certified radius."""

    where: str = ""

    def __str__(self) -> str:
        sign = "/" if self.unit == "times" else "-"
        name = self.method if self.method == self.baseline else f"{self.method} {sign} {self.baseline}"
        return f"{name}, {self.where} on {dataset_label(self.dataset)}: {self._number()}"

    def _number(self) -> str:
        if self.unit == "points":
            return points(self.value, self.low, self.high)
        sign, digits = ("", 2) if self.unit == "times" else ("+", 3)
        numbers = [f"{round(x, digits) + 0.0:{sign}.{digits}f}" for x in (self.value, self.low, self.high)]
        return numbers[0] + ("" if math.isnan(self.low) else f" [{numbers[1]}, {numbers[2]}]")


def concerns(job: Job, rule: Rule) -> bool:
    """True if `job` is a network that the rule compares."""
    mine = cell_of(job)
    return mine is not None and not job.ship and any(dataclasses.replace(c, restat=False) == mine for c in _cells(rule))


def judge(store: Store, jobs: Sequence[Job], rule: Rule) -> dict:
    """verdict, why, effects (on data sets with enough seeds), detail (all), remark.

    Args:
        jobs: finished runs that count.
    """
    found, datasets = finished(store, jobs), unique(job.spec.data.name for job in jobs)
    results = {d: FINDINGS[rule.measure](_Evidence(store, jobs, found, d, rule)) for d in datasets}
    out, whole = gather(results, rule)
    if not whole:
        return out
    if rule.measure == "carried_widely":
        verdict, why = _widely(whole, [dataset_label(d) for d, f in results.items() if f.seeds >= rule.min_seeds])
        return out | {"verdict": verdict, "why": why}
    return out | {"verdict": whole[0].verdict, "why": whole[0].why, "remark": whole[0].remark}


@dataclass(frozen=True)
class _Evidence:
    store: Store
    jobs: Sequence[Job]
    found: Sequence[Measured]
    dataset: str
    rule: Rule

    def select(self, needed: Needed) -> dict:
        return select(self.found, self.dataset, list(dict.fromkeys(needed)), self.rule.smooth.radii, self.rule.smooth)

    def effect(self, pair: tuple, metric: str, where: str, images: int, seeds: int, *numbers: float,
               unit: str = "points") -> CellEffect:
        return CellEffect(*map(str, pair), metric, "none", self.dataset, images, seeds, *numbers, unit=unit, where=where)


def _cells(rule: Rule) -> list[Cell]:
    """Every cell of a rule at every level; of `norm_drop` also those fine-tuned with noise."""
    names = [cell(name) for pair in rule.pairs for name in pair] + ([cell(rule.reference)] if rule.reference else [])
    if rule.measure == "norm_drop":
        names += [_noisy(c) for c in names]
    return unique(c.at(s) for c in names for s in rule.smooth.sigmas or (0.0,))


def _noisy(c: Cell) -> Cell:
    return dataclasses.replace(c, finetuning="noise*", restat=False)


# -- one function per measure --------------------------------------------------------------------------------------------
def _carried(v: _Evidence) -> Finding:
    rule, (pair,) = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    reference, sigmas, radii = cell(rule.reference), rule.smooth.sigmas, rule.smooth.radii
    chosen = v.select([(c.at(s), s) for s in sigmas for c in (*pair, reference)])
    if not chosen:
        return Finding()
    effects, clear, above, seeds = [], 0, 0, 0
    for s in sigmas:
        ours, theirs, best = (stack(chosen[c.at(s), s], radii) for c in (*pair, reference))
        for i, r in enumerate(radii):
            kept = best[..., i].mean()
            if kept <= rule.floor:
                continue
            images, seeds, *numbers = compare.over_seeds(list(zip(ours[..., i], theirs[..., i], strict=True)), 0)
            effects.append(v.effect(pair, "certified", f"certified at σ {s:g}, r {r:g}", images, seeds, *numbers))
            above += numbers[0] > 0
            clear += numbers[0] >= rule.margin and numbers[1] > 0 and ours[..., i].mean() >= rule.share * kept
    seeds = seeds or len(next(iter(chosen.values())))
    if not effects:
        return Finding(seeds, why=f"the reference nowhere exceeds {100 * rule.floor:g} %: nothing to carry over")
    verdict = REPRODUCED if clear == len(effects) else PARTLY if above == len(effects) else NOT
    return Finding(seeds, tuple(effects), verdict, f"of {len(effects)} levels and radii where the reference exceeds "
                   f"{100 * rule.floor:g} %, above at {above}, by {100 * rule.margin:g} points with {100 * rule.share:g} % of "
                   f"the reference kept at {clear}")


def _widely(results: Sequence[Finding], names: Sequence[str]) -> tuple[str, str]:
    why = "; ".join(f"{name}: {r.verdict} ({r.why})" for name, r in zip(names, results, strict=True))
    if sum(r.verdict == REPRODUCED for r in results) >= 2:
        return REPRODUCED, why
    if sum(r.verdict == NOT_TESTED for r in results) > len(results) - 2:  # too few that could tell
        return NOT_TESTED, why
    return (PARTLY if sum(r.verdict in (REPRODUCED, PARTLY) for r in results) >= 2 else NOT), why


def _one_for_all(v: _Evidence) -> Finding:
    rule, (pair,) = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    sigmas, radii = rule.smooth.sigmas, rule.smooth.radii
    chosen = v.select([(c.at(s), s) for s in sigmas for c in pair])
    if not chosen:
        return Finding()
    families = [np.stack([stack(chosen[c.at(s), s], radii) for s in sigmas]) for c in pair]  # (levels, seeds, N, radii)
    effects = []
    for i, r in enumerate(radii):
        best = [family[family[..., i].mean((1, 2)).argmax(), ..., i] for family in families]
        images, seeds, *numbers = compare.over_seeds(list(zip(*best, strict=True)), 0)
        effects.append(v.effect(pair, "certified", f"certified at the best σ, r {r:g}", images, seeds, *numbers))
    parity, mean = sum(e.low > -rule.margin for e in effects), sum(e.value > -rule.margin for e in effects)
    better = sum(e.low > 0 for e in effects)
    verdict = REPRODUCED if parity == len(effects) else PARTLY if mean == len(effects) else NOT
    return Finding(effects[0].seeds, tuple(effects), verdict, f"of {len(effects)} radii, interval above "
                   f"{-100 * rule.margin:g} points at {parity}, mean above it at {mean}, better at {better}")


def _cost(v: _Evidence) -> Finding:
    rule, (pair,) = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    chosen = v.select([(c.at(s), s) for s in rule.smooth.sigmas for c in pair])
    if not chosen:
        return Finding()
    seeds = list(next(iter(chosen.values())))
    spent = {seed: [costs([chosen[c.at(s), s][seed] for s in rule.smooth.sigmas], v.store) for c in pair] for seed in seeds}
    ratios = [sum(one) / sum(three) for one, three in spent.values()]
    training = np.mean([one[0] / three[0] for one, three in spent.values()])
    numbers = stats.student_interval(ratios)[:3] if len(ratios) > 1 else (ratios[0], math.nan, math.nan)
    images = len(next(iter(next(iter(chosen.values())).values())).certified.index)
    effect = v.effect(pair, "forwards", "passes of training and certification", images, len(seeds), *numbers, unit="times")
    parity = _one_for_all(v)
    cheap = numbers[0] < rule.share
    verdict = NOT if not cheap else parity.verdict
    return Finding(len(seeds), (effect,), verdict, f"ratio {numbers[0]:.2f}, of training alone {training:.2f}, with the "
                   f"certification of {images:,} images; parity ({parity.why}): {parity.verdict}")


def costs(family: Sequence[Measured], store: Store) -> tuple[float, float]:
    """Image passes (training, certification) of some certified networks; a network and its start count once."""
    specs: dict[RunSpec, None] = {}
    for m in family:
        specs |= dict.fromkeys(s for s in (m.spec, m.spec.source) if s is not None)
    training = sum(plan.forwards(Task(spec), store.run(spec)["train_images"]) for spec in specs)
    return training, float(sum(m.draws for m in family))


def _wider(v: _Evidence) -> Finding:
    rule, pairs = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    sigmas, radii = rule.smooth.sigmas, rule.smooth.radii
    chosen = v.select([(c.at(s), s) for s in sigmas for pair in pairs for c in pair])
    if not chosen:
        return Finding()
    score = {c: np.mean([grid_radius(chosen[c.at(s), s], radii) for s in sigmas], axis=0) for pair in pairs for c in pair}
    effects = []
    for first, second in pairs:
        mean, low, high, n = stats.crossed_mean(score[first] - score[second])
        effects.append(v.effect((first, second), "acr", "average certified radius, mean over σ", n, len(score[first]), mean, low,
                                high, unit="radius"))
    return _all_above(effects, 0.0)


def _clean_kept(v: _Evidence) -> Finding:
    rule, (pair,) = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    masks = clean_masks(v.store, v.jobs)
    both = [(masks[v.dataset, pair[0], seed], masks[v.dataset, pair[1], seed])
            for d, c, seed in masks if (d, c) == (v.dataset, pair[0]) and (v.dataset, pair[1], seed) in masks
            and min(len(masks[v.dataset, c, seed]) for c in pair) >= rule.smooth.min_images]
    if not both:
        return Finding()
    images, seeds, *numbers = compare.over_seeds(both, 0)
    effect = v.effect(pair, "clean", "without noise", images, seeds, *numbers)
    verdict = REPRODUCED if effect.low > -rule.margin else PARTLY if effect.value > -rule.margin else NOT
    return Finding(seeds, (effect,), verdict, f"{'interval' if verdict == REPRODUCED else 'mean'} "
                   f"{'not ' if verdict == NOT else ''}above {-100 * rule.margin:g} points")


def _norm_drop(v: _Evidence) -> Finding:
    rule, pairs = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    cells = unique(c for pair in pairs for c in pair)
    chosen = v.select([(c.at(s), s) for s in rule.smooth.sigmas for clean in cells for c in (clean, _noisy(clean))])
    if not chosen:
        return Finding()
    drop = {c: _mean_over_levels(chosen, _noisy(c), rule) - _mean_over_levels(chosen, c, rule) for c in cells}
    effects = []
    for first, second in pairs:
        mean, low, high, n = stats.crossed_mean(drop[first] - drop[second])
        effects.append(v.effect((first, second), "certified", f"loss of certified accuracy at r {rule.smooth.radii[0]:g}", n,
                                len(drop[first]), mean, low, high))
    result = _all_above(effects, 0.0)
    said = ", ".join(f"{c.norm} {100 * drop[c].mean():+.1f}" for c in cells)
    masks = clean_masks(v.store, v.jobs)
    clean = {c.norm: np.mean([m.mean() for (d, mine, _), m in masks.items() if (d, mine) == (v.dataset, c)]) for c in cells
             if any((d, mine) == (v.dataset, c) for d, mine, _ in masks)}
    apart = clean and max(clean.values()) - min(clean.values()) > rule.margin
    remark = "without noise the norms differ: " + ", ".join(f"{k} {100 * x:.1f} %" for k, x in clean.items()) if apart else ""
    return dataclasses.replace(result, why=f"{result.why}; points lost: {said}", remark=remark)


def _recovered(v: _Evidence) -> Finding:
    rule, pairs = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    plain, reference = pairs[0][1], cell(rule.reference)
    chosen = v.select([(c.at(s), s) for s in rule.smooth.sigmas for c in (*(p[0] for p in pairs), plain, reference)])
    if not chosen:
        return Finding()
    before, best = (_mean_over_levels(chosen, c, rule) for c in (plain, reference))
    lost, seeds = float((best - before).mean()), len(before)
    effects = []
    for pair in pairs:
        gain = _mean_over_levels(chosen, pair[0], rule) - before - rule.share * (best - before)
        mean, low, high, n = stats.crossed_mean(gain, 1 - rule.alpha)
        where = f"certified at r {rule.smooth.radii[0]:g}, minus {100 * rule.share:g} % of the loss"
        effects.append(v.effect(pair, "certified", where, n, seeds, mean, low, high))
    if lost <= 0:
        return Finding(seeds, tuple(effects), why=f"batch norm loses {100 * lost:.1f} points: nothing to explain")
    larger = _mismatch_larger(v, plain, reference, list(next(iter(chosen.values()))))
    why = (f"batch norm loses {100 * lost:.1f} points; mismatch at σ {MISMATCH_SIGMA:g} larger after clean fine-tuning in every "
           f"seed: {'not measured' if larger is None else 'yes' if larger else 'no'}")
    if larger is None:
        return Finding(seeds, tuple(effects), NOT_TESTED, why)
    if larger and any(e.low > 0 for e in effects):
        return Finding(seeds, tuple(effects), REPRODUCED, why)
    if larger and any(e.value > 0 for e in effects):
        return Finding(seeds, tuple(effects), PARTLY, why)
    return Finding(seeds, tuple(effects), NOT, why, "the effect is there, this cause is not shown")


def _mismatch_larger(v: _Evidence, plain: Cell, reference: Cell, seeds: Sequence[int]) -> bool | None:
    """Whether the divergence, mean over layers, is larger for `plain` in every seed; None where it is not measured."""
    frame = statistics(v.store)
    frame = frame[(frame["dataset"] == v.dataset) & (frame["sigma"] == MISMATCH_SIGMA)]
    mean = frame.groupby(["cell", "seed"])["divergence"].mean().to_dict()
    both = [[mean.get((str(c.at(MISMATCH_SIGMA)), seed)) for c in (plain, reference)] for seed in seeds]
    return None if any(None in pair for pair in both) else all(a > b for a, b in both)


def _mean_over_levels(chosen: dict, c: Cell, rule: Rule) -> np.ndarray:
    """Certified or not at the first radius, mean over the levels, (seeds, N)."""
    levels = [stack(chosen[c.at(s), s], rule.smooth.radii)[..., 0] for s in rule.smooth.sigmas]
    return np.mean(levels, axis=0)


def _all_above(effects: Sequence[CellEffect], threshold: float) -> Finding:
    clear, above = sum(e.low > threshold for e in effects), sum(e.value > threshold for e in effects)
    verdict = REPRODUCED if clear == len(effects) else PARTLY if above == len(effects) else NOT
    return Finding(effects[0].seeds, tuple(effects), verdict,
                   f"{clear} of {len(effects)} intervals and {above} means above {threshold:g}")


FINDINGS = {"carried": _carried, "carried_widely": _carried, "one_for_all": _one_for_all, "cost": _cost, "wider": _wider,
            "clean_kept": _clean_kept, "norm_drop": _norm_drop, "recovered": _recovered}
