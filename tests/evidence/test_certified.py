"""What stands on finished certifications beside tables: constant answers, statistics of batch norms."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tests.show.test_smoothing import TEN_EACH, answers
from tests.smoothing_made import N, measured
from twinslib.compute import statistics
from twinslib.compute.networks import Networks
from twinslib.compute.queue import sweep
from twinslib.compute.worker import Worker
from twinslib.specs.jobs import Job
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.statistics import statistics as stored_statistics
from twinslib.train import noise


@pytest.mark.parametrize(("labels", "chosen", "chance", "constant"), [
    (TEN_EACH, answers(0.95), 0.1, True),
    (TEN_EACH, answers(0.65), 0.1, True),
    (TEN_EACH, answers(0.3), 0.1, False),
    (TEN_EACH % 2, TEN_EACH % 2, 0.5, False),  # two classes: half of the answers are to be expected
    (TEN_EACH % 2, answers(0.9, 2), 0.5, True),
    (np.where(TEN_EACH < 8, 3, TEN_EACH), answers(0.8), 0.8, False),  # so many images are of this class
    (np.where(TEN_EACH < 8, 3, TEN_EACH), np.full(N, 3), 0.8, True),
])
def test_close_to_a_constant_answer(labels, chosen, chance, constant) -> None:
    """By the class that the first draws choose for all images, also those that abstain or are stopped because they are wrong."""
    radius = np.where(chosen == labels, 0.3, 0.0)  # wrong ones get no further draws
    m = measured("mixed/clean/group", 0.5, radius, labels=labels, chosen=chosen, stop=True)
    assert (m.chance, m.one_class, m.constant) == (chance, np.bincount(chosen).max() / N, constant)
    answered = np.where(chosen == labels, 0.3, -0.3)
    c = measured("mixed/clean/group", 0.5, answered, labels=labels)
    c = dataclasses.replace(c, certified=c.certified._replace(prediction=chosen))
    assert (c.one_class, c.constant) == (m.one_class, constant)


SPEC = RunSpec(data=DataSpec(name="toy_target", image_size=16, train_images=40, val_images=10), method=method("natural"),
               model=ModelSpec(arch="tiny_resnet"), optim=OptimSpec(epochs=1, batch_size=20, val_every=0))
LABELS = (("pretraining", "mixed"), ("finetuning", "clean"), ("norm", "batch"))


def test_statistics_are_measured_once(store, monkeypatch) -> None:
    """Each batch-norm network at each level, kept as text; what is there is not measured again, other images are."""
    made = [Job("smoothing", SPEC, (), labels=LABELS)]
    assert statistics.measure_statistics(Networks(store, "cpu"), made, [0.5], 8).empty  # nothing is trained yet
    sweep(Worker(store, "cpu"), made)
    frame = statistics.measure_statistics(Networks(store, "cpu"), made, [0.0, 0.5], 8)
    direct = noise.mismatch(Networks(store, "cpu").trained(SPEC).eval(), Networks(store, "cpu").data(SPEC.data).test_x[:8], 0.5)
    here = frame[frame["sigma"] == 0.5].set_index("layer")
    assert list(here.index) == list(direct) and set(frame["cell"]) == {"mixed/clean/batch"} and set(frame["images"]) == {8}
    assert all(here.loc[k, "divergence"] == pytest.approx(v["divergence"]) for k, v in direct.items())
    pd.testing.assert_frame_equal(stored_statistics(store), frame)
    monkeypatch.setattr(noise, "mismatch", lambda *args: pytest.fail("measured again"))
    assert len(statistics.measure_statistics(Networks(store, "cpu"), made, [0.0, 0.5], 8)) == len(frame)
