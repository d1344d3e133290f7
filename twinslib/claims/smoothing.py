"""Claims about certified accuracy (`rules.CERTIFIED`): cells of the smoothing grid, compared image by image.

That the rival certifies no more than chance is what some of these claims say, so it is not left out then; the network that is
claimed to be good must be better than that.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..evidence import frame
from ..evidence.cells import Measured, select, stack
from ..evidence.frame import Row
from ..specs.jobs import Task
from ..specs.labels import dataset_label, unique
from ..specs.run import RunSpec
from ..store.statistics import statistics
from ..store.store import Store
from ..studies import passes
from ..studies.rules import CERTIFIED, Cell, Rule, cell
from .effects import Effect, by_dataset, effect
from .verdict import INCONCLUSIVE, NOT, NOT_TESTED, PARTLY, REPRODUCED, Evidence, asked_of, level, names, said, too_few
from .verdict import judge as verdict_of

MEASURES = CERTIFIED
MISMATCH_SIGMA = 0.5  # noise level at which the mismatch of statistics is compared


def cells(rule: Rule) -> list[Cell]:
    """Every cell of a rule, noise* as such; of `norm_drop` also those fine-tuned with noise."""
    names = [cell(name) for pair in rule.pairs for name in pair] + ([cell(rule.reference)] if rule.reference else [])
    return unique([*names, *map(_noisy, names)] if rule.measure == "norm_drop" else names)


def at_levels(rule: Rule) -> list[Cell]:
    """Every network that a rule compares, whatever its statistics."""
    return unique(dataclasses.replace(c.at(s), restat=False) for c in cells(rule) for s in rule.smooth.sigmas or (0.0,))


def _noisy(c: Cell) -> Cell:
    return dataclasses.replace(c, finetuning="noise*", restat=False)


def weigh(found: Sequence[Measured], clean: Sequence[Row], datasets: Sequence[str], guess: Mapping[str, float],
          rule: Rule, store: Store) -> Evidence:
    """What finished runs say on a rule of `MEASURES`. `found`: their certifications. `clean`: their accuracies without noise.
    `datasets`: that they are on. `store`: of the statistics of batch norms and of what training took."""
    results, seeds = {}, {}
    for d in datasets:
        v = _View(found, frame.where(clean, dataset=d), d, guess.get(d, math.nan), rule, store)
        results[d] = FINDINGS[rule.measure](v) if v.seeds or not rule.smooth.sigmas else Evidence()
        if flat := v.constant():
            results[d] = dataclasses.replace(results[d], said=f"{results[d].said}; close to a constant answer: {', '.join(flat)}")
        seeds[d] = min((e.seeds for e in results[d].effects), default=len(v.seeds))
    detail = tuple(e for f in results.values() for e in f.effects)
    lack = too_few(rule, seeds)
    if lack:
        return Evidence(detail=detail, lack=lack)
    whole = {d: _away(f, rule) for d, f in results.items() if seeds[d] >= rule.min_seeds}
    own = _widely(whole, rule) if rule.measure == "carried_widely" else next(iter(whole.values()))
    return dataclasses.replace(own, detail=detail)


def _near(e: Effect, rule: Rule) -> bool:
    return e.ours <= e.chance + rule.chance  # of what has no chance, NaN, this is not so


def _away(found: Evidence, rule: Rule) -> Evidence:
    """Without effects whose method is near chance; with no verdict where a bound is left without any."""
    near = tuple(e for e in found.effects if asked_of(rule, e) and _near(e, rule))
    clear = tuple(e for e in found.effects if e not in near)
    if not near or found.lack:
        return found
    left = all(any(names(b, e) for e in clear if e.part != "mean" or near[0].part == "mean")
               for bounds in rule.asked for b in bounds)
    lack = "" if left else f"{near[0].method} is near chance: {100 * near[0].ours:.1f} % on {dataset_label(near[0].dataset)}"
    return dataclasses.replace(found, effects=clear, flagged=near, everywhere=found.effects, lack=lack)


class _View:
    """What one data set offers to one rule. `family` has for each cell of the rule the images that are certified, boolean
    (levels, seeds, N, radii); `seeds` are those that all have, none where a cell is missing."""

    def __init__(self, found: Sequence[Measured], clean: Sequence[Row], dataset: str, chance: float, rule: Rule,
                 store: Store) -> None:
        self.clean, self.dataset, self.chance, self.rule, self.store = clean, dataset, chance, rule, store
        self.pairs = [tuple(map(cell, pair)) for pair in rule.pairs]
        sigmas = rule.smooth.sigmas
        needed = unique((c.at(s), s) for c in cells(rule) for s in sigmas)
        chosen = select(found, dataset, needed, rule.smooth.radii, rule.smooth) if needed else {}
        self.seeds = list(next(iter(chosen.values()))) if chosen else []
        self.measured = {c: [chosen[c.at(s), s] for s in sigmas] for c in cells(rule)} if chosen else {}
        self.family = {c: np.stack([stack(by_seed, rule.smooth.radii) for by_seed in levels])
                       for c, levels in self.measured.items()}

    def effect(self, pair: tuple, metric: str, where: str, ours: np.ndarray, theirs: np.ndarray, wide: float,
               **more: object) -> Effect:
        """Of two arrays (seeds, N), masks or means of some."""
        return effect(tuple(map(str, pair)), metric, self.dataset, ours, theirs, level=wide, where=where,
                      **{"chance": self.chance} | more)

    def mean(self, pair: tuple, metric: str, where: str, values: np.ndarray, wide: float, **more: object) -> Effect:
        """Mean of real values (seeds, N), which are no accuracies."""
        return self.effect(pair, metric, where, values, np.zeros_like(values), wide, accuracies=False, chance=math.nan, **more)

    def constant(self) -> list[str]:
        """Networks that at a noise level say little of the images in some seed (`Measured.constant`); shown, not left out."""
        return [f"{c} at σ {s:g}" for c, levels in self.measured.items()
                for s, by_seed in zip(self.rule.smooth.sigmas, levels, strict=True) if any(m.constant for m in by_seed.values())]

    def first_radius(self, c: Cell) -> np.ndarray:
        """Certified or not at the first radius, mean over the levels, (seeds, N)."""
        return self.family[c][..., 0].mean(0)


def _carried(v: _View) -> Evidence:
    """Means over the levels and radii at which the reference is above the floor; as a condition, each of them by itself."""
    rule, (pair,) = v.rule, v.pairs
    ours, theirs, best = (v.family[c] for c in (*pair, cell(rule.reference)))
    asked = [(s, r) for s in range(len(ours)) for r in range(ours.shape[-1]) if best[s, ..., r].mean() > rule.floor]
    if not asked:
        return Evidence(lack=f"the reference nowhere exceeds {100 * rule.floor:g} %: nothing to carry over")
    single, clear = [], 0
    for s, r in asked:
        where = f"certified at σ {rule.smooth.sigmas[s]:g}, r {rule.smooth.radii[r]:g}"
        e = v.effect(pair, "certified", where, ours[s, ..., r], theirs[s, ..., r], 0.95)
        single.append(e)
        clear += e.value >= rule.margin and e.low > 0 and e.ours >= rule.share * best[s, ..., r].mean()
    above = sum(e.value > 0 for e in single)
    mine, rival, kept = (np.mean([values[s, ..., r] for s, r in asked], axis=0) for values in (
        ours, theirs, ours - rule.share * best))
    effects = (v.effect(pair, "certified", "certified, mean over levels and radii", mine, rival, level(2), part="mean"),
               v.mean(pair, "certified", f"certified, minus {100 * rule.share:g} % of the reference, mean over levels and radii",
                      kept, level(2), part="kept"))
    return Evidence((*effects, *single), holds={REPRODUCED: clear == len(single), PARTLY: above == len(single)},
                    said=f"{said(rule, effects)}; of {len(single)} levels and radii where the reference exceeds "
                    f"{100 * rule.floor:g} %, above at {above}, by {100 * rule.margin:g} points with {100 * rule.share:g} % of "
                    f"the reference kept at {clear}")


def _widely(whole: Mapping[str, Evidence], rule: Rule) -> Evidence:
    verdicts = {d: verdict_of(rule, f) for d, f in whole.items()}
    words = "; ".join(f"{dataset_label(d)}: {v} ({whole[d].lack or whole[d].said})" for d, v in verdicts.items())
    judged = [v for v in verdicts.values() if v != NOT_TESTED]
    if len(judged) < rule.min_datasets:
        return Evidence(lack=words)
    return Evidence(tuple(e for f in whole.values() for e in f.effects), said=words, verdict=on_several(judged))


def on_several(verdicts: Sequence[str]) -> str:
    """Granted where two data sets grant it; not, where all but one at most say so."""
    if sum(v == REPRODUCED for v in verdicts) >= 2:
        return REPRODUCED
    if sum(v in (REPRODUCED, PARTLY) for v in verdicts) >= 2:
        return PARTLY
    return NOT if sum(v == NOT for v in verdicts) > len(verdicts) - 2 else INCONCLUSIVE


def _one_for_all(v: _View, beside: int = 0) -> Evidence:
    """Each radius, and their mean. beside: so many other intervals decide together with these."""
    rule, (pair,), radii = v.rule, v.pairs, v.rule.smooth.radii
    wide = level(len(radii) + 1 + beside)
    families = [v.family[c] for c in pair]
    best = [[f[f[..., i].mean((1, 2)).argmax(), ..., i] for f in families] for i in range(len(radii))]
    effects = [v.effect(pair, "certified", f"certified at the best σ, r {r:g}", *both, wide)
               for r, both in zip(radii, best, strict=True)]
    gains = [ours.astype(float) - theirs for ours, theirs in best]
    far = [gain for gain, e in zip(gains, effects, strict=True) if not _near(e, rule)] or gains
    mean = v.mean(pair, "certified", "certified at the best σ, mean over radii", np.mean(far, axis=0), wide, part="mean")
    above, better = sum(e.value > -rule.margin for e in effects), sum(e.low > 0 for e in effects)
    return Evidence((*effects, mean), holds={PARTLY: above == len(effects)}, said=f"{said(rule, effects)}; mean above "
                    f"{-100 * rule.margin:g} points at {above} of {len(effects)} radii, better at {better}")


def _cost(v: _View) -> Evidence:
    (pair,) = v.pairs
    spent = [[costs([by_seed[seed] for by_seed in v.measured[c]], v.store) for c in pair] for seed in v.seeds]
    ratios = [sum(three) / sum(one) for one, three in spent]
    training = np.mean([one[0] / three[0] for one, three in spent])
    images, parity = v.family[pair[0]].shape[2], _one_for_all(v, beside=1)
    cost = v.effect(pair[::-1], "forwards", "passes of training and certification", np.array(ratios), np.zeros(len(ratios)),
                    parity.effects[0].level, over="seeds", unit="times", accuracies=False, images=images, chance=math.nan)
    return Evidence((cost, *parity.effects), holds=parity.holds, said=f"ratio {1 / cost.value:.2f}, of training alone "
                    f"{training:.2f}, with the certification of {images:,} images; parity: {parity.said}")


def costs(family: Sequence[Measured], store: Store) -> tuple[float, float]:
    """Image passes (training, certification) of some certified networks; a network and its start count once."""
    specs: dict[RunSpec, None] = {}
    for m in family:
        specs |= dict.fromkeys(s for s in (m.spec, m.spec.source) if s is not None)
    training = sum(passes.forwards(Task(spec), store.run(spec)["train_images"]) for spec in specs)
    return training, float(sum(m.draws for m in family))


def _by_pair(v: _View, score: Mapping[Cell, np.ndarray], metric: str, where: str, words: str = "", **more: object) -> Evidence:
    """What the cells of each pair differ by in a score (seeds, N)."""
    effects = [v.mean(pair, metric, where, score[pair[0]] - score[pair[1]], level(len(v.pairs)), **more) for pair in v.pairs]
    return Evidence(tuple(effects), holds={PARTLY: all(e.value > 0 for e in effects)}, said=said(v.rule, effects) + words)


def _wider(v: _View) -> Evidence:
    steps = np.diff([0.0, *v.rule.smooth.radii])
    radius = {c: (certified @ steps).mean(0) for c, certified in v.family.items()}  # the largest that is certified
    return _by_pair(v, radius, "acr", "average certified radius, mean over σ", unit="radius")


def _clean_kept(v: _View) -> Evidence:
    (pair,) = v.rule.pairs
    effects = tuple(by_dataset(v.clean, v.rule, pair, "clean", {v.dataset: v.chance}, where="without noise"))
    return Evidence(effects, said=said(v.rule, effects))


def _norm_drop(v: _View) -> Evidence:
    compared = unique(c for pair in v.pairs for c in pair)
    drop = {c: v.first_radius(_noisy(c)) - v.first_radius(c) for c in compared}
    words = "; points lost: " + ", ".join(f"{c.norm} {100 * drop[c].mean():+.1f}" for c in compared)
    clean = {c.norm: [row.hits.mean() for row in frame.most_images(frame.where(v.clean, method=str(c)))] for c in compared}
    clean = {norm: np.mean(found) for norm, found in clean.items() if found}
    if clean and max(clean.values()) - min(clean.values()) > v.rule.margin:
        words += "; without noise the norms differ: " + ", ".join(f"{k} {100 * x:.1f} %" for k, x in clean.items())
    return _by_pair(v, drop, "certified", f"loss of certified accuracy at r {v.rule.smooth.radii[0]:g}", words)


def _recovered(v: _View) -> Evidence:
    rule, plain, reference = v.rule, v.pairs[0][1], cell(v.rule.reference)
    before, best = v.first_radius(plain), v.first_radius(reference)
    lost, where, effects = float((best - before).mean()), f"certified at r {rule.smooth.radii[0]:g}", []
    for pair in v.pairs:
        gain, less = v.first_radius(pair[0]) - before, f", minus {100 * rule.share:g} % of the loss"
        effects += [v.mean(pair, "certified", where + less, gain - rule.share * (best - before), 1 - rule.alpha, part="kept"),
                    v.mean(pair, "certified", where, gain, 1 - rule.alpha, part="recovered")]
    if lost <= 0:
        return Evidence(tuple(effects), lack=f"batch norm loses {100 * lost:.1f} points: nothing to explain")
    larger = _mismatch_larger(v, plain, reference)
    words = (f"batch norm loses {100 * lost:.1f} points; mismatch at σ {MISMATCH_SIGMA:g} larger after clean fine-tuning in "
             f"every seed: {'not measured' if larger is None else 'yes' if larger else 'no'}")
    if larger is None:
        return Evidence(tuple(effects), lack=words)
    half = any(e.value > 0 for e in effects if e.part == "kept")
    return Evidence(tuple(effects), holds={REPRODUCED: larger, PARTLY: larger and half}, said=f"{said(rule, effects)}; {words}")


def _mismatch_larger(v: _View, plain: Cell, reference: Cell) -> bool | None:
    """Whether the divergence, mean over layers, is larger for `plain` in every seed; None where it is not measured."""
    found = statistics(v.store)
    found = found[(found["dataset"] == v.dataset) & (found["sigma"] == MISMATCH_SIGMA)]
    mean = found.groupby(["cell", "seed"])["divergence"].mean().to_dict()
    both = [[mean.get((str(c.at(MISMATCH_SIGMA)), seed)) for c in (plain, reference)] for seed in v.seeds]
    return None if any(None in pair for pair in both) else all(a > b for a, b in both)


FINDINGS = {"carried": _carried, "carried_widely": _carried, "one_for_all": _one_for_all, "cost": _cost, "wider": _wider,
            "clean_kept": _clean_kept, "norm_drop": _norm_drop, "recovered": _recovered}
