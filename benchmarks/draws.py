"""Count the draws that sequential tests need on the answers of public networks, and what they lose against all draws.

    python -m benchmarks.draws                                       what results/draws/ holds; two minutes
    python -m benchmarks.draws --repeats 20 --ratio 1.5              rougher, all tests with the same few looks

`public_logs.csv` counts the radii in three logs of certification by Cohen et al. (2019; locuslab/smoothing: data/certify), 500
images each: (log, radius, images), radius 0 for an abstention. An image of radius R is taken to be answered with probability
Phi(R / sigma), one that abstained with 0.45 (the logs do not say). For each, votes are drawn `repeats` times and each test says
where it stops.

All tests have the same guarantee, alpha in all over their looks. Draws are means over images, without those that choose the
class. `lost` is what n draws at alpha certify and the test does not, at the same votes, in points of certified accuracy, mean
over the radii asked for. Betting: the likelihood ratio against p, mixed over a uniform distribution above p (Beta mixture), is a
martingale under p, so it ever reaches 1 / alpha with probability at most alpha; with the last look from the exact distribution
it spends what is left there.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import signal, special, stats

from benchmarks import command
from twinslib.base.boundaries import SPENDING, boundary, give_up
from twinslib.base.bounds import SLACK, certified_radius
from twinslib.base.sequential import Plan, exact_plan, sequential_plan

LOGS = Path(__file__).parent / "public_logs.csv"
RESULTS = command.RESULTS / "draws"
ABSTAINED = 0.45
RADII = {"cifar10 resnet110 0.25": (0, 0.25, 0.5, 0.75), "cifar10 resnet110 0.50": (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5),
         "imagenet resnet50 1.00": (0, 0.5, 1, 1.5, 2, 2.5, 3)}
Rule = tuple[tuple[int, ...], np.ndarray, np.ndarray]  # looks; votes that certify, votes that give up, both (radii, looks)


def probabilities(log: str) -> np.ndarray:
    """Of the answer of each image under noise, as the log tells it."""
    with LOGS.open() as lines:
        radius = np.array([float(row["radius"]) for row in csv.DictReader(lines) if row["log"] == log
                           for _ in range(int(row["images"]))])
    return np.where(radius > 0, stats.norm.cdf(radius / sigma_of(log)), ABSTAINED)


def sigma_of(log: str) -> float:
    return float(log.split()[-1])


def rule(plan: Plan) -> Rule:
    """What a plan decides by."""
    return plan.looks, plan.reach, plan.drop


def betting(plan: Plan, exact_end: bool) -> Rule:
    """The mixture test with the looks, radii and power loss of `plan`; with `exact_end`, the last look spends what is left."""
    rows = []
    for p in special.ndtr(np.array(plan.radii) / plan.sigma) + SLACK:
        row = np.array([_least_bet(look, p, plan.alpha) for look in plan.looks])
        if exact_end:
            row[-1] = min(row[-1], boundary(plan.looks, (*_crossed(plan.looks, row, p)[:-1], plan.alpha), float(p))[-1])
        rows.append(row)
    drop = [give_up(plan.looks, tuple(row.tolist()), plan.power_loss) for row in rows]
    return plan.looks, np.array(rows), np.array(drop)


def _least_bet(look: int, p: float, alpha: float) -> int:
    """Fewest votes at which the mixture of likelihood ratios is at least 1 / alpha."""
    k = np.arange(int(look * p), look + 1)
    log_mixture = special.betaln(k + 1, look - k + 1) + np.log(special.betaincc(k + 1, look - k + 1, p) / (1 - p))
    enough = log_mixture - special.xlogy(k, p) - special.xlog1py(look - k, -p) >= -np.log(alpha)
    return int(k[enough][0]) if enough.any() else look + 1


def _crossed(looks: Sequence[int], reach: Sequence[int], p: float) -> list[float]:
    """Probability to have reached a boundary by each look, a little more for rounding."""
    alive, before, out = np.ones(1), 0, []
    for look, least in zip(looks, reach, strict=True):
        alive = signal.fftconvolve(alive, stats.binom.pmf(np.arange(look - before + 1), look - before, p))[:least]
        before = look
        out.append(1 - alive.sum() + 1e-9)
    return out


def simulate(test: Rule, p: np.ndarray, least: np.ndarray, repeats: int) -> dict[str, float]:
    """Draws per image with their standard error, and radii lost against `least` votes of all draws, in points."""
    looks, reach, drop = test
    rng, means, lost = np.random.default_rng(0), [], []
    for _ in range(repeats):
        votes = np.cumsum(rng.binomial(np.diff((0, *looks)), p[:, None]), axis=1)
        first_up, first_down = (np.where(hit.any(2), hit.argmax(2), len(looks))
                                for hit in (votes[:, None] >= reach, votes[:, None] <= drop))
        end = np.minimum(np.minimum(first_up, first_down), len(looks) - 1).max(1)
        means.append(np.array(looks)[end].mean())
        lost.append(100 * ((votes[:, -1:] >= least).mean() - (first_up <= end[:, None]).mean()))
    error = np.std(means, ddof=1) / len(means) ** 0.5 if repeats > 1 else 0.0
    return {"draws": float(np.mean(means)), "standard_error": float(error), "lost": float(np.mean(lost))}


def compare(log: str, n: int, alpha: float, ratio: float, repeats: int) -> dict:
    """All tests on one log, by name."""
    p, about = probabilities(log), {"sigma": sigma_of(log), "radii": RADII[log], "n": n, "alpha": alpha}
    radii = certified_radius(np.arange(n + 1), n, about["sigma"], alpha)
    least = np.array([np.searchsorted(radii, r) if r else np.searchsorted(radii, 0, "right") for r in about["radii"]])
    looks = exact_plan(**about, ratio=ratio)
    tests = {"shares of alpha": rule(sequential_plan(**about))}
    tests |= {f"exact, {name}": rule(exact_plan(**about, ratio=ratio, spending=name)) for name in SPENDING}
    tests |= {"exact, linear, looks as by shares": rule(exact_plan(**about, ratio=1.5)),
              "exact, linear, power loss 0.01": rule(exact_plan(**about, ratio=ratio, power_loss=0.01)),
              "betting": betting(looks, False), "betting, exact last look": betting(looks, True)}
    found = {name: {"looks": len(test[0]), **simulate(test, p, least, repeats)} for name, test in tests.items()}
    return {"log": log, **about, "images": len(p), "repeats": repeats, "ratio": ratio, "tests": found}


def table(result: dict) -> str:
    """The result of one log as text."""
    base = result["tests"]["shares of alpha"]["draws"]
    lines = [f"{result['log']}: {result['images']} images, n {result['n']:,}, alpha {result['alpha']:g}, radii "
             + " ".join(f"{r:g}" for r in result["radii"]),
             f"  {'test':36}{'looks':>6}{'draws per image':>18}{'of shares':>11}{'of all':>8}{'lost, points':>14}"]
    for name, t in result["tests"].items():
        draws = f"{t['draws']:,.0f} ± {t['standard_error']:.0f}"
        ratios = f"{t['draws'] / base:11.3f}{t['draws'] / result['n']:8.3f}"
        lines.append(f"  {name:36}{t['looks']:6}{draws:>18}{ratios}{t['lost']:14.3f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draws", description=__doc__.split("\n")[0])
    parser.add_argument("--logs", nargs="+", choices=list(RADII), default=list(RADII))
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--ratio", type=float, default=1.05, help="between the looks of exact and betting tests")
    parser.add_argument("--repeats", type=int, default=200, help="times that the votes of each image are drawn")
    args = command.parse(parser, arguments, {"repeats": 1}, threads=1)
    with command.recorded(args, RESULTS) as results:
        for log in args.logs:
            results.append(compare(log, args.n, args.alpha, args.ratio, args.repeats))
            print(table(results[-1]), flush=True)


if __name__ == "__main__":
    main()
