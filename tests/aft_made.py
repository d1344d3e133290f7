"""Networks of the grid of adversarial fine-tuning made up for tests: masks and costs are given, nothing is trained."""

import numpy as np

from tests import store_made
from twinslib.evidence.networks import Cost, Network
from twinslib.specs.jobs import Job
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec, WeightsSpec
from twinslib.store.store import Store
from twinslib.studies.finetuning import STUDY

N = 1000
EPS = 8 / 255


def spec(name: str = "aft", *, seed: int = 0, start: str | None = None, threat: str = "linf", eps: float = EPS, images: int = 100,
         width: int | None = None, optim: dict | None = None, attack: dict | None = None, split: int = 0) -> RunSpec:
    """A run on CIFAR-10 from random weights, from our natural network ("natural") or from that of others ("public")."""
    values = {"data": DataSpec(name="cifar10", train_images=images, val_images=500, split_seed=split), "seed": seed,
              "model": ModelSpec(arch="thin_resnet10", width=width)}
    if start == "natural":
        whole = DataSpec(name="cifar10", train_images=100, val_images=500, split_seed=split)
        values |= {"source": RunSpec(data=whole, model=values["model"], method=method("natural"), optim=OptimSpec(epochs=3)),
                   "keep_head": True}
    if start == "public":
        values |= {"weights": WeightsSpec(file="resnet20-12fca82f.th", classes=10), "model": ModelSpec(arch="resnet20"),
                   "keep_head": True}
    return RunSpec(method=method(name), optim=OptimSpec(**{"epochs": 10, **(optim or {})}),
                   attack=AttackSpec(**{"threat": threat, "eps": eps, "steps": 5, **(attack or {})}), **values)


def reaching(share: float, images: int = N) -> np.ndarray:
    """The first so large a share of `images` images is right."""
    return np.arange(images) < round(share * images)


def network(name: str = "aft", clean: float | None = None, robust: float | None = None, *, at: str = "last", part: str = "main",
            start: str | None = None, epoch: int = 10, spent: float = 6000.0, before: float | None = 0.0, seconds: float = 60.0,
            seconds_before: float = 0.0, auto: tuple[float, int] | None = None, images: int = N, fold: str = "s",
            **options: object) -> Network:
    """Shares of its test images that are right, clean and under PGD-20; auto: (share, images) of AutoAttack."""
    run = spec(name, start=start, **options)
    attack, masks = {"threat": run.attack.threat, "eps": run.attack.eps, "at": at}, {}
    if clean is not None:
        masks[EvalSpec(kind="clean", images=images, at=at)] = reaching(clean, images)
    if robust is not None:
        masks[EvalSpec(kind="pgd", images=images, **attack)] = reaching(robust, images)
    if auto is not None:
        masks[EvalSpec(kind="autoattack", images=auto[1], **attack)] = reaching(*auto)
    job = Job(STUDY, run, tuple(masks), labels=(("part", part), ("start", start or "random")))
    start = Cost() if before is None else Cost(before, seconds_before, seconds_before / 3)
    return Network(job, at, epoch, fold, Cost(spent, seconds, seconds / 2), start, masks, {}, run.data.train_images)


def epochs(count: int, per_epoch: int, robust: list[float] | None = None) -> list[dict]:
    """Per-epoch rows with so many images forward and backward."""
    rows = [{"epoch": e + 1, "train_loss": 1.0, "forward_images": per_epoch, "backward_images": per_epoch} for e in range(count)]
    for row, value in zip(rows, robust or [], strict=False):
        row |= {"val_clean_acc": value + 0.1, "val_robust_acc": value}
    return rows


def finish(store: Store, run: RunSpec, rows: list[dict], masks: dict[EvalSpec, np.ndarray] | None = None, *,
           seconds: float = 60.0, rules: dict | None = None, split: str = "s") -> None:
    """Leave in the store what a finished run and its evaluations leave."""
    store_made.finish(store, run, masks, split=split, epochs=rows, train_images=run.data.train_images,
                      val_images=run.data.val_images, classes=10,
                      provenance={"seconds": seconds, "processor_seconds": seconds / 2, "rules": rules or {}})
