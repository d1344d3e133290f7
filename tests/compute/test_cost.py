"""Cost estimates against hand counts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from twinslib.attack.autoattack import ATTACKS
from twinslib.base import paths
from twinslib.base.files import write_json, write_npz
from twinslib.compute import cost, provenance
from twinslib.compute.worker import Worker
from twinslib.data.sources import SOURCES
from twinslib.nets import arithmetic
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import METHODS, method
from twinslib.specs.run import AttackSpec, DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.jobs import Job, Task
from twinslib.store.store import Store
from twinslib.studies import passes as studies_passes
from twinslib.studies import plan as studies_plan

FILES = sorted((paths.notebooks_dir() / "params").glob("*/*.yaml"))
PRESETS = [("toy", number) for number in sorted(studies_plan.STUDIES)] + [(p.parent.name, p.stem) for p in FILES]

RUN = RunSpec(data=DataSpec(name="toy_source", image_size=16, train_images=50, val_images=10),
              model=ModelSpec(arch="tiny_resnet"), method=METHODS["at"], attack=AttackSpec(steps=5),
              optim=OptimSpec(epochs=3, batch_size=20, val_every=2, val_steps=4))


@pytest.fixture(autouse=True)
def forget():
    """Each test has a data folder of its own, so nothing is remembered about the sets."""
    cost.train_images.cache_clear()


@pytest.mark.parametrize(("name", "expected"), [
    # epochs x images x (2 per PGD step + 3 per pass) + measurements after epochs 2 and 3 on 10 images
    ("natural", 3 * 50 * 3 + 2 * 10),
    ("at", 3 * 50 * (2 * 5 + 3) + 2 * 10 * (1 + 2 * 4)),
    ("twins_at", 3 * 50 * (2 * 5 + 3) + 2 * 10 * (1 + 2 * 4)),
    ("trades", 3 * 50 * (2 * 5 + 6) + 2 * 10 * (1 + 2 * 4)),
    ("twins_trades", 3 * 50 * (2 * 5 + 6) + 2 * 10 * (1 + 2 * 4)),
    # one network, or two branches that share the batch: as at
    *((name, 3 * 50 * (2 * 5 + 3) + 2 * 10 * (1 + 2 * 4)) for name in ("l2sp", "frozen_at", "at_split", "two_adaptive")),
    # one more forward, through the start network
    ("distill", 3 * 50 * (2 * 5 + 3 + 1) + 2 * 10 * (1 + 2 * 4)),
    ("feature_distill", 3 * 50 * (2 * 5 + 3 + 1) + 2 * 10 * (1 + 2 * 4)),
])
def test_forwards_of_training(name: str, expected: int) -> None:
    """Image forwards of a training run, counted by hand."""
    assert studies_passes.forwards(Task(replace(RUN, method=METHODS[name], source=RUN)), 50) == expected


@pytest.mark.parametrize(("name", "passes"), [("at", 1), ("twins_at", 1), ("trades", 2), ("natural", 1)])
def test_weight_perturbation_counts_its_passes(name: str, passes: int) -> None:
    """The direction costs a training pass (3) for each pass of the step."""
    plain, perturbed = (studies_passes.forwards(Task(replace(RUN, method=method(name, awp_gamma=gamma))), 50) for gamma in (0.0, 0.01))
    assert perturbed - plain == 3 * 50 * 3 * passes


@pytest.mark.parametrize(("epochs", "every", "dense", "times"), [
    (3, 1, 0, 4), (3, 2, 0, 3), (3, 9, 0, 2),  # before training and after the last epoch always
    (3, 9, 2, 4), (12, 6, 5, 8), (40, 2, 0, 21), (7, 3, 0, 4),
])
def test_following_is_counted_as_it_is_measured(epochs: int, every: int, dense: int, times: int) -> None:
    """Each measurement takes 2 per PGD step and 1 for the clean pass, on all images that are followed; recording is free."""
    run = replace(RUN, optim=replace(RUN.optim, epochs=epochs))
    follow = FollowSpec(record_every=2, train_images=20, test_images=7, every=every, dense=dense, steps=4)
    bare, followed, recorded = (studies_passes.forwards(Task(replace(run, follow=f)), 50)
                                for f in (None, follow, FollowSpec(record_every=2)))
    assert followed - bare == times * 27 * 9 and recorded == bare


@pytest.mark.parametrize("name", ["joint", "joint_uot"])
@pytest.mark.parametrize(("source", "per_image"), [("at", 2 * 7 + 3), ("trades", 2 * 7 + 3), ("natural", 3)])
def test_joint_training_counts_source_images(name: str, source: str, per_image: int) -> None:
    """As many source images as target images, attacked as in their own training, pass forward and back."""
    run = replace(RUN, source=replace(RUN, method=METHODS[source], attack=AttackSpec(steps=7)))
    difference = studies_passes.forwards(Task(replace(run, method=METHODS[name])), 50) - studies_passes.forwards(Task(run), 50)
    assert difference == 3 * 50 * per_image


@pytest.mark.parametrize(("every", "measurements"), [(0, 0), (1, 3), (2, 2), (3, 1), (4, 1)])
def test_measurements_are_counted_as_they_are_made(every: int, measurements: int) -> None:
    """Every `val_every` epochs and after the last, as the training loop does; 0 is never."""
    run = replace(RUN, optim=replace(RUN.optim, val_every=every))
    without = replace(run, data=replace(RUN.data, val_images=0))
    assert studies_passes.forwards(Task(run), 50) - studies_passes.forwards(Task(without), 50) == measurements * 10 * 9


@pytest.mark.parametrize(("evaluation", "expected"), [
    (EvalSpec(kind="clean", images=40), 40),
    (EvalSpec(kind="pgd", images=40, eps=0.1, steps=7), 40 * 14),
    (EvalSpec(kind="pgd", images=40, eps=0.1, steps=7, restarts=3), 40 * 42),
    (EvalSpec(kind="autoattack", images=40, eps=0.1, attacks=("apgd-ce",)), 40 * 200),
    (EvalSpec(kind="autoattack", images=40, eps=0.1), 40 * (200 + 0.35 * (1800 + 2700 + 5000))),
])
def test_forwards_of_evaluations(evaluation: EvalSpec, expected: float) -> None:
    """Image forwards of an evaluation, counted by hand; training images play no part."""
    assert studies_passes.forwards(Task(RUN, evaluation), 50) == studies_passes.forwards(Task(RUN, evaluation), 7) == pytest.approx(expected)


def test_every_attack_has_a_cost() -> None:
    """No attack that a spec may name is missing from the table."""
    assert set(studies_passes.AUTOATTACK_FORWARDS) == set(ATTACKS)


def test_macs_scale_linearly_with_images() -> None:
    """Twice the images, twice the work, for training and evaluation; a larger network costs more."""
    bare = replace(RUN, data=replace(RUN.data, val_images=0))
    double = replace(bare, data=replace(bare.data, train_images=100))
    assert cost.macs(Task(double)) == pytest.approx(2 * cost.macs(Task(bare)))
    one, two = (cost.macs(Task(RUN, EvalSpec(kind="clean", images=n))) for n in (50, 100))
    assert 0 < one == pytest.approx(two / 2)
    wider = replace(RUN, model=ModelSpec(arch="thin_resnet18"))
    assert cost.macs(Task(wider, EvalSpec(kind="clean", images=50))) > one


def test_upsampling_and_cropping_change_the_cost() -> None:
    """Work is counted at the size that the network sees: the crop, or what it is up-sampled to."""
    def clean(**changes: object) -> float:
        return cost.macs(Task(replace(RUN, **changes), EvalSpec(kind="clean", images=1)))

    # 4 x the pixels, 4 x the convolutions (the linear layer stays)
    assert clean(model=ModelSpec(arch="tiny_resnet", upsample=32)) == pytest.approx(4 * clean(), rel=0.01)
    half = replace(RUN.data, augment="resized_crop_flip", crop=8)
    assert clean(data=half) == pytest.approx(clean() / 4, rel=0.01)


def test_memory_grows_with_what_is_stored(monkeypatch) -> None:
    """Memory is positive, grows with batch, images and network, and shrinks with bfloat16 where the device has it."""
    def memory(optim: OptimSpec = RUN.optim, **changes: object) -> int:
        return cost.memory_bytes(replace(RUN, optim=optim, **changes), "cpu")

    monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device: True)

    assert 0 < memory() < memory(replace(RUN.optim, batch_size=40)) < memory(replace(RUN.optim, batch_size=400))
    assert memory(replace(RUN.optim, precision="bfloat16")) < memory()
    assert memory() < memory(data=replace(RUN.data, train_images=500))
    assert memory() < memory(model=ModelSpec(arch="resnet18"))
    with monkeypatch.context() as older:
        older.setattr(arithmetic, "has_bfloat16", lambda device: False)
        assert memory(replace(RUN.optim, precision="bfloat16")) == memory()
    one, both = (memory(source=RUN, method=METHODS[name]) for name in ("at", "joint"))
    assert one < memory(replace(RUN.optim, batch_size=40)) <= both


def test_memory_bounds_what_a_step_keeps() -> None:
    """The estimate is not below the tensors that one training pass really keeps for its backward pass."""
    from twinslib.nets.models import make_model

    model = make_model("tiny_resnet", 10, seed=0)
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(torch.rand(20, 3, 16, 16)).sum()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    assert sum(kept.values()) <= cost.memory_bytes(RUN, "cpu") <= 4 * (sum(kept.values()) + 4 * parameters)
    loss.backward()


@pytest.mark.parametrize(("spec", "expected"), [
    (DataSpec(name="cifar10"), (50_000, 10)),
    (DataSpec(name="cifar10", val_images=1000), (49_000, 10)),
    (DataSpec(name="cifar10", train_images=9500, val_images=500), (9500, 10)),
    (DataSpec(name="tinyimagenet32", exclude=tuple("abcdef"), val_images=1000), (96_000, 194)),
    (DataSpec(name="toy_source", image_size=16, train_images=50, val_images=10), (50, 10)),
])
def test_train_images(spec: DataSpec, expected: tuple[int, int]) -> None:
    """Counts without the image files come from the list of known sets, for embedded sets from the set itself."""
    assert cost.train_images(spec) == expected


def test_train_images_of_a_packed_set() -> None:
    """A set that is there is counted, whatever the list says, with excluded classes left out."""
    labels = np.repeat(np.arange(4), 5)
    images = np.zeros((20, 8, 8, 3), np.uint8)
    write_npz(paths.data_dir() / "cifar10.npz", {
        "train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels,
        "class_names": np.array(["a", "b", "c", "d"])})
    assert cost.train_images(DataSpec(name="cifar10", image_size=8, exclude=("b",), val_images=3)) == (12, 3)


def test_train_images_of_an_unknown_set() -> None:
    """A set that is neither there nor known is an error that names it."""
    with pytest.raises(FileNotFoundError, match="got 'cifar11'; did you mean 'cifar10'"):
        cost.train_images(DataSpec(name="cifar11"))
    assert all(s.train_images >= 10 * s.num_classes for s in SOURCES.values())


# -- speed -----------------------------------------------------------------------------------------------------------
CLEAN = EvalSpec(kind="clean", images=40)
JOBS = [Job("x", RUN, (CLEAN,)), Job("x", replace(RUN, seed=1), (CLEAN,))]


def finish(store: Store, spec: RunSpec, seconds: float, **other: str) -> None:
    """Leave what a finished training run leaves for the estimate of speed."""
    write_json(store.root / "provenance" / f"{spec.hash}.json",
               {"train": provenance.machine("cpu") | {"seconds": seconds, **other}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store("toy", root=tmp_path / "store")


def test_measured_rate(store: Store) -> None:
    """The rate is the work of what is done, divided by its seconds; other devices and short runs do not count."""
    tasks = cost.tasks_of(JOBS)
    assert len(tasks) == 4 and cost.measured_rate(Worker(store, "cpu"), tasks) is None
    for other in ({"device": "another GPU"}, {"cpu": "another CPU"}, {"instruction_set": {"torch": "DEFAULT"}}):
        finish(store, RUN, 1e6, **other)
        assert cost.measured_rate(Worker(store, "cpu"), tasks) is None
    finish(store, RUN, 4.0)
    assert cost.measured_rate(Worker(store, "cpu"), tasks) is None
    finish(store, RUN, 10.0)
    assert cost.measured_rate(Worker(store, "cpu"), tasks) == pytest.approx(cost.macs(Task(RUN)) / 10)
    finish(store, JOBS[1].spec, 30.0)
    assert cost.rate(Worker(store, "cpu"), tasks) == (pytest.approx(2 * cost.macs(Task(RUN)) / 40),
                                       "measured on runs of this store that such a machine has finished")


def test_unknown_rate_is_probed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is done yet, the last run's network is timed on the device, and the text says so."""
    probed = cost.probed_rate(RUN, torch.device("cpu"), seconds=0.05)
    assert 1e6 < probed < 1e14
    monkeypatch.setattr(cost, "probed_rate", lambda spec, device: 123.0 if spec == JOBS[1].spec else 0.0)
    assert cost.rate(Worker(store, "cpu"), cost.tasks_of(JOBS)) == (123.0, "probed for two seconds on this cpu")


def test_remaining_hours_use_what_is_done(store: Store) -> None:
    """The estimate for what is left stands on the runs that are done, so an equal run takes as long."""
    finish(store, RUN, 7200.0)
    assert cost.remaining_hours(Worker(store, "cpu"), [Task(JOBS[1].spec)], JOBS) == pytest.approx(2.0)
    assert cost.remaining_hours(Worker(store, "cpu"), [], JOBS) == 0


def test_description_of_what_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours are work / rate, run by run; what is done is marked and costs nothing."""
    monkeypatch.setattr(Store, "missing", lambda self, jobs: [Task(JOBS[1].spec, CLEAN)])
    flops = 2 * cost.macs(Task(RUN, CLEAN)) / 3600  # one hour for the evaluation
    header, first, second, total = cost.describe(Worker(store, "cpu"), JOBS, flops=flops).splitlines()
    assert header.split() == ["run", "method", "data", "arch", "seed", "train", "evaluate", "memory"]
    assert first.startswith(RUN.hash) and first.endswith("done") and first.count("0.00 h") == 2
    assert second.startswith(JOBS[1].spec.hash) and second.count("0.00 h") == second.count("1.00 h") == 1
    assert total.startswith("2 runs, 1 of 4 tasks left, about 1.0 h (") and "given:" in total and "GiB" in total


def test_what_waits_is_marked(store: Store) -> None:
    """Runs whose hyper-parameters are not chosen yet count as their stand-in and say so; candidates and others do not."""
    candidate, waiting = Job("tuning", RUN, ()), Job("x", replace(RUN, seed=1), (CLEAN,), settled=False)
    lines = cost.describe(Worker(store, "cpu"), [candidate, waiting], flops=1e10).splitlines()
    assert [line.endswith("to be tuned") for line in lines[1:-1]] == [False, True]
    assert lines[-1].startswith("2 runs, 3 of 3 tasks left, ")
    settled = cost.describe(Worker(store, "cpu"), [candidate, replace(waiting, settled=True)], flops=1e10)
    assert settled == "\n".join(lines).replace("  to be tuned", "")


def test_a_run_of_two_studies_counts_once(store: Store) -> None:
    """A candidate that was chosen is the run that is measured: one line, its training counted once."""
    jobs = [Job("tuning", RUN, ()), Job("x", RUN, (CLEAN,))]
    assert cost.tasks_of(jobs) == [Task(RUN), Task(RUN, CLEAN)]
    flops = 2 * cost.macs(Task(RUN)) / 3600  # one hour for the training
    _, *runs, total = cost.describe(Worker(store, "cpu"), jobs, flops=flops).splitlines()
    assert len(runs) == 1 and runs[0].count("1.00 h") == 1
    assert total.startswith("1 runs, 2 of 2 tasks left, about 1.0 h")


def unknown(candidates, **_) -> None:
    """No candidate is finished."""


@pytest.mark.parametrize(("preset", "number"), PRESETS, ids=str)
def test_presets_can_be_planned(store: Store, preset: str, number: str) -> None:
    """Every preset's plan can be printed without its images: all runs, what is to be tuned, their number, hours and memory."""
    jobs = studies_plan.plan(preset, number)[0](best=unknown)
    header, *lines, total = cost.describe(Worker(store, "cpu"), jobs, flops=1e13).splitlines()
    waiting = {job.spec.hash for job in jobs if not job.settled}
    assert dict.fromkeys(line.split()[0] for line in lines) == dict.fromkeys(job.spec.hash for job in jobs)
    assert {line.split()[0] for line in lines if line.endswith("to be tuned")} == waiting
    tasks = len({(job.spec, e) for job in jobs for e in (None, *job.measurements)})
    assert total.startswith(f"{len(lines)} runs, {tasks} of {tasks} tasks left, about ")
    assert " h (10 TFLOP/s, given: 10 TFLOP/s), at most " in total and total.endswith(" GiB")
