"""What each rule says when nothing is true, and when what is claimed is: rates of its verdicts on simulated evidence.

At the fewest seeds, data sets and images that the rule accepts. The simulated networks vary over images, seeds and data sets as
those of the preset `small` do, and pass through the same intervals and bounds; conditions beside the intervals are taken to hold,
which can only make a rule kinder. python -m twinslib claims --simulate stores the rates for the ledger.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from ..base import stats
from ..base.files import atomic_write
from ..evidence.frame import contrast
from ..specs.labels import unique
from ..studies import rules
from ..studies.rules import Claim, Rule
from .effects import Effect, effect, of_means, turned
from .smoothing import on_several
from .transfer import spread
from .verdict import INCONCLUSIVE, NOT, PARTLY, REPRODUCED, asked_of, decide, level, names

NONE, CLAIMED = "none", "claimed"
WORDS = (REPRODUCED, PARTLY, INCONCLUSIVE, NOT)
COLUMNS = ["claim", "stamp", "datasets", "seeds", "images", "repeats",
           *(f"{truth} {word}" for truth in (NONE, CLAIMED) for word in WORDS)]
PATH = "characteristics.csv"


class Spread(NamedTuple):
    """Standard deviations of a difference: over seeds, over images in all seeds, and over images in one seed beside that."""

    seed: float
    image: float
    single: float


SEED, DATASET = 0.007, 0.01  # accuracy of a network over seeds, difference over data sets: TWINS-AT and AT
SHARED, PAIRED = 0.95, 0.03  # of the variance of a latent "how easy": by image, by image and seed; masks then agree as theirs do
SPREADS = {"gap": Spread(0.016, 0.2, 0.35), "certified": Spread(0.01, 0.2, 0.25), "acr": Spread(0.01, 0.15, 0.2)}
OVER_RATES = Spread(0.004, 0.06, 0.12)
NUMBERS = {"lr_over_w2": 0.01, "angle": 0.015, "loss": 0.04, "passes": 0.15, "forwards": 0.02}  # over seeds; ratios as logarithms
LOST = 0.1  # certified accuracy that batch norm loses, for `recovered`


def simulate(rule: Rule, truth: str, rng: np.random.Generator) -> str:
    """The verdict on one made-up set of runs. truth: "none" or "claimed"."""
    if rule.measure == "carried_widely":
        return on_several([decide(rule, _effects(rule, truth, rng, d)) for d in range(rule.min_datasets)])
    if rule.measure == "spread":
        made = [_effect(rule, pair, m, f"set {d}") for pair in rule.pairs for m in rule.metrics for d in range(rule.min_datasets)]
        return spread([_masked(rule, e, _true(rule, e, truth), 0.95, rng) for e in made], rule)[0]
    return decide(rule, [e for d in range(_apart(rule)) for e in _effects(rule, truth, rng, d)])


def rates(rule: Rule, repeats: int, seed: int = 0) -> dict[str, float]:
    """How often each verdict is given, by truth and verdict."""
    out = {}
    for truth in (NONE, CLAIMED):
        rng = np.random.default_rng([seed, zlib.crc32(f"{rule.stamp}{truth}".encode())])
        verdicts = [simulate(rule, truth, rng) for _ in range(repeats)]
        out |= {f"{truth} {word}": verdicts.count(word) / repeats for word in WORDS}
    return out


def write(repeats: int) -> pd.DataFrame:
    """Simulate every rule that is not stored so already and keep the rates in the reference data."""
    def line(claim: Claim) -> dict:
        rule, there = claim.rule, stored().get(claim.id, {})
        if (there.get("stamp"), there.get("repeats")) == (rule.stamp, repeats):
            return there
        return {"claim": claim.id, "stamp": rule.stamp, "datasets": rule.min_datasets, "seeds": rule.min_seeds,
                "images": _images(rule), "repeats": repeats, **rates(rule, repeats)}

    frame = pd.DataFrame([line(c) for c in rules.claims() if c.rule.measure != "shown"], columns=COLUMNS)
    atomic_write(Path(str(resources.files("twinslib") / "reference" / PATH)),
                 lambda tmp: tmp.write_text(frame.to_csv(index=False, float_format="%.4g")))
    stored.cache_clear()
    return frame


@functools.cache
def stored() -> dict[str, dict]:
    """Claim -> what `write` has left."""
    path = resources.files("twinslib") / "reference" / PATH
    return {line["claim"]: line for line in pd.read_csv(str(path)).to_dict("records")} if path.is_file() else {}


def sentence(claim: Claim) -> str:
    """What the design can show, in words, "—" where it is not simulated for the present rule."""
    line = stored().get(claim.id)
    if line is None or line["stamp"] != claim.rule.stamp:
        return "—"

    def share(truth: str, *words: str) -> str:
        return f"{100 * sum(line[f'{truth} {word}'] for word in words):.2g} %"

    true = ", ".join(f"{word} in {share(CLAIMED, word)}" for word in WORDS)
    return (f"simulated with {line['seeds']} seeds: without effect reproduced or partly in {share(NONE, REPRODUCED, PARTLY)}, "
            f"inconclusive in {share(NONE, INCONCLUSIVE)}; with the claimed effect {true}")


def _apart(rule: Rule) -> int:
    """Data sets that a rule asks one by one."""
    return rule.min_datasets if rule.measure in ("rate", "escape", "less_overfitting", "one_rate") else 1


def _images(rule: Rule) -> int:
    return rule.robust.min_images if rule.robust else rule.smooth.min_images if rule.smooth else 0


def _effects(rule: Rule, truth: str, rng: np.random.Generator, dataset: int) -> list[Effect]:
    """Simulated effects, one for each that a bound names, with intervals at the level that they share; for "same_step" also
    turned round. Of one data set, or, where a rule pools data sets (`_draw`), of all together."""
    made = [_effect(rule, pair, metric, f"set {dataset}", part)
            for pair in rule.pairs for metric in rule.metrics for part in _places(rule, metric)]
    out = [e for e in made if any(names(b, e) for clause in (*rule.asked, *rule.partly) for b in clause)]
    k = sum(bool(asked_of(rule, e)) for e in out) * _apart(rule)
    wide = 1 - rule.alpha if rule.measure == "recovered" else level(k)
    drawn = [_draw(rule, e, _true(rule, e, truth), wide, rng) for e in out]
    if rule.measure == "same_step":
        drawn += [turned(e) for e in drawn]
    return drawn


def _effect(rule: Rule, pair: tuple[str, str], metric: str, dataset: str, part: str = "") -> Effect:
    return Effect(*pair, metric, "none", dataset, _images(rule), rule.min_seeds, 0.0, 0.0, 0.0, part=part)


def _places(rule: Rule, metric: str) -> Sequence[str]:
    """The parts of a rule's effects of one pair and measure."""
    if rule.measure == "one_for_all" or (rule.measure == "cost" and metric == "certified"):
        return (*("" for _ in rule.smooth.radii), "mean")
    if rule.measure == "beats":
        return ("",) if metric == "passes" else ("best epoch", "last epoch")
    if rule.measure == "cheaper":
        return ("start given", "start included") if metric == "passes" else ("best epoch",)
    named = [word for clause in (*rule.asked, *rule.partly) for b in clause for word in b.of if word in rules.PARTS]
    return ("",) if rule.measure == "cost" or not named else unique(named)


def _true(rule: Rule, e: Effect, truth: str) -> float:
    """The true effect; without any it is 0 (a ratio 1) or, where less is asked, what is asked; claimed, what the rule names, or 0
    where parity is claimed."""
    ratio = e.metric in ("lr_over_w2", "angle", "passes", "forwards")
    if e.part == "recovered" or (rule.measure == "recovered" and e.part == "kept"):
        gained = 0.0 if truth == NONE else rule.share * LOST
        return gained - (rule.share * LOST if e.part == "kept" else 0.0)
    bounds, nothing = asked_of(rule, e), 1.0 if ratio else 0.0
    if not bounds:
        return 10.0 if rule.measure == "beats" and ratio else nothing
    b = bounds[0]
    value = min(nothing, b.above) if truth == NONE else max(b.claimed, 0.0) if b.above < 0 else b.claimed
    return -value if rule.lower else value


def _draw(rule: Rule, e: Effect, true: float, wide: float, rng: np.random.Generator) -> Effect:
    if rule.measure == "gain":
        return of_means([_masked(rule, e, true + rng.normal(0, DATASET), wide, rng) for _ in range(rule.min_datasets)])
    rates, at_best = rule.measure in ("all_rates", "same_step"), rule.measure in ("one_for_all", "cost") and not e.part
    if e.metric in NUMBERS:
        noise, ratio = rng.normal(0, NUMBERS[e.metric], rule.min_seeds), e.metric != "loss"
        values = true * np.exp(noise) if ratio else true + noise
        _, _, value, low, high, _ = contrast(values, np.full_like(values, ratio), wide, "ratios" if ratio else "seeds")
    elif rates or (e.metric in SPREADS and not at_best):
        spread_of = OVER_RATES if rates else SPREADS[e.metric]
        value, low, high, _ = stats.crossed_mean(
            [_values(rule, true, spread_of, rng) for _ in range(rule.min_datasets if rates else 1)], wide)
    else:
        return _masked(rule, e, true, wide, rng)
    return dataclasses.replace(e, value=value, low=low, high=high, level=wide)


def _values(rule: Rule, true: float, s: Spread, rng: np.random.Generator) -> np.ndarray:
    seeds, images = rule.min_seeds, _images(rule)
    return true + rng.normal(0, s.seed, (seeds, 1)) + rng.normal(0, s.image, images) + rng.normal(0, s.single, (seeds, images))


def _masked(rule: Rule, e: Effect, true: float, wide: float, rng: np.random.Generator) -> Effect:
    """An effect of two networks whose accuracies differ by `true`, around one half."""
    seeds, images = rule.min_seeds, _images(rule)
    easy = math.sqrt(SHARED) * rng.normal(size=images) + math.sqrt(PAIRED) * rng.normal(size=(seeds, images))
    own = math.sqrt(1 - SHARED - PAIRED)
    both = []
    for sign in (1, -1):
        accuracy = np.clip(0.5 + sign * true / 2 + rng.normal(0, SEED, (seeds, 1)), 0.01, 0.99)
        both.append(easy + own * rng.normal(size=(seeds, images)) < special.ndtri(accuracy))
    return effect(e.pair, e.metric, e.dataset, *both, level=wide, part=e.part)
