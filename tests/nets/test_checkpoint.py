"""Files of weights: whole or not at all, safe to read, and every kind of bad file named."""

import copy
import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.nets.made import equal, tiny
from twinslib.base.files import atomic_write
from twinslib.nets.checkpoint import load_into, load_training, load_weights, save_training, save_weights, tensor_hash
from twinslib.nets.models import make_model
from twinslib.nets.norms import twinsify


def test_atomic_write_replaces_and_cleans_up(tmp_path):
    """New folders are made, content is replaced, who reads meanwhile sees the whole old file, permissions are ordinary."""
    path = tmp_path / "new" / "rows.csv"
    atomic_write(path, lambda temporary: temporary.write_text("one"))
    with open(path) as reader:
        atomic_write(path, lambda temporary: temporary.write_text("new"))
        assert reader.read() == "one" and path.read_text() == "new" and os.listdir(path.parent) == ["rows.csv"]
    (tmp_path / "ordinary").write_text("")
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError(), PermissionError(), OSError(errno.ENOSPC, ""),
                                   OSError(errno.EDQUOT, "")], ids=repr)
def test_failed_write_keeps_the_old_file(tmp_path, error):
    """After any error halfway the old content is there, the temporary file is not, and a full disk or quota says so."""
    path = tmp_path / "rows.csv"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise error

    full = getattr(error, "errno", None)
    with pytest.raises(type(error), match="free space for rows.csv.*make room" if full else None) as caught:
        atomic_write(path, fail)
    assert getattr(caught.value, "errno", None) == full
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["rows.csv"]


@pytest.mark.parametrize("make", [tiny, lambda: twinsify(tiny()), lambda: twinsify(tiny(), share_affine=True)])
def test_weights_round_trip(tmp_path, make):
    """Every tensor comes back bit for bit, shared ones too, with the metadata; equal weights give equal bytes."""
    model = make()
    meta = {"spec": {"arch": "tiny_resnet", "lr": 0.1}, "classes": 4}
    for name in ("a.safetensors", "b.safetensors"):
        save_weights(tmp_path / name, model, meta)
    state, loaded = load_weights(tmp_path / "a.safetensors")
    assert loaded == meta and equal(state, model)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert load_into(other, state) is other and equal(other, model)


def test_half_precision(tmp_path):
    """Half: large weights to 11 bits, half the bytes; norms, biases, statistics and pixel means exact, floats back."""
    model = make_model("thin_resnet10", 4, seed=0)
    model(torch.rand(4, 3, 32, 32))
    model.network.fc.weight.data[0, 0] = 1e5  # beyond float16: the tensor stays in float32
    save_weights(tmp_path / "half.safetensors", model, {}, half=True)
    save_weights(tmp_path / "full.safetensors", model, {})
    assert (tmp_path / "half.safetensors").stat().st_size < 0.52 * (tmp_path / "full.safetensors").stat().st_size
    state, _ = load_weights(tmp_path / "half.safetensors")
    large = {name for name, p in model.named_parameters() if p.ndim > 1} - {"network.fc.weight"}
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor.half().float() if name in large else tensor)


def test_tensor_hash():
    """Depends on names, values, shapes and dtypes; not on order, memory format or file."""
    state = tiny().state_dict()
    base = tensor_hash(state)
    assert base == tensor_hash(dict(reversed(state.items())))
    assert base == tensor_hash(tiny().to(memory_format=torch.channels_last).state_dict())
    w = torch.arange(4.0)
    others = ({"w": w}, {"renamed": w}, {"w": w + 1}, {"w": w.view(2, 2)}, {"w": w.double()}, {"w": w.bfloat16()})
    assert len({tensor_hash(other) for other in others}) == len(others)


def test_training_round_trip(tmp_path):
    """Model, optimiser, generator and plain types come back as they were, for their own config only."""
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7,
             "generator": torch.Generator().manual_seed(1).get_state(), "epochs": [{"epoch": 1, "loss": 0.5, "note": None}]}
    save_training(tmp_path / "run.ckpt", state, run="3fa2")
    loaded = load_training(tmp_path / "run.ckpt", run="3fa2")
    assert loaded.keys() == state.keys() and loaded["epochs"] == state["epochs"] and loaded["step"] == 7
    assert equal(loaded["model"], state["model"]) and torch.equal(loaded["generator"], state["generator"])
    for got, parameter in zip(loaded["optimizer"]["state"].values(), model.parameters(), strict=True):
        assert torch.equal(got["momentum_buffer"], optimizer.state[parameter]["momentum_buffer"])
    with pytest.raises(ValueError, match='expected run "91bc" in .*run.ckpt, got "3fa2"'):
        load_training(tmp_path / "run.ckpt", run="91bc")


@pytest.mark.parametrize("value, where", [
    ({"loss": np.float64(0.5)}, r"numpy.float64 at state\['loss'\]"),
    ({"rows": [{"a": 1}, {"a": Path("x")}]}, r"at state\['rows'\]\[1\]\['a'\]"),
    ({"rng": random.Random(0)}, "random.Random"), ({"mask": np.zeros(3)}, "numpy.ndarray")])
def test_training_refuses_what_it_could_not_load(tmp_path, value, where):
    """What safe loading would refuse is refused when saving, by name and place, and no file appears."""
    with pytest.raises(TypeError, match=where):
        save_training(tmp_path / "run.ckpt", value, run="a")
    assert not os.listdir(tmp_path)


def test_bad_training_states(tmp_path):
    """Missing and truncated files and files of another kind are refused by name, not restarted from."""
    path = tmp_path / "run.ckpt"
    for load in (load_weights, lambda path: load_training(path, run="a")):
        with pytest.raises(FileNotFoundError, match="run.ckpt"):
            load(path)
    save_training(path, {"step": 1, "w": torch.ones(1000)}, run="a")
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="damaged or foreign"):
            load_training(path, run="a")
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="damaged or foreign"):
        load_training(path, run="a")
