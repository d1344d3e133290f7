"""Following a run: it measures what is there, and decides nothing by test images; `test_resume` shows that it changes nothing."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.train.made import equal, network, spec, winged
from tests.train.made import trained as trained_on
from twinslib.attack import masks
from twinslib.data.augment import augment
from twinslib.data.sets import DeviceSet
from twinslib.nets.fold import FoldedCopy
from twinslib.nets.norms import to_plain
from twinslib.specs.run import FollowSpec, RunSpec
from twinslib.train.follow import Follower
from twinslib.train.loop import History, fit
from twinslib.train.step import OutOfTime

FOLLOW = FollowSpec(record_every=2, train_images=9, test_images=11, steps=2)
def image_set(poisoned: bool = False) -> DeviceSet:
    """Random images; validation and test images are different ones. Poisoned: random other test images and labels."""
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (50, 3, 16, 16), generator=g, dtype=torch.uint8)
    y = torch.randint(0, 10, (50,), generator=g)
    if poisoned:
        x[35:], y[35:] = x[35:].flip(1), (y[35:] + torch.randint(1, 10, (15,), generator=g)) % 10
    return DeviceSet(x[:20], y[:20], x[20:35], y[20:35], x[35:], y[35:], tuple("0123456789"))


def followed(name: str, follow: FollowSpec = FOLLOW, **optim) -> RunSpec:
    """A short run; what is recorded of the weights is left out where it is not defined."""
    s = spec(name, optim={"val_every": 1, "val_steps": 2} | optim)
    return replace(s, follow=replace(follow, record_every=0) if s.method.awp_gamma else follow)


def trained(s: RunSpec, data: DeviceSet | None = None, **options) -> tuple[History, torch.nn.Module]:
    return trained_on(s, data or image_set(), **options)


@pytest.mark.parametrize("name", ["twins_trades", "at_awp"])
def test_measurements_are_those_of_the_network_of_that_epoch(name: str) -> None:
    """Each line equals what the adaptive wing of a copy that was trained to that epoch gives on the first images."""
    s, data = followed(name), image_set()
    found = trained(s)[0].course
    assert found["epoch"].tolist() == [0, 1, 2]
    for i in range(3):
        model = winged(s, network())
        if i:
            with contextlib.suppress(OutOfTime):
                fit(replace(s, follow=None), model, data, device="cpu", stop=iter([False] * (3 * i - 1) + [True] * 9).__next__)
        net, plain, attack = FoldedCopy(model), to_plain(model).eval(), s.attack.measured(2)
        for part, n in (("train", 9), ("test", 11)):
            x, y = getattr(data, f"{part}_x")[:n], getattr(data, f"{part}_y")[:n]
            assert found[f"{part}_clean"][i].tolist() == (plain(x / 255).argmax(1) == y).tolist()
        assert np.array_equal(found["test_robust"][i], masks.pgd_mask(net, x, y, **attack, seed=s.seed, batch_size=250))
        x, y = data.train_x[:9], data.train_y[:9]
        mask, losses = masks.pgd_losses(net, x, y, **attack, seed=s.seed, batch_size=250)
        assert np.array_equal(found["train_robust"][i], mask) and np.array_equal(found["train_loss"][i], losses)
    assert len({a.tobytes() for a in found["train_loss"]}) == 3  # it does move


def test_training_images_are_measured_at_their_centre() -> None:
    """Where training crops, the training images are cut to the same size, in the middle; test images come cut already."""
    s = followed("at")
    s = replace(s, data=replace(s.data, image_size=16, augment="resized_crop_flip", crop=11))
    data = image_set()
    data = replace(data, test_x=data.test_x[..., 2:13, 2:13], val_x=data.val_x[..., 2:13, 2:13])
    history, model = trained(s, data)
    centre = augment(data.train_x[:9], "center_crop", size=11).mul(255).round().to(torch.uint8)
    assert centre.shape == (9, 3, 11, 11) and torch.equal(centre, data.train_x[:9, :, 2:13, 2:13])
    net, attack = FoldedCopy(model), dict(s.attack.measured(2), batch_size=250)
    _, losses = masks.pgd_losses(net, centre, data.train_y[:9], **attack)
    assert np.array_equal(history.course["train_loss"][-1], losses)
    mask = masks.pgd_mask(net, data.test_x[:11], data.test_y[:11], **attack)
    assert np.array_equal(history.course["test_robust"][-1], mask)


@pytest.mark.parametrize(("every", "dense", "epochs", "measured"), [
    (2, 0, 5, [0, 2, 4, 5]), (9, 0, 4, [0, 4]), (3, 1, 7, [0, 1, 3, 6, 7])])
def test_due(every: int, dense: int, epochs: int, measured: list[int]) -> None:
    """Before training, up to `dense` after each epoch, then after every `every`-th, and after the last."""
    s = followed("at", FollowSpec(train_images=1, every=every, dense=dense), epochs=epochs)
    follower = Follower(s, network(), image_set())
    assert [e for e in range(epochs + 1) if follower.due(e)] == measured


WEIGHTS = {"layers", "steps", "lr", "losses", "w_norm", "g_norm", "g_first", "g_second", "cos_wg", "angle", "drift_epoch",
           "drift_layer", "drift_mean", "drift_log_var"}


@pytest.mark.parametrize(("name", "follow", "names"), [
    ("at", FollowSpec(), set()), ("at", FollowSpec(train_images=4), {"epoch", "train_clean", "train_robust", "train_loss"}),
    ("at", FollowSpec(test_images=4), {"epoch", "test_clean", "test_robust"}), ("at", FollowSpec(record_every=5), WEIGHTS),
    ("natural", FollowSpec(test_images=4), {"epoch", "test_clean"})])
def test_names_of_what_is_followed(name: str, follow: FollowSpec, names: set[str]) -> None:
    """What is not asked for is not there, nor robustness of a run without an attack; masks are boolean, losses float32."""
    found = trained(followed(name, replace(follow, steps=1, every=2), epochs=3))[0].course
    assert set(found) == names
    if names == WEIGHTS:
        assert (sorted(set(found["drift_epoch"])), found["steps"].tolist()) == ([1, 2, 3], [0, 5])
    elif names:
        assert found["epoch"].tolist() == [0, 2, 3]
        for key in names - {"epoch"}:
            assert found[key].dtype == (np.float32 if key == "train_loss" else bool) and found[key].shape == (3, 4)


def test_test_images_decide_nothing() -> None:
    """With other test images and labels weights, rows and the chosen epochs stay as they are, while the test curves change."""
    s = followed("at", FollowSpec(train_images=9, test_images=15, steps=2), epochs=3, lr=0.1)
    (honest, model), (poisoned, other) = trained(s), trained(s, image_set(poisoned=True))
    assert equal(model, other) and honest.epochs == poisoned.epochs
    assert all("val_robust_acc" in row for row in honest.epochs)
    assert not any("test" in key for row in honest.epochs for key in row)
    for key in honest.course:
        assert np.array_equal(honest.course[key], poisoned.course[key]) == (key not in ("test_clean", "test_robust"))
    data = image_set()
    relabelled, third = trained(s, replace(data, val_y=(data.val_y + 1) % 10))
    assert equal(model, third) and relabelled.epochs != honest.epochs
