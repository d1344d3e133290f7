"""Files of weights as people have them: each in its publisher's layout, loaded rightly or refused for the true cause."""

import argparse
import contextlib
import gzip
import io
import json
import pickle
import random
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tests.nets.made import equal, shake, tiny
from twinslib.__main__ import main
from twinslib.nets import foreign
from twinslib.nets.checkpoint import load_into, load_weights
from twinslib.nets.constants import split_constants
from twinslib.nets.models import Classifier, make_model
from twinslib.nets.placing import fitting

MEAN, STD = (0.5, 0.45, 0.4), (0.3, 0.25, 0.2)
SOURCE = shake(Classifier(tiny().network, mean=MEAN, std=STD)).eval()
STATE = dict(SOURCE.network.state_dict())
HEADLESS = {k: v for k, v in STATE.items() if not k.startswith("fc.")}
M, S = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
OTHER = {k: v + 1 for k, v in STATE.items()}
NORMALISED = STATE | {"mu": M, "sigma": S}


def behind(prefix: str, state: dict = STATE) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def optimizer() -> dict:
    """The state of SGD with momentum, after a step."""
    model = tiny()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(2, 3, 16, 16)).sum().backward()
    sgd.step()
    return sgd.state_dict()


def robustness() -> dict:
    """A network in data parallel, once more in its attacker, with its constants in each; arguments of cox, numbers of NumPy."""
    constants = {"new_mean": M[0], "new_std": S[0]}
    model = behind("module.model.") | behind("module.attacker.model.") | {
        f"module.{where}.{name}": value for where in ("normalizer", "attacker.normalize") for name, value in constants.items()}
    return {"model": model, "optimizer": optimizer(), "schedule": None, "epoch": 90, "amp": None,
            "nat_prec1": torch.tensor(0.5), "best_adv": np.float64(0.3), "args": argparse.Namespace(arch="resnet18", eps=3.0)}


def lightning() -> dict:
    return {"epoch": 3, "global_step": 99, "pytorch-lightning_version": "2.4.0", "state_dict": behind("model."),
            "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {"ModelCheckpoint": {"best_model_path": "a"}},
            "optimizer_states": [optimizer()], "lr_schedulers": [{"last_epoch": 3}], "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 0.1, "mean": list(MEAN), "std": list(STD), "path": Path("x")}}


def timm_training(**more: object) -> dict:
    return {"epoch": 1, "arch": "resnet10t", "state_dict": NORMALISED, "optimizer": optimizer(), "version": 2,
            "args": argparse.Namespace(lr=0.1), "amp_scaler": {"scale": 65536.0}, "metric": 70.1, **more}


def averaged() -> dict:
    return {"n_averaged": torch.tensor(9)} | behind("module.")


class Whole(nn.Module):
    """A network of somebody's own class, pickled whole, with its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize, self.net = SOURCE.normalize, SOURCE.network
        self.settings = {"names": {"cat", "dog"}, "where": Path("x")}


class Preprocess(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", M)
        self.register_buffer("std", S)


def folder(path: Path, weights: dict[str, Callable[[Path], None]], **texts: dict) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    for name, write in weights.items():
        write(path / name)
    for name, values in texts.items():
        (path / f"{name}.json").write_text(json.dumps(values))


def tensors(state: dict) -> Callable[[Path], None]:
    return lambda path: save_file({k: v.clone() for k, v in state.items()}, path)


def saved(content: object, **options: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path, **options)


def written(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)


def bytes_of(content: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def in_tar(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("model.pt")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def folder_in_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")


def arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **{k: v.numpy() for k, v in STATE.items()})


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> dict:
    return NORMALISED | {k: change(v) for k, v in STATE.items() if v.ndim > 1}


PARTS = [dict(list(STATE.items())[i::2]) for i in (0, 1)]
HUB = {"architectures": ["ResNet"], "pretrained_cfg": {"mean": MEAN, "std": STD}}
LOADED: dict[str, tuple[Callable[[Path], object], dict]] = {  # how it is stored, and what is asked for
    "robustness library": (saved(robustness()), {}),
    "robust-models-transfer": (saved({"model": robustness()["model"], "epoch": 9}, pickle_protocol=4), {}),
    "RobustBench": (saved(OrderedDict(NORMALISED)), {}),
    "RobustBench, normalisation first": (saved({"state_dict": behind("1.") | {"0.mean": M, "0.std": S}}), {}),
    "Lightning": (saved(lightning()), {}),
    "timm training": (saved(timm_training()), {}),
    "timm training, averaged": (saved(timm_training(state_dict_ema=OTHER)), {"key": "state_dict"}),
    "averaged of two": (saved(timm_training(state_dict=OTHER, state_dict_ema=NORMALISED)), {"key": "state_dict_ema"}),
    "torchvision training": (saved({"model": OTHER, "model_ema": averaged() | {"module.mu": M, "module.sigma": S}, "epoch": 2,
                                    "optimizer": optimizer(), "args": argparse.Namespace(lr=0.1)}), {"key": "model_ema"}),
    "DeepSpeed": (saved({"module": NORMALISED, "ds_config": {"a": 1}, "mp_world_size": 1, "dtype": torch.float32}), {}),
    "compiled in parallel": (saved({"model_state_dict": behind("module._orig_mod.", NORMALISED), "loss": 0.1}), {}),
    "kuangliu pytorch-cifar": (saved({"net": behind("module.", NORMALISED), "acc": 93.2, "epoch": 1}), {}),
    "student and teacher": (saved(behind("student.") | behind("teacher.", OTHER) | {"mean": M, "std": S}), {"prefix": "student"}),
    "MoCo, backbone alone": (saved({"state_dict": behind("module.encoder_q.", HEADLESS) | {"module.queue": torch.ones(4, 9)},
                                    "mean": MEAN, "std": STD}), {"head": "network.fc"}),
    "MMPretrain": (saved({"meta": {"mmcls": "1"}, "state_dict": behind("backbone.", HEADLESS) | {
        "head.fc.weight": torch.ones(9, 32), "data_preprocessor.mean": 255 * M[0], "data_preprocessor.std": 255 * S[0]}}),
        {"head": "network.fc"}),
    "Hugging Face, timm": (lambda p: folder(p, {"model.safetensors": tensors(STATE)}, config=HUB), {}),
    "Hugging Face, parts": (lambda p: folder(p, {f"model-0000{i + 1}-of-00002.safetensors": tensors(PARTS[i]) for i in (0, 1)},
                                             config=HUB), {}),
    "Hugging Face, bin": (lambda p: folder(p, {"pytorch_model.bin": saved(behind("timm_model."))}, config={},
                                           preprocessor_config={"image_mean": MEAN, "image_std": STD}), {}),
    "safetensors named .pt": (tensors(NORMALISED), {}),
    "old file without counters": (saved({k: v for k, v in NORMALISED.items() if "num_batches" not in k},
                                        _use_new_zipfile_serialization=False), {}),
    "whole network": (saved(Whole()), {}),
    "whole network in parallel, beside a record": (saved({"net": nn.DataParallel(Whole()), "acc": np.float32(0.9)}), {}),
    "preprocessing as a module": (saved(nn.Sequential(OrderedDict(pre=Preprocess(), net=SOURCE.network)).state_dict()), {}),
    "double precision": (saved(changed(torch.Tensor.double)), {}),
    "sparse": (saved(changed(torch.Tensor.to_sparse)), {}),
    "buffers and parameters as objects": (saved({k: nn.Parameter(v) if v.is_floating_point() else nn.Buffer(v)
                                                 for k, v in NORMALISED.items()}), {}),
    "pickle of tensors": (written(pickle.dumps(NORMALISED)), {}),
    "other names of the constants": (saved(STATE | {"norm.data_mean": M, "norm.data_std": S, "0.means": M, "0.sds": S}), {}),
    "one network twice": (saved({"net": NORMALISED, "copy": NORMALISED}), {}),
    "one network behind two prefixes": (saved(behind("a.") | behind("b.") | {"mu": M, "sigma": S}), {}),
    "deep inside": (saved({"model": OTHER, "callbacks": {"ema": {"weights": NORMALISED}}}), {"key": "callbacks.ema.weights"}),
    "another head": (saved(behind("net.", HEADLESS | {"fc.0.weight": torch.ones(9, 32)}) | {"mu": M, "sigma": S}),
                     {"head": "network.fc"}),
}
TORCH = bytes_of(NORMALISED)
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "two networks by key": (saved(timm_training(state_dict_ema=OTHER)), "several: state_dict, state_dict_ema; choose one by"),
    "two networks by prefix": (saved(behind("student.") | behind("teacher.", OTHER)), "'student.', 'teacher.'; choose one by"),
    "other classes": (saved(STATE | {"fc.weight": torch.ones(9, 32), "fc.bias": torch.ones(9)}), "a head of 4 classes in .* 9"),
    "no head": (saved(HEADLESS), "network.fc.weight, network.fc.bias missing"),
    "quantised": (saved(changed(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8))), "floating-point weights, got i"),
    "quantised and fused": (saved({k: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8) for k, v in STATE.items() if v.ndim > 1}),
                            "floating-point weights, got int8"),
    "of eight bits": (saved(changed(lambda t: (100 * t).to(torch.int8)) | {"fc.SCB": torch.ones(4)}), "weights, got int8 in"),
    "complex": (saved(changed(lambda t: t.to(torch.complex64))), "floating-point weights, got complex64"),
    "without values": (saved({k: v.to("meta") for k, v in STATE.items()}), "a tensor without values"),
    "diverged": (saved(STATE | {"bn1.bias": torch.full((16,), torch.nan)}), "finite weights, got NaN or infinity in network.bn1"),
    "sparse and too large": (saved(STATE | {"fc.weight": torch.sparse_coo_tensor([[0], [0]], [1.0], (10**7, 10**7))}),
                             "expected network.fc.weight|a head of 4 classes"),
    "expanded": (saved(STATE | {"fc.weight": torch.ones(1, 1).half().expand(10**6, 10**6)}), "more numbers than it holds"),
    "TorchScript": (lambda p: torch.jit.script(nn.Linear(2, 2)).save(p), "a TorchScript program, which would have to be run"),
    "torch.export": (lambda p: _export(p), "a program of torch.export"),
    "NumPy": (arrays, "arrays of NumPy in .*torch.save"),
    "arrays in a pickle": (written(pickle.dumps({k: v.numpy() for k, v in STATE.items()})),
                           "got dict with .*pickled objects .*numpy"),
    "compressed": (written(gzip.compress(TORCH)), "a compressed archive in .*unpack it"),
    "tar": (written(in_tar(bytes_of(NORMALISED, _use_new_zipfile_serialization=False))), "a compressed archive in .*unpack it"),
    "web page": (written(b"<!DOCTYPE html><html>Quota exceeded</html>"), "a web page in"),
    "LFS pointer": (written(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"), "a Git LFS pointer"),
    "truncated": (written(TORCH[:-5000]), "a truncated or foreign one of"),
    "truncated, older": (written(bytes_of(NORMALISED, _use_new_zipfile_serialization=False)[:-50]), "a truncated or foreign"),
    "empty": (written(b""), "a truncated or foreign one of 0 bytes"),
    "no weights": (saved({"epoch": 3, "lr": 0.1}), "got dict with epoch, lr in"),
    "optimiser alone": (saved({"optimizer": optimizer()}), "got dict with optimizer in"),
    "two constants": (saved(NORMALISED | {"normalize.mean": M / 2, "normalize.std": S}), "one normalisation, got"),
    "a std of 0": (saved(STATE | {"mu": M, "sigma": torch.tensor([0.1, 0.0, 0.1])}), "positive std of normalisation, got"),
    "no number for a mean": (saved(STATE | {"mu": M * torch.nan, "sigma": S}), "finite constants"),
    "text": (written(b"Entry not found\n"), "a text that begins with 'Entry not found'"),
    "HDF5": (written(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file"),
    "noise": (written(random.Random(0).randbytes(5000)), "foreign"),
    "zip of texts": (lambda p: folder_in_zip(p), "a zip archive of readme.txt in .*unpack"),
    "empty folder": (lambda p: folder(p, {}), "a file of weights in the folder weights.any, got none"),
    "two in a folder": (lambda p: folder(p, {f"{i}.safetensors": tensors(STATE) for i in "ab"}), "one file of weights in"),
    "folder with broken JSON": (lambda p: folder(p, {"a.bin": saved(STATE), "config.json": written(b"{")}), "expected JSON in"),
    "another shape": (saved(STATE | {"conv1.weight": torch.ones(5)}), r"conv1.weight of shape \(16, 3"),
    "one missing, one more": (saved({k: v for k, v in STATE.items() if k != "bn1.bias"} | {"a": torch.ones(1)}),
                              "network.bn1.bias missing, a unexpected; make the model these weights were saved from"),
    "other network": (saved(torch.nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)).state_dict()), "got another architecture"),
}


def _export(path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), file)


@pytest.mark.parametrize("name", LOADED)
def test_loaded(tmp_path: Path, name: str) -> None:
    """The network gives the logits of its source, with the source's normalisation; without its head, the features."""
    write, asked = LOADED[name]
    write(path := tmp_path / "weights.any")
    state, _ = load_weights(path, key=asked.get("key", ""))
    model = load_into(tiny(3), state, prefix=asked.get("prefix", ""), head=asked.get("head", "")).eval()
    if "head" in asked:
        model.network.fc = SOURCE.network.fc
    x = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(model(x), SOURCE(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("store", [saved, tensors])
def test_short_floats(tmp_path: Path, dtype: torch.dtype, store: Callable) -> None:
    """Half precision, bfloat16 and eight bits are widened: logits are those of the rounded network."""
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in STATE.items()}
    store(state)(path := tmp_path / "a.bin")
    model, rounded = tiny(3).eval(), tiny(2).eval()
    rounded.network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    load_into(model, load_weights(path)[0])
    x = torch.rand(4, 3, 16, 16)
    assert torch.equal(model(x), rounded(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    """In one line, for the true cause, and the network stays as it was."""
    write, message = REFUSED[name]
    write(path := tmp_path / "weights.any")
    model, before = tiny(3), tiny(3).state_dict()
    with pytest.raises(ValueError, match=message) as caught:
        load_into(model, load_weights(path)[0])
    assert "\n" not in str(caught.value) and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_converted_once(tmp_path: Path, monkeypatch, capsys) -> None:
    """The command leaves objects out, keeps every tensor and the normalisation, and never writes over a file."""
    monkeypatch.chdir(tmp_path)
    saved(robustness())(Path("robust.pt"))
    assert main(["convert", "robust.pt", "robust.safetensors"]) == 0
    assert "robust.safetensors: " in (said := capsys.readouterr().out) and "of arch tiny_resnet" in said
    model, x = load_into(tiny(3), load_weights("robust.safetensors")[0]).eval(), torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(model(x), SOURCE(x), rtol=1e-5, atol=1e-5)
    saved(changed(torch.Tensor.to_sparse))(Path("sparse.pt"))
    for arguments, message in (("robust.pt robust.safetensors", "a new file NAME.safetensors"), ("robust.pt a.pt", "a new"),
                               ("sparse.pt b.safetensors", "ordinary tensors"), ("none.pt c.safetensors", "no such file")):
        assert main(["convert", *arguments.split()]) == 2 and message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["robust.pt", "robust.safetensors", "sparse.pt"]


@pytest.mark.parametrize("change", [0.0, 5e-4, 0.01])
def test_normalisation_that_was_asked_for(change: float) -> None:
    """A model with constants of its own keeps them where the checkpoint agrees to 0.001, and refuses another one."""
    model = tiny(1, mean=MEAN, std=STD)
    refuses = pytest.raises(ValueError, match=r"normalisation with mean \[0.5, 0.45, 0.4\].*got mean \[0.51, 0.46")
    with refuses if change > 0.001 else contextlib.nullcontext():
        load_into(model, STATE | {"mu": M + change, "sigma": S})
    assert equal(model.network, SOURCE.network) is (change < 0.001) and equal(model.normalize, SOURCE.normalize)


def test_what_is_no_normalisation_of_the_network(caplog) -> None:
    """A mean and std that the network itself has, or of another size, stay where they are."""
    own = {"head.mean": torch.ones(3), "head.std": torch.ones(3), "x.mean": torch.ones(5), "x.std": torch.ones(5)}
    assert split_constants(own, own=("mean", "std"))[1] is None and split_constants(own, own=("head.mean",))[0] == own
    load_into(tiny(1).network, NORMALISED)
    assert "normalisation of the checkpoint left out" in caplog.text


@pytest.mark.parametrize(("make", "arch"), [
    (lambda: torchvision.models.resnet50(num_classes=9), "arch resnet50 or arch torchvision/resnet50"),
    (lambda: make_model("thin_resnet10", 10, norm="group", seed=0).network, "arch thin_resnet10, norm group or layer")])
def test_another_architecture_is_named(make: Callable, arch: str) -> None:
    """An error says which of ours the tensors fit, behind any prefix."""
    state = behind("module.", make().state_dict())
    assert " or ".join(fitting(state)) == arch
    with pytest.raises(ValueError, match=f"got another architecture: .*saved from .{arch}.$"):
        load_into(tiny(), state)


@pytest.mark.parametrize(("name", "message"), [
    ("resnet20-20230115.pt", None), ("a-15012023.pt", None), ("a-20230115123059.pt", None), ("step-00100000.pt", None),
    ("vgg13-19584684.pth", "begins with 19584684"), ("a-20231315.pt", "begins with 20231315"),
    ("a-12fca82f.th", "begins with 12fca82f"), ("a-1234567.pt", None), ("a_20239999.pt", None)])
def test_dates_in_names(tmp_path: Path, name: str, message: str | None) -> None:
    """Digits that can be a date are no SHA-256 that does not agree; others are."""
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        foreign.check_name(tmp_path / name)
