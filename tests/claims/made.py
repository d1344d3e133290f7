"""Finished runs made up for the ledger: masks differ by whole images, `mask(g)` has g more right than `mask(0)`."""

import dataclasses
from itertools import product

import numpy as np

from tests.store_made import finish
from twinslib.specs.jobs import Job
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.studies import rules
from twinslib.studies.rules import Bound, Robust, Rule

N = 1000
CLEAN = EvalSpec(kind="clean", images=N)
PGD = EvalSpec(kind="pgd", images=N, eps=8 / 255)
SOURCE = RunSpec(data=DataSpec(name="tinyimagenet32"), model=ModelSpec(arch="tiny_resnet"), method=method("at"),
                 optim=OptimSpec())
DATASETS = ("cifar10", "caltech64", "cub64")
LEDGER = {claim.id: claim for claim in rules.claims()}


def mask(gain=0, churn=0, images=N):
    """Half of the images and `gain` more, of which `churn` others than `mask(0)` has."""
    out = np.zeros(images, bool)
    out[churn:images // 2 + churn + gain] = True
    return out


def job(dataset="cifar10", name="at", seed=0, evals=(CLEAN, PGD)):
    spec = RunSpec(data=DataSpec(name=dataset), model=ModelSpec(arch="tiny_resnet"), method=method(name), optim=OptimSpec(),
                   seed=seed, source=SOURCE)
    return Job("transfer", spec, tuple(evals))


def claim_of(measure="gain", **changes):
    """A claim X1 on TWINS-AT against AT on three data sets and seeds, in clean and robust accuracy at 8/255; 2 points matter."""
    fields = {"version": 1, "measure": measure, "text": "words", "pairs": (("twins_at", "at"),), "metrics": ("clean", "robust"),
              "robust": Robust(threat="linf", eps=8 / 255, min_images=N), "min_datasets": 3, "min_seeds": 3} | changes
    bounds = tuple(Bound(of=(m,), above=0.0, claimed=0.02) for m in fields["metrics"])
    rest = tuple(dataclasses.replace(b, above=-0.02, reach=0.0, claimed=None) for b in bounds)
    one = tuple((*bounds[:i], b, *bounds[i + 1:]) for i, b in enumerate(rest))
    return dataclasses.replace(LEDGER["C1"], id="X1", rule=Rule(**{"asked": (bounds,), "partly": one} | fields))


def fill(store, claim, levels, datasets=DATASETS, seeds=(0, 1, 2), stamps=..., evals=(CLEAN, PGD)):
    """Finished runs: levels[method] is the gain of its masks, or dataset, evaluation -> mask. Returns their jobs."""
    stamps = {claim.id: claim.rule.stamp} if stamps is ... else stamps
    jobs = []
    for dataset, name, seed in product(datasets, levels, seeds):
        level = levels[name]
        masks = {e: level(dataset, e) if callable(level) else mask(level, images=e.images) for e in evals}
        jobs.append(job(dataset, name, seed, evals))
        finish(store, jobs[-1].spec, masks, stamps=stamps)
    return jobs


def by_dataset(clean, robust, datasets=DATASETS):
    """A level of `fill`: (gain, churn) or gain by data set, for clean and for attacked images."""
    def level(dataset, e):
        found = (clean if e.kind == "clean" else robust)[datasets.index(dataset)]
        return mask(*(found if isinstance(found, tuple) else (found,)), images=e.images)
    return level


def clear(claim, gain=100):
    """Levels at which every pair of a rule differs by `gain` images."""
    return {b: 0 for _, b in claim.rule.pairs} | {m: gain for m, _ in claim.rule.pairs}
