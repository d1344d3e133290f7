"""Evidence on claims about certified accuracy (`rules.CERTIFIED`): cells of the smoothing grid, compared image by image.

That the rival certifies no more than chance is what some of these claims say, so it is not left out then; the network that is
claimed to be good must be better than that.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..base import stats
from ..evidence.cells import Measured, clean_masks, finished, grid_radius, select, stack
from ..specs.labels import dataset_label, unique
from ..specs.run import RunSpec
from ..store.jobs import Job, Task
from ..store.statistics import statistics
from ..store.store import Store
from ..studies import passes
from ..studies.rules import CERTIFIED, Cell, Rule, cell
from ..studies.smoothing import cell_of
from .effects import INCONCLUSIVE, NOT, NOT_TESTED, PARTLY, REPRODUCED, Effect, Evidence, asked_of, level, of_masks, said, too_few
from .effects import judge as verdict_of
from .transfer import chance

MEASURES = CERTIFIED
MISMATCH_SIGMA = 0.5  # noise level at which the mismatch of statistics is compared
Needed = list[tuple[Cell, float]]


def concerns(job: Job, rule: Rule) -> bool:
    """True if `job` is a network that the rule compares."""
    mine = cell_of(job)
    return mine is not None and not job.ship and any(dataclasses.replace(c, restat=False) == mine for c in _cells(rule))


def evidence(store: Store, jobs: Sequence[Job], rule: Rule) -> Evidence:
    """What finished runs that count say on a rule of `MEASURES`."""
    found, guess = finished(store, jobs), chance(store, jobs)
    views = {d: _View(store, jobs, found, d, rule, guess.get(d, math.nan)) for d in unique(job.spec.data.name for job in jobs)}
    results = {d: FINDINGS[rule.measure](v) for d, v in views.items()}
    seeds = {d: v.seeds for d, v in views.items()}
    detail = tuple(e for f in results.values() for e in f.effects)
    lack = too_few(rule, seeds)
    if lack:
        return Evidence(detail=detail, lack=lack)
    whole = {d: f for d, f in results.items() if seeds[d] >= rule.min_seeds}
    if rule.measure == "carried_widely":
        return dataclasses.replace(_widely(whole, rule), detail=detail)
    first = next(iter(whole.values()))
    return dataclasses.replace(_away(first, rule), detail=detail)


def _near(e: Effect, rule: Rule) -> bool:
    return not math.isnan(e.chance) and e.ours <= e.chance + rule.chance


def _away(found: Evidence, rule: Rule) -> Evidence:
    """Without effects whose method is near chance; with no verdict where a bound is left without any."""
    near = tuple(e for e in found.effects if asked_of(rule, e) and _near(e, rule))
    clear = tuple(e for e in found.effects if e not in near)
    if not near or found.lack:
        return found
    left = all(any(set(b.of) <= e.words for e in clear if e.part != "mean" or near[0].part == "mean")
               for bounds in rule.asked for b in bounds)
    lack = "" if left else f"{near[0].method} is near chance: {100 * near[0].ours:.1f} % on {dataset_label(near[0].dataset)}"
    return dataclasses.replace(found, effects=clear, flagged=near, everywhere=found.effects, lack=lack)


@dataclass
class _View:
    """What one data set offers to one rule; `seeds` is what `select` found."""

    store: Store
    jobs: Sequence[Job]
    found: Sequence[Measured]
    dataset: str
    rule: Rule
    chance: float
    seeds: int = 0

    def select(self, needed: Needed) -> dict:
        chosen = select(self.found, self.dataset, list(dict.fromkeys(needed)), self.rule.smooth.radii, self.rule.smooth)
        self.seeds = len(next(iter(chosen.values()))) if chosen else 0
        return chosen

    def masks(self, pair: tuple, metric: str, where: str, ours: np.ndarray, theirs: np.ndarray, wide: float) -> Effect:
        """Difference of two boolean arrays (seeds, N)."""
        return of_masks(tuple(map(str, pair)), metric, "none", self.dataset, list(zip(ours, theirs, strict=True)), level=wide,
                        where=where, chance=self.chance)

    def mean(self, pair: tuple, metric: str, where: str, values: np.ndarray, wide: float, unit: str = "points", part: str = "",
             ours: float = math.nan, theirs: float = math.nan) -> Effect:
        """Mean of real values (seeds, N)."""
        found = stats.crossed_mean(values, wide)
        return Effect(*map(str, pair), metric, "none", self.dataset, found.n, len(values), *found[:3], unit=unit, where=where,
                      part=part, level=wide, ours=ours, theirs=theirs, chance=math.nan if math.isnan(ours) else self.chance)


def _cells(rule: Rule) -> list[Cell]:
    """Every cell of a rule at every level; of `norm_drop` also those fine-tuned with noise."""
    names = [cell(name) for pair in rule.pairs for name in pair] + ([cell(rule.reference)] if rule.reference else [])
    if rule.measure == "norm_drop":
        names += [_noisy(c) for c in names]
    return unique(c.at(s) for c in names for s in rule.smooth.sigmas or (0.0,))


def _noisy(c: Cell) -> Cell:
    return dataclasses.replace(c, finetuning="noise*", restat=False)


def _carried(v: _View) -> Evidence:
    """Means over the levels and radii at which the reference is above the floor; as a condition, each of them by itself."""
    rule, (pair,) = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    reference, sigmas, radii = cell(rule.reference), rule.smooth.sigmas, rule.smooth.radii
    chosen = v.select([(c.at(s), s) for s in sigmas for c in (*pair, reference)])
    if not chosen:
        return Evidence()
    single, gains, kept, clear, above = [], [], [], 0, 0
    for s in sigmas:
        ours, theirs, best = (stack(chosen[c.at(s), s], radii) for c in (*pair, reference))
        for i, r in enumerate(radii):
            if best[..., i].mean() <= rule.floor:
                continue
            e = v.masks(pair, "certified", f"certified at σ {s:g}, r {r:g}", ours[..., i], theirs[..., i], 0.95)
            single.append(e)
            gains.append((ours[..., i], theirs[..., i]))
            kept.append(ours[..., i] - rule.share * best[..., i])
            above += e.value > 0
            clear += e.value >= rule.margin and e.low > 0 and ours[..., i].mean() >= rule.share * best[..., i].mean()
    if not single:
        return Evidence(lack=f"the reference nowhere exceeds {100 * rule.floor:g} %: nothing to carry over")
    ours, theirs = (np.mean([both[i] for both in gains], axis=0) for i in (0, 1))
    effects = (v.mean(pair, "certified", "certified, mean over levels and radii", ours - theirs, level(2), part="mean",
                      ours=float(ours.mean()), theirs=float(theirs.mean())),
               v.mean(pair, "certified", f"certified, minus {100 * rule.share:g} % of the reference, mean over levels and radii",
                      np.mean(kept, axis=0), level(2), part="kept"))
    return Evidence((*effects, *single), holds={REPRODUCED: clear == len(single), PARTLY: above == len(single)},
                    said=f"{said(rule, effects)}; of {len(single)} levels and radii where the reference exceeds "
                    f"{100 * rule.floor:g} %, above at {above}, by {100 * rule.margin:g} points with {100 * rule.share:g} % of "
                    f"the reference kept at {clear}")


def _widely(whole: dict[str, Evidence], rule: Rule) -> Evidence:
    whole = {d: _away(f, rule) for d, f in whole.items()}
    verdicts = {d: verdict_of(rule, f) for d, f in whole.items()}
    words = "; ".join(f"{dataset_label(d)}: {v} ({whole[d].lack or whole[d].said})" for d, v in verdicts.items())
    judged = [v for v in verdicts.values() if v != NOT_TESTED]
    if len(judged) < rule.min_datasets:
        return Evidence(lack=words)
    granted = [sum(v in good for v in judged) >= 2 for good in ((REPRODUCED,), (REPRODUCED, PARTLY))]
    verdict = (REPRODUCED if granted[0] else PARTLY if granted[1]
               else NOT if sum(v == NOT for v in judged) > len(judged) - 2 else INCONCLUSIVE)
    return Evidence(tuple(e for f in whole.values() for e in f.effects), said=words, verdict=verdict)


def _one_for_all(v: _View) -> Evidence:
    rule, (pair,) = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    sigmas, radii = rule.smooth.sigmas, rule.smooth.radii
    chosen = v.select([(c.at(s), s) for s in sigmas for c in pair])
    if not chosen:
        return Evidence()
    families = [np.stack([stack(chosen[c.at(s), s], radii) for s in sigmas]) for c in pair]  # (levels, seeds, N, radii)
    effects, means = [], []
    for i, r in enumerate(radii):
        best = [family[family[..., i].mean((1, 2)).argmax(), ..., i] for family in families]
        effects.append(v.masks(pair, "certified", f"certified at the best σ, r {r:g}", *best, level(len(radii))))
        means.append(best[0].astype(float) - best[1])
    far = [m for m, e in zip(means, effects, strict=True) if not _near(e, rule)] or means
    mean = v.mean(pair, "certified", "certified at the best σ, mean over radii", np.mean(far, axis=0), 0.95, part="mean")
    above, better = sum(e.value > -rule.margin for e in effects), sum(e.low > 0 for e in effects)
    return Evidence((*effects, mean), holds={PARTLY: above == len(effects)}, said=f"{said(rule, effects)}; mean above "
                    f"{-100 * rule.margin:g} points at {above} of {len(effects)} radii, better at {better}")


def _cost(v: _View) -> Evidence:
    rule, (pair,) = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    chosen = v.select([(c.at(s), s) for s in rule.smooth.sigmas for c in pair])
    if not chosen:
        return Evidence()
    seeds = list(next(iter(chosen.values())))
    spent = {seed: [costs([chosen[c.at(s), s][seed] for s in rule.smooth.sigmas], v.store) for c in pair] for seed in seeds}
    ratios = [sum(three) / sum(one) for one, three in spent.values()]
    training = np.mean([one[0] / three[0] for one, three in spent.values()])
    numbers = stats.student_interval(ratios)[:3] if len(ratios) > 1 else (ratios[0], math.nan, math.nan)
    images = len(next(iter(next(iter(chosen.values())).values())).certified.index)
    cost = Effect(*map(str, pair[::-1]), "forwards", "none", v.dataset, images, len(seeds), *numbers, unit="times",
                  where="passes of training and certification")
    parity = _one_for_all(v)
    return Evidence((cost, *parity.effects), holds=parity.holds, said=f"ratio {1 / numbers[0]:.2f}, of training alone "
                    f"{training:.2f}, with the certification of {images:,} images; parity: {parity.said}")


def costs(family: Sequence[Measured], store: Store) -> tuple[float, float]:
    """Image passes (training, certification) of some certified networks; a network and its start count once."""
    specs: dict[RunSpec, None] = {}
    for m in family:
        specs |= dict.fromkeys(s for s in (m.spec, m.spec.source) if s is not None)
    training = sum(passes.forwards(Task(spec), store.run(spec)["train_images"]) for spec in specs)
    return training, float(sum(m.draws for m in family))


def _wider(v: _View) -> Evidence:
    rule, pairs = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    chosen = v.select([(c, s) for s in rule.smooth.sigmas for c in unique(c for pair in pairs for c in pair)])
    if not chosen:
        return Evidence()
    radius = {c: np.mean([grid_radius(chosen[c, s], rule.smooth.radii) for s in rule.smooth.sigmas], axis=0)
              for c in unique(c for pair in pairs for c in pair)}
    effects = tuple(v.mean(pair, "acr", "average certified radius, mean over σ", radius[pair[0]] - radius[pair[1]],
                           level(len(pairs)), unit="radius") for pair in pairs)
    return Evidence(effects, holds={PARTLY: all(e.value > 0 for e in effects)}, said=said(rule, effects))


def _clean_kept(v: _View) -> Evidence:
    (pair,) = [tuple(map(cell, p)) for p in v.rule.pairs]
    masks = {(c, seed): m for (d, c, seed), m in clean_masks(v.store, v.jobs).items()
             if d == v.dataset and len(m) >= v.rule.smooth.min_images}
    seeds = sorted(seed for c, seed in masks if c == pair[0] and (pair[1], seed) in masks)
    v.seeds = len(seeds)
    if not seeds:
        return Evidence()
    n = min(len(masks[c, seed]) for c in pair for seed in seeds)
    ours, theirs = (np.stack([masks[c, seed][:n] for seed in seeds]) for c in pair)
    effect = v.masks(pair, "clean", "without noise", ours, theirs, 0.95)
    return Evidence((effect,), said=said(v.rule, [effect]))


def _norm_drop(v: _View) -> Evidence:
    rule, pairs = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    cells = unique(c for pair in pairs for c in pair)
    chosen = v.select([(c.at(s), s) for s in rule.smooth.sigmas for clean in cells for c in (clean, _noisy(clean))])
    if not chosen:
        return Evidence()
    drop = {c: _mean_over_levels(chosen, _noisy(c), rule) - _mean_over_levels(chosen, c, rule) for c in cells}
    effects = tuple(v.mean(pair, "certified", f"loss of certified accuracy at r {rule.smooth.radii[0]:g}", drop[pair[0]] -
                           drop[pair[1]], level(len(pairs))) for pair in pairs)
    lost = ", ".join(f"{c.norm} {100 * drop[c].mean():+.1f}" for c in cells)
    masks = clean_masks(v.store, v.jobs)
    clean = {c.norm: np.mean([m.mean() for (d, mine, _), m in masks.items() if (d, mine) == (v.dataset, c)]) for c in cells
             if any((d, mine) == (v.dataset, c) for d, mine, _ in masks)}
    apart = clean and max(clean.values()) - min(clean.values()) > rule.margin
    words = "; without noise the norms differ: " + ", ".join(f"{k} {100 * x:.1f} %" for k, x in clean.items()) if apart else ""
    return Evidence(effects, holds={PARTLY: all(e.value > 0 for e in effects)},
                    said=f"{said(rule, effects)}; points lost: {lost}{words}")


def _recovered(v: _View) -> Evidence:
    rule, pairs = v.rule, [tuple(map(cell, p)) for p in v.rule.pairs]
    plain, reference = pairs[0][1], cell(rule.reference)
    chosen = v.select([(c.at(s), s) for s in rule.smooth.sigmas for c in (*(p[0] for p in pairs), plain, reference)])
    if not chosen:
        return Evidence()
    before, best = (_mean_over_levels(chosen, c, rule) for c in (plain, reference))
    lost, r = float((best - before).mean()), rule.smooth.radii[0]
    effects = []
    for pair in pairs:
        gain = _mean_over_levels(chosen, pair[0], rule) - before
        effects += [v.mean(pair, "certified", f"certified at r {r:g}, minus {100 * rule.share:g} % of the loss",
                           gain - rule.share * (best - before), 1 - rule.alpha, part="kept"),
                    v.mean(pair, "certified", f"certified at r {r:g}", gain, 1 - rule.alpha, part="recovered")]
    if lost <= 0:
        return Evidence(tuple(effects), lack=f"batch norm loses {100 * lost:.1f} points: nothing to explain")
    larger = _mismatch_larger(v, plain, reference, list(next(iter(chosen.values()))))
    words = (f"batch norm loses {100 * lost:.1f} points; mismatch at σ {MISMATCH_SIGMA:g} larger after clean fine-tuning in "
             f"every seed: {'not measured' if larger is None else 'yes' if larger else 'no'}")
    if larger is None:
        return Evidence(tuple(effects), lack=words)
    half = any(e.value > 0 for e in effects if e.part == "kept")
    return Evidence(tuple(effects), holds={REPRODUCED: larger, PARTLY: larger and half}, said=f"{said(rule, effects)}; {words}")


def _mismatch_larger(v: _View, plain: Cell, reference: Cell, seeds: Sequence[int]) -> bool | None:
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


FINDINGS = {"carried": _carried, "carried_widely": _carried, "one_for_all": _one_for_all, "cost": _cost, "wider": _wider,
            "clean_kept": _clean_kept, "norm_drop": _norm_drop, "recovered": _recovered}
