"""Finished networks of the grid of adversarial fine-tuning: masks, epochs and costs, from a store that is written by hand."""

from tests.aft_made import EPS, epochs, finish, spec
from tests.store_made import prove
from twinslib.evidence import accuracy, networks
from twinslib.specs.jobs import Job
from twinslib.specs.measure import EvalSpec
from twinslib.store.store import Store

CLEAN, PGD = EvalSpec(kind="clean", images=4), EvalSpec(kind="pgd", images=4, eps=EPS)
BEST, START = (EvalSpec(kind="clean", images=4, at=at) for at in ("best", "start"))
AUTO = EvalSpec(kind="autoattack", images=2, eps=EPS, attacks=("apgd-ce", "apgd-t"))
LABELS = (("part", "main"), ("start", "natural"))


def job(run, *evals: EvalSpec, **options: object) -> Job:
    return Job("aft", run, evals, **{"labels": LABELS, **options})


def test_costs_by_hand(store: Store) -> None:
    """Half a pass forward, half backward; of the best epoch what it took to get there, time in proportion; the start besides."""
    run = spec("aft", start="natural")
    rows = epochs(4, 600, [0.1, 0.3, 0.3, 0.2])
    rows[1]["backward_images"] = 400
    finish(store, run, rows, {CLEAN: [1, 1, 1, 0], BEST: [1, 1, 0, 0], START: [1, 0, 0, 0]}, seconds=46.0)
    finish(store, run.source, epochs(3, 100), seconds=9.0)
    for one, precision in ((run, "float32"), (run.source, "bfloat16")):
        prove(store, one, precision=precision)
    start, best, last = networks.finished(store, [job(run, CLEAN, BEST, START)])
    assert [(n.at, n.epoch, n.given) for n in (start, best, last)] == [
        ("start", 0, (0, 0, 0)), ("best", 2, (600 + 500, 22, 11)), ("last", 4, (2300, 46, 23))]  # the first of equals
    assert {(n.before, n.train_images) for n in (start, best, last)} == {((300, 9, 4.5), 100)}
    assert start.precision == ("bfloat16", "bfloat16") and last.precision == ("float32", "bfloat16 and float32")
    assert last.masks[CLEAN].tolist() == [1, 1, 1, 0] and list(best.masks) == [BEST] and (last.part, last.split) == ("main", "s")


def test_costs_of_the_start(store: Store) -> None:
    """Nothing for random weights, unknown for a network of others and where the start's record is gone."""
    for run in (spec("at_scratch"), spec("aft_public", start="public"), spec("aft", start="natural")):
        finish(store, run, epochs(2, 200), {CLEAN: [1, 0, 0, 0]})
    jobs = [job(run, CLEAN) for run in (spec("at_scratch"), spec("aft_public", start="public"), spec("aft", start="natural"))]
    frame = networks.frame(networks.finished(store, jobs)).set_index("method")
    assert frame["images_given"].tolist() == [400.0] * 3 and frame["images_whole"].isna().tolist() == [False, True, True]
    assert frame.loc["at_scratch", ["images_whole", "seconds_whole"]].tolist() == [400.0, 60.0]
    assert frame["seconds_whole"].isna().tolist() == [False, True, True]


def test_only_what_is_finished(store: Store) -> None:
    """Runs that are missing, not settled or not measured have lines that say so; those of another study have none."""
    run = spec("aft", start="natural")
    finish(store, run, epochs(2, 200), {CLEAN: [1, 0, 0, 0]})
    finish(store, run.source, epochs(3, 100))
    finish(store, spec("at_scratch"), epochs(2, 200))
    jobs = [job(run, CLEAN, PGD), job(run, CLEAN, settled=False), Job("aft_tuning", run, (CLEAN,)), job(spec("fast_at"), CLEAN)]
    assert [(n.spec.method.name, list(n.masks)) for n in networks.finished(store, jobs)] == [("aft", [CLEAN])]
    frame = networks.frame(networks.read(store, jobs))
    assert frame[["method", "attack", "absent"]].values.tolist() == [
        ["aft", "none", ""], ["aft", "pgd20", "not run"], ["aft", "none", "not run"], ["fast_at", "none", "not run"]]
    assert networks.known(frame)["value"].tolist() == [0.25] and accuracy.said(frame) == "not run"
    assert accuracy.said(frame.assign(absent=["", "not run", "diverged", "not run"])) == "diverged"
    assert networks.frame([]).columns.tolist()[:len(networks.COLUMNS)] == networks.COLUMNS


def test_stages_of_autoattack(store: Store) -> None:
    """The mask after the last attack counts."""
    run = spec("at_scratch", optim={"epochs": 2})
    finish(store, run, epochs(2, 500), {AUTO: {"apgd-ce": [True, True], "apgd-ce+apgd-t": [True, False]}})
    (found,) = networks.finished(store, [job(run, AUTO)])
    assert found.masks[AUTO].tolist() == [1, 0]
    assert networks.frame([found])["attack"].tolist() == ["apgd-ce+apgd-t"] and networks.images_passed([]) == 0
