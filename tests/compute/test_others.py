"""Networks of torchvision, of timm and of one's own, by name: through all that a run does, and refused before any work."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from tests.compute.made import compute, networks, tiny_jobs
from tests.nets.made import shake
from twinslib.attack.pgd import pgd
from twinslib.base.sequential import certify_plan
from twinslib.certify.smoothing import collect_votes
from twinslib.compute import cost
from twinslib.compute.check import check
from twinslib.data.sets import DeviceSet
from twinslib.nets.checkpoint import load_into, load_weights, save_weights
from twinslib.nets.fold import FoldedCopy
from twinslib.nets.heads import find_head, replace_head
from twinslib.nets.models import make_model
from twinslib.specs.jobs import Task
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.store import Store
from twinslib.train.loop import fit

HERE = "tests.compute.test_others"


def narrow_vit(num_classes: int) -> nn.Module:
    """A transformer for images of 16 pixels."""
    return VisionTransformer(image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
                             num_classes=num_classes)


def linear(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(768, num_classes))


def of_ten(num_classes: int) -> nn.Module:
    return linear(11)


def by_convolution(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, num_classes, 16), nn.Flatten())


def no_network(num_classes: int) -> str:
    return "network"


ARCHS = {  # name: side in pixels, norm, batch norms that fold
    "torchvision/mobilenet_v3_small": (16, "batch", 34), "torchvision/shufflenet_v2_x0_5": (16, "batch", 56),
    "torchvision/mnasnet0_5": (16, "batch", 52), "torchvision/regnet_y_400mf": (16, "batch", 53),
    "torchvision/densenet121": (32, "batch", 59), "torchvision/efficientnet_b0": (16, "batch", 49),
    "torchvision/resnet18": (16, "group", 0), f"{HERE}:narrow_vit": (16, "own", 0), f"{HERE}:linear": (16, "own", 0),
    "timm/test_resnet": (32, "batch", 15), "timm/test_resnet.r160_in1k": (32, "layer", 0), "timm/ghostnet_050": (16, "batch", 79),
    "timm/test_efficientnet": (32, "batch", 0), "timm/test_byobnet": (32, "batch", 0), "timm/test_nfnet": (32, "own", 0),
    "timm/test_convnext": (32, "own", 0), "timm/test_efficientnet_gn": (32, "own", 0), "timm/test_mambaout": (32, "own", 0),
    "timm/lcnet_050": (16, "batch", 0), "timm/test_vit": (32, "own", 0), "resnet20": (32, "batch", 19),
}


@pytest.mark.parametrize("arch", ARCHS)
def test_all_that_a_run_does(tmp_path: Path, arch: str) -> None:
    """A head for other classes, a step of adversarial fine-tuning, PGD, a few draws of a certification, a file of weights."""
    side, norm, folds = ARCHS[arch]
    start = shake(make_model(arch, 7, norm=norm, seed=0))
    model = replace_head(start, 5, image_size=side, seed=0)
    data = DataSpec(name="any", image_size=side, augment="none")
    spec = RunSpec(data=data, model=ModelSpec(arch=arch, norm=norm), method=method("at"), attack=AttackSpec(steps=1),
                   optim=OptimSpec(epochs=1, batch_size=4, lr=1e-5, val_every=0))
    x, y = torch.randint(256, (4, 3, side, side), dtype=torch.uint8), torch.tensor([0, 1, 2, 3])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit(spec, model, DeviceSet(x, y, x[:0], y[:0], x, y, tuple("abcde")), device="cpu")
    after = model.eval().state_dict()
    assert all(torch.isfinite(v).all() for v in after.values()) and any((before[k] != v).any() for k, v in after.items())
    images = x.float() / 255
    logits = model(images)
    close = dict(rtol=0, atol=1e-4 * logits.abs().max().item())
    copied = FoldedCopy(model)
    assert copied.folded == folds
    torch.testing.assert_close(copied(images), logits, **close)
    x_adv = pgd(copied, images, y, eps=0.03, step_size=0.02, steps=2, generator=torch.Generator().manual_seed(0))
    assert 0 < (x_adv - images).abs().max() <= 0.03 + 1e-6
    votes = collect_votes(copied, x[:1], certify_plan(sigma=0.25, n=64, n0=64), labels=y[:1])
    assert votes.finished.all()
    save_weights(tmp_path / "a.safetensors", model, {})
    again = load_into(make_model(arch, 5, norm=norm, seed=1), load_weights(tmp_path / "a.safetensors")[0]).eval()
    torch.testing.assert_close(again(images), logits, **close)
    assert find_head(again, side) == find_head(start, side)


def run(arch: str, name: str = "at", norm: str = "batch", **changes: object) -> RunSpec:
    spec = tiny_jobs(("at",), epochs=1)[1].spec
    return replace(spec, **{"source": None, "model": ModelSpec(arch=arch, norm=norm), "method": method(name), **changes})


@pytest.mark.parametrize(("spec", "message"), [
    (lambda: run("torchvision/resnt18"), "network of torchvision, got 'resnt18'; did you mean 'resnet18'"),
    (lambda: run("timm/resnet18ts"), "network of timm, got 'resnet18ts'; did you mean 'resnet"),
    (lambda: run("torchvision/fcn_resnet50"), "network of torchvision, got 'fcn_resnet50'"),
    (lambda: run(f"{HERE}:linaer"), "got 'linaer'; did you mean 'linear'"),
    (lambda: run("no_such.module:net"), "a module for arch no_such.module:net, got No module named 'no_such'"),
    (lambda: run(f"{HERE}:no_network"), "a network .* from .*no_network, got str"),
    (lambda: run(f"{HERE}:of_ten", norm="own"), r"logits of shape \(2, 10\) from .*of_ten, got \(2, 11\)"),
    (lambda: run(f"{HERE}:linear"), "a network with batch norm for norm 'batch', got Sequential without; norm own"),
    (lambda: run(f"{HERE}:narrow_vit", model=ModelSpec(arch=f"{HERE}:narrow_vit", norm="own", upsample=32)),
     "logits for images of 16 pixels from .*narrow_vit, got .*Wrong image height! Expected 16 but got 32.*; set upsample"),
    (lambda: run("timm/lcnet_050", norm="group"), "nothing but BatchNorm2d to be replaced for norm 'group', got BatchNormAct2d"),
    (lambda: run("torchvision/googlenet"), "images of 16 pixels from torchvision/googlenet, got "),
    (lambda: run(f"{HERE}:by_convolution", norm="own", source=run(f"{HERE}:by_convolution", norm="own")),
     "a network that ends in a linear layer, got Classifier"),
], ids=lambda value: None if callable(value) else value[:40])
@pytest.mark.filterwarnings("ignore:.*initialization")
def test_refused_before_any_work(store: Store, spec: Callable[[], RunSpec], message: str) -> None:
    """For the true reason, in one line: names, images of another size, other outputs, no norm to replace, no head."""
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        check(networks(store), [Task(spec())])
    assert "\n" not in str(caught.value)


def test_a_run_from_a_run(store: Store) -> None:
    """A network of one's own is pre-trained, its head replaced and fine-tuned; what it costs is known before."""
    jobs = tiny_jobs(("at",), epochs=1)
    model = ModelSpec(arch=f"{HERE}:narrow_vit", norm="own")
    source = replace(jobs[0].spec, model=model)
    jobs = [replace(jobs[0], spec=source), replace(jobs[1], spec=replace(jobs[1].spec, model=model, source=source))]
    assert cost.cost(jobs[1].spec)[1] == sum(p.numel() for p in narrow_vit(10).parameters())
    assert not compute(store, jobs).failed and store.run(jobs[1].spec)
    assert cost._cost("torchvision/squeezenet1_1", "own", None, None, 64)[3] == 0
