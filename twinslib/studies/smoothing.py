"""Runs and certifications for the claims on randomized smoothing (arXiv 2312.09020): pre-training x norm x fine-tuning."""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import TypedDict

from ..base.errors import check_keys, choose, shown
from ..specs.choices import NORMS
from ..specs.jobs import Best, Job
from ..specs.measure import CertifySpec, EvalSpec
from ..specs.method import method
from ..specs.reading import Some, from_dict, read, strict
from ..specs.run import DataSpec, NoiseSpec, OptimSpec, RunSpec, start_model
from .limits import check_limits, check_seeds, within, without
from .presets import chosen
from .rules import Cell
from .transfer import transfer

CROSSED = "crossed"
FILTERS = ("pretraining", "finetuning", "norms", "targets", "seeds")


class Target(TypedDict, total=False):  # what a data set changes, and its seeds
    data: dict
    optim: dict
    seeds: Sequence[int]


class Pretraining(TypedDict, total=False):  # its noise, or none at all, and where it is done
    sigmas: Some[Sequence[float]]
    draw: str
    random: bool
    norms: Sequence[str]
    targets: Sequence[str]


class Finetuning(TypedDict, total=False):  # its noise, its method, and where it is done
    sigmas: Some[Sequence[float]]
    draw: str
    method: str
    optim: dict
    norms: Sequence[str]
    pretraining: Sequence[str]
    targets: Sequence[str]
    seeds: Sequence[int]


@strict
def smoothing(*, arch: str, norms: Some[Sequence[str]], source: dict, pretraining: Some[dict[str, Pretraining]],
              targets: Some[dict[str, Target]], finetuning: Some[dict[str, Finetuning]], seeds: Some[Sequence[int]], optim: dict,
              evaluations: Sequence[dict], certifications: Some[Sequence[dict]], best: Best, crossed: dict | None = None,
              study: str = "smoothing") -> list[Job]:
    """Every pre-training with every norm, fine-tuned in every way on every target, and certified.

    Args:
        source: data and optim of all pre-trainings, and the mean and std that all networks normalise images with (ImageNet's).
        pretraining: name -> {sigmas, draw}: noise on the training images (none: clean), or {random: true} for no pre-training;
            with norms and targets, those it is done for.
        targets: data set name -> {data, optim, seeds}.
        finetuning: name -> {sigmas, draw, method, optim}, each optional, and any of norms, pretraining, targets and seeds that
            limit it. method: natural (default), natural_frozen or linear_probe.
        certifications: CertifySpec fields with `sigmas` (a list) in place of sigma, and any of `FILTERS`.
        best: chooses the hyper-parameters of the crossed runs; nothing else is chosen.
        crossed: networks of notebook 01 to certify as well: {preset, notebook, methods, targets, seeds, certifications}.
        study: name of the jobs' study, and so of its files of rows and epochs.
    Returns:
        Jobs labelled with pretraining, finetuning and norm: pre-trained networks that others start from, seed 0 of everything
        before seed 1 of anything, then crossed runs, whose finetuning is their method.
    """
    check_seeds(seeds)
    check_keys(source, ("data", "optim", "mean", "std"), "source", needed=("data", "optim"))
    for norm in norms:
        choose(norm, (*NORMS, "own"), "norm in norms")
    for name in (*pretraining, *finetuning):
        if not re.fullmatch(r"noise\d+(\.\d+)?|(?!noise)[\w.]+", name):
            raise ValueError("expected letters, digits, _ and . in the name of a pre-training or fine-tuning, and noise only "
                             f"before its level, as in noise0.5, got {shown(name)}")
    known = {"pretraining": pretraining, "finetuning": finetuning, "norms": norms, "targets": targets, "seeds": seeds}
    for name, f in finetuning.items():
        choose(f.get("method", "natural"), ("natural", "natural_frozen", "linear_probe"), f"method of finetuning.{name}")
    limited = {f"{where}.{name}": values for where, group in (
        ("finetuning", finetuning), ("pretraining", pretraining), ("targets", targets)) for name, values in group.items()}
    for where, values in (*limited.items(), *(("an evaluation", e) for e in evaluations),
                          *(("a certification", c) for c in certifications)):
        check_limits(values, known, where)
    base = from_dict(OptimSpec, source["optim"], "source.optim")
    networks = {norm: start_model({"arch": arch, "norm": norm}, source, "source") for norm in norms}
    jobs: list[Job] = []

    def start(name: str, norm: str, seed: int) -> RunSpec | None:
        p = pretraining[name]
        if p.get("random"):
            return None
        return RunSpec(data=from_dict(DataSpec, source["data"], "source.data"), model=networks[norm],
                       method=_method(p), optim=base, noise=_noise(p, f"pretraining.{name}"), seed=seed)

    cells = itertools.product(seeds, targets, pretraining.items(), norms, finetuning.items())
    for seed, target, (p, pre), norm, (f, fine) in cells:
        here = {"pretraining": p, "finetuning": f, "norms": norm, "targets": target, "seeds": seed}
        if not all(within(limits, here) for limits in (targets[target], pre, fine)):
            continue
        t, origin = targets[target], start(p, norm, min(seeds))  # the least, so that it is made before all that starts from it
        spec = RunSpec(
            data=from_dict(DataSpec, {"name": target, **t.get("data", {})}, f"targets.{target}.data"),
            model=networks[norm], method=_method(fine), noise=_noise(fine, f"finetuning.{f}"),
            optim=from_dict(OptimSpec, {**optim, **t.get("optim", {}), **fine.get("optim", {})}, f"finetuning.{f}.optim"),
            source=origin, seed=seed)
        certs = tuple(cert for c in certifications if within(c, here) and not (c.get("restat_images") and norm != "batch")
                      for cert in _certifications(c))
        evals = tuple(from_dict(EvalSpec, without(e, FILTERS), "evaluations") for e in evaluations if within(e, here))
        labels = (("pretraining", p), ("finetuning", f), ("norm", norm))
        jobs.append(Job(study, spec, evals, certs=certs, labels=labels))
    sources = {job.spec.source: tuple(x for x in job.labels if x[0] != "finetuning") for job in jobs if job.spec.source}
    return [*(Job(study, spec, (), ship=True, labels=labels) for spec, labels in sources.items()), *jobs,
            *(strict(_crossed, "crossed")(**{"best": best, "study": study, **crossed}) if crossed else ())]


def _crossed(*, preset: str, notebook: str, methods: Some[Sequence[str]], targets: Some[Sequence[str]],
             seeds: Some[Sequence[int]], certifications: Some[Sequence[dict]], best: Best, study: str) -> list[Job]:
    """Runs of another notebook with certifications in place of its evaluations, their start networks and candidates."""
    choose(notebook, ("01",), "notebook of crossed")  # whose study it has to be
    found = transfer(**chosen(preset, notebook)[0], best=best)
    certs = tuple(spec for c in certifications for spec in _certifications(c))
    tuned = [job for job in found if job.study != "tuning" and not job.ship]
    there = {key: dict.fromkeys(values) for key, values in (
        ("methods", (job.spec.method.name for job in tuned)), ("targets", (job.spec.data.name for job in tuned)),
        ("seeds", (job.spec.seed for job in tuned)))}
    check_limits({"methods": methods, "targets": targets, "seeds": seeds}, there, "crossed")
    wanted = [job for job in found if job.spec.method.name in methods and job.spec.data.name in targets and not job.ship]
    runs = [dataclasses.replace(job, study=study, evals=(), certs=certs, labels=(
        ("pretraining", CROSSED), ("finetuning", job.spec.method.name), ("norm", job.spec.model.norm)))
        for job in wanted if job.study != "tuning" and job.spec.seed in seeds]
    waits = {spec for job in runs for spec in job.candidates}  # also those of a method that another takes its rate from
    candidates = [dataclasses.replace(job, study=f"{study}_tuning") for job in found
                  if job.study == "tuning" and (job in wanted or job.spec in waits)]
    origins = {job.spec.source for job in runs} - {None}
    starts = [dataclasses.replace(job, study=study, evals=(), labels=(("pretraining", CROSSED), ("norm", job.spec.model.norm)))
              for job in found if job.ship and job.spec in origins]
    return [*starts, *candidates, *runs]


def _certifications(values: dict) -> list[CertifySpec]:
    """One for each of `sigmas`."""
    if "sigmas" not in values or "sigma" in values:
        raise ValueError(f"expected sigmas, a list of noise levels, in certifications, got {', '.join(values) or 'nothing'}")
    return [from_dict(CertifySpec, without(values, (*FILTERS, "sigmas")) | {"sigma": sigma}, "certifications")
            for sigma in read(Some[Sequence[float]], values["sigmas"], "certifications.sigmas")]


def _noise(values: dict, where: str) -> NoiseSpec | None:
    if "sigmas" not in values:
        return None
    return from_dict(NoiseSpec, {k: values[k] for k in ("sigmas", "draw") if k in values}, where)


def _method(values: dict):
    noisy = {0: None, 1: "noise"}.get(len(values.get("sigmas", ())), "mixed_noise")
    return method(noisy if noisy and values.get("method", "natural") == "natural" else values.get("method", "natural"))


def cell_of(job: Job) -> Cell | None:
    """The cell of a job of the grid; None for its start networks and other studies."""
    labels = dict(job.labels)
    if not {"pretraining", "finetuning", "norm"} <= set(labels):
        return None
    return Cell(pretraining=labels["pretraining"], finetuning=labels["finetuning"], norm=labels["norm"])
