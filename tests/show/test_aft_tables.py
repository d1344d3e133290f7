"""Tables of adversarial fine-tuning: values by hand on made-up networks, and one tiny training."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tests.aft_made import N, epochs, finish, network, spec
from twinslib.base import stats
from twinslib.evidence.networks import Cost, Network, frame, read
from twinslib.show import aft_costs, aft_tables
from twinslib.specs.jobs import Job
from twinslib.specs.labels import NOT_RUN
from twinslib.specs.measure import EvalSpec
from twinslib.store.store import Store

DATA = "cifar10"
L2 = {"threat": "l2", "eps": 0.5}


def grid() -> list[Network]:
    """Seed 0: our start, AFT with AutoAttack, AT at its best and last, Fast-AT, a schedule, a fraction, a width, the other
    threat; of AFT also seed 1."""
    given = {"start": "natural", "before": 300.0, "seconds_before": 30.0}
    return [
        network("aft", 0.9, 0.02, at="start", epoch=0, spent=0.0, seconds=0.0, **given),
        network("aft", 0.8, 0.5, auto=(0.4, 100), **given),
        network("aft", 0.7, 0.4, seed=1, spent=8000.0, **given),
        network("at_scratch", 0.75, 0.45, at="best", epoch=90, spent=54_000.0, seconds=600.0, auto=(0.42, 100)),
        network("at_scratch", 0.75, 0.35, epoch=100, spent=60_000.0, seconds=900.0, auto=(0.3, 100)),
        network("fast_at", 0.85, 0.1, spent=2000.0, attack={"steps": 1}),
        network("aft_constant", 0.8, 0.45, part="schedule", optim={"schedule": "constant"}, **given),
        fraction("aft", 0.6, 0.3, **given),
        fraction("aft_random", 0.5, 0.31),
        network("aft", 0.81, 0.52, part="width", width=16, **given),
        network("aft_l2", 0.85, 0.6, **given, **L2),
    ]


def fraction(name: str, clean: float, robust: float, **options: object) -> Network:
    """A network trained on 40 images."""
    n = network(name, clean, robust, part="fraction", **options)
    run = dataclasses.replace(n.spec, data=dataclasses.replace(n.spec.data, train_images=40))
    return dataclasses.replace(n, job=dataclasses.replace(n.job, spec=run), train_images=40)


def asked(n: Network) -> Network:
    """The same before it is trained."""
    return Network(n.job, n.at, gone=dict.fromkeys(n.masks, NOT_RUN), train_images=n.train_images)


def line(table: pd.DataFrame, *first: str) -> pd.Series:
    """The one line whose first cells are these."""
    (found,) = [r for _, r in table.iterrows() if tuple(r.iloc[:len(first)]) == first]
    return found


# -- accuracy and cost ------------------------------------------------------------------------------------------------------
def test_accuracy_by_hand() -> None:
    """One seed has exact intervals, two have Student's, and AutoAttack of one seed among two says which; passes are means."""
    table = aft_tables.accuracy_table(frame(grid()), DATA)
    assert table["method"].tolist() == ["start network: natural", "AFT", "AT, random start", "AT, random start", "Fast-AT"]
    pgd, auto = "PGD-20 at 8/255 (1,000 images)", "AutoAttack at 8/255 (100 images)"
    start, ours, best = (table.iloc[i] for i in range(3))
    assert start[pgd] == "2.0 [1.2, 3.1]" and start[auto] == NOT_RUN and start["passes, start included"] == "3.0"
    value, low, high, _ = stats.student_interval([0.5, 0.4])
    assert (value, low) == (0.45, pytest.approx(0.45 - 12.706 * 0.05, abs=1e-3)) and high > 1
    assert ours[pgd] == "45.0 [0.0, 100.0]" and ours[auto] == "40.0 [30.3, 50.3], seed 0"  # cut to what an accuracy can be
    assert ours[["seeds", "epoch", "passes, start given", "passes, start included"]].tolist() == ["0, 1", "10", "70.0", "73.0"]
    assert ours[["hours, start given", "hours, start included"]].tolist() == ["0.0167", "0.025"]
    assert best[["network", "epoch", "passes, start included"]].tolist() == ["best epoch", "90", "540.0"]
    same = table["PGD-20 at 8/255 (100 images)"]  # the right ones come first, so of the first 100 all
    assert same.tolist() == [NOT_RUN, "100.0 [96.4, 100.0], seed 0", *["100.0 [96.4, 100.0]"] * 2, NOT_RUN]


def test_a_start_that_every_seed_measures_is_one_network() -> None:
    """Its interval is that of its images: the same number in every seed is no certainty."""
    again = network("aft", 0.9, 0.02, at="start", seed=1, epoch=0, spent=0.0, seconds=0.0, start="natural", before=300.0)
    start = aft_tables.accuracy_table(frame([*grid(), again]), DATA).iloc[0]
    assert start["PGD-20 at 8/255 (1,000 images)"] == "2.0 [1.2, 3.1]" and start["seeds"] == "0"


def test_planned_lines_and_unknown_costs() -> None:
    """What is planned and not finished is "not run"; what a network of others cost is unknown; the other threat is left out."""
    public = network("aft_public", 0.8, 0.4, start="public", before=None)
    table = aft_tables.accuracy_table(frame([public, *map(asked, [*grid(), network("free_at", 0.5, 0.1, at="best")])]), DATA)
    assert line(table, "AFT, public start")["passes, start included"] == "start not ours"
    assert set(line(table, "Free-AT", "best epoch").iloc[2:]) == {NOT_RUN} and len(table) == 7
    assert line(table, "start network: natural")["seeds"] == NOT_RUN and not table["method"].str.contains("L2").any()
    assert aft_tables.caption(frame(map(asked, grid()))) == "No network is finished yet."


def test_differences() -> None:
    """AFT minus the best and the last epoch of AT on the same images, minus the others, then AT's best minus its last."""
    table = aft_tables.difference_table(frame(grid()[:6]), DATA)
    assert table.iloc[:, :2].values.tolist() == [
        ["AFT - AT, random start", "best epoch"], ["AFT - AT, random start", "last epoch"], ["AFT - TRADES, random start", ""],
        ["AFT - Free-AT", ""], ["AFT - Fast-AT", "last epoch"], ["AFT - AFT, random start", ""],
        ["AT, random start", "best epoch (90) - last"]]
    assert [text.split(" [")[0] for text in table["clean"]] == ["+5.0", "+5.0", NOT_RUN, NOT_RUN, "-5.0", NOT_RUN, "+0.0"]
    assert table["AutoAttack at 8/255"][0].startswith("-2.0 [") and table["AutoAttack at 8/255"][6].startswith("+12.0 [")
    assert table["AutoAttack at 8/255"][0].endswith("(100 images, seeds: 1)")  # 40 against 42 of 100
    assert table["PGD-20 at 8/255"][6].startswith("+10.0 [")


def test_cost_by_hand() -> None:
    """Passes, seconds and processor time over those of AFT, same seed, with the start given and included."""
    table = aft_costs.cost_table(frame(grid()), DATA)
    assert line(table, "AT, random start", "best epoch").iloc[2:].tolist() == [
        "0", "not recorded", "9.00", "8.57", "10.00", "6.67", "10.00", "7.50"]
    assert set(line(table, "Free-AT").iloc[1:]) == {NOT_RUN}


def test_times_of_two_precisions_are_not_compared() -> None:
    """Passes are, times are not: start given by the runs' own precision, start included by the start's too."""
    ours, low, full = ("float32", "bfloat16 and float32"), ("bfloat16", "bfloat16"), ("float32", "float32")
    both = [(grid()[1], ours), (grid()[3], low), (network("aft_random", 0.5, 0.3), full)]
    table = aft_costs.cost_table(frame([dataclasses.replace(n, precision=p) for n, p in both]), DATA)
    assert line(table, "AT, random start", "best epoch").iloc[3:].tolist() == [
        "bfloat16 / float32", "9.00", "8.57", *["other precision"] * 4]
    assert line(table, "AFT, random start").iloc[3:].tolist() == [
        "float32", "1.00", "0.95", "1.00", "other precision", "1.00", "other precision"]


def test_cost_over_seeds() -> None:
    """Geometric mean with Student's interval of the logarithms; unknown stays unknown."""
    found = [n for seed, spent in enumerate((70.0, 100.0)) for n in (
        network("aft", 0.8, 0.5, seed=seed, spent=10.0, start="public", before=None),
        network("at_scratch", 0.7, 0.4, seed=seed, spent=spent, at="best"))]
    cells = line(aft_costs.cost_table(frame(found), DATA), "AT, random start", "best epoch")
    low, high = np.exp(stats.student_interval(np.log([7, 10]))[1:3])
    assert cells["passes / AFT, start given"] == f"{70 ** 0.5:.2f} [{low:.2f}, {high:.2f}]" and cells["seeds"] == "0, 1"
    assert cells["passes / AFT, start included"] == "start not ours"


# -- starts, schedules, data, width, threat ---------------------------------------------------------------------------------
def test_starts() -> None:
    """Before and after with the gain on the same images; a public network's published accuracy stands beside, with its source."""
    public = {"start": "public", "before": None}
    found = [*grid(), network("aft_public", 0.9, 0.0, at="start", **public), network("aft_public", 0.8, 0.4, **public)]
    ours, theirs = (row for _, row in aft_tables.starts_table(frame(found), DATA).iterrows())
    assert ours[["network", "published clean", "PGD before", "test images"]].tolist() == [
        "thin_resnet10", "", "2.0 [1.2, 3.1]", "first 1,000 of our order"]
    assert ours["gain, PGD (points)"].startswith("+48.0 [") and theirs["gain, PGD (points)"].startswith("+40.0 [")
    assert theirs["published clean"] == "91.73 (all 10,000 test images, github.com/akamaster/pytorch_resnet_cifar10)"
    assert theirs["clean before"] == "90.0 [88.0, 91.8]" and theirs["gain, clean (points)"].startswith("-10.0 [")


def test_schedules(tmp_path) -> None:
    """Each schedule with the validation accuracy of its candidates, the rate chosen, and its difference to AFT."""
    store, jobs = Store("small", root=tmp_path), []
    clean, pgd = (EvalSpec(kind=k, images=N, eps=e) for k, e in (("clean", 0.0), ("pgd", 8 / 255)))
    for name, part, shares, scores in (("aft", "main", (0.8, 0.5), (0.4, 0.5)),
                                       ("aft_constant", "schedule", (0.8, 0.4), (0.3, 0.2))):
        runs = [spec(name, start="natural", optim={"lr": lr}) for lr in (0.02, 0.1)]
        for run, score in zip(runs, scores, strict=True):
            finish(store, run, epochs(10, 600, [score] * 10), {
                e: np.arange(N) < N * s for e, s in zip((clean, pgd), shares, strict=True)})
        jobs += [Job("aft_tuning", run, ()) for run in runs]
        jobs.append(Job("aft", store.best(runs), (clean, pgd), labels=(("part", part), ("start", "natural"))))
    finish(store, jobs[0].spec.source, epochs(3, 100))
    table = aft_tables.schedule_table(store, jobs, frame(read(store, jobs)), DATA)
    assert table.iloc[0][["schedule", "validation, lr 0.02", "validation, lr 0.1", "lr chosen"]].tolist() == [
        "AFT", "50.0 / 40.0", "60.0 / 50.0", "0.1"]
    other = line(table, "AFT, constant rate")
    assert other["lr chosen"] == "0.02" and other["PGD minus AFT (points)"].startswith("-10.0 [")
    assert other["clean minus AFT (points)"].startswith("+0.0 [")
    waiting = [dataclasses.replace(j, settled=False) if j.study == "aft" else j for j in jobs]
    table = aft_tables.schedule_table(store, waiting, frame(read(store, waiting)), DATA)
    assert set(table["lr chosen"]) == {NOT_RUN} and table["PGD minus AFT (points)"].tolist() == ["", NOT_RUN]


def test_less_data_and_other_widths() -> None:
    """The part's values, then that of the main part with the same seed; differences name the images of the start network."""
    found = frame([*grid(), asked(fraction("at_scratch", 0.5, 0.1))])
    table = aft_tables.data_width_table(found, DATA)
    assert table[["varied", "value", "method", "seeds"]].values.tolist() == [
        ["training images", "40", "AFT", "0"], ["training images", "100", "AFT", "0"],
        ["training images", "40", "AFT, random start", "0"], ["training images", "40", "AT, random start", NOT_RUN],
        ["training images", "100", "AT, random start", "0"],
        ["width", "of the main part", "AFT", "0"], ["width", "16", "AFT", "0"]]
    assert [c for c in table if "AutoAttack" in c] == []  # of the main part alone
    assert table["clean (1,000 images)"].str[:4].tolist() == ["60.0", "80.0", "50.0", NOT_RUN[:4], "75.0", "80.0", "81.0"]
    differences = aft_tables.data_width_differences(found, DATA)
    assert differences["with"].tolist() == ["40 training images", "16 channels of the first stage"]
    assert differences["PGD-20 at 8/255"][0].startswith("-1.0 [") and differences["PGD-20 at 8/255"][1] == NOT_RUN


def test_threats() -> None:
    """Each network under the threat it was trained against."""
    table = aft_tables.threat_table(frame(grid()), DATA)
    assert table["method"].tolist() == ["AFT", "AT, random start", "AFT, random start", "AFT, L2"]
    ours, other = line(table, "AFT"), line(table, "AFT, L2")
    assert ours["trained against"] == "8/255" and ours["PGD under its threat"].endswith("(PGD-20)")
    assert other[["trained against", "epochs"]].tolist() == ["0.5 (L2)", "10"]
    assert other["PGD under its threat"].startswith("60.0 [")
    assert set(line(table, "AFT, random start").iloc[1:]) == {NOT_RUN}


# -- courses ----------------------------------------------------------------------------------------------------------------
def test_collapse(tmp_path) -> None:
    """Single-step and Free runs alone: whether and when robustness was lost, and the best epoch."""
    store = Store("small", root=tmp_path)
    labels = (("part", "main"), ("start", "random"))
    runs = [spec("fast_at", seed=seed, attack={"steps": 1}) for seed in range(5)] + [spec("free_at"), spec("at_scratch")]
    finish(store, runs[0], epochs(5, 200, [0.2, 0.3, 0.1, 0.25, 0.2]))
    finish(store, runs[1], epochs(5, 200, [0.2, 0.3, 0.28, 0.25, 0.31]))
    finish(store, runs[2], epochs(5, 200, [0.28, 0.17, 0.09, 0.0, 0.0]))
    finish(store, runs[3], epochs(5, 200, [0.0, 0.02, 0.01, 0.0, 0.0]))
    finish(store, runs[6], epochs(5, 200, [0.3, 0.0, 0.1, 0.1, 0.1]))
    table = aft_tables.collapse_table(store, [Job("aft", run, (), labels=labels) for run in runs])
    assert table.values.tolist() == [
        ["Fast-AT", "0", "at once", "3", "10.0 %", "2 of 10", "30.0 %"], ["Fast-AT", "1", "none", "", "", "5 of 10", "31.0 %"],
        ["Fast-AT", "2", "slow loss of robustness", "3", "9.0 %", "1 of 10", "28.0 %"],
        ["Fast-AT", "3", "never robust", "", "", "2 of 10", "2.0 %"], ["Fast-AT", "4", *[NOT_RUN] * 5],
        ["Free-AT", "0", *[NOT_RUN] * 5]]
    assert aft_tables.collapse_table(store, []).empty


# -- checks -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "options", "each"), [
    ("natural", {}, 1), ("at_scratch", {}, 6), ("aft_twins", {"start": "natural"}, 6), ("trades_scratch", {}, 7),
    ("trades_scratch", {"attack": {"loss": "kl"}}, 7.5), ("fast_at", {"attack": {"steps": 1}}, 2), ("free_at", {}, 8),
    ("at_scratch", {"attack": {"steps": 0}}, 1),
    ("distill", {"start": "natural"}, None)])
def test_passes_of_an_epoch(name: str, options: dict, each: float | None) -> None:
    """Counted by hand: five steps and one pass for the weights, Free one for each replay."""
    assert aft_costs.passes_per_epoch(spec(name, **options)) == each


def test_sanity_notices() -> None:
    """Right under attack and wrong without, AutoAttack weaker than PGD by more than 1 %, and passes that were not counted."""
    good = network("aft", 0.8, 0.5, auto=(1.0, 100), spent=6000.0)  # the first 500 are right under PGD
    assert all(aft_tables.sanity([good]).values()) and all(aft_tables.sanity([]).values())
    assert list(aft_tables.sanity([network("aft", 0.4, 0.5)]).values()) == [False, True, True]
    weak = dataclasses.replace(good, masks={e: m[::-1] if e.kind == "pgd" else np.ones_like(m) for e, m in good.masks.items()})
    assert list(aft_tables.sanity([weak]).values()) == [True, False, True]
    assert list(aft_tables.sanity([dataclasses.replace(good, given=Cost(6001.0))]).values()) == [True, True, False]
