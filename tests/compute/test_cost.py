"""Cost estimates against hand counts."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.store_made import prove
from twinslib.base import paths
from twinslib.base.files import write_npz
from twinslib.compute import cost, provenance
from twinslib.compute.worker import Worker
from twinslib.data.sources import SOURCES
from twinslib.nets import arithmetic
from twinslib.specs.jobs import Job, Task
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import METHODS, method
from twinslib.specs.run import AttackSpec, DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.specs.strength import PARTS
from twinslib.store.store import Store
from twinslib.studies import plan as studies_plan
from twinslib.studies.passes import AUTOATTACK_FORWARDS, forwards

RUN = RunSpec(data=DataSpec(name="toy_source", image_size=16, train_images=50, val_images=10),
              model=ModelSpec(arch="tiny_resnet"), method=METHODS["at"], attack=AttackSpec(steps=5),
              optim=OptimSpec(epochs=3, batch_size=20, val_every=2, val_steps=4))


@pytest.fixture(autouse=True)
def forget():
    """Each test has a data folder of its own, so nothing is remembered about the sets."""
    cost.train_images.cache_clear()


def changed(**changes: object) -> RunSpec:
    """The run with other fields; those of data and optim may be named alone."""
    for part in ("data", "optim"):
        changes[part] = replace(getattr(RUN, part), **changes.get(part, {}))
    return replace(RUN, **changes)


AT, MEASURED = 2 * 5 + 3, 2 * 10 * (1 + 2 * 4)  # 2 per PGD step, 3 per pass; measurements after epochs 2 and 3 on 10 images
TRAINED = {
    **dict.fromkeys(("at", "twins_at", "l2sp", "frozen_at", "at_split", "two_adaptive"), AT),  # one network, or a shared batch
    **dict.fromkeys(("trades", "twins_trades"), 2 * 5 + 6),
    **dict.fromkeys(("distill", "feature_distill"), AT + 1),  # one more forward, through the start network
    **dict.fromkeys(("joint", "joint_uot"), AT + AT),  # as many source images, attacked as in their own training
}


def test_forwards_of_training() -> None:
    """Image forwards of a training run, counted by hand: epochs x images x forwards per image, and the measurements."""
    assert forwards(Task(changed(method=METHODS["natural"])), 50) == 3 * 50 * 3 + 2 * 10
    for name, per_image in TRAINED.items():
        assert forwards(Task(changed(method=METHODS[name], source=RUN)), 50) == 3 * 50 * per_image + MEASURED, name
    for source, per_image in (("trades", 2 * 7 + 3), ("natural", 3)):
        run = changed(method=METHODS["joint"], source=changed(method=METHODS[source], attack=AttackSpec(steps=7)))
        assert forwards(Task(run), 50) == 3 * 50 * (AT + per_image) + MEASURED, source
    for name, passes in (("at", 1), ("twins_at", 1), ("trades", 2), ("natural", 1)):  # perturbed: one training pass more for each
        plain, perturbed = (forwards(Task(changed(method=method(name, awp_gamma=gamma))), 50) for gamma in (0.0, 0.01))
        assert perturbed - plain == 3 * 50 * 3 * passes, name
    for every, measurements in ((0, 0), (1, 3), (2, 2), (3, 1), (4, 1)):  # and after the last epoch; 0 is never
        with_, without = (forwards(Task(changed(optim={"val_every": every}, data={"val_images": n})), 50) for n in (10, 0))
        assert with_ - without == measurements * 10 * 9, every


@pytest.mark.parametrize(("epochs", "every", "dense", "times"), [
    (3, 1, 0, 4), (3, 2, 0, 3), (3, 9, 0, 2),  # before training and after the last epoch always
    (3, 9, 2, 4), (12, 6, 5, 8), (40, 2, 0, 21), (7, 3, 0, 4),
])
def test_following_is_counted_as_it_is_measured(epochs: int, every: int, dense: int, times: int) -> None:
    """Each measurement takes 2 per PGD step and 1 for the clean pass, on all images that are followed; recording is free."""
    follow = FollowSpec(record_every=2, train_images=20, test_images=7, every=every, dense=dense, steps=4)
    bare, followed, recorded = (forwards(Task(changed(optim={"epochs": epochs}, follow=f)), 50)
                                for f in (None, follow, FollowSpec(record_every=2)))
    assert followed - bare == times * 27 * 9 and recorded == bare


@pytest.mark.parametrize(("evaluation", "expected"), [
    (EvalSpec(kind="clean", images=40), 40), (EvalSpec(kind="pgd", images=40, eps=0.1, steps=7), 40 * 14),
    (EvalSpec(kind="pgd", images=40, eps=0.1, steps=7, restarts=3), 40 * 42),
    (EvalSpec(kind="autoattack", images=40, eps=0.1, attacks=("apgd-ce",)), 40 * 200),
    (EvalSpec(kind="autoattack", images=40, eps=0.1), 40 * (200 + 0.35 * (1800 + 2700 + 5000))),
])
def test_forwards_of_evaluations(evaluation: EvalSpec, expected: float) -> None:
    """Image forwards of an evaluation, counted by hand; training images play no part. Every attack counts."""
    assert forwards(Task(RUN, evaluation), 50) == forwards(Task(RUN, evaluation), 7) == pytest.approx(expected)
    assert set(AUTOATTACK_FORWARDS) == set(PARTS)


def test_work() -> None:
    """Twice the images are twice the work, a larger network costs more, and work is counted at the size that the network sees."""
    bare, double = (cost.macs(Task(changed(data={"val_images": 0, "train_images": n}))) for n in (50, 100))
    assert double == pytest.approx(2 * bare)

    def clean(images: int = 1, **changes: object) -> float:
        return cost.macs(Task(changed(**changes), EvalSpec(kind="clean", images=images)))

    assert 0 < clean(50) == pytest.approx(clean(100) / 2) and clean(model=ModelSpec(arch="thin_resnet18")) > clean()
    assert clean(model=ModelSpec(arch="tiny_resnet", upsample=32)) == pytest.approx(4 * clean(), rel=0.01)
    assert clean(data={"augment": "resized_crop_flip", "crop": 8}) == pytest.approx(clean() / 4, rel=0.01)


def test_memory(monkeypatch) -> None:
    """It is not below the tensors that one training pass really keeps for its backward pass."""
    model, kept = cost.network(RUN.model, 10), {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(torch.rand(20, 3, 16, 16)).sum()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())

    def memory(**changes: object) -> int:
        return cost.memory_bytes(changed(**changes), "cpu")

    assert sum(kept.values()) <= memory() <= 4 * (sum(kept.values()) + 4 * parameters)
    loss.backward()
    assert memory() < memory(optim={"batch_size": 40}) < memory(optim={"batch_size": 400})
    assert memory() < memory(data={"train_images": 500}) and memory() < memory(model=ModelSpec(arch="resnet18"))
    for there in (True, False):
        monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device, there=there: there)
        assert (memory(optim={"precision": "bfloat16"}) < memory()) is there
    assert memory(optim={"batch_size": 40}) <= memory(source=RUN, method=METHODS["joint"])


@pytest.mark.parametrize(("spec", "expected"), [
    (DataSpec(name="cifar10"), (50_000, 10)), (DataSpec(name="cifar10", val_images=1000), (49_000, 10)),
    (DataSpec(name="cifar10", train_images=9500, val_images=500), (9500, 10)),
    (DataSpec(name="tinyimagenet32", exclude=tuple("abcdef"), val_images=1000), (96_000, 194)),
    (DataSpec(name="toy_source", image_size=16, train_images=50, val_images=10), (50, 10)),
])
def test_train_images(spec: DataSpec, expected: tuple[int, int]) -> None:
    """Counts without the image files come from the list of known sets, for embedded sets from the set itself."""
    assert cost.train_images(spec) == expected


def test_train_images_of_other_sets() -> None:
    """A set that is there is counted, whatever the list says, with excluded classes left out; an unknown one is named."""
    images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.repeat(np.arange(4), 5)
    write_npz(paths.data_dir() / "cifar10.npz", {
        "train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels,
        "class_names": np.array(["a", "b", "c", "d"])})
    assert cost.train_images(DataSpec(name="cifar10", image_size=8, exclude=("b",), val_images=3)) == (12, 3)
    with pytest.raises(FileNotFoundError, match="got 'cifar11'; did you mean 'cifar10'"):
        cost.train_images(DataSpec(name="cifar11"))
    assert all(s.train_images >= 10 * s.num_classes for s in SOURCES.values())


CLEAN = EvalSpec(kind="clean", images=40)
JOBS = [Job("x", RUN, (CLEAN,)), Job("x", replace(RUN, seed=1), (CLEAN,))]


def finish(store: Store, spec: RunSpec, seconds: float, **other: object) -> None:
    """Leave what a finished training run leaves for the estimate of speed, in place of what was there."""
    store.path(Task(spec)).unlink(missing_ok=True)
    prove(store, spec, **provenance.machine("cpu") | {"seconds": seconds, **other})


def test_rate(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the work of what is done, divided by its seconds, other devices and short runs left out."""
    here, tasks = Worker(store, "cpu"), cost.tasks_of([*JOBS, Job("tuning", RUN, ())])  # a candidate that was chosen counts once
    assert 1e6 < cost.probed_rate(RUN, torch.device("cpu"), seconds=0.05) < 1e14
    monkeypatch.setattr(cost, "probed_rate", lambda spec, device: 123.0 if spec == JOBS[1].spec else 0.0)
    assert len(tasks) == 4 and cost.rate(here, tasks) == (123.0, "probed for two seconds on this cpu")
    for seconds, other in ((1e6, {"device": "another GPU"}), (1e6, {"cpu": "another CPU"}), (4.0, {}),
                           (1e6, {"instruction_set": {"torch": "DEFAULT"}})):
        finish(store, RUN, seconds, **other)
        assert cost.measured_rate(here, tasks) is None
    finish(store, RUN, 7200.0)
    assert cost.measured_rate(here, tasks) == pytest.approx(cost.macs(Task(RUN)) / 7200)
    for threads, alone in ((2, 7200), (1, 3600)):  # of one thread the processor's time, as work beside it counts on the clock
        finish(store, RUN, 7200.0, threads=threads, processor_seconds=3600.0)
        assert cost.measured_rate(here, tasks) == pytest.approx(cost.macs(Task(RUN)) / alone)
    finish(store, RUN, 7200.0)
    assert cost.remaining_hours(here, [Task(JOBS[1].spec)], JOBS) == (pytest.approx(2.0), cost.rate(here, tasks)[1])
    assert cost.remaining_hours(here, [], JOBS)[0] == 0
    finish(store, RUN, 10.0)
    finish(store, JOBS[1].spec, 30.0)
    assert cost.rate(here, tasks) == (pytest.approx(2 * cost.macs(Task(RUN)) / 40),
                                      "measured on runs of this store that such a machine has finished")


def test_hours_of_workers() -> None:
    """They share the work, but a run waits for its source and its candidates, and a measurement for its run."""
    first, second = JOBS
    spent = {Task(first.spec): 100.0, Task(first.spec, CLEAN): 20.0, Task(second.spec): 60.0, Task(second.spec, CLEAN): 20.0}
    assert [3600 * cost.hours(spent, JOBS, n) for n in (1, 2, 9)] == [pytest.approx(s) for s in (200, 120, 120)]
    after = replace(second, spec=replace(second.spec, source=first.spec))
    assert 3600 * cost.hours({Task(first.spec): 100.0, Task(after.spec): 60.0}, [first, after], 9) == pytest.approx(160)
    assert 3600 * cost.hours(spent, [first, replace(second, candidates=(first.spec,))], 9) == pytest.approx(180)
    assert cost.hours({}, [], 3) == 0


def test_presets_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the hours of medium and paper are those of named GPUs at shares of their peaks that are stated."""
    monkeypatch.setattr(cost, "probed_rate", lambda *_: pytest.fail("timed"))
    here = Worker(Store("medium"), "cpu")
    jobs = [*JOBS, Job("x", replace(RUN, seed=2, optim=replace(RUN.optim, precision="bfloat16")), ())]
    _, *runs, dearest, other, last, total = cost.describe(here, jobs).splitlines()
    assert len(runs) == 3 and dearest.startswith("costs most: ") and RUN.hash in dearest + other and jobs[2].spec.hash in last
    assert all(f"h on one {gpu}" in total for gpu in cost.GPUS) and cost.ASSUMED in total and "20% of 312 and 989" in total
    slow, fast = (cost.seconds_on("A100", Task(job.spec), 1e15) for job in (jobs[0], jobs[2]))
    assert (slow, fast) == (pytest.approx(2e15 / (0.6 * 19.5e12)), pytest.approx(2e15 / (0.2 * 312e12)))
    assert "h on 4 A100" in cost.describe(here, jobs, workers=4)
    assert "on one A100" in cost.remaining_hours(here, [Task(RUN)], jobs)[1]  # also where only the time that is left is told
    assert cost.rate(here, [Task(RUN)])[0] == pytest.approx(0.3 * 19.5e12)
    assert cost.describe(here, jobs, flops=1e12).count("A100") == 0
    start = time.process_time()
    plans = [studies_plan.plan("paper", number)[0] for number in sorted(studies_plan.STUDIES)]
    text = cost.describe(Worker(Store("paper"), "cpu"), [job for jobs_of in plans for job in jobs_of(best=lambda *_, **__: None)])
    assert time.process_time() - start < 10 and " h on one H100" in text
