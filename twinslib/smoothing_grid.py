"""Runs and certifications for the claims on randomized smoothing (arXiv 2312.09020): pre-training x norm x fine-tuning."""

import itertools
from collections.abc import Sequence

from .config import CertifySpec, DataSpec, EvalSpec, ModelSpec, NoiseSpec, OptimSpec, RunSpec, from_dict, method
from .errors import check_keys, choose
from .runs import Best, Job

FILTERS = ("pretraining", "finetuning", "norms", "targets", "seeds")


def smoothing(*, arch: str, norms: Sequence[str], source: dict, pretraining: dict[str, dict], targets: dict[str, dict],
              finetuning: dict[str, dict], seeds: Sequence[int], optim: dict, evaluations: Sequence[dict],
              certifications: Sequence[dict], best: Best) -> list[Job]:
    """Every pre-training with every norm, fine-tuned in every way on every target, and certified.

    Args:
        source: data and optim of all pre-trainings.
        pretraining: name -> {sigmas, draw}: noise on the training images (none: clean), or {random: true} for no pre-training;
            with norms, those it is done for.
        targets: data set name -> {data, optim}.
        finetuning: name -> {sigmas, draw, method, optim}, each optional, and any of norms, pretraining, targets and seeds that
            limit it. method: natural (default), natural_frozen or linear_probe.
        certifications: CertifySpec fields with `sigmas` (a list) in place of sigma, and any of `FILTERS`.
        best: not used; nothing is chosen.
    Returns:
        Jobs labelled with pretraining, finetuning and norm: pre-trained networks that others start from, seed 0 of everything
        before seed 1 of anything.
    """
    check_keys(source, ("data", "optim"), "source", needed=("data", "optim"))
    known = {"pretraining": pretraining, "finetuning": finetuning, "norms": norms, "targets": targets, "seeds": seeds}
    for name, p in pretraining.items():
        check_keys(p, ("sigmas", "draw", "random", "norms"), f"pretraining.{name}")
    for name, f in finetuning.items():
        check_keys(f, ("sigmas", "draw", "method", "optim", *(k for k in FILTERS if k != "finetuning")), f"finetuning.{name}")
        choose(f.get("method", "natural"), ("natural", "natural_frozen", "linear_probe"), f"method of finetuning.{name}")
    for where, limited in (("finetuning", finetuning.values()), ("certifications", certifications), ("evaluations", evaluations),
                           ("pretraining", pretraining.values())):
        for key, value in itertools.product(FILTERS, limited):
            for item in value.get(key, ()):
                choose(item, known[key], f"{key} of {where}")
    base = from_dict(OptimSpec, source["optim"], "source.optim")
    jobs: list[Job] = []

    def start(name: str, norm: str, seed: int) -> RunSpec | None:
        p = pretraining[name]
        if p.get("random"):
            return None
        return RunSpec(data=from_dict(DataSpec, source["data"], "source.data"), model=ModelSpec(arch=arch, norm=norm),
                       method=_method(p), optim=base, noise=_noise(p, f"pretraining.{name}"), seed=seed)

    cells = itertools.product(seeds, targets, pretraining.items(), norms, finetuning.items())
    for seed, target, (p, pre), norm, (f, fine) in cells:
        here = {"pretraining": p, "finetuning": f, "norms": norm, "targets": target, "seeds": seed}
        if norm not in pre.get("norms", (norm,)) or not _applies(fine, here):
            continue
        t, origin = targets[target], start(p, norm, seeds[0])
        spec = RunSpec(
            data=from_dict(DataSpec, {"name": target, **t.get("data", {})}, f"targets.{target}.data"),
            model=ModelSpec(arch=arch, norm=norm), method=_method(fine), noise=_noise(fine, f"finetuning.{f}"),
            optim=from_dict(OptimSpec, {**optim, **t.get("optim", {}), **fine.get("optim", {})}, f"finetuning.{f}.optim"),
            source=origin, seed=seed)
        certs = tuple(
            from_dict(CertifySpec, {k: v for k, v in c.items() if k not in (*FILTERS, "sigmas")} | {"sigma": sigma},
                      "certifications")
            for c in certifications if _applies(c, here) and not (c.get("restat_images") and norm != "batch")
            for sigma in c["sigmas"])
        evals = tuple(from_dict(EvalSpec, {k: v for k, v in e.items() if k not in FILTERS}, "evaluations")
                      for e in evaluations if _applies(e, here))
        labels = (("pretraining", p), ("finetuning", f), ("norm", norm))
        jobs.append(Job("smoothing", spec, evals, certs=certs, labels=labels))
    sources = dict.fromkeys(job.spec.source for job in jobs if job.spec.source)
    return [*(Job("smoothing", spec, (), ship=True) for spec in sources), *jobs]


def _applies(limits: dict, here: dict) -> bool:
    return all(here[key] in limits.get(key, (here[key],)) for key in FILTERS)


def _noise(values: dict, where: str) -> NoiseSpec | None:
    if "sigmas" not in values:
        return None
    return from_dict(NoiseSpec, {k: values[k] for k in ("sigmas", "draw") if k in values}, where)


def _method(values: dict):
    noisy = {0: None, 1: "noise"}.get(len(values.get("sigmas", ())), "mixed_noise")
    return method(noisy if noisy and values.get("method", "natural") == "natural" else values.get("method", "natural"))
