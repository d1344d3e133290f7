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
from ..specs.run import AttackSpec, DataSpec, FollowSpec, OptimSpec, RunSpec, start_model
from .limits import check_limits, check_rates, check_seeds, within
from .transfer import START, Source, Target, networks


class Earlier(TypedDict, total=False):
    """Settings of a run."""

    optim: dict
    data: dict
    model: dict


class Run(Earlier, total=False):
    """What a method changes, on which targets and seeds, and its settings in an earlier plan."""

    targets: Sequence[str]
    seeds: Sequence[int]
    before: Sequence[Earlier]


class Steps(TypedDict):
    """The experiment on learning rates."""

    methods: Sequence[str]
    rates: Some[Sequence[float]]
    epochs: dict[str, int]
    longer: int
    seeds: Some[Sequence[int]]
    evaluations: Sequence[dict]


@strict
def followed(*, arch: str, norm: str, sources: Some[dict[str, Source]], start: str, targets: Some[dict[str, Target]],
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
    grid = networks(arch, norm, sources)
    begin = grid[choose(start, grid, "start")]
    for label, run in runs.items():
        choose(label, METHODS, "method")
        choose(START.get(label, start) or start, grid, f"start of {label}")
        check_limits(run, {"targets": targets, "seeds": seeds}, f"runs.{label}")

    def made(seed: int, name: str, label: str, run: dict) -> RunSpec:
        target, known, origin = targets[name], METHODS[label], grid.get(START.get(label, start))
        weight = method("twins_at", **target.get("method", {})).twins_weight
        where = f"runs.{label}"
        schedule = from_dict(OptimSpec, {**optim, **target.get("optim", {}), **run.get("optim", {})}, f"{where}.optim")
        return RunSpec(
            data=from_dict(DataSpec, {"name": name, **target.get("data", {}), **run.get("data", {})}, f"{where}.data"),
            model=start_model({"arch": arch, "norm": norm, "upsample": target.get("upsample")},
                              sources[START.get(label) or start], f"{where}.model", **run.get("model", {})),
            method=method(label, **(target.get("method", {}) if known.halves else {})),
            optim=dataclasses.replace(schedule, lr=schedule.lr * (1 + weight if label == "at_lr" else 1)),
            attack=from_dict(AttackSpec, attack, "attack"), seed=seed,
            follow=from_dict(FollowSpec, follow, "follow") if follow else None,
            **{"source" if isinstance(origin, RunSpec) else "weights": origin})

    evals, marks = tuple(from_dict(EvalSpec, e, "evaluations") for e in evaluations), tuple((labels or {}).items())
    jobs, kept = [], []
    for seed, name, (label, run) in itertools.product(seeds, targets, runs.items()):
        if within(run, {"targets": name, "seeds": seed}):
            jobs.append(Job(study, made(seed, name, label, run), evals, labels=marks))
            kept += [Job(study, made(seed, name, label, old), (), settled=False) for old in run.get("before", ())]
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
