"""Attacks, masks, votes, files and whole tasks on a device that is not there: the numbers of the CPU, and few waits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.attack.made import THREATS, shorten
from tests.compute.made import contents, tiny_jobs
from tests.device.made import META, absent
from tests.train.made import batch, network
from twinslib.attack import autoattack, pgd
from twinslib.attack.masks import clean_mask, pgd_losses, pgd_mask
from twinslib.base.sequential import certify_plan
from twinslib.certify.levels import Levels
from twinslib.certify.smoothing import collect_votes
from twinslib.compute.queue import sweep
from twinslib.compute.worker import Worker
from twinslib.data.augment import augment
from twinslib.nets.checkpoint import load_into, load_weights, save_weights
from twinslib.nets.fold import FoldedCopy
from twinslib.nets.norms import twinsify, wings
from twinslib.specs.choices import AUGMENTATIONS, LOSSES
from twinslib.specs.measure import CertifySpec
from twinslib.store.store import Store
from twinslib.train import noise


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_augmentation_never_waits(kind: str, monkeypatch) -> None:
    """Of any kind; the images are those of the CPU."""
    x = (255 * batch(3)[0]).to(torch.uint8)
    with absent(monkeypatch) as waits:
        want, there = augment(x, kind, torch.Generator().manual_seed(0)), x.to(META)
        before = waits.counted.copy()
        got = augment(there, kind, torch.Generator(META).manual_seed(0))
        assert waits.counted == before and torch.equal(got.cpu(), want)


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("loss", LOSSES)
def test_pgd_never_waits(loss: str, threat: str, monkeypatch) -> None:
    """Neither its random start nor its steps, against a folded copy that follows the network; the images are those of the CPU."""
    def attacked(device: torch.device | str) -> torch.Tensor:
        net, (x, y) = network().eval().to(device), (t.to(device) for t in batch(3))
        copy = FoldedCopy(net)
        copy.check(x)
        before = waits.counted.copy()
        for seed in range(2):
            copy.refresh()
            x = pgd.pgd(copy, x, y, eps=0.1, step_size=0.05, steps=2, threat=threat, loss=loss,
                        generator=torch.Generator(device).manual_seed(seed))
        assert waits.counted == before
        return x.cpu()

    with absent(monkeypatch) as waits:
        assert torch.equal(attacked("cpu"), attacked(META)) and waits.counted


@pytest.mark.parametrize("threat", THREATS)
def test_masks_and_losses(threat: str, monkeypatch) -> None:
    """Clean, under PGD with restarts, its losses, and under all of AutoAttack."""
    shorten(monkeypatch, 3, 9)
    options = {"eps": 0.02, "threat": threat, "batch_size": 6}
    steps = {"steps": 3, "step_size": 0.01}

    def measured(device: torch.device | str) -> list:
        net, (x, _) = FoldedCopy(network(classes=4).eval().to(device)), batch(6)
        x = (255 * x).to(torch.uint8).to(device)
        y = net(x / 255).argmax(1)
        waits.counted.clear()
        masks = [pgd_mask(net, x, y, restarts=2, **steps, **options)]
        assert device == "cpu" or 0 < waits.counted["read", "attack.pgd.pgd_robust_mask"] <= 2 * (3 + 3)
        return [*masks, clean_mask(net, x, y, batch_size=6), *pgd_losses(net, x, y, **steps, **options),
                *autoattack.autoattack_masks(net, x, y, **options).values(), autoattack.checks(net, x, y, **steps, **{
                    key: value for key, value in options.items() if key != "batch_size"})]

    with absent(monkeypatch) as waits:
        want, got = measured("cpu"), measured(META)
    assert want.pop() == got.pop() and all(torch.equal(*pair) for pair in zip(want, got, strict=True))


def test_sound_noise_never_waits(monkeypatch) -> None:
    """It is that of the CPU."""
    noises = []
    for device in ("cpu", META):
        levels = Levels(0.5, 1, torch.device("cpu"))
        with absent(monkeypatch) as waits:
            levels.threshold, levels.outcome = levels.threshold.to(device), levels.outcome.to(device)
            before, out = waits.counted.copy(), torch.empty(100, device=device)
            levels.fill(out, torch.Generator(device).manual_seed(0))
            assert waits.counted == before
            noises.append(out.cpu())
    assert torch.equal(*noises) and noises[0].std() > 50


def test_votes(monkeypatch, tmp_path: Path) -> None:
    """The host reads the counts once a round and sends what a round is made of, and nothing else."""
    plan = certify_plan(sigma=0.5, n=192, n0=64)

    def collected(device: torch.device | str, **options):
        net = FoldedCopy(network().eval().to(device))
        x, y = batch(3)
        return collect_votes(net, x.to(device), plan, labels=y.to(device), batch_size=64, **options)

    with absent(monkeypatch) as waits:
        want = collected("cpu")
        file = tmp_path / "votes.npz"
        assert not collected(META, file=file, stop=lambda: True).finished.all()
        waits.counted.clear()
        got = collected(META, file=file)
    rounds = waits.counted["read", "certify.smoothing.count"]
    assert 0 < rounds <= 3 and waits.counted["sent", "certify.smoothing.count"] == 2 * rounds
    for name in ("votes", "pilot", "chosen", "draws", "finished"):
        assert (getattr(got, name) == getattr(want, name)).all(), name


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")  # the device keeps no values
def test_statistics_and_files(monkeypatch, tmp_path: Path) -> None:
    """Statistics under noise, how far they are from those stored, and weights through a file."""
    images = (255 * batch(5)[0]).to(torch.uint8)

    def numbers(device: torch.device | str) -> tuple:
        net = twinsify(network()).eval().to(device)
        made = noise.reestimated(net, images.to(device), 0.25, seed=3, batch_size=2)
        path = tmp_path / str(device)
        save_weights(path, made, {})
        again = load_into(twinsify(network(1)).to(device), load_weights(path)[0]).eval()
        x = images.to(device)
        with wings(again, 2), torch.no_grad():
            logits = again(x / 255)
        return logits.cpu(), noise.mismatch(again, x, 0.5, batch_size=2)

    with absent(monkeypatch):
        (want, far), (got, found) = numbers("cpu"), numbers(META)
    assert torch.equal(want, got) and far == found


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_whole_tasks(monkeypatch, tmp_path: Path) -> None:
    """A source, a fine-tune that starts from it, masks and votes: the files of a sweep are those of the CPU."""
    shorten(monkeypatch, 3, 9)
    jobs = tiny_jobs(("twins_at",), epochs=1)
    certify = CertifySpec(images=2, sigma=0.25, n=128, restat_images=20)
    jobs[1] = replace(jobs[1], certs=(certify,))
    with absent(monkeypatch):
        stores = [Store("tiny", root=tmp_path / str(device)) for device in ("cpu", META)]
        for store, device in zip(stores, ("cpu", META), strict=True):
            assert not sweep(Worker(store, device), jobs).left
    want, got = map(contents, stores)
    assert want.keys() == got.keys() and len(want) > 8
    for name, value in want.items():
        if name.startswith("votes"):  # they say whose noise they are of
            assert value.pop("settings") != got[name].pop("settings")
        assert value == got[name], name
