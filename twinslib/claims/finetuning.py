"""Claims about adversarial fine-tuning: accuracy image by image, and passes, against rivals."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..evidence import frame
from ..evidence.frame import Row
from ..evidence.networks import Network
from ..specs.labels import unique
from ..specs.run import RunSpec
from ..specs.strength import strength
from ..studies.rules import FINETUNED, Rule
from .effects import Effect, by_dataset, counts, effect
from .verdict import PARTLY, REPRODUCED, Evidence, asked_of, joined, level, sifted, too_few

MEASURES = FINETUNED


def rows(networks: Sequence[Network]) -> list[Row]:
    """Their masks, and the images that each passed with its start given (`passes`) and included (`whole`, not done where that is
    unknown)."""
    out = []
    for n in networks:
        whole = n.given.images + n.before.images
        costs = {"passes": np.array([n.given.images]), "whole": None if math.isnan(whole) else np.array([whole])}
        out += [*n.rows, *(Row(n.job.study, n.spec, n.job.labels, name, value, at=n.at) for name, value in costs.items())]
    return out


def weigh(found: Sequence[Row], guess: Mapping[str, float], rule: Rule) -> Evidence:
    """What finished runs say on a rule of `MEASURES`, on the first of its data sets with enough seeds. `found`: `rows` of
    them."""
    datasets = {d: frame.where(found, dataset=d) for d in unique(row.dataset for row in found)}
    here = {d: _found(mine, guess, rule, 0.95) for d, mine in datasets.items()}
    seeds = {d: min((e.seeds for e in f.effects), default=0) for d, f in here.items() if f.effects or f.lack}
    lack = too_few(rule, seeds)
    if lack:
        return Evidence(detail=tuple(e for f in here.values() for e in f.effects), lack=lack)
    first = next(d for d, n in seeds.items() if n >= rule.min_seeds)
    own = here[first] = _found(datasets[first], guess, rule, level(sum(bool(asked_of(rule, e)) for e in here[first].effects)))
    return joined(sifted(rule, own.effects, [e for f in here.values() for e in f.effects], own.lack), own)


def _found(mine: Sequence[Row], guess: Mapping[str, float], rule: Rule, wide: float) -> Evidence:
    """On one data set, with intervals at level `wide`; nothing where a comparison is missing."""
    asked = list(itertools.product(rule.pairs, RIVALS.get(rule.measure, {"": "last"}).items(),
                                   [m for m in rule.metrics if m in ("clean", "robust")]))
    effects = [e for pair, (part, at), metric in asked
               for e in by_dataset(mine, rule, pair, metric, guess, at=("last", at), part=part, where=part, level=wide)]
    return FINDINGS[rule.measure](mine, rule, effects) if len(effects) == len(asked) else Evidence()


def _costs(mine: Sequence[Row], rule: Rule, metric: str) -> np.ndarray:
    """Passes of the rival at its best epoch and of the method (NaN where unknown), by seed, (2, seeds)."""
    (pair,) = rule.pairs
    ours, theirs = ({row.seed: row.hits for row in frame.where(mine, method=name, metric=what, at=at)}
                    for name, what, at in zip(pair, (metric, "passes"), ("last", "best"), strict=True))
    return np.array([[theirs[s][0], np.nan if ours[s] is None else ours[s][0]] for s in sorted(ours.keys() & theirs.keys())]).T


def _beats(mine: Sequence[Row], rule: Rule, effects: list[Effect]) -> Evidence:
    (pair,), (theirs, ours) = rule.pairs, _costs(mine, rule, "whole")
    times, seeds = float(np.min(np.nan_to_num(theirs / ours))), min(e.seeds for e in effects)
    end = times if seeds > 1 else math.nan  # one seed has no interval
    cost = Effect(*pair[::-1], "passes", "none", effects[0].dataset, 0, seeds, times, end, end, unit="times",
                  where="start included, the least of all seeds")
    late = all(e.low > 0 for e in effects if e.part == "last epoch")
    return Evidence((*effects, cost), said="both above 0 against the last epoch of the rival" if late else "")


def _cheaper(mine: Sequence[Row], rule: Rule, effects: list[Effect]) -> Evidence:
    (pair,), passed = rule.pairs, {"start given": _costs(mine, rule, "passes"), "start included": _costs(mine, rule, "whole")}
    if any(np.isnan(both).any() for both in passed.values()):
        return Evidence()
    times = [effect(pair[::-1], "passes", effects[0].dataset, *both, over="ratios", accuracies=False, unit="times", part=part,
                    where=part, level=effects[0].level) for part, both in passed.items()]
    given, whole = least = [float((theirs / ours).min()) for theirs, ours in passed.values()]
    clean = effects[0].value > 0
    enough = any(e.low > rule.share and each >= rule.share for e, each in zip(times, least, strict=True))
    return Evidence((*times, *effects), holds={REPRODUCED: clean and enough, PARTLY: clean},
                    said=f"passes of the rival over those of fine-tuning: {given:.2f} with the start given, {whole:.2f} with it "
                    f"included; clean accuracy {'' if clean else 'not '}higher")


def _any_start(mine: Sequence[Row], rule: Rule, effects: list[Effect]) -> Evidence:
    """After fine-tuning: public minus own start, and each minus the same training from random weights."""
    started, part = rule.pairs[0], "after minus before"
    gains = [e for name in started
             for e in by_dataset(mine, rule, (name, name), "robust", {}, at=("last", "start"), part=part, where=part)]
    if len(gains) < len(started):
        return Evidence()
    before: dict[RunSpec, list[Row]] = {}
    for row in frame.where(mine, metric="robust", at="start"):
        if row.method in started and counts(row, rule):
            before.setdefault(row.spec, []).append(row)
    start = max(max(rows, key=lambda row: strength(row.attack)).hits.mean() for rows in before.values())
    words = f"robust accuracy before at most {100 * start:.1f} %"
    if start >= rule.floor:
        return Evidence((*effects, *gains), lack=words + ": a start was not a natural network")
    return Evidence((*effects, *gains), holds={PARTLY: all(g.low > 0 for g in gains)}, said=words)


RIVALS = {"beats": {"best epoch": "best", "last epoch": "last"}, "cheaper": {"best epoch": "best"}}  # part -> of which epoch
FINDINGS = {"beats": _beats, "cheaper": _cheaper, "any_start": _any_start,
            "best_schedule": lambda mine, rule, effects: Evidence(tuple(effects))}
