"""Your own network: what the short calls give is what the engine gives; they go on after a kill; what cannot be is refused."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import twinslib
from twinslib import __main__ as cli
from twinslib import api, cards, finished
from twinslib.attack import masks
from twinslib.base.files import write_json, write_npz
from twinslib.base.sequential import certify_plan
from twinslib.certify.smoothing import collect_votes
from twinslib.compute.networks import make_network, with_wings
from twinslib.compute.worker import Worker
from twinslib.data import given, sets
from twinslib.data.packed import load_packed
from twinslib.nets import heads, norms
from twinslib.nets.checkpoint import load_weights, save_weights, tensor_hash
from twinslib.nets.fold import FoldedCopy
from twinslib.nets.models import Classifier, make_model
from twinslib.specs.jobs import Task
from twinslib.specs.measure import CertifySpec, EvalSpec
from twinslib.specs.method import METHODS, method
from twinslib.specs.reading import canonical_json
from twinslib.specs.run import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec, WeightsSpec
from twinslib.store.store import Store, about
from twinslib.train.loop import fit

SHORT = {"epochs": 2, "batch_size": 8, "lr": 0.02, "steps": 2}
EPS = 8 / 255


def network(classes: int = 4, seed: int = 0) -> nn.Module:
    return make_model("tiny_resnet", classes, seed=seed).eval()


def pair(n: int = 20, size: int = 16, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, S, S, 3) uint8 and labels."""
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8), np.arange(n) % classes


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_lazy() -> None:
    """The functions are offered for completion, and stay what they are once rooms are imported."""
    assert {"fine_tune", "robust_accuracy", "certify", "export", "load"} == set(twinslib.__all__) <= set(dir(twinslib))
    from twinslib.certify import smoothing

    assert twinslib.certify is api.certify and smoothing.collect_votes is collect_votes
    with pytest.raises(AttributeError):
        twinslib.nothing  # noqa: B018


@pytest.mark.parametrize(("name", "classes", "switches"), [
    ("twins_at", 4, {"twins_weight": 0.4}), ("at", 5, {}), ("distill", 4, {}), ("linear_probe", 5, {})])
def test_fine_tune_is_the_loop(name: str, classes: int, switches: dict) -> None:
    """Weights equal those of `fit` with specs written by hand, with the head kept (4 classes) or replaced."""
    given_network = network(classes)
    before = tensor_hash(given_network.state_dict())
    tuned = twinslib.fine_tune(given_network, pair(), name, **SHORT, validation=4, seed=3, device="cpu", **switches)
    spec = RunSpec(data=DataSpec(name="any", image_size=16, val_images=4), model=ModelSpec(arch="tiny_resnet"),
                   method=method(name, **switches), optim=OptimSpec(epochs=2, batch_size=8, lr=0.02), keep_head=classes == 4,
                   attack=AttackSpec(eps=EPS, step_size=2.5 * EPS / 2, steps=2), weights=WeightsSpec(file="x", classes=classes),
                   seed=3)
    x, y = torch.from_numpy(pair()[0]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(pair()[1])
    packed = api.PackedSet("any", x, y, x[:0], y[:0], tuple("0123"))
    model = network(classes) if classes == 4 else heads.replace_head(network(classes), 4, image_size=16, seed=3)
    model = norms.twinsify(model) if spec.method.two_branches else model
    fit(spec, model, sets.to_device(packed, sets.make_split(packed, val_images=4), "cpu"), device="cpu", start=network(classes))
    assert equal(tuned, norms.to_plain(model)) and not any(m.training for m in tuned.modules())
    assert tensor_hash(given_network.state_dict()) == before != tensor_hash(tuned.state_dict())


@pytest.mark.parametrize("step", [1, 2, 5])
def test_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ended after any step, the same call gives the same bits; a third one trains nothing; another seed starts its own run."""
    arguments = dict(SHORT, validation=pair(4), keep_best=True, folder=tmp_path, device="cpu")
    undisturbed = twinslib.fine_tune(network(), pair(), **arguments | {"folder": None})
    own = api.loop.fit

    def killed(*args: object, on_step: Callable, **options: object) -> object:
        def end(done: int, total: int) -> None:
            if done == step:
                raise KeyboardInterrupt

        return own(*args, on_step=end, **options)

    monkeypatch.setattr(api.loop, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        twinslib.fine_tune(network(), pair(), **arguments)
    assert len(list(tmp_path.glob("*.ckpt"))) == (step > 3)
    monkeypatch.setattr(api.loop, "fit", own)
    assert equal(twinslib.fine_tune(network(), pair(), **arguments), undisturbed)
    monkeypatch.setattr(api.loop, "fit", None)
    assert equal(twinslib.fine_tune(network(), pair(), **arguments), undisturbed)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    for change in ({"seed": 1}, {"network": network(seed=1)}, {"images": pair(21)}):
        call = {"network": network(), "images": pair()} | arguments | change
        with pytest.raises(TypeError, match="NoneType"):
            twinslib.fine_tune(call.pop("network"), call.pop("images"), **call)


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name: str) -> None:
    """Each method of the table trains a network of another task, or is said to be another one from another start."""
    short = {"epochs": 1, "batch_size": 8, "steps": 1, "augment": "none", "source": pair(10, size=8, classes=5)}
    switches = {"source_classes": 2} if name == "joint_uot" else {}
    try:
        tuned = twinslib.fine_tune(network(5), pair(9, size=8), name, **short, **switches)
        assert tuned.network.fc.out_features == 4 and type(tuned.network.bn1) is nn.BatchNorm2d
    except ValueError as error:
        assert "from another start" in str(error) and name not in ("natural", "at", "trades", "twins_at", "twins_trades", "aft")


def test_noise_and_schedules() -> None:
    """A name stands for its schedule and length; noise makes a network for certification."""
    assert [api._schedule(name) for name in ("at", "twins_at", "at_cosine", "aft", "aft_twins", "aft_one_cycle")] == [
        "piecewise", "piecewise", "cosine", "slow_fast", "slow_fast", "one_cycle"]
    noisy = twinslib.fine_tune(network(), pair(), "natural", **SHORT, noise=(0, 0.25))
    assert not equal(noisy, twinslib.fine_tune(network(), pair(), "natural", **SHORT))


def test_robust_accuracy_is_the_engines() -> None:
    """Value and masks are those of the attacks on the first test images in the order in which runs are evaluated."""
    model, packed = network(10), load_packed("toy_target")
    rows = sets.make_split(packed).test[:30]
    x, y = packed.test_images[rows], packed.test_labels[rows]
    given_to, how = (FoldedCopy(model), x, y), {"eps": 0.02, "batch_size": 20}
    want = {"none": masks.clean_mask(*given_to, batch_size=20),
            "pgd3": masks.pgd_mask(*given_to, step_size=0.05 / 3, steps=3, **how),
            **api.autoattack.autoattack_masks(*given_to, attacks=("apgd-ce",), **how)}
    order = np.argsort(rows.numpy())
    for attack, mask in want.items():
        got = twinslib.robust_accuracy(model, "toy_target", attack=attack, eps=0.02, n=30, batch_size=20, device="cpu")
        assert (got.mask == mask.numpy()[order]).all() and (got.index == rows.numpy()[order]).all()
        assert float(got) == got.mask.mean() and got.low <= got.value <= got.high and "of 30 images, " in repr(got)
    assert "under pgd3, linf 5.1/255" in repr(twinslib.robust_accuracy(model, "toy_target", steps=3, eps=0.02, n=2))
    with pytest.warns(UserWarning, match="did not pass: .*gradient_nonzero"):
        nn.init.zeros_(model.network.fc.weight)
        twinslib.robust_accuracy(model, pair(classes=1), steps=1)


def test_certify_is_the_engines(tmp_path: Path) -> None:
    """Radii are those of the votes; a file holds them, so that a second call draws nothing and asks the network nothing new."""
    model, (x, y) = network(), pair()
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    want = collect_votes(FoldedCopy(model), images, certify_plan(sigma=0.25, n=100), labels=y).certified()
    for _ in range(2):
        got = twinslib.certify(model, (x, y), sigma=0.25, n=100, file=tmp_path / "votes.npz", device="cpu")
        assert all(np.array_equal(a, b) for a, b in zip(got[:4], want[:4], strict=True))
    some = twinslib.certify(model, (x, y), sigma=0.25, n=100, max_images=5, file=tmp_path / "votes.npz", device="cpu")
    assert (some.radius == want.radius[some.index]).all() and got.accuracy(0).n == 20
    assert "certified at radius 0" in repr(got) and "of 20 images" in repr(got)
    few = twinslib.certify(model, (x, y), sigma="1/4", n=np.int64(100), radii=np.array([0, 0.1]), max_images=2)
    assert len(few.radius) == 2


def test_best_of_joint_training() -> None:
    """What is asked of the run is not asked of the one that its source stands for."""
    twinslib.fine_tune(network(), pair(), "joint", source=pair(), validation=4, keep_best=True, **SHORT)


def test_leaves_what_is_global(tmp_path: Path) -> None:
    """Torch's random state comes out as it went in, and a default of float64 does no harm."""
    model, state = network(), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        tuned = twinslib.fine_tune(model, pair(), **SHORT, augment="resized_crop_flip")
        found = twinslib.certify(tuned, pair(), sigma=0.1, n=20, max_images=2)
        twinslib.export(tuned, tmp_path / "net.safetensors", images=pair(), measured={"votes": found})
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state) and "tiny_resnet" in (tmp_path / "net.md").read_text()


def test_what_is_on_around_it() -> None:
    """As in many notebooks: training and attacks turn gradients on and reduced precision off for themselves."""
    def result() -> tuple[nn.Module, float]:
        tuned = twinslib.fine_tune(network(), pair(), "twins_at", **SHORT, device="cpu")
        return tuned, twinslib.robust_accuracy(tuned, pair(), steps=1, device="cpu").value

    alone, value = result()
    for around in (torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with around:
            tuned, again = result()
            assert equal(tuned, alone) and again == value
    assert not equal(alone, network()) and torch.is_grad_enabled()


class Brightest(nn.Module):
    """A network without a tensor of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_networks_without_weights() -> None:
    """A rule without parameters is measured like any network."""
    images = np.zeros((6, 4, 4, 3), np.uint8) + np.eye(3, dtype=np.uint8).repeat(2, 0)[:, None, None] * 200, [0, 0, 1, 1, 2, 2]
    assert float(twinslib.robust_accuracy(Brightest(), images)) == 1
    assert twinslib.certify(Brightest(), images, sigma=0.1, n=100).accuracy(0.1).accuracy == 1


class Scaled(nn.Module):
    """A network with a number and a tensor that are in no state dict."""

    def __init__(self, scale: float, mean: float) -> None:
        super().__init__()
        self.network, self._scale, self.words = PLAIN, scale, {"a", "b", "c", "d"}
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("mask", torch.full((4,), -torch.inf))  # as of attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x - self.mean) * self._scale)


def test_equal_weights_of_other_layers(tmp_path: Path) -> None:
    """In one folder, networks that differ in an activation, in upsampling or in a constant alone are runs of their own."""
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    plain = nn.Sequential(*layers)
    other = nn.Sequential(*layers[:2], nn.SiLU(), *plain[3:])
    constants = [Scaled(*of) for of in ((1, 0.5), (2, 0.5), (1, 0.25), (1, 0.5))]
    for model in (plain, other, Classifier(plain), Classifier(plain, upsample=32), *constants):
        twinslib.fine_tune(model, pair(), "at", **SHORT, folder=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 7


class Aided(nn.Module):
    """A network that gives more than logits in training, as torchvision's with auxiliary heads."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: torch.Tensor) -> object:
        return (self.network(x), x) if self.training else self.network(x)


def test_more_than_logits_in_training() -> None:
    """Such a network is refused by what it gives."""
    with pytest.raises(TypeError, match="logits alone, got a tuple"):
        twinslib.fine_tune(Aided(), (X, Y), "at", **SHORT)


class Photos(list):
    """A data set of Pillow images and labels, as torchvision's, that names its classes."""

    classes = ["cat", "dog"]


def test_forms_of_images() -> None:
    """Whatever holds them, pixels and labels are the same."""
    x, y = pair(6, classes=2)
    floats = torch.from_numpy(x).permute(0, 3, 1, 2) / 255
    photos = Photos((Image.fromarray(image), int(label)) for image, label in zip(x, y, strict=True))
    tensors = TensorDataset(floats, torch.from_numpy(y))
    forms = [(x, y), [x, y.tolist()], (x.transpose(0, 3, 1, 2), y.astype(np.uint8)), (floats, torch.from_numpy(y)),
             (x / 255, y), photos, tensors, DataLoader(tensors, batch_size=4, shuffle=True),
             DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=4), list(zip(x, y, strict=True))]
    for form in forms:
        got = given.read(form)
        assert torch.equal(got.x, torch.from_numpy(x).permute(0, 3, 1, 2)) and got.y.tolist() == y.tolist()
        some = given.draw(form, 3)
        assert torch.equal(some.x, got.x[some.index]) and len(some.y) == 3
    assert given.read(photos).class_names == ("cat", "dog")
    some = given.read(DataLoader(tensors, batch_size=2, sampler=SubsetRandomSampler([1, 4])))
    assert sorted(some.x[:, 0, 0, 0].tolist()) == sorted(x[[1, 4], 0, 0, 0].tolist())
    assert len(given.read("toy_source").y) > len(given.draw("toy_source").y)
    with pytest.warns(UserWarning, match="none of the 256 levels"):
        given.read((floats * 0.7, y))


def flickering() -> object:
    """A data set with a random transform in it."""
    class Random(Photos):
        def __getitem__(self, i: int) -> tuple:
            return torch.rand(3, 8, 8), 0

    return Random(range(4))


X, Y = pair(8)
PLAIN = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
REFUSED = [
    ({"images": X}, TypeError, "labels are missing"),
    ({"images": 7}, TypeError, "expected images as a data set"),
    ({"images": "toy_sorce"}, FileNotFoundError, "toy_source"),
    ({"images": (X, Y[:3])}, ValueError, "one label for each of 8 images, got 3"),
    ({"images": (X, Y.astype(float))}, TypeError, "integer labels"),
    ({"images": (X, np.eye(8))}, TypeError, "argmax"),
    ({"images": (X, Y - 1)}, ValueError, "labels from 0 on, got -1"),
    ({"images": (X, Y + 1)}, ValueError, "number the classes from 0"),
    ({"images": (X[:0], Y[:0])}, ValueError, "at least one image"),
    ({"images": (X.transpose(1, 2, 3, 0), Y)}, ValueError, "one label for each"),
    ({"images": (X.transpose(3, 0, 1, 2), Y[:3])}, ValueError, "shape .N, 3, S, S"),
    ({"images": (X[..., :1], Y)}, ValueError, "repeat the grey channel"),
    ({"images": (X[:, :8], Y)}, ValueError, "square images, got 8 by 16"),
    ({"images": (X.astype(int), Y)}, TypeError, "to.torch.uint8"),
    ({"images": (X.astype(float), Y)}, ValueError, "divide by 255"),
    ({"images": (X / 127.5 - 1, Y)}, ValueError, "pass mean and std"),
    ({"images": (X / 255 / 255, Y)}, ValueError, "scale once only"),
    ({"images": flickering()}, ValueError, "leave random transforms out"),
    ({"images": [(X[0], 0), (X[1][:8, :8], 1), (X[2], 1)]}, ValueError, "images of one size"),
    ({"images": [(X[0], 0, 1)]}, TypeError, "pairs .image, label."),
    ({"network": "resnet18"}, TypeError, "torch.nn.Module"),
    ({"network": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 4))}, ValueError, "takes images of shape"),
    ({"network": PLAIN}, ValueError, "batch norm for method 'twins_at'.*at, trades or l2sp"),
    ({"mean": (0.5, 0.5, 0.5)}, ValueError, "both or neither"),
    ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, ValueError, "normalises already"),
    ({"method": "at_random"}, ValueError, "which is 'at'"),
    ({"method": "joint"}, ValueError, "expected source"),
    ({"epoch": 3}, ValueError, "did you mean 'epochs'"),
    ({"new_head": False, "network": network(7)}, ValueError, "of 4 classes with new_head=False, got one of 7"),
    ({"num_classes": 3}, ValueError, "labels in 0..2"),
    ({"validation": 9}, ValueError, "val_images=9"),
    ({"keep_best": True}, ValueError, "keep_best"),
    ({"noise": 0.25}, ValueError, "objective natural with noise"),
    ({"epochs": 0}, ValueError, "epochs > 0, got 0"),
    ({"step_size": 0}, ValueError, "step_size above 0"),
    ({"images": (X, Y[:, None])}, TypeError, r"take labels\[:, 0\]"),
    ({"images": []}, ValueError, "at least one image, got none"),
    ({"images": (X, Y * 0)}, ValueError, "at least 2 classes, got 1; add"),
    ({"validation": pair(4, size=8)}, ValueError, "validation images of 16 pixels, .* got 8"),
    ({"network": torch.jit.script(PLAIN)}, TypeError, "a TorchScript program"),
    ({"network": PLAIN, "mean": 0.5, "std": 0.5}, TypeError, "mean to be a sequence"),
    ({"device": "cuda:99"}, ValueError, "a device that is there, .* got 'cuda:99'"),
    ({"folder": __file__}, ValueError, "a file that can be written"),
    ({"eps": None}, TypeError, "eps to be a number, got None"),
    ({"steps": None}, TypeError, "steps to be an integer of at least 0"),
    ({"num_classes": 4.0}, TypeError, "num_classes to be an integer of at least 1"),
    ({"noise": "mixed"}, TypeError, "noise to be a number"),
    ({"validation": True}, TypeError, "validation to be an integer"),
    ({"network": nn.Flatten(), "method": "at"}, ValueError, "ends in a linear layer"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED, ids=[m for *_, m in REFUSED])
def test_refused(change: dict, error: type, message: str) -> None:
    """Each wrong argument by an error that says what to do, before any training."""
    call = {"network": network(), "images": (X, Y), **SHORT, **change}
    with pytest.raises(error, match=message):
        twinslib.fine_tune(call.pop("network"), call.pop("images"), **call)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: twinslib.robust_accuracy(network(), (X, Y), attack="pdg20"), "name of an attack"),
    (lambda: twinslib.robust_accuracy(network(), (X, Y), n=9), "at most 8 images"),
    (lambda: twinslib.robust_accuracy(network(2), (X, Y)), "fine-tune it on these images first"),
    (lambda: twinslib.robust_accuracy(network(), (X, Y), eps=0), "eps > 0"),
    (lambda: twinslib.robust_accuracy(network(2), (X, Y % 2), attack="autoattack"), "at least 4 classes"),
    (lambda: twinslib.robust_accuracy(network(), (X, Y), steps=0), "steps to be an integer of at least 1"),
    (lambda: twinslib.export(network(), f"{__file__}/net.safetensors", images=(X, Y)), "a file that can be written"),
    (lambda: twinslib.certify(network(), (X, Y), sigma=0), "sigma"),
    (lambda: twinslib.certify(network(2), (X, Y), sigma=0.25), "fine-tune it"),
    (lambda: twinslib.robust_accuracy(network(), (X, Y), device=0.5), "a device that is there"),
])
def test_measurements_refused(call: Callable, message: str) -> None:
    """So do the measurements."""
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: twinslib.robust_accuracy(network(), (X, Y), attack=20), "attack as text, got 20"),
    (lambda: twinslib.load(5), "the hash of a run as text, got 5"),
    (lambda: twinslib.export(network(), "net.safetensors", images=(X, Y), measured=[0.5]), "measured as a mapping"),
])
def test_other_kinds_refused(call: Callable, message: str) -> None:
    """And values of another kind."""
    with pytest.raises(TypeError, match=f"^expected {message}"):
        call()


def finish(store: Store, spec: RunSpec) -> nn.Module:
    """Leave what a finished run leaves, with random weights and statistics; returns its network, with its wings."""
    model, generator = with_wings(spec, make_network(spec, 10)), torch.Generator().manual_seed(1)
    for name, tensor in model.network.state_dict().items():
        if "running" in name or tensor.ndim == 1 and tensor.is_floating_point():
            tensor.uniform_(0.5, 1, generator=generator)
    path = store.work_path(f"{spec.hash}.safetensors")
    save_weights(path, model, {"spec": canonical_json(spec)})
    write_json(store.root / "runs" / f"{spec.hash}.json", {
        "spec": json.loads(canonical_json(spec)), "classes": 10, "epochs": [], "weights": tensor_hash(load_weights(path)[0]),
        "provenance": {"commit": "0" * 40, "seconds": 7200, "versions": {"torch": "2"}, "device": "cpu"}})
    return model.eval()


@pytest.mark.parametrize(("arch", "norm", "name", "more"), [
    ("tiny_resnet", "batch", "twins_at", {}), ("thin_resnet10", "group", "at", {"width": 8}),
    ("torchvision/resnet18", "batch", "twins_trades", {"upsample": 64}), ("resnet20", "batch", "at", {"mean": (0.5, 0.5, 0.4)})])
def test_export_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arch: str, norm: str,
                         name: str, more: dict) -> None:
    """A finished run is loaded by a prefix of its hash, and exported so that the lines on its card give the same logits."""
    monkeypatch.chdir(tmp_path)
    store = Store("own")
    spec = RunSpec(data=DataSpec(name="toy_target", image_size=32), model=ModelSpec(arch=arch, norm=norm, **more),
                   method=method(name), optim=OptimSpec(epochs=1))
    trained, e = finish(store, spec), EvalSpec(kind="pgd", images=8, eps=EPS)
    write_npz(store.path(Task(spec, e)), {e.attack_name: np.arange(8) < 3}, about(Task(spec, e)))
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        want = trained(images)
        assert torch.allclose(twinslib.load(spec.hash[:4], preset="own", device="cpu")(images), want)
        assert cli.main(["export", spec.hash, "net.safetensors", "--preset", "own"]) == 0
        assert capsys.readouterr().out.split() == ["net.safetensors", "net.json", "net.md"]
        text = Path("net.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        names = {"images": images}
        exec(code, names)
    assert want.std(0).min() > 1e-3 and torch.allclose(names["logits"], want, rtol=1e-4, atol=1e-5)
    assert ("twinslib" in code) == (arch == "resnet20")
    card = json.loads(Path("net.json").read_text())
    assert card["spec"] == json.loads(canonical_json(spec)) and card["accuracies"][0]["accuracy"] == 3 / 8
    assert "| pgd20, linf 8/255 | 37.5% | 8.5% to 75.5% | 8 |" in text and card["weights_as_measured"]


def test_weights_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Runs are told apart by their hash; where weights are lost, the message says how to make them again, and that does."""
    store = Store("own")
    data = DataSpec(name="toy_target", image_size=16, train_images=30)
    optim = OptimSpec(epochs=1, batch_size=10, lr=0.01)
    source = RunSpec(data=data, model=ModelSpec(arch="tiny_resnet"), method=method("natural"), optim=optim)
    spec = dataclasses.replace(source, method=method("natural"), source=source, seed=1)
    worker = Worker(store, "cpu")
    for one in (source, spec):
        worker.do(Task(one), ship=one is source, stop=lambda: False, on_step=lambda done, total: None)
    c = CertifySpec(sigma=0.25, images=4, n=100)
    worker.do(Task(spec, c), ship=False, stop=lambda: False, on_step=lambda done, total: None)
    for run, message in (("", "2 finished runs"), ("zz", "with which none begin")):
        with pytest.raises(ValueError, match=message):
            twinslib.load(run, preset="own")
    before = twinslib.load(spec.hash, preset="own", device="cpu")
    for folder in ("work", "weights"):
        for path in (store.root / folder).glob("*.safetensors"):
            path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"load\('{spec.hash}', 'own', train=True\)"):
        twinslib.load(spec.hash, preset="own")
    assert equal(twinslib.load(spec.hash, preset="own", train=True, device="cpu"), before)
    files = finished.export(spec.hash, tmp_path / "net.safetensors", "own")
    card = json.loads(files[1].read_text())
    assert [row["radius"] for row in card["certified"]] == list(finished.RADII) and card["certified"][0]["images"] == 4
    assert "| 0.25 | 0.5 |" in files[2].read_text()
    files[0].unlink()
    with pytest.raises(FileExistsError, match="beside net.safetensors, got net.json, net.md; choose another name"):
        finished.export(spec.hash, files[0], "own")
    assert cli.main(["export", spec.hash, str(tmp_path / "net.onnx"), "--preset", "own"]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err


def test_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Without the packages of torch's exporter it is said which are missing; with them the file gives the same logits."""
    store = Store("own")
    spec = RunSpec(data=DataSpec(name="toy_target", image_size=16), model=ModelSpec(arch="tiny_resnet"), method=method("at"),
                   optim=OptimSpec(epochs=1))
    trained, x = finish(store, spec), torch.rand(3, 3, 16, 16)
    with monkeypatch.context() as patch:
        patch.setattr(cards.importlib.util, "find_spec", lambda package: None)
        assert cli.main(["export", spec.hash, str(tmp_path / "net.safetensors"), "--preset", "own", "--onnx"]) == 2
    assert "pip install onnx onnxscript" in capsys.readouterr().err and not list(tmp_path.glob("net.*"))
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = finished.export(spec.hash, tmp_path / "net.safetensors", "own", onnx=True)[3]
    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], {"image": x.numpy()})
    assert np.allclose(logits, trained(x).detach(), rtol=1e-3, atol=1e-4)
