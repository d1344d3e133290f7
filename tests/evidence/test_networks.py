"""Finished networks of the grid of adversarial fine-tuning: masks, epochs and costs, from a store that is written by hand."""

import math

import numpy as np
import pytest

from tests.aft_made import EPS, epochs, finish, network, spec
from twinslib.base.files import write_json, write_npz
from twinslib.evidence import networks
from twinslib.specs.jobs import Job
from twinslib.specs.measure import EvalSpec
from twinslib.store.store import Store

CLEAN, PGD = EvalSpec(kind="clean", images=4), EvalSpec(kind="pgd", images=4, eps=EPS)
BEST, START = (EvalSpec(kind="clean", images=4, at=at) for at in ("best", "start"))
AUTO = EvalSpec(kind="autoattack", images=2, eps=EPS, attacks=("apgd-ce", "apgd-t"))
LABELS = (("part", "main"), ("start", "natural"))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store("small", root=tmp_path / "store")


def job(run, *evals: EvalSpec, **options: object) -> Job:
    return Job("aft", run, evals, **{"labels": LABELS, **options})


def test_costs_by_hand(store: Store) -> None:
    """Half a pass forward, half backward; of the best epoch what it took to get there, time in proportion; the start besides."""
    run = spec("aft", start="natural")
    rows = epochs(4, 600, [0.1, 0.3, 0.3, 0.2])
    rows[1]["backward_images"] = 400
    finish(store, run, rows, {CLEAN: [1, 1, 1, 0], BEST: [1, 1, 0, 0], START: [1, 0, 0, 0]}, seconds=46.0)
    finish(store, run.source, epochs(3, 100), seconds=9.0)
    start, best, last = networks.finished(store, [job(run, CLEAN, BEST, START)])
    assert [(n.at, n.epoch, n.spent, n.seconds) for n in (start, best, last)] == [
        ("start", 0, 0.0, 0.0), ("best", 2, 600 + 500, 22.0), ("last", 4, 600 + 500 + 600 + 600, 46.0)]  # the first of equals
    assert {(n.spent_before, n.seconds_before, n.train_images) for n in (start, best, last)} == {(300.0, 9.0, 100)}
    assert all(n.processor == n.seconds / 2 and n.processor_before == 4.5 for n in (start, best, last))
    assert last.whole == 2600 and last.masks[CLEAN].tolist() == [1, 1, 1, 0] and list(best.masks) == [BEST]
    assert (last.part, last.key, last.split) == ("main", ("cifar10", "aft", 0), "s")


def test_costs_of_the_start(store: Store) -> None:
    """Nothing for random weights, unknown for a network of others and where the start's record is gone."""
    for run in (spec("at_scratch"), spec("aft_public", start="public"), spec("aft", start="natural")):
        finish(store, run, epochs(2, 200), {CLEAN: [1, 0, 0, 0]})
    random, public, lost = (networks.finished(store, [job(run, CLEAN)])[0] for run in (
        spec("at_scratch"), spec("aft_public", start="public"), spec("aft", start="natural")))
    assert (random.spent_before, random.whole, random.seconds_before) == (0.0, 400.0, 0.0)
    assert (public.spent_before, public.whole, public.seconds_before) == (None, None, None)
    assert (lost.spent_before, lost.whole) == (None, None) and math.isnan(lost.seconds_before)
    frame = networks.frame([random, public, lost]).set_index("method")
    assert frame["images_whole"].isna().tolist() == [False, True, True] and frame["images_given"].tolist() == [400.0] * 3
    assert frame.loc["at_scratch", "images_whole"] == 400.0 and math.isnan(frame.loc["aft_public", "seconds_whole"])


def test_only_what_is_finished(store: Store) -> None:
    """Runs that are missing, not settled, of another study or not measured are left out; a start network is kept unmeasured."""
    run = spec("aft", start="natural")
    finish(store, run, epochs(2, 200), {CLEAN: [1, 0, 0, 0]})
    finish(store, run.source, epochs(3, 100))
    finish(store, spec("at_scratch"), epochs(2, 200))
    start = Job("aft", run.source, (), ship=True, labels=(("part", "start"), ("start", "random")))
    jobs = [start, job(run, CLEAN, PGD), job(run, CLEAN, settled=False), Job("aft_tuning", run, (CLEAN,)),
            job(spec("at_scratch"), CLEAN), job(spec("fast_at"), CLEAN)]
    found = networks.finished(store, jobs)
    assert [(n.part, n.spec.method.name, list(n.masks)) for n in found] == [("start", "natural", []), ("main", "aft", [CLEAN])]
    assert networks.finished(store, []) == [] and networks.frame([]).columns.tolist() == networks.COLUMNS


def test_masks_of_a_measurement() -> None:
    """By attack, threat and radius, at least so many images, of several the most; None where there is none."""
    n = network("aft", 0.8, 0.5, auto=(0.4, 100))
    assert n.mask("none", "l2", 0.3).sum() == 800  # whatever the threat
    assert n.mask("pgd20", "linf", EPS).sum() == 500 and n.mask("pgd20", "linf", EPS, 1000).sum() == 500
    assert n.mask("pgd20", "linf", EPS, 1001) is None and n.mask("pgd20", "l2", EPS) is None
    assert n.mask("pgd20", "linf", 4 / 255) is None and n.mask("pgd10", "linf", EPS) is None
    assert n.mask("apgd-ce+apgd-t+fab-t+square", "linf", EPS).sum() == 40
    few = {EvalSpec(kind="pgd", images=5, eps=EPS): np.zeros(5, bool)}
    both = networks.Network(n.job, "last", 1, "s", 1.0, 0.0, 1.0, 0.0, few | dict(n.masks))
    assert len(both.mask("pgd20", "linf", EPS)) == 1000


def test_frame(store: Store) -> None:
    """A line for each measurement with what it stands on; unfinished ones have none."""
    run = spec("aft", start="natural", width=8, optim={"schedule": "slow_fast", "lr": 0.05})
    finish(store, run, epochs(10, 600), {CLEAN: [1, 1, 1, 0], PGD: [1, 0, 0, 0]})
    finish(store, run.source, epochs(3, 100))
    frame = networks.frame(networks.finished(store, [job(run, CLEAN, PGD, AUTO)]))
    assert frame[["attack", "threat", "eps", "value", "n"]].values.tolist() == [["none", "none", 0.0, 0.75, 4],
                                                                               ["pgd20", "linf", EPS, 0.25, 4]]
    same = {"dataset": "cifar10", "part": "main", "method": "aft", "start": "natural", "arch": "thin_resnet10", "width": 8,
            "train_images": 100, "trained_threat": "linf", "schedule": "slow_fast", "lr": 0.05, "seed": 0, "at": "last",
            "epoch": 10, "images_given": 6000.0, "images_whole": 6300.0, "run": run.hash}
    assert all((frame[column] == value).all() for column, value in same.items())
    assert (frame["low"] < frame["value"]).all() and (frame["value"] < frame["high"]).all()


def test_all_images_are_counted_too(store: Store) -> None:
    """Where a run takes all images that there are, their number comes from its record."""
    run = spec("at_scratch", images=None)
    finish(store, run, epochs(1, 500), {CLEAN: [1, 0, 0, 0]})
    write_json(store.root / "runs" / f"{run.hash}.json", store.run(run) | {"train_images": 250})
    assert networks.frame(networks.finished(store, [job(run, CLEAN)]))["train_images"].tolist() == [250]


def test_stages_of_autoattack(store: Store) -> None:
    """The mask after the last attack counts."""
    run = spec("at_scratch", optim={"epochs": 2})
    finish(store, run, epochs(2, 500))
    stages = {f"{AUTO.hash}/apgd-ce": np.array([True, True]), f"{AUTO.hash}/apgd-ce+apgd-t": np.array([True, False])}
    write_npz(store.root / "masks" / f"{run.hash}.npz", stages, compress=True)
    (found,) = networks.finished(store, [job(run, AUTO)])
    assert found.masks[AUTO].tolist() == [1, 0]
    assert networks.frame([found])["attack"].tolist() == ["apgd-ce+apgd-t"] and networks.images_passed([]) == 0
