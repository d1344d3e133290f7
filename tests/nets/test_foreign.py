"""Weights of others: any container, any prefix, their own normalisation; what does not fit is named for what it is."""

import contextlib
import gzip
import io
import json
import logging
import random
import re
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from tests.nets.made import bare, tiny
from twinslib.nets import foreign
from twinslib.nets.checkpoint import load_into, load_weights, save_weights
from twinslib.nets.constants import split_constants
from twinslib.nets.heads import replace_head
from twinslib.nets.models import make_model
from twinslib.nets.placing import fitting

MEAN, STD = (0.5, 0.25, 0.125), (0.3, 0.2, 0.1)
PAIRS = (torch.tensor(MEAN), torch.tensor(STD))


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def fits(model: nn.Module, seed: int = 0) -> bool:
    """True if the network has the weights of `bare(seed)`."""
    mine, theirs = model.network.state_dict(), bare(seed)
    return all(torch.equal(mine[k], theirs[k]) for k in theirs)


def normalises(model: nn.Module, mean=MEAN, std=STD) -> bool:
    stored = model.normalize.mean.flatten().tolist(), model.normalize.std.flatten().tolist()
    return stored == (pytest.approx(mean), pytest.approx(std)) and model.normalize.mean.shape == (1, 3, 1, 1)


def stored(path: Path, content: object) -> dict[str, torch.Tensor]:
    torch.save(content, path)
    return load_weights(path)[0]


# -- normalisation -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mean", "std", "prefix", "shape"), [
    ("module.normalizer.new_mean", "module.normalizer.new_std", "module.model.", (3,)), ("0.mean", "0.std", "1.", (1, 3, 1, 1)),
    ("normalize.mean", "normalize.std", "", (3, 1, 1)), ("mu", "sigma", "", (3,)), ("0.means", "0.sds", "1.", (3, 1, 1)),
    ("norm.data_mean", "norm.data_std", "net.", (1, 3, 1, 1))])
def test_a_checkpoint_brings_its_normalisation(tmp_path, mean, std, prefix, shape):
    """Under the names and shapes of the usual libraries."""
    state = prefixed(prefix, bare()) | {mean: PAIRS[0].view(shape), std: PAIRS[1].view(shape)}
    model = load_into(tiny(1), stored(tmp_path / "a.pt", {"model": state, "epoch": 3}))
    save_weights(tmp_path / "again.safetensors", replace_head(model, 7, image_size=16, seed=0), {})
    again = load_into(tiny(2, 7), load_weights(tmp_path / "again.safetensors")[0])
    assert fits(model) and normalises(model) and normalises(again)


@pytest.mark.parametrize(("content", "mean", "std"), [
    ({"state_dict": bare(), "mean": list(MEAN), "std": list(STD)}, MEAN, STD),
    ({"state_dict": bare(), "mean": PAIRS[0], "std": PAIRS[1]}, MEAN, STD),
    ({"net": {"state_dict": bare(), "image_mean": MEAN, "image_std": STD}, "acc": 0.9}, MEAN, STD),
    ({"state_dict": bare() | {"mu": 255 * PAIRS[0], "sigma": 255 * PAIRS[1]}}, MEAN, STD),
    ({"state_dict": bare() | {"mean": torch.tensor(0.5), "std": torch.tensor([0.25])}}, [0.5] * 3, [0.25] * 3)],
    ids=["lists", "tensors", "nested", "0..255", "one number for all channels"])
def test_forms_of_normalisation(tmp_path, content, mean, std):
    """As numbers or tensors beside the state dict, for pixels in 0..255, one number or one per channel."""
    model = load_into(tiny(1), stored(tmp_path / "a.pt", content))
    assert fits(model) and normalises(model, mean, std)


@pytest.mark.parametrize(("change", "conflict"), [(0.0, False), (5e-4, False), (0.01, True)])
def test_normalisation_that_was_asked_for(change, conflict):
    """A model with constants of its own keeps them where the checkpoint agrees to 0.001, and refuses another one."""
    model = tiny(1, mean=MEAN, std=STD)
    state = bare() | {"mu": PAIRS[0] + change, "sigma": PAIRS[1]}
    if conflict:
        with pytest.raises(ValueError, match=r"normalisation with mean \[0.5, 0.25, 0.125\].*got mean \[0.51, 0.26"):
            load_into(model, state)
    else:
        load_into(model, state)
    assert fits(model) is not conflict and normalises(model)


@pytest.mark.parametrize(("state", "message"), [
    ({"a.mean": PAIRS[0], "a.std": PAIRS[1], "b.mean": PAIRS[0] / 2, "b.std": PAIRS[1]}, "one normalisation, got .* in a.mean"),
    ({"mean": PAIRS[0], "std": torch.tensor([0.1, 0.0, 0.1])}, "positive std of normalisation, got"),
    ({"mean": PAIRS[0] * float("nan"), "std": PAIRS[1]}, "finite constants")])
def test_normalisation_that_makes_no_sense(state, message):
    """Two that differ, a std of 0, NaN: refused."""
    with pytest.raises(ValueError, match=message):
        load_into(tiny(), bare() | state)


def test_what_is_no_normalisation_of_the_network(caplog):
    """A mean and std that the network itself has, or of another size, stay where they are."""
    own = {"head.mean": torch.ones(3), "head.std": torch.ones(3), "x.mean": torch.ones(5), "x.std": torch.ones(5)}
    assert split_constants(own, own=("mean", "std"))[1] is None and split_constants(own, own=("head.mean",))[0] == own
    load_into(tiny(1).network, bare() | {"mu": PAIRS[0], "sigma": PAIRS[1]})
    assert "normalisation of the checkpoint left out" in caplog.text


# -- names -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prefix", ["module.", "1.", "_orig_mod.", "network.", "a.b.c."])
def test_any_prefix_is_found(prefix, caplog):
    """Also with tensors of other things beside the network, which are named; what is taken and left is counted."""
    caplog.set_level(logging.INFO)
    assert fits(load_into(tiny(1), prefixed(prefix, bare()) | {"criterion.weight": torch.ones(4)}))
    assert "criterion.weight" in caplog.text and (prefix == "network." or "SmallResNet: 38 tensors taken behind" in caplog.text)


def test_two_networks_in_one_state():
    """Refused with both prefixes, chosen by name, of no matter where they are the same."""
    state = prefixed("student.", bare(0)) | prefixed("teacher.", bare(1))
    with pytest.raises(ValueError, match="several behind the prefixes 'student.', 'teacher.'; choose one by prefix"):
        load_into(tiny(2), state)
    assert fits(load_into(tiny(2), state, prefix="teacher"), 1) and fits(load_into(tiny(2), state, prefix="student."), 0)
    assert fits(load_into(tiny(2), prefixed("a.", bare()) | prefixed("b.", bare())))
    with pytest.raises(ValueError, match="prefix of tensor names to be one of .*did you mean 'teacher.'"):
        load_into(tiny(2), state, prefix="teachr")


@pytest.mark.parametrize("keys", [("state_dict", "state_dict_ema"), ("model", "callbacks.average.weights"), ("my_network",)])
def test_state_dicts_in_a_file(tmp_path, keys):
    """Never one of two without being asked: refused with their names, and chosen by key."""
    content: dict = {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(3, 3)}}}, "epoch": 1}
    for seed, key in enumerate(keys):
        *outer, last = key.split(".")
        inside = content
        for step in outer:
            inside = inside.setdefault(step, {})
        inside[last] = bare(seed)
    torch.save(content, tmp_path / "a.pt")
    if len(keys) == 1:
        assert fits(load_into(tiny(5), load_weights(tmp_path / "a.pt")[0]))
        assert fits(load_into(tiny(5), stored(tmp_path / "b.pt", content | {"copy": bare()})))
        return
    with pytest.raises(ValueError, match=f"one network in a.pt, got several: {', '.join(keys)}; choose one by key"):
        load_weights(tmp_path / "a.pt")
    for seed, key in enumerate(keys):
        assert fits(load_into(tiny(5), load_weights(tmp_path / "a.pt", key=key)[0]), seed)


@pytest.mark.parametrize("extra", [{}, {"fc.0.weight": torch.ones(9, 32), "fc.2.weight": torch.ones(4, 9)},
                                   {"other.weight": torch.ones(2)}])
def test_a_backbone_without_head(extra):
    """Taken where its head is replaced anyway, else refused by name."""
    state = prefixed("encoder.", {k: v for k, v in bare().items() if not k.startswith("fc.")})
    state |= {k if k.startswith("other") else f"encoder.{k}": v for k, v in extra.items()}
    model = load_into(tiny(1), state, head="network.fc")
    assert torch.equal(model.network.fc.weight, tiny(1).network.fc.weight)
    assert torch.equal(model.network.conv1.weight, bare()["conv1.weight"])
    with pytest.raises(ValueError, match="network.fc.weight, network.fc.bias missing"):
        load_into(tiny(1), state)


@pytest.mark.parametrize(("make", "arch"), [
    (lambda: torchvision.models.resnet50(num_classes=9), "arch resnet50 or arch torchvision/resnet50"),
    (lambda: make_model("thin_resnet10", 10, norm="group", seed=0).network, "arch thin_resnet10, norm group or layer")])
def test_another_architecture_is_named(make, arch):
    """An error says which of ours the tensors fit, behind any prefix."""
    state = prefixed("module.", make().state_dict())
    assert " or ".join(fitting(state)) == arch
    with pytest.raises(ValueError, match=f"got another architecture: .*saved from .{arch}.$"):
        load_into(tiny(), state)


# -- files -------------------------------------------------------------------------------------------------------------
def file_of(kind: str, content: object) -> bytes:
    """The bytes of a file of weights, as safetensors or in torch's new or older format."""
    if kind == "safetensors":
        return safetensors.torch.save(content, {"format": "pt"})
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    return file.getvalue()


@pytest.mark.parametrize(("kind", "name"), [("safetensors", "a.pt"), ("zip", "a.safetensors"), ("older", "a")])
def test_files_are_known_by_content(tmp_path, name, kind):
    """Whatever a file is called, whole or cut anywhere."""
    whole = file_of(kind, bare())
    (tmp_path / name).write_bytes(whole)
    assert fits(load_into(tiny(1), load_weights(tmp_path / name)[0]))
    for cut in (20, 40, len(whole) // 2, len(whole) - 9):
        (tmp_path / name).write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f"truncated or foreign.* in {name}.*delete it and make or fetch it again"):
            load_weights(tmp_path / name)


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "x")
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(("data", "message"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a Git LFS pointer .* git lfs pull"),
    (b"Entry not found\n", "a text that begins with 'Entry not found'"),
    (gzip.compress(b"x" * 99), "a compressed archive in .*unpack"),
    (zipped("readme.txt"), "a zip archive of readme.txt in .*unpack"), (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    (b"", "truncated or foreign one of 0 bytes"), (random.Random(0).randbytes(5000), "truncated or foreign"),
    (b"\n<!DOCTYPE html><title>Sign in</title>", "a web page"),
    (None, "a TorchScript program, which would have to be run"),
    *((file_of("zip", content), "state dict, plain or under state_dict, .* got .* in w")
      for content in ({"epoch": 3, "lr": 0.1}, [1, 2], {"model": {"depth": 18}}))],
    ids=lambda value: "data" if isinstance(value, bytes) else value)
def test_what_is_no_file_of_weights(tmp_path, data, message):
    """Each is called what it is; a program would have to be run."""
    path = tmp_path / "w.pt"
    if data is None:
        torch.jit.script(nn.Linear(2, 2)).save(path)
    else:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=f"expected a .*{message}") as caught:
        load_weights(path)
    assert "w.pt" in str(caught.value)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: (100 * t).to(torch.int8), "floating-point weights, got int8 in network.conv1.weight"),
    (lambda t: t.to(torch.complex64), "floating-point weights, got complex64"),
    (lambda t: t > 0, "floating-point weights, got bool"),
    (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "floating-point weights, got qint8"),
    (lambda t: t.to("meta"), "a tensor without values in conv1.weight"),
    (lambda t: t.flatten(1).to_sparse_csr(), "of shape"), (lambda t: t.to_sparse(), None), (lambda t: t.double(), None)])
def test_tensors_that_are_no_ordinary_numbers(change, message):
    """Quantised, complex and empty ones are refused by name; sparse and long ones are filled and rounded."""
    state = bare() | {"conv1.weight": change(bare()["conv1.weight"])}
    if message is None:
        assert fits(load_into(tiny(1), state))
    else:
        with pytest.raises(ValueError, match=message):
            load_into(tiny(1), state)


def test_small_floats_are_widened(tmp_path):
    """Eight-bit floats too."""
    state = stored(tmp_path / "a.pt", {k: v.to(torch.float8_e4m3fn) if v.ndim > 1 else v for k, v in bare().items()})
    assert {v.dtype for v in load_into(tiny(1), state).parameters()} == {torch.float32}


def test_folders_of_the_hub(tmp_path):
    """The one file in it is read, with the normalisation of its JSON; several are refused."""
    folder = tmp_path / "resnet"
    folder.mkdir()
    with pytest.raises(ValueError, match="a file of weights in the folder resnet, got none"):
        load_weights(folder)
    safetensors.torch.save_file(bare(), folder / "model.safetensors")
    torch.save(bare(1), folder / "pytorch_model.bin")
    assert fits(load_into(tiny(1), load_weights(folder)[0]))
    for name, values in (("config.json", {"pretrained_cfg": {"mean": MEAN, "std": STD}, "num_classes": 4}),
                         ("preprocessor_config.json", {"image_mean": MEAN, "image_std": STD})):
        (folder / name).write_text(json.dumps(values))
        assert normalises(load_into(tiny(1), load_weights(folder)[0]))
    (folder / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="one file of weights in the folder resnet, got model.safetensors, other"):
        load_weights(folder)
    (folder / "config.json").write_text("{")
    (folder / "other.safetensors").unlink()
    with pytest.raises(ValueError, match="expected JSON in resnet/config.json"):
        load_weights(folder)


@pytest.mark.parametrize(("name", "message"), [
    ("resnet20-20230115.pt", None), ("a-15012023.pt", None), ("a-20230115123059.pt", None), ("step-00100000.pt", None),
    ("vgg13-19584684.pth", "begins with 19584684"), ("a-20231315.pt", "begins with 20231315"),
    ("a-12fca82f.th", "begins with 12fca82f"), ("a-1234567.pt", None), ("a_20239999.pt", None)])
def test_dates_in_names(tmp_path, caplog, name, message):
    """Digits that can be a date are no SHA-256 that does not agree; others are."""
    caplog.set_level(logging.INFO)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        foreign.check_name(tmp_path / name)
    assert ("date" in caplog.text) == (message is None and re.search(r"-\d{8}", name) is not None)
