"""Runs for the claims on adversarial fine-tuning (arXiv 2012.13628): AFT, rivals, schedules, less data, other widths."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import TypedDict

from ..base.errors import check_keys, choose, shown
from ..specs.jobs import Best, Job
from ..specs.measure import NETWORKS, EvalSpec
from ..specs.method import method
from ..specs.reading import Some, from_dict, read, strict
from ..specs.run import AttackSpec, DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec, WeightsSpec, start_model
from .limits import check_limits, check_rates, check_seeds, within, without

STUDY, TUNING = "aft", "aft_tuning"
RANDOM = "aft_random"  # the same epochs from random weights
PARTS = ("main", "schedule", "fraction", "width")


class Start(TypedDict, total=False):  # the optim of a natural training of ours; or weights, model and targets of another network
    optim: dict
    weights: dict
    model: dict
    targets: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]


class Target(TypedDict, total=False):  # what a data set changes
    data: dict


class Run(TypedDict, total=False):  # what a method changes, and where it runs
    start: str | None
    model: dict
    optim: dict
    attack: dict
    switches: dict
    follow: dict
    targets: Sequence[str]
    seeds: Sequence[int]


@strict
def finetuning(*, arch: str, norm: str, starts: dict[str, Start], targets: Some[dict[str, Target]], main: Some[dict[str, Run]],
               schedules: dict[str, Run], lrs: Some[Sequence[float]], fractions: dict[str, list], widths: dict[str, list],
               seeds: Some[Sequence[int]], optim: dict, attack: dict, evaluations: Some[Sequence[dict]], best: Best) -> list[Job]:
    """Adversarial fine-tuning and what it is compared with.

    Args:
        starts: what runs start from, by name: {optim} of a natural training of ours on the target's images; or {weights, model,
            targets} of a network from elsewhere. Either may have the mean and std that images are normalised with.
        targets: data set name -> {data}.
        main: method -> changes of its run: start (none: random weights), model, optim, attack, switches of the method, follow
            (for the first seed), targets, seeds.
        schedules: the same for AFT with another schedule.
        lrs: of each run of `schedules`, of "aft" and of "aft_random" `best` chooses the learning rate from these by robust
            accuracy on the validation images of each target, as that is judged, with the first seed. Other runs whose
            optim names no rate take that of "aft" where they start from a network, else that of "aft_random".
        fractions: {images, runs, targets}: numbers of training images, which runs of `main` are repeated with so many (first
            seed, the rate of `main`), and on which targets (all where not named).
        widths: {widths, runs, targets}: the same for channels of the first stage; each width has a start of its own.
        evaluations: EvalSpec fields with `at` a list (best: where a run keeps it; start: where it starts from a network with its
            head), and optional lists `runs`, `parts` and `seeds`. Robust ones apply to runs trained under their threat.
    Returns:
        Jobs of study "aft" labelled with part and start, seed 0 of everything before seed 1 of anything, each after the
        candidates for its learning rate; starts, which are trained when first needed, last.
    """
    check_seeds(seeds)
    check_rates(lrs, "lrs")
    for name, s in starts.items():
        check_keys(s, (*(("weights", "model", "targets") if "weights" in s else ("optim",)), "mean", "std"), f"starts.{name}")
        check_limits(s, {"targets": targets}, f"starts.{name}")
    for where, group in (("main", main), ("schedules", schedules)):
        for name, run in group.items():
            if run.get("start") is not None:
                choose(run["start"], starts, f"start of {where}.{name}")
            check_limits(run, {"targets": targets, "seeds": seeds}, f"{where}.{name}")
    both = [name for name in schedules if name in main]
    if both:
        raise ValueError(f"expected runs of main and of schedules under names of their own, got {', '.join(both)} in both")
    choose("aft", main, "run whose learning rate is chosen")
    for name, run in main.items():
        if name != "aft" and not run.get("start") and "lr" not in run.get("optim", {}):
            choose(RANDOM, main, f"run that chooses the learning rate of main.{name}, which has neither a rate nor a start")
    for where, group, key in (("fractions", fractions, "images"), ("widths", widths, "widths")):
        check_keys(group, (key, "runs", "targets"), where, needed=(key, "runs"))
        if bool(group[key]) != bool(group["runs"]):
            raise ValueError(f"expected {key} and runs of {where}, both or neither empty, got {shown(group)}")
        if group[key]:
            read(Some[Sequence[int]], group[key], f"{where}.{key}")
        check_limits(group, {**({"runs": main} if group["runs"] else {}), "targets": targets}, where)
    for e in evaluations:
        check_limits(e, {"runs": [*main, *schedules], "parts": PARTS, "seeds": seeds, "at": NETWORKS}, "an evaluation")
    jobs: list[Job] = []

    def data(target: str, images: int | None = None) -> DataSpec:
        values = {"name": target, **targets[target].get("data", {})} | ({"train_images": images} if images is not None else {})
        return from_dict(DataSpec, values, f"targets.{target}.data")

    def start(name: str | None, target: str, model: ModelSpec) -> dict:
        if name is None:
            return {}
        if "weights" in starts[name]:
            return {"weights": from_dict(WeightsSpec, starts[name]["weights"], f"starts.{name}.weights"), "keep_head": True}
        training = from_dict(OptimSpec, {**optim, **starts[name].get("optim", {})}, f"starts.{name}.optim")
        source = RunSpec(data=data(target), model=model, method=method("natural"), optim=training,
                         seed=min(seeds))  # so that it is made before all that starts from it
        return {"source": source, "keep_head": True}

    def spec(name: str, run: dict, target: str, seed: int, *, images: int | None = None, width: int | None = None) -> RunSpec:
        origin = starts.get(run.get("start"), {})
        described = {"arch": arch, "norm": norm, **origin.get("model", {})}
        changes = {**run.get("model", {}), **({"width": width} if width is not None else {})}
        model = start_model(described, origin, f"model of {name}", **changes)
        own = method(name, **run.get("switches", {}))
        follow = run.get("follow") if seed == seeds[0] and images is None and width is None else None
        return RunSpec(
            data=data(target, images), model=model, method=own, seed=seed,
            optim=from_dict(OptimSpec, {**optim, **run.get("optim", {})}, f"optim of {name}"),
            attack=from_dict(AttackSpec, {**attack, **run.get("attack", {})}, f"attack of {name}"),
            follow=from_dict(FollowSpec, follow, f"follow of {name}") if follow else None,
            **start(run.get("start"), target, model))

    @functools.cache
    def rate(name: str, target: str) -> tuple[float, tuple[RunSpec, ...]]:
        """Learning rate of a run of `schedules`, of "aft" or "aft_random", and the candidates that it waits for, if any."""
        base = spec(name, schedules.get(name, main.get(name)), target, seeds[0])
        candidates = [_with_lr(base, lr) for lr in lrs]
        if len(candidates) == 1:
            return candidates[0].optim.lr, ()
        jobs.extend(Job(TUNING, c, ()) for c in candidates)
        chosen = best(candidates, by="robust")
        return (chosen or candidates[0]).optim.lr, () if chosen else tuple(candidates)

    def add(part: str, name: str, run: dict, target: str, seed: int, **changes) -> None:
        made, waits = spec(name, run, target, seed, **changes), ()
        if part == "schedule" or name in ("aft", RANDOM) or "lr" not in run.get("optim", {}):
            lr, waits = rate(name if part == "schedule" or name == "aft" else "aft" if run.get("start") else RANDOM, target)
            made = _with_lr(made, lr)
        evals, here = [], {"runs": name, "parts": part, "seeds": seed}
        for e in (e for e in evaluations if within(e, here)):
            values = without(e, (*here, "at"))
            for at in e.get("at", ("last",)):
                found = from_dict(EvalSpec, {**values, "at": at}, "evaluations")
                there = {"last": True, "best": made.optim.keep_best, "start": made.keep_head}[found.at]
                if there and (found.kind == "clean" or found.threat == made.attack.threat):
                    evals.append(found)
        labels = (("part", part), ("start", run.get("start") or "random"))
        jobs.append(Job(STUDY, made, tuple(evals), settled=not waits, labels=labels, candidates=waits))

    for seed, target in itertools.product(seeds, targets):
        def here(run: dict, seed: int = seed, target: str = target) -> bool:
            return within(starts.get(run.get("start"), {}) | run, {"targets": target, "seeds": seed})

        for part, runs in (("main", main), ("schedule", schedules)):
            for name, run in runs.items():
                if here(run):
                    add(part, name, run, target, seed)
        for part, key, group in (("fraction", "images", fractions), ("width", "widths", widths)):
            if seed == seeds[0] and within(group, {"targets": target}):
                for value, name in itertools.product(group[key], group["runs"]):
                    if here(main[name]):
                        add(part, name, main[name], target, seed, **{"images" if part == "fraction" else "width": value})
    sources = dict.fromkeys(job.spec.source for job in jobs if job.spec.source)
    return [*jobs, *(Job(STUDY, s, (), ship=True, labels=(("part", "start"), ("start", "random"))) for s in sources)]


def _with_lr(spec: RunSpec, lr: float) -> RunSpec:
    return dataclasses.replace(spec, optim=dataclasses.replace(spec.optim, lr=float(lr)))
