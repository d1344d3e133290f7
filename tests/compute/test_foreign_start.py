"""Networks of others as start: read safely, kept with their head, refused by name where they do not fit."""

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from tests.compute.made import compute, networks
from twinslib.attack.masks import clean_mask
from twinslib.base import paths
from twinslib.base.reference import published_network
from twinslib.compute.check import check
from twinslib.data.packed import load_packed
from twinslib.nets import foreign
from twinslib.nets.checkpoint import load_into, load_weights
from twinslib.nets.fold import FoldedCopy
from twinslib.nets.models import make_model
from twinslib.specs import choices
from twinslib.specs.jobs import Job, Task
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec, WeightsSpec
from twinslib.store.store import Store

DATA = DataSpec(name="toy_target", image_size=16, augment="crop", train_images=200, val_images=100)
OPTIM = OptimSpec(epochs=1, batch_size=50, lr=0.05, val_steps=2)
NATURAL = RunSpec(data=DATA, model=ModelSpec(arch="tiny_resnet"), method=method("natural"), optim=replace(OPTIM, epochs=12))
CLEAN = EvalSpec(kind="clean", images=100)
START = replace(CLEAN, at="start")
PUBLIC = paths.data_dir() / "weights" / "resnet20-12fca82f.th"  # of the user, before tests get a folder of their own
CIFAR10 = paths.data_dir() / "cifar10.npz"


def foreign_file(name: str = "foreign.th", classes: int = 10, **options) -> WeightsSpec:
    return WeightsSpec(file=name, classes=classes, **options)


def tuned(**changes) -> RunSpec:
    return RunSpec(**{"data": DATA, "model": ModelSpec(arch="tiny_resnet"), "method": method("aft_public"), "optim": OPTIM,
                      "attack": AttackSpec(eps=0.01, step_size=0.01, steps=1), "keep_head": True, "weights": foreign_file(),
                      **changes})


@pytest.fixture(scope="module")
def natural(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The state of a small natural network that knows its images, without its normalisation."""
    torch.set_num_threads(1)
    store = Store("tiny", root=tmp_path_factory.mktemp("natural"))
    compute(store, [Job("tiny", NATURAL, (CLEAN,), ship=True)])
    state = load_weights(store.weights_path(NATURAL))[0]
    return {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}


def put(state: object, wrap: bool = True, name: str = "foreign.th") -> Path:
    """As others publish it: a torch file with the names of a data-parallel network, under state_dict."""
    path = paths.data_dir() / "weights" / name
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrap else state, path)
    return path


def refused(store: Store, message: str, spec: RunSpec, error: type = ValueError) -> None:
    """Before any work, by name and with what to do."""
    with pytest.raises(error, match=message):
        compute(store, [Job("tiny", spec, (CLEAN,))])
    assert not (store.root / "runs").exists()


def head(store: Store, spec: RunSpec) -> torch.Tensor:
    return networks(store).origin(spec).network.fc.weight


def scaled(natural: dict) -> dict:
    """The same network for images normalised otherwise, with its constants: it gives the same logits."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (choices.IMAGENET_MEAN, choices.IMAGENET_STD))
    scale = torch.tensor([0.5, 0.8, 1.0]).view(1, 3, 1, 1)  # (x - m) / s with s = std * scale, so the weights times scale
    return natural | {"conv1.weight": natural["conv1.weight"] * scale, "normalizer.new_mean": mean,
                      "normalizer.new_std": std * scale}


def test_the_start_is_kept_with_its_head(store: Store, natural: dict) -> None:
    """Names of wrappers are taken off, nothing is replaced: evaluated as it is the start gives the foreign network's answers."""
    put(natural)
    spec = tuned()
    assert not compute(store, [Job("tiny", spec, (CLEAN, START))]).failed
    start, data = networks(store).trained(spec, "start").state_dict(), networks(store).data(DATA)
    assert all(torch.equal(start[f"network.{k}"], v) for k, v in natural.items())
    plain = load_into(make_model("tiny_resnet", 10, seed=0), natural).eval()
    right = (plain(data.test_x[:100].float() / 255).argmax(1) == data.test_y[:100]).numpy()
    assert (store.masks(spec, START)["none"] == right).all()
    assert not torch.equal(networks(store).trained(spec).network.fc.weight, natural["fc.weight"])


def test_a_start_whose_weights_are_lost_is_trained_again(store: Store) -> None:
    """To measure a start network after its run is finished, its weights are needed once more."""
    origin = replace(NATURAL, optim=replace(OPTIM, epochs=2))
    run = tuned(method=method("aft"), weights=None, source=origin)
    compute(store, [Job("tiny", run, (CLEAN,))])
    late = Job("tiny", run, (CLEAN, START))
    assert store.missing([late]) == [Task(run, START)]
    store.weights_path(origin).unlink()
    assert store.missing([late]) == [Task(origin), Task(run, START)]
    assert not compute(store, [late]).failed and not store.missing([late])


def as_folder(natural: dict) -> str:
    """As the Hugging Face hub offers networks, under a name that ends in a day."""
    folder = paths.data_dir() / "weights" / "net-20230115"
    folder.mkdir()
    save_file({k: v.clone() for k, v in natural.items()}, folder / "model.safetensors")
    return folder.name


def with_digits(natural: dict) -> str:
    """As torch.hub names files: it ends in digits of the file's SHA-256."""
    path = put(natural)
    return path.rename(path.with_name(f"foreign-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.th")).name


@pytest.mark.parametrize("offer", [as_folder, with_digits])
def test_forms_in_which_networks_are_offered(store: Store, natural: dict, offer: Callable[[dict], str]) -> None:
    """A folder or file, whose name may end in a day or in the digits of its own contents."""
    spec = tuned(weights=foreign_file(offer(natural)))
    check(networks(store), [Task(spec)])
    assert torch.equal(head(store, spec), natural["fc.weight"])


def test_a_file_is_what_its_name_says(store: Store, natural: dict) -> None:
    """Another network under the digits of a name is refused."""
    shutil.copy(put(natural), paths.data_dir() / "weights" / "foreign-12fca82f.th")
    refused(store, "begins with 12fca82f, as the name foreign-12fca82f.th says, got ",
            tuned(weights=foreign_file("foreign-12fca82f.th")))


def test_key_and_prefix_choose_a_network(store: Store, natural: dict) -> None:
    """Of several in one file; without them the choice is refused."""
    other = {k: v + 1 for k, v in natural.items()}
    both = {f"{p}.{k}": v for p, s in (("a", other), ("b", natural)) for k, v in s.items()}
    put({"state_dict": other, "ema": both}, wrap=False)
    assert torch.equal(head(store, tuned(weights=foreign_file(key="ema", prefix="b"))), natural["fc.weight"])
    refused(store, "several: state_dict, ema; choose one by key", tuned())
    refused(store, "'a.', 'b.'; choose one by prefix", tuned(weights=foreign_file(key="ema")))


@pytest.mark.parametrize("name", ["aft_public", "l2sp", "feature_distill"])
def test_a_backbone_is_enough_where_the_head_is_replaced(store: Store, natural: dict, name: str) -> None:
    """A headless start trains; where its head is kept, or taught from, it is refused before any work."""
    put({k: v for k, v in natural.items() if not k.startswith("fc.")})
    for spec in (tuned(), tuned(keep_head=False, method=method("distill"))):
        refused(store, "foreign.th: expected the tensors of SmallResNet.*network.fc.weight", spec)
    spec = tuned(keep_head=False, method=method(name))
    assert not compute(store, [Job("tiny", spec, (CLEAN,))]).failed and "right" not in store.run(spec)["start"]


def shuffled(state: dict) -> dict:
    """The same network with its classes in another order, one further each: right for no image of the true order."""
    return state | {key: state[key].roll(1, 0) for key in ("fc.weight", "fc.bias")}


def fresh(classes: int) -> dict:
    return make_model("tiny_resnet", classes, seed=0).network.state_dict()


@pytest.mark.parametrize(("make", "change", "message"), [
    (lambda s: fresh(10), {}, "a network that knows toy_target in foreign.th, got one at chance: .* of 100 images right, with 10 "
     "classes; check the order of its classes and its normalisation"),
    (shuffled, {}, "that knows toy_target in foreign.th, got one at chance"),
    (dict, {"weights": foreign_file(classes=7)}, "foreign.th: expected a head of 7 classes in .*, got 10"),
    (lambda s: fresh(7), {"weights": foreign_file(classes=7)},
     "a start network of the 10 classes of toy_target with keep_head, got one of 7; leave keep_head out"),
    (scaled, {"model": ModelSpec(arch="tiny_resnet", mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)), "keep_head": False},
     r"foreign.th: expected normalisation with mean \[0.4, .* got mean \[0.485, .*leave"),
    (lambda s: torchvision.models.resnet18(num_classes=10).state_dict(),
     {"keep_head": False, "model": ModelSpec(arch="resnet18")},
     r"foreign.th: .*got another architecture.*\(arch torchvision/resnet18\)"),
], ids=["random", "class order", "classes", "other head", "normalisation", "torchvision"])
def test_what_does_not_fit_is_refused(store: Store, natural: dict, make, change: dict, message: str) -> None:
    """At chance, of another architecture, number of classes or normalisation, whether or not its head is kept."""
    put(make(natural))
    refused(store, message, tuned(**change))


def test_a_missing_file_is_named(store: Store) -> None:
    """With the folder it belongs in and where its publisher offers it."""
    refused(store, "weights foreign.th in .*weights, .* from example.org", tuned(weights=foreign_file(origin="example.org")),
            FileNotFoundError)


def test_a_checkpoint_brings_its_normalisation(store: Store, natural: dict, caplog) -> None:
    """It is that of the start, of training and of what is stored, and kept with the run; the spec stays what it was."""
    caplog.set_level(logging.INFO)
    state, spec = scaled(natural), tuned()
    put(state)
    std = state["normalizer.new_std"].flatten().tolist()
    assert not compute(store, [Job("tiny", spec, (CLEAN, START))]).failed
    trained = networks(store).trained(spec)
    for model in (networks(store).origin(spec), networks(store).start(spec), trained, FoldedCopy(trained)):
        assert model.normalize.std.flatten().tolist() == pytest.approx(std)
    x, plain = torch.rand(20, 3, 16, 16), load_into(make_model("tiny_resnet", 10, seed=0), natural).eval()
    assert torch.allclose(networks(store).origin(spec).eval()(x), plain(x), atol=1e-3)
    start = store.run(spec)["start"]
    assert start["std"] == pytest.approx(std, abs=1e-6) and (start["images"], start["of"]) == (100, "validation")
    assert start["right"] > 20 and store.run(spec)["spec"].get("model") == {"arch": "tiny_resnet"}
    assert f"start network foreign.th: {start['right']} of 100 validation images of toy_target right" in caplog.text
    assert "normalisation of the checkpoint in place of ImageNet's" in caplog.text


@pytest.mark.parametrize(("file", "accuracy", "warning"), [
    ("foreign.th", None, None), ("foreign.th", 0.3, None), ("foreign.th", 0.999, "99.9 %; check the order of its classes"),
    (PUBLIC.name, None, "91.7 %"),  # by its name in reference/networks.csv
])
def test_a_start_far_below_what_is_published(store: Store, natural: dict, caplog, monkeypatch, file, accuracy, warning) -> None:
    """Better than chance is not enough to pass in silence where it is known what the network should do."""
    monkeypatch.setattr(foreign, "check_name", lambda path: None)
    put(natural, name=file)
    check(networks(store), [Task(tuned(weights=foreign_file(file, accuracy=accuracy)))])
    assert f"far below the published {warning}" in caplog.text if warning else "far below" not in caplog.text


def test_best_and_last_are_kept_apart(store: Store) -> None:
    """With keep_best both are measured, also when their files are lost; without it the best cannot be asked for."""
    spec = tuned(weights=None, keep_head=False, method=method("at_scratch"), optim=replace(OPTIM, epochs=3, keep_best=True))
    evals = tuple(replace(CLEAN, at=at) for at in ("best", "last"))
    assert not compute(store, [Job("tiny", spec, evals[:1])]).failed
    before = store.masks(spec, evals[0])["none"]
    store.path(Task(spec, evals[0])).unlink()
    (store.root / "work" / f"{spec.hash}-best.safetensors").unlink()
    assert [t.evaluation for t in store.missing([Job("tiny", spec, evals)])] == [None, *evals]
    assert not compute(store, [Job("tiny", spec, evals)]).failed
    assert (store.masks(spec, evals[0])["none"] == before).all()
    states = [networks(store).trained(spec, at).state_dict() for at in ("best", "last")]
    best = max(store.run(spec)["epochs"], key=lambda row: row["val_robust_acc"])["epoch"]
    assert (best == 3) == all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    plain = replace(spec, optim=replace(spec.optim, keep_best=False))
    with pytest.raises(ValueError, match="keep_best in run .* \\(at_scratch\\), whose best weights are to be evaluated"):
        compute(store, [Job("tiny", plain, evals)])


@pytest.mark.skipif(not (PUBLIC.exists() and CIFAR10.exists()),
                    reason=f"needs {PUBLIC.name} in the folder weights of TWINS_DATA, and {CIFAR10.name}")
def test_the_public_network_has_its_published_accuracy(monkeypatch) -> None:
    """91.73 % of the 10,000 test images of CIFAR-10, exactly, through our loader and our network."""
    monkeypatch.setenv("TWINS_DATA", str(CIFAR10.parent))
    model = load_into(make_model("resnet20", 10, seed=0), load_weights(PUBLIC)[0]).eval()
    packed = load_packed("cifar10", 32)
    right = clean_mask(model, packed.test_images, packed.test_labels, batch_size=500)
    known = published_network(PUBLIC.name)
    assert (int(right.sum()), len(right)) == (9173, 10_000) == (round(known["clean_acc"] * known["images"]), known["images"])
