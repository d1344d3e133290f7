"""Figures of adversarial fine-tuning from made-up frames, jobs and rows: what is drawn equals them, checked by hand."""

import functools

import numpy as np
import pandas as pd
import pytest

from tests.aft_made import network
from tests.figures_read import drawn
from twinslib.base import stats
from twinslib.evidence import networks
from twinslib.evidence.networks import COLUMNS
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
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec

AA = "apgd-ce+apgd-t+fab-t+square"
EPS = 8 / 255
FULL = 4500
STARTED = ("aft", "aft_public", "aft_twins", "aft_free", "aft_l2")
MAIN = {  # method -> passes of its last epoch and of its best, of its start, images of 1,000 that are right: clean and PGD
    "aft": (30, None, 60, 790, 450), "at_scratch": (480, 260, 0, 780, 455), "aft_public": (30, None, None, 830, 470),
    "aft_random": (30, None, 0, 600, 380), "fast_at": (60, 56, 0, 760, 420), "free_at": (120, 110, 0, 740, 415),
    "aft_twins": (50, None, 60, 800, 440), "aft_free": (50, None, 60, 770, 430), "trades_scratch": (350, 300, 0, 750, 460)}
SCHEDULES = {"aft_constant": {"schedule": "constant"}, "aft_piecewise": {"schedule": "piecewise", "milestones": (0.5, 0.75)},
             "aft_cosine": {"schedule": "cosine"}, "aft_one_cycle": {"schedule": "one_cycle", "milestones": (0.3,)},
             "aft_fast_decay": {"schedule": "fast_decay"}, "aft_slow_start": {"schedule": "slow_start"},
             "aft_slow_fast_exp": {"schedule": "slow_fast_exp"}, "aft_eps_warmup": {"schedule": "slow_fast"}}


def line(name="aft", part="main", seed=0, at="last", attack="none", right=500, n=1000, passes=30.0, start=60.0, width=0,
         images=FULL, threat="linf", dataset="cifar10", lr=0.05):
    """A row of the frame; `start`: passes of the training of the start, None where it is not ours."""
    low, high = stats.clopper_pearson(right, n)[1:3]
    whole = np.nan if start is None else (passes + start) * FULL
    clean = attack == "none"
    return dict.fromkeys(COLUMNS, "") | {
        "dataset": dataset, "part": part, "method": name, "arch": "thin_resnet10", "width": width, "train_images": images,
        "trained_threat": threat, "absent": "",
        "lr": lr, "seed": seed, "at": at, "attack": attack, "threat": "none" if clean else threat, "eps": 0.0 if clean else EPS,
        "value": right / n, "low": low, "high": high, "n": n, "images_given": passes * FULL, "images_whole": whole,
        "run": f"{name}{part}{seed}{width}{images}"}


def both(name, clean, robust, **where):
    return [line(name, right=clean, **where), line(name, attack="pgd20", right=robust, **where)]


def frame(seeds=(0, 1, 2), done=None):
    """All parts on CIFAR-10 as planned, each seed two images better than the one before; AutoAttack on 100 images of seed 0."""
    found = whole_frame(tuple(seeds)).copy()
    return found if done is None else found[found["method"].isin(done)]


@functools.cache
def whole_frame(seeds):
    rows = []
    for seed in seeds:
        for name, (last, best, start, clean, robust) in MAIN.items():
            for at, passes, drop in (("best", best, 0), ("last", last, 20 if best else 0)):
                if passes:
                    where = {"seed": seed, "at": at, "passes": passes, "start": start}
                    rows += both(name, clean + 2 * seed, robust + 2 * seed - drop, **where)
                    rows += [line(name, attack=AA, right=robust // 10 - 3, n=100, **where)] * (seed == 0)
        for i, name in enumerate(SCHEDULES):
            rows += both(name, 700 + 10 * i + 2 * seed, 400 + 10 * i + 2 * seed, part="schedule", seed=seed)
        rows += both("aft_l2", 990, 980, threat="l2", seed=seed) + both("aft", 10, 10, at="start", seed=seed, passes=0)
    for name, less in (("aft", 0), ("aft_random", 100)):
        for images in (1100, 2200):
            rows += both(name, 500 + images // 100 - less, 300 + images // 100 - less, part="fraction", images=images)
        for width in (16, 64):
            rows += both(name, 600 + width - less, 350 + width - less, part="width", width=width)
    return pd.DataFrame(rows, columns=[*COLUMNS, "absent"])


def job(name, part="main", seed=0, **optim):
    spec = RunSpec(data=DataSpec(name="cifar10", train_images=FULL), model=ModelSpec(arch="thin_resnet10"), seed=seed,
                   method=method(name), optim=OptimSpec(**{"epochs": 10, "schedule": "slow_fast", "lr": 0.05} | optim),
                   attack=AttackSpec(eps_warmup=0.5 if name == "aft_eps_warmup" else 0.0))
    return Job("aft", spec, (), labels=(("part", part), ("start", "natural")))


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
    found = [line("aft", attack=a) for a in ("none", "pgd20", AA)] + [line("fast_at", attack=a) for a in ("none", "pgd20")]
    assert aft_plots.shared_attack(pd.DataFrame(found))[0] == "pgd20" and aft_plots.shared_attack(pd.DataFrame(found[:1])) is None
    few = [line("aft", attack="pgd20"), line("aft", attack=AA) | {"n": 10}]
    assert aft_plots.shared_attack(pd.DataFrame(few))[0] == "pgd20"


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
    "cost": lambda made: cost_plot(frame(done=None if made else []), "cifar10"),
    "ablation": lambda made: schedule_plot(schedules(SCHEDULES if made else []), "cifar10", ["aft", *SCHEDULES]),
    "data_width": lambda made: data_width_plot(frame(done=None if made else []), "cifar10"),
    "embedding": lambda made: embedding_plot([(e, projection()) for e in (0, 5, 10)] if made else []),
    "course": lambda made: course_plot(dict.fromkeys(MAIN, epochs([0.2, 0.3, 0.1] * 20 if made else [])), 500, 500),
}
