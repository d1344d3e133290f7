"""Networks of others as start: read safely, kept with their head, refused by name where they do not fit."""

import copy
import hashlib
import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from twinslib.attack.masks import clean_mask
from twinslib.base import paths
from twinslib.base.reference import published_network
from twinslib.compute.check import check
from twinslib.compute.networks import Networks
from twinslib.compute.queue import sweep
from twinslib.compute.worker import Worker
from twinslib.data.packed import load_packed
from twinslib.nets import foreign
from twinslib.nets.checkpoint import load_into, load_weights
from twinslib.nets.fold import FoldedCopy
from twinslib.nets.models import make_model
from twinslib.specs import choices
from twinslib.specs.choices import ARCHS, check_width, own_width
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec, WeightsSpec
from twinslib.store.jobs import Job, Task
from twinslib.store.store import Store

DATA = DataSpec(name="toy_target", image_size=16, augment="crop", train_images=200, val_images=100)
OPTIM = OptimSpec(epochs=1, batch_size=50, lr=0.05, val_steps=2)
NATURAL = RunSpec(data=DATA, model=ModelSpec(arch="tiny_resnet"), method=method("natural"), optim=replace(OPTIM, epochs=12))
CLEAN = EvalSpec(kind="clean", images=100)
SEVEN = WeightsSpec(file="foreign.th", classes=7)
PUBLIC = paths.data_dir() / "weights" / "resnet20-12fca82f.th"  # of the user, before tests get a folder of their own
CIFAR10 = paths.data_dir() / "cifar10.npz"


def tuned(**changes) -> RunSpec:
    return RunSpec(**{"data": DATA, "model": ModelSpec(arch="tiny_resnet"), "method": method("aft_public"), "optim": OPTIM,
                      "attack": AttackSpec(eps=0.01, step_size=0.01, steps=1), "keep_head": True,
                      "weights": WeightsSpec(file="foreign.th", classes=10), **changes})


@pytest.fixture(scope="module")
def natural(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The state of a small natural network that knows its images."""
    torch.set_num_threads(1)
    store = Store("tiny", root=tmp_path_factory.mktemp("natural"))
    sweep(Worker(store, "cpu"), [Job("tiny", NATURAL, (CLEAN,), ship=True)])
    return load_weights(store.weights_path(NATURAL))[0]


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("TWINS_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "weights").mkdir(parents=True)
    return Store("tiny", root=tmp_path / "results")


def put(state: object, wrap: bool = True) -> Path:
    """As others publish it: a torch file with the names of a data-parallel network, under state_dict."""
    path = paths.data_dir() / "weights" / "foreign.th"
    torch.save({"state_dict": {f"module.{k.removeprefix('network.')}": v for k, v in state.items()}} if wrap else state, path)
    return path


def test_the_start_is_kept_with_its_head(store, natural) -> None:
    """Names of wrappers are taken off, nothing is replaced: the start gives the foreign network's logits, and evaluated as it
    is, the foreign network's answers; the last network is another."""
    put({k: v for k, v in natural.items() if k.startswith("network.")})
    spec, evals = tuned(), (CLEAN, replace(CLEAN, at="start"))
    assert not sweep(Worker(store, "cpu"), [Job("tiny", spec, evals)]).failed
    start = Networks(store, "cpu").trained(spec, "start").state_dict()
    assert all(torch.equal(start[k], v) for k, v in natural.items() if k.startswith("network."))
    x = Networks(store, "cpu").data(DATA).test_x[:100]
    foreign = load_into(make_model("tiny_resnet", 10, seed=0), natural).eval()
    right = (foreign(x.float() / 255).argmax(1) == Networks(store, "cpu").data(DATA).test_y[:100]).numpy()
    assert (store.masks(spec, evals[1])["none"] == right).all()
    assert not torch.equal(Networks(store, "cpu").trained(spec).state_dict()["network.fc.weight"], natural["network.fc.weight"])


def shuffled(state: dict) -> dict:
    """The same network with its classes in another order, one further each: right for no image of the true order."""
    state = copy.copy(state)
    for key in ("network.fc.weight", "network.fc.bias"):
        state[key] = state[key].roll(1, 0)
    return state


@pytest.mark.parametrize(("make", "change", "message"), [
    (lambda s: make_model("tiny_resnet", 10, seed=0).network.state_dict(), {},
     "expected a network that knows toy_target in foreign.th, got one at chance: .* of 100 images right, with 10 classes; check "
     "the order of its classes and its normalisation"),
    (shuffled, {}, "expected a network that knows toy_target in foreign.th, got one at chance"),
    (lambda s: s, {"model": ModelSpec(arch="resnet20")}, "foreign.th: expected the tensors of Cifar10ResNet, got another arch"),
    (lambda s: s, {"model": ModelSpec(arch="tiny_resnet", width=8)}, "foreign.th: expected .* of shape .*, got "),
    (lambda s: s, {"weights": SEVEN}, "foreign.th: expected a head of 7 classes in .*, got 10"),
    (lambda s: make_model("tiny_resnet", 7, seed=0).network.state_dict(), {"weights": SEVEN},
     "expected a start network of the 10 classes of toy_target with keep_head, got one of 7; leave keep_head out"),
], ids=["random", "class order", "architecture", "width", "classes", "other head"])
def test_what_does_not_fit_is_refused_before_any_work(store, natural, make, change: dict, message: str) -> None:
    """By name and with what to do; nothing has been trained or stored."""
    put(make(natural))
    with pytest.raises(ValueError, match=message):
        sweep(Worker(store, "cpu"), [Job("tiny", tuned(**change), (CLEAN,))])
    assert not (store.root / "runs").exists()


class Harmful:
    """What a pickle can do: run code when it is read."""

    def __reduce__(self):
        return (Path.touch, (paths.data_dir() / "was run",))


def test_pickled_objects_are_left_out_and_not_run(store, natural, caplog) -> None:
    """Of a checkpoint with objects in it only the weights are taken; nothing in it is run."""
    put({"state_dict": natural, "args": Harmful()}, wrap=False)
    assert torch.equal(Networks(store, "cpu").origin(tuned()).network.fc.weight, natural["network.fc.weight"])
    assert "foreign.th holds pickled objects" in caplog.text
    (paths.data_dir() / "weights" / "foreign.th").write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(ValueError, match="foreign.th"):
        sweep(Worker(store, "cpu"), [Job("tiny", tuned(), (CLEAN,))])
    assert not (paths.data_dir() / "was run").exists() and not (store.root / "runs").exists()


def test_a_file_is_what_its_name_says(store, natural) -> None:
    """Where a name ends in digits of the SHA-256, as torch.hub names files, another network under that name is refused."""
    path = put(natural)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    for name, fits in ((f"foreign-{digits}.th", True), ("foreign-12fca82f.th", False)):
        shutil.copy(path, path.with_name(name))
        job = Job("tiny", tuned(weights=WeightsSpec(file=name, classes=10)), (CLEAN,))
        if fits:
            assert not sweep(Worker(store, "cpu"), [job]).failed
        else:
            with pytest.raises(ValueError, match=f"begins with 12fca82f, as the name foreign-12fca82f.th says, got {digits}"):
                sweep(Worker(store, "cpu"), [job])


def test_a_start_whose_weights_are_lost_is_trained_again(store) -> None:
    """To measure a start network after its run is finished, its weights are needed once more."""
    natural = replace(NATURAL, optim=replace(OPTIM, epochs=2))
    run = RunSpec(data=DATA, model=natural.model, method=method("aft"), optim=OPTIM, source=natural, keep_head=True,
                  attack=AttackSpec(eps=0.01, step_size=0.01, steps=1))
    sweep(Worker(store, "cpu"), [Job("tiny", run, (CLEAN,))])
    late = Job("tiny", run, (CLEAN, replace(CLEAN, at="start")))
    assert store.missing([late]) == [Task(run, replace(CLEAN, at="start"))]
    store.weights_path(natural).unlink()
    assert store.missing([late]) == [Task(natural), Task(run, replace(CLEAN, at="start"))]
    assert not sweep(Worker(store, "cpu"), [late]).failed and not store.missing([late])


def test_a_missing_file_is_named(store) -> None:
    """With the folder it belongs in and where its publisher offers it."""
    spec = tuned(weights=WeightsSpec(file="foreign.th", classes=10, origin="example.org"))
    with pytest.raises(FileNotFoundError, match="expected the pre-trained weights foreign.th in .*weights, .* from example.org"):
        sweep(Worker(store, "cpu"), [Job("tiny", spec, (CLEAN,))])


def test_normalisation_belongs_to_the_weights(store, natural) -> None:
    """Mean and std of the spec are those of layer 0, in training, in the attack and in what is stored."""
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    spec = tuned(model=ModelSpec(arch="tiny_resnet", mean=mean, std=std), weights=None, keep_head=False)
    Worker(store, "cpu").do(Task(spec), ship=False, stop=lambda: False, on_step=lambda done, total: None)
    for model in (Networks(store, "cpu").start(spec), Networks(store, "cpu").trained(spec), FoldedCopy(Networks(store, "cpu").trained(spec))):
        assert model.normalize.mean.flatten().tolist() == pytest.approx(mean)
        assert model.normalize.std.flatten().tolist() == pytest.approx(std)


def own(natural: dict) -> dict:
    """The same network for images normalised otherwise, with its constants: it gives the same logits."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (choices.IMAGENET_MEAN, choices.IMAGENET_STD))
    state = {k.removeprefix("network."): v for k, v in natural.items() if k.startswith("network.")}
    assert state["conv1.weight"].shape[1] == 3
    scale = torch.tensor([0.5, 0.8, 1.0]).view(1, 3, 1, 1)  # (x - m) / s with s = std * scale, so the weights times scale
    return state | {"conv1.weight": state["conv1.weight"] * scale, "normalizer.new_mean": mean, "normalizer.new_std": std * scale}


def test_a_checkpoint_brings_its_normalisation(store, natural, caplog) -> None:
    """It is that of the start, of training and of what is stored, and kept with the run; the spec stays what it was."""
    caplog.set_level(logging.INFO)
    state = own(natural)
    put(state)
    spec, std = tuned(), state["normalizer.new_std"].flatten().tolist()
    assert not sweep(Worker(store, "cpu"), [Job("tiny", spec, (CLEAN, replace(CLEAN, at="start")))]).failed
    for model in (Networks(store, "cpu").origin(spec), Networks(store, "cpu").start(spec), Networks(store, "cpu").trained(spec), FoldedCopy(Networks(store, "cpu").trained(spec))):
        assert model.normalize.std.flatten().tolist() == pytest.approx(std)
    x = torch.rand(20, 3, 16, 16)
    plain = load_into(make_model("tiny_resnet", 10, seed=0), natural).eval()
    assert torch.allclose(Networks(store, "cpu").origin(spec).eval()(x), plain(x), atol=1e-3)
    start = store.run(spec)["start"]
    assert start["std"] == pytest.approx(std, abs=1e-6) and (start["images"], start["of"]) == (100, "validation")
    assert start["right"] > 20 and store.run(spec)["spec"].get("model") == {"arch": "tiny_resnet"}
    assert f"start network foreign.th: {start['right']} of 100 validation images of toy_target right" in caplog.text
    assert "normalisation of the checkpoint in place of ImageNet's" in caplog.text


def test_another_normalisation_is_refused(store, natural) -> None:
    """Where the spec gives constants and the file brings others, both are named, before any work."""
    put(own(natural))
    spec = tuned(model=ModelSpec(arch="tiny_resnet", mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)), keep_head=False)
    with pytest.raises(ValueError, match=r"foreign.th: expected normalisation with mean \[0.4, .* got mean \[0.485, .*leave"):
        sweep(Worker(store, "cpu"), [Job("tiny", spec, (CLEAN,))])
    assert not (store.root / "runs").exists()


@pytest.mark.parametrize(("accuracy", "warned"), [(None, False), (0.3, False), (0.999, True)])
def test_a_start_far_below_what_is_published(store, natural, caplog, accuracy, warned) -> None:
    """Better than chance is not enough to pass in silence where it is known what the network should do."""
    put(natural)
    check(Networks(store, "cpu"), [Task(tuned(weights=WeightsSpec(file="foreign.th", classes=10, accuracy=accuracy)))])
    assert ("far below the published 99.9 %; check the order of its classes" in caplog.text) == warned


def test_published_accuracy_is_known_by_name(store, natural, caplog) -> None:
    """Of a network that reference/networks.csv lists, without anything in the spec."""
    file = "resnet20-12fca82f.th"
    put(natural).rename(paths.data_dir() / "weights" / file)
    known, foreign.check_name = foreign.check_name, lambda path: None
    try:
        check(Networks(store, "cpu"), [Task(tuned(weights=WeightsSpec(file=file, classes=10)))])
    finally:
        foreign.check_name = known
    assert "far below the published 91.7 %" in caplog.text


@pytest.mark.parametrize("changes", [{}, {"method": method("l2sp")}, {"method": method("feature_distill")}])
def test_a_backbone_is_enough_where_the_head_is_replaced(store, natural, changes) -> None:
    """A headless start trains; where its head is kept, or taught from, it is refused before any work."""
    put({k: v for k, v in natural.items() if k.startswith("network.") and ".fc." not in k})
    spec = tuned(keep_head=False, **changes)
    assert not sweep(Worker(store, "cpu"), [Job("tiny", spec, (CLEAN,))]).failed and "right" not in store.run(spec)["start"]
    for refused in (tuned(), tuned(keep_head=False, method=method("distill"))):
        with pytest.raises(ValueError, match="foreign.th: expected the tensors of SmallResNet.*network.fc.weight"):
            check(Networks(store, "cpu"), [Task(refused)])


def test_key_and_prefix_choose_a_network(store, natural) -> None:
    """Of several in one file; without them the choice is refused."""
    bare = {k.removeprefix("network."): v for k, v in natural.items() if k.startswith("network.")}
    other = {k: v + 1 for k, v in bare.items()}
    put({"state_dict": other, "ema": {f"{p}.{k}": v for p, s in (("a", other), ("b", bare)) for k, v in s.items()}}, wrap=False)
    chosen = tuned(weights=WeightsSpec(file="foreign.th", classes=10, key="ema", prefix="b"))
    assert torch.equal(Networks(store, "cpu").origin(chosen).network.fc.weight, bare["fc.weight"])
    for weights, message in ((WeightsSpec(file="foreign.th", classes=10), "several: state_dict, ema; choose one by key"),
                             (WeightsSpec(file="foreign.th", classes=10, key="ema"), "'a.', 'b.'; choose one by prefix")):
        with pytest.raises(ValueError, match=message):
            check(Networks(store, "cpu"), [Task(tuned(weights=weights))])


def test_a_start_that_does_not_load_is_refused_before_any_work(store, natural) -> None:
    """Also where its head is replaced, with the network that it would fit."""
    put(torchvision.models.resnet18(num_classes=10).state_dict())
    with pytest.raises(ValueError, match=r"foreign.th: .*got another architecture.*\(arch torchvision/resnet18\)"):
        sweep(Worker(store, "cpu"), [Job("tiny", tuned(keep_head=False, model=ModelSpec(arch="resnet18")), (CLEAN,))])
    assert not (store.root / "runs").exists()
    assert Networks(store, "cpu").origin(tuned(keep_head=False, model=ModelSpec(arch="torchvision/resnet18"))).network.fc.out_features == 10


def test_a_folder_is_a_start(store, natural) -> None:
    """As the Hugging Face hub offers networks."""
    folder = paths.data_dir() / "weights" / "net-20230115"
    folder.mkdir()
    save_file({k: v.clone() for k, v in natural.items()}, folder / "model.safetensors")
    spec = tuned(weights=WeightsSpec(file=folder.name, classes=10))
    check(Networks(store, "cpu"), [Task(spec)])
    assert torch.equal(Networks(store, "cpu").start(spec).network.fc.weight, natural["network.fc.weight"])


def test_a_date_in_a_name_is_no_digest(store, natural) -> None:
    """A file is taken whose name ends in a day."""
    put(natural).rename(paths.data_dir() / "weights" / "net-20230115.pt")
    check(Networks(store, "cpu"), [Task(tuned(weights=WeightsSpec(file="net-20230115.pt", classes=10)))])


def test_a_safetensors_file_works_as_well(store, natural) -> None:
    """The other safe format."""
    save_file({k: v.clone() for k, v in natural.items()}, paths.data_dir() / "weights" / "foreign.safetensors")
    spec = tuned(weights=WeightsSpec(file="foreign.safetensors", classes=10))
    assert len(sweep(Worker(store, "cpu"), [Job("tiny", spec, (CLEAN,))]).done) == 2


# -- which network is evaluated --------------------------------------------------------------------------------------------
def test_best_and_last_are_kept_apart(store) -> None:
    """With keep_best both are measured, also when their files are lost; without it the best cannot be asked for."""
    spec = tuned(weights=None, keep_head=False, method=method("at_scratch"), optim=replace(OPTIM, epochs=3, keep_best=True))
    evals = tuple(replace(CLEAN, at=at) for at in ("best", "last"))
    assert not sweep(Worker(store, "cpu"), [Job("tiny", spec, evals[:1])]).failed
    before = store.masks(spec, evals[0])["none"]
    (store.root / "masks" / f"{spec.hash}.npz").unlink()
    (store.root / "work" / f"{spec.hash}-best.safetensors").unlink()
    assert [t.kind.split()[0] for t in store.missing([Job("tiny", spec, evals)])] == ["train", "evaluate", "evaluate"]
    assert not sweep(Worker(store, "cpu"), [Job("tiny", spec, evals)]).failed
    assert (store.masks(spec, evals[0])["none"] == before).all()
    states = [Networks(store, "cpu").trained(spec, at).state_dict() for at in ("best", "last")]
    rows = store.run(spec)["epochs"]
    best = max(rows, key=lambda row: row["val_robust_acc"])["epoch"]
    assert (best == 3) == all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    plain = replace(spec, optim=replace(spec.optim, keep_best=False))
    with pytest.raises(ValueError, match="expected keep_best in run .* \\(at_scratch\\), whose best weights are to be evaluated"):
        sweep(Worker(store, "cpu"), [Job("tiny", plain, evals)])


def test_which_network_is_part_of_the_evaluation() -> None:
    """Three networks, three hashes; the last is the default and has the hash it always had."""
    assert len({replace(CLEAN, at=at).hash for at in ("last", "best", "start")}) == 3
    assert "at" not in str(CLEAN.hash) and EvalSpec(kind="clean", images=1000).hash == "74a7b1f45b4c"
    with pytest.raises(ValueError, match="expected at of an evaluation to be one of last, best, start, got 'first'"):
        replace(CLEAN, at="first")


# -- the networks themselves -----------------------------------------------------------------------------------------------
def test_resnet20_is_that_of_the_paper() -> None:
    """He et al. 2016: 0.27 million parameters in 20 layers; the names are those of the public weights."""
    model = make_model("resnet20", 10, seed=0)
    state = model.network.state_dict()
    assert sum(p.numel() for p in model.parameters()) == 269_722
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.modules()) == 20
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer3.2.bn2.weight", "linear.bias"} <= state.keys()


def test_its_shortcuts_have_no_parameters() -> None:
    """Every second pixel of each channel, zero channels on both sides."""
    shortcut = make_model("resnet20", 10, seed=0).network.layer2[0].downsample
    x = torch.rand(2, 16, 4, 4)
    out = shortcut(x)
    assert out.shape == (2, 32, 2, 2) and torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any() and not out[:, 24:].any() and not list(shortcut.parameters())


def test_folded_copy_of_resnet20_agrees() -> None:
    """It is traced and folded like the others: all its 19 batch norms."""
    model = make_model("resnet20", 10, seed=0).eval()
    copy_of = FoldedCopy(model)
    x = torch.rand(4, 3, 32, 32)
    assert copy_of.folded == 19
    torch.testing.assert_close(copy_of(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "channels"), [(None, 32), (16, 16), (48, 48)])
def test_width(width: int | None, channels: int) -> None:
    """Channels of the first stage; each later stage doubles them."""
    network = make_model("thin_resnet10", 10, width=width, seed=0).network
    assert (network.conv1.out_channels, network.fc.in_features) == (channels, 8 * channels)
    assert own_width("thin_resnet10") == 32 and own_width("resnet20") is own_width("resnet50") is None


@pytest.mark.parametrize(("arch", "width", "message"), [
    ("resnet20", 32, "expected an arch with a free width .*, got 'resnet20' with width 32"),
    ("resnet50", 32, "expected an arch with a free width"), ("resnet18", 0, "expected width of at least 1, got 0"),
])
def test_widths_that_make_no_sense(arch: str, width: int, message: str) -> None:
    """Refused with the networks that have one."""
    assert all(check_width(name, None) is None for name in ARCHS)
    for make in (lambda: check_width(arch, width), lambda: ModelSpec(arch=arch, width=width),
                 lambda: make_model(arch, 10, width=width, seed=0)):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.skipif(not (PUBLIC.exists() and CIFAR10.exists()),
                    reason=f"needs {PUBLIC.name} in the folder weights of TWINS_DATA, and {CIFAR10.name}")
def test_the_public_network_has_its_published_accuracy(monkeypatch) -> None:
    """91.73 % of the 10,000 test images of CIFAR-10, exactly, through our loader and our network."""
    monkeypatch.setenv("TWINS_DATA", str(CIFAR10.parent))
    state, _ = load_weights(PUBLIC)
    model = load_into(make_model("resnet20", 10, seed=0), state).eval()
    packed = load_packed("cifar10", 32)
    right = clean_mask(model, packed.test_images, packed.test_labels, batch_size=500)
    known = published_network(PUBLIC.name)
    assert (int(right.sum()), len(right)) == (9173, 10_000) == (round(known["clean_acc"] * known["images"]), known["images"])
