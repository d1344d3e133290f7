"""Figures of adversarial fine-tuning from made-up frames, jobs and rows: what is drawn equals them, checked by hand."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest

from tests.aft_made import network, spec
from tests.figures_read import drawn
from tests.show.test_aft_tables import fraction
from twinslib.base import stats
from twinslib.evidence import networks
from twinslib.show import aft_plots, figures
from twinslib.show.aft_plots import (
    cost_plot,
    course_plot,
    data_width_plot,
    embedding_plot,
    schedule_curves,
    schedule_plot,
)
from twinslib.show.embedding import Projection
from twinslib.specs.jobs import Job

AA = "apgd-ce+apgd-t+fab-t+square"
EPS = 8 / 255
MAIN = {  # method -> passes of its last epoch and of its best, of its start, images of 1,000 that are right: clean and PGD
    "aft": (30, None, 60, 790, 450), "at_scratch": (480, 260, 0, 780, 455), "aft_public": (30, None, None, 830, 470),
    "aft_random": (30, None, 0, 600, 380), "fast_at": (60, 56, 0, 760, 420), "free_at": (120, 110, 0, 740, 415),
    "aft_twins": (50, None, 60, 800, 440), "aft_free": (50, None, 60, 770, 430), "trades_scratch": (350, 300, 0, 750, 460)}
SCHEDULES = {"aft_constant": {"schedule": "constant"}, "aft_piecewise": {"schedule": "piecewise", "milestones": (0.5, 0.75)},
             "aft_cosine": {"schedule": "cosine"}, "aft_one_cycle": {"schedule": "one_cycle", "milestones": (0.3,)},
             "aft_fast_decay": {"schedule": "fast_decay"}, "aft_slow_start": {"schedule": "slow_start"},
             "aft_slow_fast_exp": {"schedule": "slow_fast_exp"}, "aft_eps_warmup": {"schedule": "slow_fast"}}


@functools.cache
def frame():
    """The main part as planned, each of three seeds two images better than the one before, AutoAttack on 100 images of seed 0;
    then fewer training images and other widths, of seed 0."""
    made = []
    for seed, (name, (last, best, start, clean, robust)) in itertools.product(range(3), MAIN.items()):
        for at, passes, drop in (("best", best, 0), ("last", last, 20 if best else 0)):
            if passes:
                shares = (clean + 2 * seed) / 1000, (robust + 2 * seed - drop) / 1000
                made.append(network(name, *shares, at=at, seed=seed, spent=100.0 * passes, before=start and 100.0 * start,
                                    auto=(shares[1] - 0.03, 100) if seed == 0 else None))
    made += [fraction(name, 0.5 - less, 0.3 - less) for name, less in (("aft", 0), ("aft_random", 0.1))]
    made += [network(name, (600 + width) / 1000 - less, (350 + width) / 1000 - less, part="width", width=width)
             for name, less in (("aft", 0), ("aft_random", 0.1)) for width in (16, 64)]
    return networks.frame([*made, network("aft_l2", 0.99, 0.98, threat="l2", eps=0.5), network("aft", 0.01, 0.01, at="start")])


def job(name, part="main", seed=0, **optim):
    run = spec(name, seed=seed, optim={"schedule": "slow_fast", "lr": 0.05} | optim,
               attack={"eps_warmup": 0.5} if name == "aft_eps_warmup" else {})
    return Job("aft", run, (), labels=(("part", part), ("start", "natural")))


def jobs(seeds=(0, 1)):
    plan = [Job("aft_tuning", job("aft", lr=0.5).spec, ()), job("natural", "start")]
    for seed in seeds:
        plan += [job("aft", seed=seed), job("at_scratch", seed=seed, epochs=160)]
        plan += [job(name, "schedule", seed, **optim) for name, optim in SCHEDULES.items()]
        plan += [job("aft", "fraction", seed, epochs=99)]
    return plan


def epochs(robust, images=1000, forward=2):
    """Rows of a run measured where `robust` has a number."""
    return [{"epoch": i, "forward_images": forward * images, "backward_images": images}
            | ({} if value is None else {"val_robust_acc": value}) for i, value in enumerate(robust, start=1)]


def projection(trust=0.95, classes=10):
    places = np.random.default_rng(0).normal(size=(2, 20, 2))
    return Projection(places[0], places[1], np.arange(20) % classes, trust, (0.6, 0.25))


# -- figures ------------------------------------------------------------------------------------------------------------
def test_shared_attack():
    """What most methods have; of several that on the most images, of these the strongest (`test_strength`)."""
    def lines(*measured):
        return pd.DataFrame([{"method": m, "attack": a, "eps": EPS, "part": "main", "train_images": 1, "width": 0, "n": n}
                             for m, a, n in measured], columns=["method", "attack", "eps", "part", "train_images", "width", "n"])
    both, few = [("aft", "pgd20", 9), ("aft", AA, 9), ("fast_at", "pgd20", 9)], [("aft", "pgd20", 9), ("aft", AA, 5)]
    assert aft_plots.shared_attack(lines(*both))[0] == aft_plots.shared_attack(lines(*few))[0] == "pgd20"
    assert aft_plots.shared_attack(lines(("aft", "none", 9))) is None


def schedules(done):
    """Networks of AFT, and under these schedules with one image in a hundred more that is right, clean and attacked."""
    return networks.frame([network("aft", 0.7, 0.4, start="natural"), *(
        network(name, 0.71, 0.41, part="schedule", start="natural", optim=SCHEDULES[name]) for name in done)])


def test_schedules_of_another_precision_are_marked():
    """A star beside the row, and below what it means; none where all are of one."""
    rows = schedules(["aft_cosine", "aft_constant"])
    rows["precision"] = ["bfloat16" if m == "aft_cosine" else "float32" for m in rows["method"]]
    fig = schedule_plot(rows, "cifar10", ["aft", *SCHEDULES])
    assert [t.get_text()[:6] for t in fig.axes[0].get_yticklabels() if t.get_text().endswith(" *")] == ["cosine"]
    assert "* trained in bfloat16, AFT in float32" in fig.get_supxlabel()
    assert "*" not in schedule_plot(rows.assign(precision="float32"), "cifar10", ["aft", *SCHEDULES]).get_supxlabel()


def test_cost_is_a_mean_over_seeds():
    """Whatever else is measured of one of them."""
    seeds = [network("at_scratch", 0.5, 0.3, at="best", seed=s, spent=100.0 * spent, auto=(0.2, 100) if s == 0 else None)
             for s, spent in enumerate((300, 100, 200))]
    ax = cost_plot(networks.frame(seeds), "cifar10").axes[0]
    assert [x for line in drawn(ax, aft_plots.ENDS["best"]) for x, _ in line] == [200]


def test_course_plot():
    """A panel for each method: measured epochs by passes, one and a half thousand images each where two go forward and one back,
    in a band, with the others in grey; a cross at a collapse, and a word where nothing ever was."""
    rows = {"aft": epochs([0.2, None, 0.4]), "fast_at": epochs([0.3, 0.4, 0.1, 0.3], forward=1), "free_at": epochs([0, 0.02, 0]),
            "aft_random": []}
    aft, fast, free, nothing = course_plot(rows, 500, 500).axes
    assert [ax.get_title() for ax in (aft, fast, free, nothing)] == ["AFT", "Fast-AT", "Free-AT (never robust)",
                                                                    "AFT, random start (not run)"]
    assert drawn(aft, figures.LOOKS["aft"]) == [[(3, 20), (9, 40)]] and drawn(fast, {"color": "black"}) == [[(6, 10)]]
    assert [(3, 20), (9, 40)] in drawn(fast, {"color": "#BBBBBB"}) and not drawn(aft, {"color": "black"})
    (low, high), = [(p.vertices[:, 1].min(), p.vertices[:, 1].max()) for band in aft.collections for p in band.get_paths()
                    if len(p.vertices) > 4]
    assert (low, high) == pytest.approx([100 * stats.clopper_pearson(k, 500)[i] for k, i in ((100, 1), (200, 2))])


FIGURES = {
    "schedules": lambda made: schedule_curves(jobs() if made else jobs()[:4]),
    "cost": lambda made: cost_plot(frame() if made else frame().iloc[:0], "cifar10"),
    "ablation": lambda made: schedule_plot(schedules(SCHEDULES if made else []), "cifar10", ["aft", *SCHEDULES]),
    "data_width": lambda made: data_width_plot(frame() if made else frame().iloc[:0], "cifar10"),
    "embedding": lambda made: embedding_plot([(e, projection()) for e in (0, 5, 10)] if made else []),
    "course": lambda made: course_plot(dict.fromkeys(MAIN, epochs([0.2, 0.3, 0.1] * 20 if made else [])), 500, 500),
}
