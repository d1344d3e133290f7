"""Networks as files: what is exported is loaded by the lines on its card alone, and gives the logits it had."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import twinslib
from tests.nets.made import shake
from twinslib import api
from twinslib.nets.models import make_model

CHAIN = {  # network: side in pixels, method
    **{f"torchvision/{name}": (16, "at") for name in ("mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x0_5")},
    **{f"timm/{name}": (32, "at") for name in ("test_convnext", "test_nfnet", "test_vit", "test_efficientnet_gn")},
    "torchvision/resnet18": (32, "twins_at"), "timm/lcnet_050": (16, "at"), "timm/test_resnet": (32, "twins_at"),
    "tiny_resnet": (16, "twins_at"), "resnet20": (16, "at"),
}


def made(name: str) -> nn.Module:
    """A network of five classes as its users make it."""
    library, _, model = name.partition("/")
    if library == "torchvision":
        return torchvision.models.get_model(model, num_classes=5)
    return timm.create_model(model, num_classes=5) if library == "timm" else make_model(name, 5, seed=0)


def pair(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).integers(0, 256, (6, size, size, 3), np.uint8), np.arange(6) % 3


def by_its_card(path: Path, images: torch.Tensor) -> torch.Tensor:
    """Logits by the lines on a card, run where it lies."""
    (code,) = re.findall(r"```python\n(.*?)```", path.with_suffix(".md").read_text(), re.DOTALL)
    names = {"images": images}
    exec(code, names)
    return names["logits"]


@pytest.mark.parametrize("name", CHAIN)
def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Fine-tuned, attacked, certified, exported: the lines on the card make the network of three classes again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api.autoattack, "checks", lambda *_, **__: {})
    size, method = CHAIN[name]
    images, network = pair(size), shake(made(name))
    constants = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)} if "/" in name else {}
    tuned = twinslib.fine_tune(network, images, method, epochs=1, batch_size=3, steps=1, lr=1e-5, device="cpu", **constants)
    robust = twinslib.robust_accuracy(tuned, images, steps=1, n=3, device="cpu")
    certified = twinslib.certify(tuned, images, sigma=0.25, n=64, n0=16, max_images=1, device="cpu")
    twinslib.export(tuned, "net.safetensors", images=images, measured={"PGD": robust, "sigma 0.25": certified})
    x = torch.rand(4, 3, size, size)
    with torch.no_grad():
        want, got = tuned(x), by_its_card(tmp_path / "net.safetensors", x)
    assert want.shape == (4, 3) and want.std(0).max() > 0
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * want.abs().max().item())
    text = Path("net.md").read_text()
    assert f"| PGD | {robust} |" in text and str(certified) in text
    assert ("twinslib" in text) == (name == "resnet20")


def test_networks_without_a_name(tmp_path: Path) -> None:
    """One's own class: tensors and constants are there, and the card says what it cannot."""
    class Own(nn.Sequential):
        pass

    network, images = Own(nn.Flatten(), nn.Linear(192, 3)), pair(8)
    files = twinslib.export(network, tmp_path / "net.safetensors", images=images)
    card = json.loads(files[1].read_text())
    assert (card["about"], card["input"]["mean"], card["input"]["size"]) == ("Own, 3 classes", [0, 0, 0], 8)
    assert "network = ...  # what was exported, with 3 classes" in files[2].read_text()
    with pytest.raises(ValueError, match="expected images, those that the network is for"):
        twinslib.export(network, tmp_path / "net.safetensors")
