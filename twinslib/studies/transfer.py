"""Runs for robustness transfer: every method from one start network on every target (TWINS, C1-C4, C8, C9)."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TypedDict

from ..base.errors import check_keys, choose
from ..specs.jobs import Best, Job
from ..specs.measure import EvalSpec
from ..specs.method import METHODS, MethodSpec, method
from ..specs.reading import Some, from_dict, strict
from ..specs.run import AttackSpec, DataSpec, OptimSpec, RunSpec, WeightsSpec, start_model
from .limits import check_limits, check_seeds, within, without


class Target(TypedDict, total=False):  # what a data set changes
    data: dict
    optim: dict
    method: dict
    upsample: int | None


# whose learning rate a method takes where it has no grid of its own, and what it starts from where that is another network
LR_OF = {
    "distill": "at", "feature_distill": "at", "l2sp": "at", "joint": "at", "joint_uot": "at", "frozen_at": "at",
    "at_natural": "at", "at_random": "at",
    "at_lr": "twins_at", "at_split": "twins_at", "two_adaptive": "twins_at", "twins_shared": "twins_at",
    "twins_attack_frozen": "twins_at", "twins_attack_alternating": "twins_at",
    "trades_beta3": "trades", "twins_trades_wing": "twins_trades",
}  # fmt: skip
START = {"at_natural": "natural", "at_random": None, "at_short_plateau": None, "at_long_plateau": None}
LAMBDA = "twins_at_lambda"
Made = Callable[..., RunSpec]


def networks(arch: str, norm: str, specs: dict[str, dict]) -> dict[str, RunSpec | WeightsSpec]:
    """What fine-tuning can start from, by name: pre-training runs, each a dict of data, optim and (for adversarial
    training) attack and method; or weights from elsewhere, a dict with `weights`. Either may have the mean and std
    that images are normalised with, per channel in [0, 1]; ImageNet's where not given."""
    out = {}
    for name, spec in specs.items():
        if "weights" in spec:
            check_keys(spec, ("weights", "mean", "std"), f"sources.{name}")
            start_model({"arch": arch, "norm": norm}, spec, f"sources.{name}")
            out[name] = from_dict(WeightsSpec, spec["weights"], f"sources.{name}.weights")
            continue
        check_keys(spec, ("data", "optim", "attack", "method", "mean", "std"), f"sources.{name}", needed=("data", "optim"))
        out[name] = RunSpec(
            data=from_dict(DataSpec, spec["data"], f"sources.{name}.data"),
            model=start_model({"arch": arch, "norm": norm}, spec, f"sources.{name}"), method=method(spec.get("method", "at")),
            optim=from_dict(OptimSpec, spec["optim"], f"sources.{name}.optim"),
            attack=from_dict(AttackSpec, spec.get("attack", {}), f"sources.{name}.attack"))
    return out


def grid(arch: str, norm: str, sources: dict[str, dict], start: str, targets: dict[str, Target], optim: dict,
         attack: dict) -> tuple[dict[str, RunSpec | WeightsSpec], Made]:
    """`networks`, and a function that makes the run of a method on a target, from `start` or what is `START` of the method:
    made(target, label, how, where, changes, **fields), with `changes` of data, model and optim, and further fields of the run.
    `where`: what both are called in messages."""
    known = networks(arch, norm, sources)
    choose(start, known, "start")

    def made(name: str, label: str, how: MethodSpec, where: str, changes: dict, **fields: object) -> RunSpec:
        target, origin = targets[name], known.get(START.get(label, start))
        data, schedule = ({**target.get(key, {}), **changes.get(key, {})} for key in ("data", "optim"))
        return RunSpec(
            data=from_dict(DataSpec, {"name": name, **data}, f"{where}.data"), method=how,
            model=start_model({"arch": arch, "norm": norm, "upsample": target.get("upsample")},
                              sources[START.get(label) or start], f"{where}.model", **changes.get("model", {})),
            optim=from_dict(OptimSpec, {**optim, **schedule}, f"{where}.optim"), attack=from_dict(AttackSpec, attack, "attack"),
            **fields, **{"source" if isinstance(origin, RunSpec) else "weights": origin})

    return known, made


@strict
def transfer(*, arch: str, norm: str, sources: Some[dict[str, dict]], start: str, targets: Some[dict[str, Target]],
             methods: Some[Sequence[str]], seeds: Some[Sequence[int]], baselines: Sequence[str], controls: Sequence[str],
             lambdas: Sequence[float], compared_on: Sequence[str], grids: dict[str, dict[str, Some[list]]], optim: dict,
             attack: dict, source_evaluations: Sequence[dict], evaluations: Some[Sequence[dict]], best: Best) -> list[Job]:
    """Robustness transfer (TWINS, C1-C4, C8, C9): every method from one source network on every target data set.

    Args:
        sources: pre-training runs by name; `start` names the one that fine-tuning starts from.
        targets: data set name -> {data, optim, method} that override the shared `optim` and the method's switches
            (`twins_weight` and the like; for methods that split the batch only).
        methods: on every target. baselines, controls: on the targets `compared_on`.
        lambdas: further weights of TWINS-AT's frozen wing, on `compared_on`.
        grids: method -> field (`lr`, or a switch of the method) -> values. Every combination is trained with the first
            seed; `best` chooses by validation accuracy, on each target by itself, and all seeds use what was chosen. A
            method without `lr` in its grid takes the rate of the method it is compared with (`LR_OF`).
        evaluations: EvalSpec fields, with optional lists `targets`, `methods` and `seeds` that limit a costly one.
    Returns:
        Jobs in order of priority: the start network, seed 0 of everything before seed 1 of anything, other sources.
    """
    check_seeds(seeds)
    known, made = grid(arch, norm, sources, start, targets, optim, attack)
    begin = known[start]
    source_evals = tuple(from_dict(EvalSpec, e, "source_evaluations") for e in source_evaluations)
    runs = [spec for spec in (begin, *(s for s in known.values() if s is not begin)) if isinstance(spec, RunSpec)]
    if min(lambdas, default=0) < 0:
        raise ValueError(f"expected lambdas of at least 0, got {list(lambdas)}")
    sweep_of_lambda = {f"{LAMBDA}{value:g}": value for value in lambdas}
    others = [*baselines, *controls, *sweep_of_lambda]
    for where, group in {"methods": methods, "baselines": baselines, "controls": controls, "grids": grids}.items():
        for label in group:
            choose(label, METHODS, f"method in {where}")
            choose(START.get(label) or start, known, f"start of {label}")
    if "at_lr" in methods:
        raise ValueError("expected 'at_lr' among controls, got it among methods; its learning rate follows from that of twins_at")
    for e in evaluations:
        check_limits(e, {"targets": targets, "methods": [*methods, *others], "seeds": seeds}, "an evaluation")
    for name in compared_on:
        choose(name, targets, "data set of compared_on")
    for label in others:
        if not label.startswith(LAMBDA) and label not in LR_OF:
            raise ValueError(f"expected a baseline or control ({', '.join(LR_OF)}), got {label!r}; list it under methods")
        if _parent(label) not in methods:
            raise ValueError(f"expected {_parent(label)!r} among methods for {label!r}, which takes its learning rate, "
                             f"got {', '.join(methods)}; add it")
    if len({*methods, *others}) < len([*methods, *others]):
        raise ValueError("expected methods, baselines, controls and lambdas without repeats, got "
                         f"{', '.join([*methods, *others])}")

    def template(name: str, label: str) -> RunSpec:
        """The run with the hyper-parameters that are given, not chosen."""
        kind = METHODS["twins_at" if label in sweep_of_lambda else label]
        switches = targets[name].get("method", {}) if kind.halves else {}
        if label in sweep_of_lambda:
            switches = switches | {"name": label, "twins_weight": float(sweep_of_lambda[label])}
        return made(name, label, method(kind.name, **switches), f"targets.{name}", {}, seed=seeds[0])

    jobs: list[Job] = []

    @functools.cache
    def tuned(name: str, label: str) -> tuple[RunSpec, tuple[RunSpec, ...]]:
        """The run for the first seed with what was chosen for it, and the candidates that it waits for, if any."""
        spec, values, waits = template(name, label), grids.get(label, {}), ()
        if "lr" not in values and label not in methods:
            rated, waits = tuned(name, _parent(label))
            lr = rated.optim.lr * (1 + rated.method.twins_weight if label == "at_lr" else 1)
            spec = dataclasses.replace(spec, optim=dataclasses.replace(spec.optim, lr=lr))
        candidates = [_changed(spec, dict(zip(values, combination, strict=True)))
                      for combination in itertools.product(*values.values())]
        if len(candidates) == 1 or waits:
            return candidates[0], waits
        jobs.extend(Job("tuning", c, ()) for c in candidates)
        chosen = best(candidates)
        return chosen or candidates[0], () if chosen else tuple(candidates)

    for seed in seeds:
        for name in targets:
            for label in (*methods, *(others if name in compared_on else ())):
                spec, waits = tuned(name, label)
                here = {"targets": name, "methods": label, "seeds": seed}
                evals = tuple(from_dict(EvalSpec, without(e, here), "evaluations") for e in evaluations if within(e, here))
                jobs.append(Job("transfer", dataclasses.replace(spec, seed=seed), evals, settled=not waits, candidates=waits))
    pretrained = [Job("transfer", spec, source_evals, ship=True) for spec in runs]
    return sorted([*jobs, *pretrained], key=lambda job: job.spec is not begin) if begin in runs else [*jobs, *pretrained]


def _parent(label: str) -> str:
    return "twins_at" if label.startswith(LAMBDA) else LR_OF[label]


def _changed(spec: RunSpec, values: dict[str, object]) -> RunSpec:
    """`spec` with another lr or other switches of its method."""
    switches = {k: v for k, v in values.items() if k != "lr"}
    return dataclasses.replace(
        spec, method=from_dict(MethodSpec, {**dataclasses.asdict(spec.method), **switches}, "grids"),
        optim=from_dict(OptimSpec, {**dataclasses.asdict(spec.optim), "lr": values.get("lr", spec.optim.lr)}, "grids"))
