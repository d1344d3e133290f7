"""Notebook 02: figures from made-up courses, against calculations by hand."""

import itertools

import numpy as np
import pandas as pd

from tests.figures_read import drawn
from twinslib.evidence.course import Course
from twinslib.show import figures, rate_plots
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec

METHODS = ["at", "at_lr", "at_split", "twins_at", "frozen_at", "twins_shared"]
LAYERS = ["network.conv1", "network.blocks.0.conv1", "network.blocks.0.downsample.0", "network.blocks.1.conv2", "network.fc"]
STEPS = np.arange(0, 12, 2)  # of three epochs with four steps each
T2 = 4.302653  # 97.5 % quantile of Student's t with two degrees of freedom
SOURCE = RunSpec(data=DataSpec(name="tinyimagenet32"), model=ModelSpec(arch="tiny_resnet"), method=method("at"),
                 optim=OptimSpec())
SIZE = {"at": 1.0, "at_lr": 2.0, "at_split": 1.5, "twins_at": 3.0, "frozen_at": 0.5, "twins_shared": 3.1}  # of a step
LOSS = {"at": 0.0, "at_lr": -0.2, "at_split": 0.1, "twins_at": 0.3, "frozen_at": 0.5, "twins_shared": 0.3}


def made(name="at", dataset="cifar10", seed=0, **switches):
    """A run whose angles are SIZE times (place + seed / 10), whose weights are 1 to 4 long, doubled at the last step by methods
    with frozen statistics, and whose loss falls from 3 to 2 + LOSS."""
    m = method(name, **switches)
    spec = RunSpec(data=DataSpec(name=dataset, train_images=32, val_images=10), model=ModelSpec(arch="tiny_resnet"), method=m,
                   optim=OptimSpec(batch_size=8, epochs=3), follow=FollowSpec(record_every=2, train_images=2), seed=seed,
                   source=SOURCE)
    shape, frozen = (len(STEPS), len(LAYERS)), m.wings in ("twins", "frozen")
    lr = np.where(np.arange(len(STEPS)) < 4, 0.4, 0.1) * (2 if name == "at_lr" else 1)
    w = np.ones(shape) * [1, 2, 3, 4, 100]
    w[-1] *= 2 if frozen else 1
    signs = np.where(np.arange(len(STEPS)) % 2, -1, 1)[:, None]
    halves = np.array([m.twins_weight if m.halves else 1.0, 1.0]) / (1 + m.twins_weight if m.normalize_loss else 1)
    first = halves[0] * (3.0 if frozen else 1.0) * np.ones(shape) * (1 + np.arange(5))
    second = halves[1] * np.ones(shape) * (1 + np.arange(5)) if m.halves else np.zeros(shape)
    fall = np.clip(1 - np.arange(6) / (2 + SIZE[name]), 0, 1)
    adaptive = 2 + LOSS[name] + (1 - LOSS[name]) * fall
    epochs = np.arange(4)
    losses = 2 + LOSS[name] + (1 - LOSS[name]) * (1 - epochs / 3) + 0.1 * seed * (epochs > 0) * (name == "twins_at")
    arrays = {
        "layers": np.array(LAYERS), "steps": STEPS, "lr": lr, "w_norm": w, "g_norm": np.sqrt(first ** 2 + second ** 2),
        "g_first": first, "g_second": second, "cos_wg": signs * np.ones(shape) * (0.02 if frozen else 1e-5),
        "angle": 1e-3 * SIZE[name] * (np.arange(5) + 1 + seed / 10) * np.ones(shape),
        "losses": np.stack([adaptive * 9, adaptive] if m.halves else [adaptive, 0 * adaptive], axis=1),
        "epoch": epochs, "train_loss": np.stack([losses - 0.5, losses + 0.5], axis=1),
        "drift_epoch": np.repeat([1, 2, 3], 4), "drift_layer": np.tile(["a", "b", "c", "d"], 3),
        "drift_mean": SIZE[name] * np.repeat([1, 2, 3], 4) * np.tile([1, 2, 3, 4], 3) / 10, "drift_log_var": np.ones(12)}
    return Course(spec, arrays, [{"epoch": e, "train_loss": 3.0 - e} for e in (1, 2, 3)], 32)


def study(names=METHODS, datasets=("cifar10",), seeds=(0, 1, 2)):
    return [made(name, dataset, seed) for seed, dataset, name in itertools.product(seeds, datasets, names)]


LAW = pd.DataFrame([["batch", 1.0, 2.0, 3.0, 6.0, 1e-15], ["batch", 2.0, 4.0, 1.5, 6.0, -4e-15],
                    ["frozen", 1.0, 2.0, 6.0, 12.0, 0.03], ["frozen", 2.0, 4.0, 6.0, 24.0, -0.2]],
                   columns=["statistics", "factor", "w_norm", "g_norm", "product", "cos_wg"])


# -- figures ----------------------------------------------------------------------------------------------------------
def test_layer_courses():
    """Columns are convolutions of the main path; means over the recorded steps of an epoch, the weights over their start."""
    fig = rate_plots.layer_courses(study(["at", "twins_at"]), "cifar10", ["at", "twins_at"])
    assert [ax.get_title().split()[0] for ax in fig.axes[:3]] == ["first", "middle", "last"]
    assert drawn(fig.axes[1], figures.LOOKS["twins_at"]) == [[(0.5, 1), (1.5, 1), (2.5, 1.5)]]
    frame = pd.DataFrame({"layer": LAYERS[:3], "depth": [0, 1, 2]})
    assert rate_plots.three_layers(frame) == {"first": LAYERS[0], "middle": LAYERS[1]}
    assert rate_plots.three_layers(frame[:1]) == {"first": LAYERS[0]}
