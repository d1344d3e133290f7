"""Small grids of runs, for the tests of the studies."""

from collections.abc import Sequence

from twinslib.base import paths
from twinslib.specs.jobs import Job
from twinslib.specs.run import RunSpec
from twinslib.studies import plan

FILES = sorted((paths.notebooks_dir() / "params").glob("*/*.yaml"))
PRESETS = [("toy", number) for number in sorted(plan.STUDIES)] + [(p.parent.name, p.stem) for p in FILES]
PAPER = ["natural", "at", "trades", "twins_at", "twins_trades"]
HALVES = ["twins_at", "twins_trades", "at_split", "two_adaptive", "twins_shared", "twins_attack_frozen",
          "twins_attack_alternating", "twins_trades_wing"]
IMAGENET, CONSTANTS = (0.485, 0.456, 0.406), {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
FILE = {"weights": {"file": "a.pt", "classes": 9}}


def first(candidates: Sequence[RunSpec], **_: object) -> RunSpec:
    return candidates[0]


def last(candidates: Sequence[RunSpec], **_: object) -> RunSpec:
    return candidates[-1]


def unknown(candidates: Sequence[RunSpec], **_: object) -> None:
    """No candidate is finished."""


def sources(robust: dict | None = None, **changes: object) -> dict:
    """A natural and a robust network (or what stands for it)."""
    source = {"data": {"name": "toy_source", "image_size": 16}, "optim": {"epochs": 1}}
    return {"natural": source | {"method": "natural"}, "robust": (robust or source | {"attack": {"steps": 3}}) | changes}


def of_transfer(**changes: object) -> dict:
    """Arguments of `transfer`: two sources, two targets, the paper's methods, two seeds, nothing to choose."""
    return {
        "arch": "tiny_resnet", "norm": "batch", "start": "robust", "sources": sources(),
        "targets": {"a": {"data": {"val_images": 5, "image_size": 16}, "method": {"twins_weight": 0.4}},
                    "b": {"data": {"image_size": 16}, "optim": {"lr": 0.5}}},
        "methods": PAPER, "baselines": [], "controls": [], "lambdas": [], "compared_on": [], "grids": {},
        "seeds": [0, 1], "optim": {"epochs": 2, "lr": 0.1}, "attack": {"eps": 0.1},
        "source_evaluations": [{"kind": "clean", "images": 9}],
        "evaluations": [{"kind": "clean", "images": 7}, {"kind": "pgd", "images": 7, "eps": 0.1, "targets": ["b"]}],
        "best": first,
    } | changes


def of_followed(**changes: object) -> dict:
    """Arguments of `followed`: six methods on two targets, some with changes and limits of their own."""
    return {
        "arch": "tiny_resnet", "norm": "batch", "start": "robust", "sources": sources(),
        "targets": {"a": {"data": {"val_images": 5, "image_size": 16}, "method": {"twins_weight": 0.4}},
                    "b": {"data": {"image_size": 16}, "optim": {"lr": 0.5, "momentum": 0.8}}},
        "runs": {"at": {}, "twins_at": {}, "at_lr": {}, "at_slow_fast": {"optim": {"schedule": "slow_fast", "momentum": 0.7}},
                 "at_random": {"data": {"train_images": 9, "val_images": 3}, "model": {"arch": "thin_resnet10"}},
                 "at_awp": {"targets": ["b"], "seeds": [4]}},
        "seeds": [0, 4], "optim": {"epochs": 2, "lr": 0.1}, "attack": {"eps": 0.1}, "follow": {"test_images": 6, "every": 2},
        "best": None,
    } | changes


def by_cell(jobs: Sequence[Job]) -> dict[tuple[str, str, int], Job]:
    """Fine-tuning jobs, candidates and runs of an earlier plan left out, by data set, method and seed."""
    return {(j.spec.data.name, j.spec.method.name, j.spec.seed): j for j in jobs
            if not j.ship and j.study != "tuning" and (j.settled or j.candidates)}


def label(job: Job, key: str = "part") -> str | None:
    return dict(job.labels).get(key)
