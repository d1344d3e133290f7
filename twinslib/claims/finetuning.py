"""Evidence on claims about adversarial fine-tuning: accuracy image by image, and passes, against rivals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..base import stats
from ..evidence import pairs
from ..evidence.networks import Network, finished
from ..specs.labels import dataset_label, unique
from ..specs.strength import strength
from ..store.jobs import Job
from ..store.store import Store
from ..studies.finetuning import STUDY
from ..studies.rules import FINETUNED, Robust, Rule
from .effects import PARTLY, REPRODUCED, Effect, Evidence, apart, level, of_masks, said, too_few
from .transfer import chance

MEASURES = FINETUNED
USED = {"best_schedule": ("main", "schedule")}  # parts of the grid


def concerns(job: Job, rule: Rule) -> bool:
    """True if `job` is a run that the rule compares."""
    methods = {name for pair in (*rule.pairs, *rule.controls) for name in pair}
    return (job.study == STUDY and dict(job.labels)["part"] in USED.get(rule.measure, ("main",))
            and job.spec.method.name in methods)


def evidence(store: Store, jobs: Sequence[Job], rule: Rule) -> Evidence:
    """What finished runs that count say on a rule of `MEASURES`, on the first of its data sets with enough seeds."""
    found, guess = finished(store, jobs), chance(store, jobs)
    here = {d: FINDINGS[rule.measure](_View(found, d, rule, guess.get(d, math.nan)))
            for d in unique(job.spec.data.name for job in jobs)}
    detail = tuple(e for f in here.values() for e in f.effects)
    lack = too_few(rule, {d: min((e.seeds for e in f.effects), default=0) for d, f in here.items() if f.effects or f.lack})
    if lack:
        return Evidence(detail=detail, lack=lack)
    chosen = next(f for f in here.values() if f.effects and min(e.seeds for e in f.effects) >= rule.min_seeds)
    near = apart(chosen.effects, rule)
    lack = chosen.lack or (f"near chance: {dataset_label(near[0].dataset)}" if near else "")
    return Evidence(effects=() if near else chosen.effects, flagged=tuple(near), detail=detail, holds=chosen.holds, lack=lack,
                    said=f"{said(rule, chosen.effects)}; {chosen.said}" if chosen.said else said(rule, chosen.effects))


@dataclass(frozen=True)
class _View:
    """What one data set offers to one rule."""

    found: Sequence[Network]
    dataset: str
    rule: Rule
    chance: float

    def networks(self, method: str, at: str) -> dict[int, Network]:
        """By seed."""
        return {n.spec.seed: n for n in self.found if n.key[:2] == (self.dataset, method) and n.at == at}

    def effect(self, pair: tuple[str, str], metric: str, ours: dict[int, Network], theirs: dict[int, Network], part: str = "",
               wide: float = 0.95) -> Effect | None:
        """Accuracy of `ours` minus that of `theirs`, by the strongest attack that most seeds have; None without any."""
        names = ["none"] if metric == "clean" else attacks(self.found)[::-1]
        masks = {name: both for name in names if (both := paired_masks(ours, theirs, name, self.rule.robust))}
        if not masks:
            return None
        attack = max(masks, key=lambda name: len(masks[name]))  # the first of equals
        return of_masks(pair, metric, attack, self.dataset, masks[attack], level=wide, part=part, where=part,
                        chance=math.nan if part == "after minus before" else self.chance)

    def robust(self, network: Network) -> np.ndarray | None:
        """Mask of the strongest attack that counts."""
        masks = [_mask(network, name, self.rule.robust) for name in attacks(self.found)]
        return next((m for m in masks[::-1] if m is not None), None)


def attacks(networks: Sequence[Network]) -> list[str]:
    """The attacks that any of `networks` was measured with, from the weakest to the strongest."""
    return sorted({e.attack_name for n in networks for e in n.masks if e.kind != "clean"}, key=strength)


def paired(ours: dict[int, Network], theirs: dict[int, Network], attack: str, robust: Robust) -> tuple | None:
    """(images, seeds, value, low, high, p-value) of the accuracy of `ours` minus that of `theirs`, as `pairs.over_seeds`; None
    where no seed has both."""
    masks = paired_masks(ours, theirs, attack, robust)
    return pairs.over_seeds(masks, 0) if masks else None


def paired_masks(ours: dict[int, Network], theirs: dict[int, Network], attack: str, robust: Robust) -> list[tuple]:
    """Both masks of each seed that both have, on the same test images, under one attack ("none": clean).

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
    return masks


def _mask(network: Network, attack: str, robust: Robust) -> np.ndarray | None:
    return network.mask(attack, robust.threat, robust.eps, robust.min_images if attack != "none" else 1)


def _check_tests(a: Network, b: Network) -> None:
    images = [(n.spec.data.image_size, n.spec.data.crop, n.spec.data.exclude, n.spec.data.split_seed) for n in (a, b)]
    if images[0] != images[1]:
        raise ValueError(f"expected {a.spec.method.name} and {b.spec.method.name} on the same test images, got {images[0]} and "
                         f"{images[1]}; give both the same data")


def _beats(v: _View) -> Evidence:
    (pair,) = v.rule.pairs
    ours = v.networks(pair[0], "last")
    rivals = {part: v.networks(pair[1], part.split()[0]) for part in ("best epoch", "last epoch")}
    effects = [v.effect(pair, metric, ours, theirs, part) for part, theirs in rivals.items() for metric in ("clean", "robust")]
    if None in effects:
        return Evidence()
    best = rivals["best epoch"]
    times = min(0.0 if ours[s].whole is None else best[s].spent / ours[s].whole for s in ours.keys() & best.keys())
    cost = Effect(pair[1], pair[0], "passes", "none", v.dataset, 0, min(e.seeds for e in effects), times, times, times,
                  unit="times", where="start included, the least of all seeds")
    return Evidence((*effects, cost))


def _cheaper(v: _View) -> Evidence:
    (pair,) = v.rule.pairs
    ours, best = v.networks(pair[0], "last"), v.networks(pair[1], "best")
    accuracy = [v.effect(pair, m, ours, best, "best epoch") for m in ("clean", "robust")]
    seeds = sorted(ours.keys() & best.keys())
    if None in accuracy or any(ours[s].whole is None for s in seeds):
        return Evidence()
    given = [best[s].spent / ours[s].spent for s in seeds]
    whole = [best[s].spent / ours[s].whole for s in seeds]
    effects = []
    for ratios, part in ((given, "start given"), (whole, "start included")):
        spread = stats.student_interval(np.log(ratios)) if len(ratios) > 1 else None
        low, high = (math.exp(spread.low), math.exp(spread.high)) if spread else (math.nan, math.nan)
        effects.append(Effect(pair[1], pair[0], "passes", "none", v.dataset, 0, len(seeds), math.exp(np.mean(np.log(ratios))),
                              low, high, unit="times", where=part, part=part))
    clean = accuracy[0].value > 0
    cheap = min(given) >= v.rule.share or min(whole) >= v.rule.share
    return Evidence((*effects, *accuracy), holds={REPRODUCED: clean and cheap, PARTLY: clean},
                    said=f"passes of the rival over those of fine-tuning: {min(given):.2f} with the start given, "
                    f"{min(whole):.2f} with it included; clean accuracy {'' if clean else 'not '}higher")


def _any_start(v: _View) -> Evidence:
    """After fine-tuning: public minus own start, and each minus the same training from random weights."""
    pairs = v.rule.pairs
    after = {name: v.networks(name, "last") for pair in pairs for name in pair}
    wide = level(len(pairs))
    effects = [v.effect(pair, "robust", *(after[name] for name in pair), wide=wide) for pair in pairs]
    started = pairs[0]
    gains = [v.effect((name, name), "robust", after[name], v.networks(name, "start"), "after minus before") for name in started]
    if None in effects or None in gains:
        return Evidence()
    known = [v.robust(n) for name in started for n in v.networks(name, "start").values()]
    start = max(float(m.mean()) for m in known if m is not None)
    words = f"robust accuracy before at most {100 * start:.1f} %"
    if start >= v.rule.floor:
        return Evidence((*effects, *gains), lack=words + ": a start was not a natural network")
    return Evidence((*effects, *gains), holds={PARTLY: all(g.low > 0 for g in gains)}, said=words)


def _best_schedule(v: _View) -> Evidence:
    wide = level(len(v.rule.pairs))
    effects = [v.effect(pair, "robust", *(v.networks(name, "last") for name in pair), wide=wide) for pair in v.rule.pairs]
    return Evidence() if None in effects else Evidence(tuple(effects))


FINDINGS = {"beats": _beats, "cheaper": _cheaper, "any_start": _any_start, "best_schedule": _best_schedule}
