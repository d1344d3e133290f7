"""Verdicts on claims about adversarial fine-tuning (`rules.FINETUNED`): accuracy image by image, and passes, against rivals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import compare, stats
from .aft_cells import Network, finished
from .aft_grid import STUDY
from .effects import NOT, PARTLY, REPRODUCED, Effect, Finding, gather, pair_label
from .report import dataset_label, unique
from .rules import FINETUNED, Robust, Rule
from .runs import Job, Store
from .strength import strength

MEASURES = FINETUNED
PARTS = {"best_schedule": ("main", "schedule")}


@dataclass(frozen=True)
class NamedEffect(Effect):
    """An effect whose methods stand for networks at an epoch; `where` says which."""

    where: str = ""

    def __str__(self) -> str:
        text = super().__str__()
        if self.metric == "passes":
            pair = pair_label((self.method, self.baseline), self.unit)
            text = f"{pair}, passes on {dataset_label(self.dataset)}: {self._number()}"
        return text + (f" ({self.where})" if self.where else "")


def concerns(job: Job, rule: Rule) -> bool:
    """True if `job` is a run that the rule compares."""
    methods = {name for pair in (*rule.pairs, *rule.controls) for name in pair}
    return (job.study == STUDY and dict(job.labels)["part"] in PARTS.get(rule.measure, ("main",))
            and job.spec.method.name in methods)


def judge(store: Store, jobs: Sequence[Job], rule: Rule) -> dict:
    """verdict, why, effects (with enough seeds), detail (all), remark.

    Args:
        jobs: finished runs that count.
    """
    found = finished(store, jobs)
    findings = {d: FINDINGS[rule.measure](_Evidence(found, d, rule)) for d in unique(job.spec.data.name for job in jobs)}
    out, whole = gather(findings, rule)
    if not whole:
        return out
    worst = max(whole, key=lambda f: (REPRODUCED, PARTLY, NOT).index(f.verdict))
    return out | {"verdict": worst.verdict, "why": "; ".join(f.why for f in whole), "remark": worst.remark}


@dataclass(frozen=True)
class _Evidence:
    """What one data set offers to one rule."""

    found: Sequence[Network]
    dataset: str
    rule: Rule

    def networks(self, method: str, at: str) -> dict[int, Network]:
        """By seed."""
        return {n.spec.seed: n for n in self.found if n.key[:2] == (self.dataset, method) and n.at == at}

    def effect(self, pair: tuple[str, str], metric: str, ours: dict[int, Network], theirs: dict[int, Network],
               where: str = "") -> Effect | None:
        """Accuracy of `ours` minus that of `theirs`, by the strongest attack that most seeds have; None without any."""
        names = ["none"] if metric == "clean" else attacks(self.found)[::-1]
        found = {name: numbers for name in names if (numbers := paired(ours, theirs, name, self.rule.robust))}
        if not found:
            return None
        attack = max(found, key=lambda name: found[name][1])  # the first of equals
        return NamedEffect(*pair, metric, attack, self.dataset, *found[attack], where=where)

    def robust(self, network: Network) -> np.ndarray | None:
        """Mask of the strongest attack that counts."""
        masks = [_mask(network, name, self.rule.robust) for name in attacks(self.found)]
        return next((m for m in masks[::-1] if m is not None), None)


def attacks(networks: Sequence[Network]) -> list[str]:
    """The attacks that any of `networks` was measured with, from the weakest to the strongest."""
    return sorted({e.attack_name for n in networks for e in n.masks if e.kind != "clean"}, key=strength)


def paired(ours: dict[int, Network], theirs: dict[int, Network], attack: str, robust: Robust) -> tuple | None:
    """(images, seeds, value, low, high, p-value) of the accuracy of `ours` minus that of `theirs`, networks by seed, on the same
    test images under one attack ("none": clean), as `compare.over_seeds`; None where no seed has both.

    Raises:
        ValueError: networks of one seed whose test images differ.
    """
    masks = []
    for seed in sorted(ours.keys() & theirs.keys()):
        both = [_mask(n, attack, robust) for n in (ours[seed], theirs[seed])]
        if any(m is None for m in both):
            continue
        if ours[seed].split != theirs[seed].split:
            _check_tests(ours[seed], theirs[seed])
        n = min(map(len, both))
        masks.append(tuple(m[:n] for m in both))
    return compare.over_seeds(masks, 0) if masks else None


def _mask(network: Network, attack: str, robust: Robust) -> np.ndarray | None:
    return network.mask(attack, robust.threat, robust.eps, robust.min_images if attack != "none" else 1)


def _check_tests(a: Network, b: Network) -> None:
    images = [(n.spec.data.image_size, n.spec.data.crop, n.spec.data.exclude, n.spec.data.split_seed) for n in (a, b)]
    if images[0] != images[1]:
        raise ValueError(f"expected {a.spec.method.name} and {b.spec.method.name} on the same test images, got {images[0]} and "
                         f"{images[1]}; give both the same data")


# -- one function per measure --------------------------------------------------------------------------------------------
def _beats(v: _Evidence) -> Finding:
    (pair,) = v.rule.pairs
    ours, best, last = v.networks(pair[0], "last"), v.networks(pair[1], "best"), v.networks(pair[1], "last")
    effects = [v.effect(pair, m, ours, best, "at its best epoch on validation images") for m in ("clean", "robust")]
    late = [v.effect(pair, m, ours, last, "at its last epoch") for m in ("clean", "robust")]
    if None in effects or None in late:
        return Finding()
    seeds, (clean, robust) = min(e.seeds for e in (*effects, *late)), effects
    share = max(math.inf if ours[s].whole is None else ours[s].whole / best[s].spent for s in ours.keys() & best.keys())
    why = f"{sum(e.low > 0 for e in effects)} of 2 intervals above 0; passes with the start over those of the rival: {share:.2f}"
    if all(e.low > 0 for e in effects):
        return Finding(seeds, (*effects, *late), REPRODUCED, why)
    if _close(clean, robust, v.rule) and share <= v.rule.share:
        return Finding(seeds, (*effects, *late), PARTLY, why + "; cheaper, clean higher, robust within a point")
    if all(e.value > 0 for e in late):
        return Finding(seeds, (*effects, *late), PARTLY, why + "; better than the last epoch of the rival only")
    return Finding(seeds, (*effects, *late), NOT, why)


def _close(clean: Effect, robust: Effect, rule: Rule) -> bool:
    """The accuracy condition of "partly": clean higher, robust lower by at most the margin, in the means."""
    return clean.value > 0 and robust.value >= -rule.margin


def _cheaper(v: _Evidence) -> Finding:
    (pair,) = v.rule.pairs
    ours, best = v.networks(pair[0], "last"), v.networks(pair[1], "best")
    accuracy = [v.effect(pair, m, ours, best, "at its best epoch on validation images") for m in ("clean", "robust")]
    seeds = sorted(ours.keys() & best.keys())
    if None in accuracy or any(ours[s].whole is None for s in seeds):
        return Finding()
    given = [best[s].spent / ours[s].spent for s in seeds]
    whole = [best[s].spent / ours[s].whole for s in seeds]
    effects = []
    for ratios, where in ((given, "start given"), (whole, "start included")):
        spread = stats.student_interval(np.log(ratios)) if len(ratios) > 1 else None
        low, high = (math.exp(spread.low), math.exp(spread.high)) if spread else (math.nan, math.nan)
        effects.append(NamedEffect(pair[1], pair[0], "passes", "none", v.dataset, 0, len(seeds),
                                   math.exp(np.mean(np.log(ratios))), low, high, unit="times", where=where))
    holds = _close(*accuracy, v.rule)
    why = (f"passes of the rival over those of fine-tuning: {min(given):.2f} with the start given, {min(whole):.2f} with it "
           f"included; accuracy condition {'holds' if holds else 'does not hold'}")
    least = min(min(e.seeds for e in accuracy), len(seeds))
    cheap = min(given) >= v.rule.share or min(whole) >= v.rule.share
    verdict = NOT if not holds else REPRODUCED if cheap else PARTLY if min(*given, *whole) > 1 else NOT
    return Finding(least, (*effects, *accuracy), verdict, why)


def _any_start(v: _Evidence) -> Finding:
    (pair,) = v.rule.pairs
    after = [v.networks(name, "last") for name in pair]
    before = [v.networks(name, "start") for name in pair]
    difference = v.effect(pair, "robust", *after)
    gains = [v.effect((name, name), "robust", a, b, "after minus before") for name, a, b in zip(pair, after, before, strict=True)]
    if difference is None or None in gains:
        return Finding()
    known = [v.robust(n) for group in before for n in group.values()]
    start = max(float(m.mean()) for m in known if m is not None)
    effects, seeds = (difference, *gains), min(e.seeds for e in (difference, *gains))
    why = f"public minus own start: {difference._number()}; robust accuracy before at most {100 * start:.1f} %"
    if start >= v.rule.floor:
        return Finding(seeds, effects, NOT, why + ": a start was not a natural network")
    if difference.low > -v.rule.margin:
        return Finding(seeds, effects, REPRODUCED, why)
    return Finding(seeds, effects, PARTLY if all(g.low > 0 for g in gains) else NOT, why)


def _best_schedule(v: _Evidence) -> Finding:
    effects = [v.effect(pair, "robust", *(v.networks(name, "last") for name in pair)) for pair in v.rule.pairs]
    if None in effects:
        return Finding()
    main, others = effects[:2], effects[2:]
    why = f"{sum(e.low > 0 for e in effects)} of {len(effects)} intervals above 0, {sum(e.high < 0 for e in effects)} below"
    seeds = min(e.seeds for e in effects)
    if all(e.low > 0 for e in effects):
        return Finding(seeds, tuple(effects), REPRODUCED, why)
    tie = all(e.low > 0 for e in main) and all(e.high >= 0 for e in others)
    return Finding(seeds, tuple(effects), PARTLY if tie else NOT, why)


FINDINGS = {"beats": _beats, "cheaper": _cheaper, "any_start": _any_start, "best_schedule": _best_schedule}
