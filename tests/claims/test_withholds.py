"""Changed rules that keep their runs: on random evidence they never grant a claim more than the rule before did.

What a verdict grants: reproduced, then partly, then nothing (inconclusive, not, not tested). The rules of before are written down
here as they were, on the same arrays as those that the present code reads.
"""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.aft_made import network
from tests.claims.test_course import made, spec
from tests.claims.test_ledger import job
from tests.claims.test_smoothing import labels
from tests.smoothing_made import measured
from tests.smoothing_made import spec as smoothing_spec
from twinslib.base import stats
from twinslib.claims import course as claims_course
from twinslib.claims import finetuning, kinds, smoothing, verdict
from twinslib.claims import transfer as claims_transfer
from twinslib.claims.verdict import CREDIT, NOT, NOT_TESTED, PARTLY, REPRODUCED
from twinslib.evidence import course
from twinslib.evidence.cells import grid_radius, stack
from twinslib.evidence.frame import Row, mean_interval
from twinslib.specs.run import RunSpec
from twinslib.store.store import Store
from twinslib.studies import rules
from twinslib.studies.rules import cell

LEDGER = {c.id: c.rule for c in rules.claims()}
KEPT = [name for name, rule in LEDGER.items() if any(e.withholds for e in rule.earlier)]
REPEATS, SEEDS, N = 12, (0, 1, 2), 120
DATASETS = ("cifar10", "caltech64", "cub64", "dogs64")
GUESS = dict(zip(DATASETS, (0.1, 0.01, 0.005, 0.01), strict=True))
Found = tuple[float, float, float]  # value, low, high


def masks(rng: np.random.Generator, accuracy: float, easy: np.ndarray, luck: float) -> np.ndarray:
    """Right or wrong, for images that are easy in the same way for all networks."""
    share = np.clip(accuracy + rng.normal(0, luck), 0.0, 1.0)
    return easy + rng.normal(0, 0.3, len(easy)) < np.quantile(easy, share)


def level(rng: np.random.Generator) -> float:
    """An effect: none, small, large, or against the claim; most near where verdicts change."""
    return float(rng.choice([0.0, 0.02, 0.05, 0.1, 0.2, -0.05, -0.15]))


def gain(found: list[Found]) -> str:
    above, below = [f for f in found if f[1] > 0], [f for f in found if f[2] < 0]
    if len(above) == len(found):
        return REPRODUCED
    return PARTLY if all(f[0] > 0 for f in found) or (above and not below) else NOT


def spread(found: dict[tuple[str, str], tuple]) -> str:
    corrected = dict(zip(found, stats.holm([f[3] for f in found.values()]), strict=True))
    datasets = list(dict.fromkeys(d for d, _ in found))
    both = [d for d in datasets if all(f[0] > 0 for (there, _), f in found.items() if there == d)]
    gains = [d for d in datasets if any(f[0] > 0 and corrected[key] <= 0.05 for key, f in found.items() if key[0] == d)]
    losses = [key for key, f in found.items() if f[0] < 0 and corrected[key] <= 0.05]
    if len(both) == len(datasets) and 2 * len(gains) > len(datasets):
        return REPRODUCED
    return PARTLY if 2 * len(both) > len(datasets) and not losses else NOT


def above(found: list[Found], asked: float, partly: float | None = None) -> str:
    """Reproduced: all intervals above `asked`. Partly: all above `partly` or, where that is none, all means above `asked`."""
    if all(f[1] > asked for f in found):
        return REPRODUCED
    return PARTLY if all(f[0] > asked if partly is None else f[1] > partly for f in found) else NOT


def crossed(ours: np.ndarray, theirs: np.ndarray) -> tuple:
    found = stats.crossed_difference(ours, theirs)
    return found.estimate, found.low, found.high, found.p_value


def mean_of(values: np.ndarray, level: float = 0.95) -> Found:
    return tuple(stats.crossed_mean(values, level)[:3])


def transfer(name: str, rng: np.random.Generator, patch: pytest.MonkeyPatch) -> tuple[str, str]:
    """(verdict of before, verdict now) on random runs of three or four data sets, some near chance."""
    rule = dataclasses.replace(LEDGER[name], controls=())
    datasets = rule.datasets or DATASETS[:rng.integers(3, 5)]
    methods = dict.fromkeys(m for pair in rule.pairs for m in pair)
    gained = {m: level(rng) if any(m == p[0] for p in rule.pairs) else 0.0 for m in methods}
    nets = {}
    for d, metric in itertools.product(datasets, ("clean", "robust")):
        base, easy = float(rng.choice([0.5, 0.3, GUESS[d] + 0.04])), rng.normal(size=N)
        for m, seed in itertools.product(methods, SEEDS):
            nets[d, metric, m, seed] = masks(rng, base + gained[m] + rng.normal(0, 0.01), easy, 0.02)
    eps, few = rule.robust.eps, dataclasses.replace(rule.robust, min_images=N)
    rows = [Row("transfer", job(d, m, seed).spec, (), metric, hits, *(("pgd20", "linf", eps) if metric == "robust" else ()))
            for (d, metric, m, seed), hits in nets.items()]
    now = verdict.judge(rule, claims_transfer.weigh(rows, GUESS, dataclasses.replace(rule, robust=few)))
    single = {(pair, m, d): crossed(*(np.stack([nets[d, m, x, s] for s in SEEDS]) for x in pair))
              for pair, m, d in itertools.product(rule.pairs, rule.metrics, datasets)}
    if rule.measure == "spread":
        return spread({(d, m): f for (_, m, d), f in single.items()}), now
    if rule.measure == "margin":
        return above([f[:3] for f in single.values()], 0.05, 0.0), now
    return gain([mean_interval([single[pair, m, d][:3] for d in datasets])
                 for pair, m in itertools.product(rule.pairs, rule.metrics)]), now


def of_course(name: str, rng: np.random.Generator, patch: pytest.MonkeyPatch) -> tuple[str, str]:
    rule, runs = dataclasses.replace(LEDGER[name], controls=()), {}
    datasets = rule.datasets or DATASETS[:rng.integers(1, 3)]
    methods = dict.fromkeys(m for pair in rule.pairs for m in pair)
    better = {m: float(rng.choice([0.0, 1.0, 1.0, -0.5] if m == rule.pairs[0][0] else [0.0, 0.0, 0.5, -0.5])) for m in methods}
    for d, m, seed in itertools.product(datasets, methods, SEEDS):
        factor = 1 + 0.4 * better[m]
        values = {"gap": int(np.clip(rng.normal(60 - 50 * better[m], rng.choice([2, 15])), 0, 400)),
                  "rate": np.exp(rng.normal(0, 0.1)) * factor, "angle": np.exp(rng.normal(0, 0.1)) * factor,
                  "losses": tuple(1 - 0.3 * better[m] + rng.normal(0, rng.choice([0.02, 0.2]), 5)),
                  "train": (2.0, float(rng.choice([1.0, 1.0, 3.0])))}
        arrays, rows = made(**values)
        runs[d, m, seed] = course.Course(spec(m, d, seed), arrays, rows, 100)
    guess = {"cifar10": float(rng.choice([0.1, 0.1, 0.1, 0.42]))}
    now = verdict.judge(rule, claims_course.weigh(claims_course.rows(list(runs.values()), rule), guess, rule))
    now = verdict.lesser(now, next(e.at_most for e in rule.earlier))
    first, all_of = rule.pairs[0], [(d, pair, s) for d in datasets for pair in rule.pairs for s in SEEDS]

    def both(d: str, pair: tuple, s: int) -> list:
        return [runs[d, m, s] for m in pair]

    if rule.measure == "rate":
        ratio = {key: course.ratios(both(*key), [key[1]]).iloc[0] for key in all_of}
        steady = all(course.stable(runs[d, first[0], s]) for d in datasets for s in SEEDS)
        if all(r["lr_over_w2"] > 1 and r["angle"] > 1 for r in ratio.values()) and steady:
            return REPRODUCED, now
        return PARTLY if all(r["angle"] > 1 for (_, pair, _), r in ratio.items() if pair == first) else NOT, now
    if rule.measure == "escape":
        wins = {key: int(np.less(*(c.arrays["train_loss"][1:6].mean(1) for c in both(*key))).sum()) for key in all_of}
        passed = {pair: all(w >= 4 for (_, p, _), w in wins.items() if p == pair) for pair in rule.pairs}
        return REPRODUCED if all(passed.values()) else PARTLY if passed[first] else NOT, now
    gaps = {(d, m): np.stack([runs[d, m, s].gap for s in SEEDS]) for d in datasets for m in methods}
    if rule.measure == "overfits":
        return above([mean_of(gaps[d, first[0]]) for d in datasets], 0.05, 0.0), now
    if min(gaps[d, first[1]].mean() for d in datasets) < 0.01:
        return NOT_TESTED, now
    less = {(d, pair): mean_of(gaps[d, pair[0]] - gaps[d, pair[1]]) for d in datasets for pair in rule.pairs}
    if all(f[2] < 0 for f in less.values()):
        return REPRODUCED, now
    return PARTLY if all(f[0] < 0 for (_, pair), f in less.items() if pair == first) else NOT, now


def on(dataset: str, run: RunSpec) -> RunSpec:
    return dataclasses.replace(run, data=dataclasses.replace(run.data, name=dataset))


def smoothed(name: str, rng: np.random.Generator, patch: pytest.MonkeyPatch) -> tuple[str, str]:
    rule = LEDGER[name]
    smooth = dataclasses.replace(rule.smooth, sigmas=rule.smooth.sigmas[:2], n=1000, min_images=50,
                                 radii=tuple(r for r in rule.smooth.radii if r <= 0.5))
    rule = dataclasses.replace(rule, smooth=smooth)
    datasets, found, clean = rule.datasets or DATASETS[:2], [], {}
    levels_, names = smooth.sigmas or (0.0,), smoothing.cells(rule)
    cells = dict.fromkeys(itertools.product((c.at(s) for c in names for s in levels_), levels_))
    for d in datasets:
        easy, shares = rng.normal(size=N), {}
        for c, s in cells:
            shares.setdefault((c.pretraining, c.finetuning, c.norm, c.restat), 0.35 + level(rng))
            for seed in SEEDS:
                reach = np.where(masks(rng, shares[c.pretraining, c.finetuning, c.norm, c.restat], easy, 0.02), 0.3, -0.1)
                reach[(reach > 0) & (rng.random(N) < 0.7)] = 0.6
                found.append(measured(str(c), s or 0.25, reach, seed=seed, dataset=d))
                clean[d, c, seed] = masks(rng, 0.5 + shares[c.pretraining, c.finetuning, c.norm, c.restat] - 0.35, easy, 0.02)
    larger = bool(rng.integers(2))
    cost = {True: 1.0, False: float(rng.choice([1.5, 3.0]))}
    rows = [Row("smoothing", on(d, smoothing_spec(seed)), labels(c), "clean", hits) for (d, c, seed), hits in clean.items()]
    guess = {"cifar10": float(rng.choice([0.1, 0.3])), "caltech64": 0.01}
    patch.setattr(smoothing, "_mismatch_larger", lambda *_: larger)
    patch.setattr(smoothing, "costs", lambda family, store: (cost[family[0].cell.pretraining == "mixed"], 0.0))
    now = verdict.judge(rule, smoothing.weigh(found, rows, datasets, guess, rule, Store("small")))
    radii, sigmas = smooth.radii, smooth.sigmas

    def reached(c: object, d: str, s: float) -> np.ndarray:
        return stack({m.seed: m for m in found if (m.dataset, m.cell, m.sigma) == (d, c.at(s), s)}, radii)

    def levels(c: object, d: str = "cifar10") -> np.ndarray:
        return np.mean([reached(c, d, s)[..., 0] for s in sigmas], axis=0)

    pairs = [tuple(map(cell, pair)) for pair in rule.pairs]
    ours, theirs = pairs[0]
    if rule.measure in ("carried", "carried_widely"):
        said = {}
        for d in datasets:
            counted = clear = higher = 0
            for s, i in itertools.product(sigmas, range(len(radii))):
                a, b, best = (reached(c, d, s)[..., i] for c in (ours, theirs, cell(rule.reference)))
                if best.mean() > rule.floor:
                    f = crossed(a, b)
                    counted, higher = counted + 1, higher + (f[0] > 0)
                    clear += f[0] >= 0.1 and f[1] > 0 and a.mean() >= 0.8 * best.mean()
            said[d] = NOT_TESTED if not counted else REPRODUCED if clear == counted else PARTLY if higher == counted else NOT
        if rule.measure == "carried":
            return said["cifar10"], now
        good = [sum(v in words for v in said.values()) >= 2 for words in ((REPRODUCED,), (REPRODUCED, PARTLY))]
        return REPRODUCED if good[0] else PARTLY if good[1] else NOT, now
    if rule.measure in ("one_for_all", "cost"):
        families = [np.stack([reached(c, "cifar10", s) for s in sigmas]) for c in (ours, theirs)]
        best = [crossed(*(f[f[..., i].mean((1, 2)).argmax(), ..., i] for f in families))[:3] for i in range(len(radii))]
        parity = above(best, -0.02)
        return parity if rule.measure == "one_for_all" or cost[True] / cost[False] < 0.5 else NOT, now
    if rule.measure == "wider":
        score = {c: np.mean([grid_radius({m.seed: m for m in found if (m.cell, m.sigma) == (c, s)}, radii) for s in sigmas],
                            axis=0) for pair in pairs for c in pair}
        return above([mean_of(score[a] - score[b]) for a, b in pairs], 0.0), now
    if rule.measure == "clean_kept":
        return above([crossed(*(np.stack([clean["cifar10", c, s] for s in SEEDS]) for c in (ours, theirs)))[:3]], -0.02), now
    if rule.measure == "norm_drop":
        drop = {c: levels(dataclasses.replace(c, finetuning="noise*")) - levels(c) for pair in pairs for c in pair}
        return above([mean_of(drop[a] - drop[b]) for a, b in pairs], 0.0), now
    before, best = levels(theirs), levels(cell(rule.reference))
    if (best - before).mean() <= 0:
        return NOT_TESTED, now
    half = [mean_of(levels(a) - before - 0.5 * (best - before), 0.975) for a, _ in pairs]
    if larger and any(f[1] > 0 for f in half):
        return REPRODUCED, now
    return PARTLY if larger and any(f[0] > 0 for f in half) else NOT, now


def finetuned(name: str, rng: np.random.Generator, patch: pytest.MonkeyPatch) -> tuple[str, str]:
    rule, found, right = LEDGER[name], [], {}
    easy, spent = rng.normal(size=1000), float(rng.choice([10_000.0, 60_000.0, 90_000.0]))
    places = [("aft", "last"), ("aft", "start"), ("at_scratch", "best"), ("at_scratch", "last"), ("aft_public", "start"),
              ("aft_public", "last"), ("aft_random", "last")]
    for method, at in places:
        base = {"start": 0.02}.get(at, float(rng.choice([0.35, 0.35, 0.13])) + level(rng) / 2)
        for seed in SEEDS:
            n = network(method, 0.5, 0.5, at=at, start={"aft": "natural", "aft_public": "public"}.get(method), seed=seed,
                        spent=spent if method == "at_scratch" else 6000.0, before=None if method == "aft_public" else 4000.0)
            right[method, at, seed] = {e: masks(rng, min(base + (0.2 if e.kind == "clean" else 0.0), 0.9), easy, 0.01)
                                       for e in n.masks}
            found.append(dataclasses.replace(n, masks=right[method, at, seed]))
    now = verdict.judge(rule, finetuning.weigh(finetuning.rows(found), {"cifar10": 0.1}, rule))

    def of(metric: str, a: tuple, b: tuple) -> Found:
        return crossed(*(np.stack([next(m for e, m in right[(*x, s)].items() if (e.kind == "clean") == (metric == "clean"))
                                   for s in SEEDS]) for x in (a, b)))[:3]

    best = [of(m, ("aft", "last"), ("at_scratch", "best")) for m in ("clean", "robust")]
    late = [of(m, ("aft", "last"), ("at_scratch", "last")) for m in ("clean", "robust")]
    close, share = best[0][0] > 0 and best[1][0] >= -0.01, 10_000 / spent
    if name == "AFT-C1":
        if all(f[1] > 0 for f in best):
            return REPRODUCED, now
        return PARTLY if (close and share <= 1 / 3) or all(f[0] > 0 for f in late) else NOT, now
    if name == "AFT-C2":
        ratios = spent / 6000, spent / 10_000
        return NOT if not close else REPRODUCED if max(ratios) >= 8 else PARTLY if min(ratios) > 1 else NOT, now
    start = max(m.mean() for (_, at, _), group in right.items() if at == "start" for e, m in group.items() if e.kind != "clean")
    if start >= 0.05:
        return NOT, now
    if of("robust", ("aft_public", "last"), ("aft", "last"))[1] > -0.03:
        return REPRODUCED, now
    return PARTLY if all(of("robust", (m, "last"), (m, "start"))[1] > 0 for m in ("aft", "aft_public")) else NOT, now


KINDS = {claims_transfer: transfer, claims_course: of_course, smoothing: smoothed, finetuning: finetuned}


@pytest.mark.parametrize("name", KEPT)
def test_changed_rules_can_only_withhold(name, monkeypatch) -> None:
    """Never more than before on the same evidence, which is such that the rule before granted something, and so does this one."""
    make = KINDS[kinds.KINDS[LEDGER[name].measure]]
    pairs = [make(name, np.random.default_rng([repeat, len(name)]), monkeypatch) for repeat in range(REPEATS)]
    kinder = [(before, now) for before, now in pairs if CREDIT.get(now, 0) > CREDIT.get(before, 0)]
    assert kinder == []
    assert any(before in CREDIT for before, _ in pairs) and any(now in CREDIT for _, now in pairs)


def test_every_kept_rule_is_tried() -> None:
    """Rules that keep their runs are of the kinds above; those that do not keep them are AFT-C3b and AFT-C6."""
    assert {kinds.KINDS[LEDGER[name].measure] for name in KEPT} == set(KINDS)
    assert {name for name, rule in LEDGER.items() if rule.earlier} - set(KEPT) == {"AFT-C3b", "AFT-C6"}
