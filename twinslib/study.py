"""Which runs answer a claim: grids of run specs, made from a notebook's parameters.

The toy numbers are the notebook's own `parameters` cell; notebooks/params/<preset>/NN.yaml holds overrides only.
"""

import ast
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from . import paths
from .aft_grid import finetuning
from .config import (
    METHODS,
    AttackSpec,
    DataSpec,
    EvalSpec,
    FollowSpec,
    MethodSpec,
    OptimSpec,
    RunSpec,
    WeightsSpec,
    from_dict,
    method,
    start_model,
)
from .errors import check_keys, choose
from .objectives import OBJECTIVES
from .runs import Best, Job, Plan
from .smoothing_grid import smoothing

PRESETS = ("toy", "small", "medium", "paper")
SETTINGS = ("preset", "threads", "compute")  # parameters that change no run


def sources(arch: str, norm: str, specs: dict[str, dict]) -> dict[str, RunSpec | WeightsSpec]:
    """What fine-tuning can start from, by name: pre-training runs, each a dict of data, optim and (for adversarial
    training) attack and method; or weights from elsewhere, a dict with `weights`. Either may have the mean and std
    that images are normalised with, per channel in [0, 1]; ImageNet's where not given."""
    out = {}
    for name, spec in specs.items():
        if isinstance(spec, dict) and "weights" in spec:
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


def transfer(*, arch: str, norm: str, sources: dict[str, dict], start: str, targets: dict[str, dict],
             methods: Sequence[str], seeds: Sequence[int], baselines: Sequence[str], controls: Sequence[str],
             lambdas: Sequence[float], compared_on: Sequence[str], grids: dict[str, dict], optim: dict, attack: dict,
             source_evaluations: Sequence[dict], evaluations: Sequence[dict], best: Best) -> list[Job]:
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
    grid = _sources(arch, norm, sources)
    begin = grid[choose(start, grid, "start")]
    source_evals = tuple(from_dict(EvalSpec, e, "source_evaluations") for e in source_evaluations)
    runs = [spec for spec in (begin, *(s for s in grid.values() if s is not begin)) if isinstance(spec, RunSpec)]
    sweep_of_lambda = {f"{LAMBDA}{value:g}": value for value in lambdas}
    others = [*baselines, *controls, *sweep_of_lambda]
    for name, target in targets.items():
        check_keys(target, ("data", "optim", "method", "upsample"), f"targets.{name}")
    for label in (*methods, *baselines, *controls, *grids):
        choose(label, METHODS, "method")
        choose(START.get(label) or start, grid, f"start of {label}")
    for label, values in grids.items():
        if not (isinstance(values, dict) and all(isinstance(v, list | tuple) and v for v in values.values())):
            raise TypeError(f"expected grids.{label} to map fields to lists of at least one value (lr: [0.1]), got {values!r}")
    if "at_lr" in methods:
        raise ValueError("expected 'at_lr' among controls, got it among methods; its learning rate follows from that of twins_at")
    for e in evaluations:
        for key in ("targets", "methods", "seeds"):
            if not isinstance(e.get(key, []), list | tuple):
                raise TypeError(f"expected a list for {key} of an evaluation, got {e[key]!r}")
        for name in e.get("targets", ()):
            choose(name, targets, "target of an evaluation")
        for label in e.get("methods", ()):
            choose(label, [*methods, *others], "method of an evaluation")
        if not set(e.get("seeds", seeds)) <= set(seeds):
            raise ValueError(f"expected seeds of an evaluation among {list(seeds)}, got {e['seeds']}")
    for name in compared_on:
        choose(name, targets, "data set of compared_on")
    for label in others:
        _check_parent(label, methods)
    for what, values in (("methods, baselines, controls and lambdas", [*methods, *others]), ("seeds", seeds)):
        if len(set(values)) < len(values):
            raise ValueError(f"expected {what} without repeats, got {', '.join(map(str, values))}")

    def template(name: str, label: str, **switches: object) -> RunSpec:
        """The run with the hyper-parameters that are given, not chosen."""
        target, known = targets[name], METHODS["twins_at" if label in sweep_of_lambda else label]
        if known.halves:
            switches = target.get("method", {}) | switches
        if label in sweep_of_lambda:
            switches |= {"name": label, "twins_weight": float(sweep_of_lambda[label])}
        origin, normalised = grid.get(START.get(label, start)), sources[START.get(label) or start]
        return RunSpec(
            data=from_dict(DataSpec, {"name": name, **target.get("data", {})}, f"targets.{name}.data"),
            model=start_model({"arch": arch, "norm": norm, "upsample": target.get("upsample")}, normalised, f"targets.{name}"),
            method=method(known.name, **switches),
            optim=from_dict(OptimSpec, {**optim, **target.get("optim", {})}, f"targets.{name}.optim"),
            attack=from_dict(AttackSpec, attack, "attack"), seed=seeds[0],
            **{"source" if isinstance(origin, RunSpec) else "weights": origin})

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
                evals = tuple(from_dict(EvalSpec, {k: v for k, v in e.items() if k not in here}, "evaluations")
                              for e in evaluations if all(v in e.get(k, (v,)) for k, v in here.items()))
                jobs.append(Job("transfer", dataclasses.replace(spec, seed=seed), evals, settled=not waits, candidates=waits))
    pretrained = [Job("transfer", spec, source_evals, ship=True) for spec in runs]
    return sorted([*jobs, *pretrained], key=lambda job: job.spec is not begin) if begin in runs else [*jobs, *pretrained]


def followed(*, arch: str, norm: str, sources: dict[str, dict], start: str, targets: dict[str, dict], runs: dict[str, dict],
             seeds: Sequence[int], optim: dict, attack: dict, best: Best, follow: dict | None = None,
             evaluations: Sequence[dict] = (), labels: dict[str, str] | None = None, study: str = "followed") -> list[Job]:
    """Runs whose course is kept (TWINS, C5-C7; robust overfitting): every method of `runs` on every target, at one base
    learning rate, which is part of the question and so not chosen.

    Args:
        sources, start, targets: see `transfer`; methods of `START` begin elsewhere.
        runs: method -> {optim, data, model, targets, seeds, before}, each optional: changes to `optim`, to the target's data and,
            for a random start, to the network; on which targets and seeds; settings of an earlier plan, whose runs are kept
            where they are finished but neither computed, shown nor judged. `at_lr` gets the rate times 1 + lambda of TWINS on
            that target.
        best: not used; nothing is chosen.
        follow: fields of `config.FollowSpec`; without it no course is kept.
        evaluations: fields of EvalSpec. labels: of the jobs.
        study: name of the jobs' study, and so of its file of epochs.
    Returns:
        Jobs, the start network first, then seed 0 of everything before seed 1 of anything.
    """
    grid = _sources(arch, norm, sources)
    begin = grid[choose(start, grid, "start")]
    for name, target in targets.items():
        check_keys(target, ("data", "optim", "method", "upsample"), f"targets.{name}")
    for label, run in runs.items():
        choose(label, METHODS, "method")
        choose(START.get(label, start) or start, grid, f"start of {label}")
        check_keys(run, ("optim", "data", "model", "targets", "seeds", "before"), f"runs.{label}")
        for old in run.get("before", ()):
            check_keys(old, ("optim", "data", "model"), f"runs.{label}.before")
        for name in run.get("targets", ()):
            choose(name, targets, f"target of {label}")
        if not set(run.get("seeds", seeds)) <= set(seeds):
            raise ValueError(f"expected seeds of {label} among {list(seeds)}, got {run['seeds']}")

    def made(seed: int, name: str, label: str, run: dict) -> RunSpec:
        target, known, origin = targets[name], METHODS[label], grid.get(START.get(label, start))
        weight = target.get("method", {}).get("twins_weight", METHODS["twins_at"].twins_weight)
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
        if seed in run.get("seeds", (seed,)) and name in run.get("targets", (name,)):
            jobs.append(Job(study, made(seed, name, label, run), evals, labels=marks))
            kept += [Job(study, made(seed, name, label, old), (), settled=False) for old in run.get("before", ())]
    return [*([Job(study, begin, (), ship=True)] if isinstance(begin, RunSpec) else []), *jobs, *kept]


def rates(*, runs: dict[str, dict], follow: dict, steps: dict, best: Best, **network) -> list[Job]:
    """How TWINS moves the weights (C5, C6), and what it gains at equal learning rates (E1-E3, ours).

    Args:
        runs, follow: of `followed`, for the courses; `network` holds its other arguments.
        steps: the experiment on learning rates, {methods, rates, epochs, longer, seeds, evaluations}: every method at every base
            rate on every target, with so many epochs there (target -> epochs), then with `longer` times the epochs at the rate
            where, by validation accuracy with the first seed, TWINS-AT is furthest ahead of AT.
    Returns:
        Jobs of the studies "rates", and "learning_rates" with the labels part (grid, long) and rate.
    """
    check_keys(steps, (wanted := ("methods", "rates", "epochs", "longer", "seeds", "evaluations")), "steps", needed=wanted)
    for name in ("at", "twins_at"):
        choose(name, steps["methods"], "method that the experiment on learning rates compares")
    targets, optim = network.pop("targets"), network.pop("optim")
    check_keys(steps["epochs"], targets, "steps.epochs", needed=targets)
    courses = followed(runs=runs, follow=follow, study="rates", targets=targets, optim=optim, best=best, **network)

    def at(rate: float, part: str = "grid", times: int = 1) -> list[Job]:
        lengths = {name: {"epochs": times * n, "val_every": times * n} for name, n in steps["epochs"].items()}
        found = followed(
            study="learning_rates", runs={m: {} for m in steps["methods"]}, optim=optim, best=best,
            targets={n: t | {"optim": t.get("optim", {}) | {"lr": float(rate)} | lengths[n]} for n, t in targets.items()},
            evaluations=steps["evaluations"], labels={"part": part, "rate": f"{rate:g}"}, **network | {"seeds": steps["seeds"]})
        return [job for job in found if not job.ship]

    grid = {rate: at(rate) for rate in steps["rates"]}
    first = {(job.spec.data.name, job.spec.method.name, rate): job.spec for rate, jobs in grid.items() for job in jobs
             if job.spec.seed == steps["seeds"][0]}
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


def _parent(label: str) -> str:
    return "twins_at" if label.startswith(LAMBDA) else LR_OF[label]


def _check_parent(label: str, methods: Sequence[str]) -> None:
    if not label.startswith(LAMBDA) and label not in LR_OF:
        raise ValueError(f"expected a baseline or control ({', '.join(LR_OF)}), got {label!r}; list it under methods")
    if _parent(label) not in methods:
        raise ValueError(f"expected {_parent(label)!r} among methods for {label!r}, which takes its learning rate, "
                         f"got {', '.join(methods)}; add it")


def _changed(spec: RunSpec, values: dict[str, object]) -> RunSpec:
    """`spec` with another lr or other switches of its method."""
    switches = {k: v for k, v in values.items() if k != "lr"}
    return dataclasses.replace(
        spec, method=from_dict(MethodSpec, {**dataclasses.asdict(spec.method), **switches}, "grids"),
        optim=from_dict(OptimSpec, {**dataclasses.asdict(spec.optim), "lr": values.get("lr", spec.optim.lr)}, "grids"))


def settings(jobs: Sequence[Job]) -> list[dict]:
    """What was asked for, one line per data set, network, schedule and training attack, for display; numbers straight from the
    specs."""
    lines = {}
    for job in jobs:
        s = job.spec
        key = (s.data.name, s.data.train_images, job.ship and s.method.name, s.model.arch, s.model.width, s.optim.epochs,
               s.optim.schedule, s.optim.weight_decay, _attack_in_words(s))
        line = lines.setdefault(key, {
            "data set": s.data.name, "role": "start network" if key[2] else "target",
            "training images": s.data.train_images or f"all but {s.data.val_images}",
            "network": s.model.arch + (f", width {s.model.width}" if s.model.width else ""),
            "pixels": s.model.upsample or s.data.crop or s.data.image_size, "epochs": s.optim.epochs,
            "batch": s.optim.batch_size, "lr": [], "weight decay": s.optim.weight_decay,
            "schedule": s.optim.schedule, "precision": s.optim.precision,
            "training attack": key[-1],
            "λ": [], "methods": [], "seeds": []})
        weights = [s.method.twins_weight] if s.method.wings == "twins" else []
        for column, values in (("λ", weights), ("lr", [s.optim.lr]), ("methods", [s.method.name]), ("seeds", [s.seed])):
            line[column] += [value for value in values if value not in line[column]]
    lists = {"λ": sorted, "lr": sorted, "methods": list, "seeds": list}
    return [line | {c: ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in order(line[c]))
                    for c, order in lists.items()} for line in lines.values()]


def _attack_in_words(spec: RunSpec) -> str:
    if not OBJECTIVES[spec.method.objective].attacks:
        return "none"
    a, replays = spec.attack, spec.method.replays
    radius = f"{a.threat} " + (f"{a.eps * 255:.3g}/255" if a.threat == "linf" else f"{a.eps:.3g}")
    warm = f", over the first {100 * a.eps_warmup:g} % from 0" if a.eps_warmup else ""
    return (f"free, {replays} replays" if replays > 1 else f"PGD-{a.steps}") + f", {radius}{warm}"


_sources = sources  # the argument of `transfer` has the same name
STUDIES: dict[str, Callable[..., list[Job]]] = {"01": transfer, "02": rates,
                                                "03": functools.partial(followed, study="overfitting"),
                                                "04": functools.partial(smoothing, study="norms"),
                                                "05": functools.partial(smoothing, study="certified"), "06": finetuning}


def parameters(notebook: Path) -> dict:
    """The literals of the notebook's one cell tagged `parameters`, read without running it."""
    cells = [c for c in json.loads(notebook.read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"expected exactly one cell tagged parameters in {notebook.name}, got {len(cells)}")
    out = {}
    for node in ast.parse("".join(cells[0]["source"])).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise ValueError(f"expected only annotated literals in the parameters of {notebook.name}, got {ast.unparse(node)}")
        out[node.target.id] = ast.literal_eval(node.value)
    return out


def overrides(preset: str, number: str, known: dict) -> dict:
    """Overrides of a preset for notebook `number`, checked against the notebook's parameters.

    Raises:
        FileNotFoundError: no such file.
        ValueError, TypeError: not YAML, an unknown preset or name, or a value of another type than the notebook's.
    """
    if choose(preset, PRESETS, "preset") == "toy":
        return {}
    path = paths.notebooks_dir() / "params" / preset / f"{number}.yaml"
    if not path.exists():
        raise FileNotFoundError(f"expected the parameters of preset {preset} for notebook {number} in {path}, got no such file")
    where = f"params/{preset}/{number}.yaml"
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML in {where}, got {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise TypeError(f"expected a mapping of parameters in {where}, got {values!r}")
    check_parameters(values, known, where)
    return values


def check_parameters(values: dict, defaults: dict, where: str) -> None:
    """Refuse unknown names, and values of another type (YAML reads 1e-3 as text).

    Raises:
        ValueError: a key of `values` that `defaults` lacks.
        TypeError: a value of another type, at any depth `defaults` has too; int passes for float, None for all but
            lists and mappings.
    """
    for key, value in values.items():
        choose(key, defaults, f"key of {where}")
        _check_type(value, defaults[key], f"{key} in {where}")


def _check_type(value: object, default: object, name: str) -> None:
    empty = value is None and not isinstance(default, list | dict)
    if empty or default is None or (isinstance(default, float) and type(value) is int):
        return
    if type(value) is not type(default):
        hint = "; write 1.0e-3, not 1e-3" if isinstance(default, float) and isinstance(value, str) else ""
        raise TypeError(f"expected {type(default).__name__} for {name}, got {value!r}{hint}")
    if isinstance(value, dict):
        for key in value.keys() & default.keys():
            _check_type(value[key], default[key], f"{name}, {key}")
    elif isinstance(value, list) and default:
        for item in value:
            _check_type(item, default[0], f"item of {name}")


def notebooks() -> dict[str, Path]:
    """The notebooks that there are, by number."""
    return {p.name[:2]: p for p in sorted(paths.notebooks_dir().glob("[0-9][0-9]_*.ipynb"))}


def notebook(number: str) -> Path:
    """The notebook whose name begins with `number`."""
    found = notebooks()
    return found[choose(number, found, "notebook")]


def plan(preset: str, number: str) -> tuple[Plan, dict]:
    """The jobs of notebook `number` at `preset`, as a function of how hyper-parameters are chosen, and the settings
    (`SETTINGS`) that go with them."""
    known = parameters(notebook(number))
    values = known | overrides(preset, number, known)
    settings = {k: values.pop(k) for k in SETTINGS}
    return functools.partial(STUDIES[choose(number, STUDIES, "notebook with a study")], **values), settings
