"""Runs whose course is kept, and the experiment on learning rates (TWINS, C5-C7, E1-E3; robust overfitting)."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TypedDict

from ..base.errors import check_keys, choose
from ..specs.jobs import Best, Job
from ..specs.measure import EvalSpec
from ..specs.method import METHODS, method
from ..specs.reading import Some, from_dict, strict
from ..specs.run import FollowSpec, RunSpec
from .limits import check_limits, check_rates, check_seeds, within
from .transfer import START, Target, grid


class Earlier(TypedDict, total=False):  # settings of a run
    optim: dict
    data: dict
    model: dict


class Run(Earlier, total=False):  # what a method changes, on which targets and seeds, and its settings in an earlier plan
    targets: Sequence[str]
    seeds: Sequence[int]
    before: Sequence[Earlier]


class Steps(TypedDict):  # the experiment on learning rates
    methods: Sequence[str]
    rates: Some[Sequence[float]]
    epochs: dict[str, int]
    longer: int
    seeds: Some[Sequence[int]]
    evaluations: Sequence[dict]


@strict
def followed(*, arch: str, norm: str, sources: Some[dict[str, dict]], start: str, targets: Some[dict[str, Target]],
             runs: Some[dict[str, Run]], seeds: Some[Sequence[int]], optim: dict, attack: dict, best: Best,
             follow: dict | None = None, evaluations: Sequence[dict] = (), labels: dict[str, str] | None = None,
             study: str = "followed") -> list[Job]:
    """Runs whose course is kept (TWINS, C5-C7; robust overfitting): every method of `runs` on every target, at one base
    learning rate, which is part of the question and so not chosen.

    Args:
        sources, start, targets: see `transfer`; methods of `START` begin elsewhere.
        runs: method -> {optim, data, model, targets, seeds, before}, each optional: changes to `optim`, to the target's data and,
            for a random start, to the network; on which targets and seeds; settings of an earlier plan, whose runs are kept
            where they are finished but neither computed, shown nor judged. `at_lr` gets the rate times 1 + lambda of TWINS on
            that target.
        best: not used; nothing is chosen.
        follow: fields of `run.FollowSpec`; without it no course is kept.
        evaluations: fields of EvalSpec. labels: of the jobs.
        study: name of the jobs' study, and so of its file of epochs.
    Returns:
        Jobs, the start network first, then seed 0 of everything before seed 1 of anything.
    """
    check_seeds(seeds)
    known, made = grid(arch, norm, sources, start, targets, optim, attack)
    for label, run in runs.items():
        choose(label, METHODS, "method")
        choose(START.get(label, start) or start, known, f"start of {label}")
        check_limits(run, {"targets": targets, "seeds": seeds}, f"runs.{label}")

    def run_of(seed: int, name: str, label: str, changes: dict) -> RunSpec:
        given = targets[name].get("method", {})
        run = made(name, label, method(label, **(given if METHODS[label].halves else {})), f"runs.{label}", changes, seed=seed,
                   follow=from_dict(FollowSpec, follow, "follow") if follow else None)
        times = 1 + method("twins_at", **given).twins_weight if label == "at_lr" else 1
        return dataclasses.replace(run, optim=dataclasses.replace(run.optim, lr=run.optim.lr * times))

    evals, marks = tuple(from_dict(EvalSpec, e, "evaluations") for e in evaluations), tuple((labels or {}).items())
    jobs, kept = [], []
    for seed, name, (label, run) in itertools.product(seeds, targets, runs.items()):
        if within(run, {"targets": name, "seeds": seed}):
            jobs.append(Job(study, run_of(seed, name, label, run), evals, labels=marks))
            kept += [Job(study, run_of(seed, name, label, old), (), settled=False) for old in run.get("before", ())]
    begin = known[start]
    return [*([Job(study, begin, (), ship=True)] if isinstance(begin, RunSpec) else []), *jobs, *kept]


@strict
def rates(*, runs: dict, follow: dict, steps: Steps, best: Best, **network) -> list[Job]:
    """How TWINS moves the weights (C5, C6), and what it gains at equal learning rates (E1-E3, ours).

    Args:
        runs, follow: of `followed`, for the courses; `network` holds its other arguments.
        steps: the experiment on learning rates, {methods, rates, epochs, longer, seeds, evaluations}: every method at every base
            rate on every target, with so many epochs there (target -> epochs), then with `longer` times the epochs at the rate
            where, by validation accuracy with the first seed, TWINS-AT is furthest ahead of AT.
    Returns:
        Jobs of the studies "rates", and "learning_rates" with the labels part (grid, long) and rate.
    """
    courses = followed(runs=runs, follow=follow, study="rates", best=best, **network)
    for name in ("at", "twins_at"):
        choose(name, steps["methods"], "method that the experiment on learning rates compares")
    if steps["longer"] < 1:
        raise ValueError(f"expected steps.longer of at least 1, times the epochs, got {steps['longer']}")
    check_seeds(steps["seeds"], "steps.seeds")
    check_rates(steps["rates"], "steps.rates")
    targets, optim, seeds = network.pop("targets"), network.pop("optim"), steps["seeds"]
    check_keys(steps["epochs"], list(targets), "steps.epochs", needed=list(targets))

    def at(rate: float, part: str = "grid", times: int = 1) -> list[Job]:
        lengths = {name: {"epochs": times * n, "val_every": times * n} for name, n in steps["epochs"].items()}
        found = followed(
            study="learning_rates", runs={m: {} for m in steps["methods"]}, optim=optim, best=best,
            targets={n: t | {"optim": t.get("optim", {}) | {"lr": rate} | lengths[n]} for n, t in targets.items()},
            evaluations=steps["evaluations"], labels={"part": part, "rate": f"{rate:g}"}, **network | {"seeds": seeds})
        return [job for job in found if not job.ship]

    grid = {rate: at(rate) for rate in steps["rates"]}
    first = {(job.spec.data.name, job.spec.method.name, rate): job.spec for rate, jobs in grid.items() for job in jobs
             if job.spec.seed == seeds[0]}
    longer = []
    for target in targets:
        ours, theirs = ([first[target, m, rate] for rate in grid] for m in ("twins_at", "at"))
        ahead = best(ours, over=theirs)
        rate = list(grid)[ours.index(ahead) if ahead else 0]
        waits = () if ahead else (*ours, *theirs)
        longer += [dataclasses.replace(job, settled=not waits, candidates=waits)
                   for job in at(rate, "long", steps["longer"]) if job.spec.data.name == target]
    experiment = sorted((job for jobs in grid.values() for job in jobs), key=lambda job: job.spec.seed)
    return [*courses, *experiment, *longer]
