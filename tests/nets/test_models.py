"""Networks by name, normalisation inside, heads replaced without knowing their names."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from tests.nets.made import equal, hooks, tiny
from twinslib.nets import models
from twinslib.nets.heads import Features, find_head, replace_head, with_head
from twinslib.nets.models import Classifier, Normalize, count_cost, make_model
from twinslib.nets.norms import twinsify
from twinslib.specs.choices import IMAGENET_MEAN, IMAGENET_STD, NORMS, own_width


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", ["tiny_resnet", "thin_resnet10", "resnet50"])
def test_networks(arch, norm):
    """Logits of the right shape, gradients everywhere, any image side, and the norm that was asked for."""
    model = make_model(arch, 7, norm=norm, seed=0)
    kinds = {type(m) for m in model.modules() if "Norm" in type(m).__name__ and not isinstance(m, Normalize)}
    assert kinds == {nn.BatchNorm2d if norm == "batch" else nn.GroupNorm}
    for side in (16, 35):
        logits = model(torch.rand(2, 3, side, side))
    logits.logsumexp(1).sum().backward()
    assert logits.shape == (2, 7) and all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(("arch", "millions", "layers"), [
    ("thin_resnet18", 2.8, None), ("resnet18", 11.2, None), ("resnet50", 23.5, None), ("resnet20", 0.27, 20),
    ("resnet110", 1.7, 110), ("resnet1202", 19.4, 1202)])
def test_sizes(arch, millions, layers):
    """Parameters (ten classes) are those of the known architectures, layers too: He et al. (2016), table 6."""
    model = make_model(arch, 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert layers in (None, sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()))
    if arch == "resnet20":  # shortcuts without parameters: every second pixel, zero channels on both sides
        shortcut, x = model.network.layer2[0].downsample, torch.rand(2, 16, 4, 4)
        out = shortcut(x)
        assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2]) and not out[:, :8].any() and not out[:, 24:].any()
        assert {"conv1.weight", "layer3.2.bn2.weight", "linear.bias"} <= model.network.state_dict().keys()
        assert not list(shortcut.parameters()) and out.shape == (2, 32, 2, 2)


@pytest.mark.parametrize(("width", "channels"), [(None, 32), (16, 16), (48, 48)])
def test_width(width, channels):
    """Channels of the first stage; each later stage doubles them."""
    network = make_model("thin_resnet10", 10, width=width, seed=0).network
    assert (network.conv1.out_channels, network.fc.in_features) == (channels, 8 * channels)
    assert own_width("thin_resnet10") == 32 and own_width("resnet20") is own_width("resnet50") is None


def test_new_heads_leave_hooks_no_tie():
    """A hook that holds a part of the network holds, in a copy with another head, that of the copy, which is trained."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    network.scale = nn.Parameter(torch.ones(1))
    network[0].register_forward_hook(lambda module, inputs, out: out * network.scale)
    other = replace_head(network, 3, image_size=2, seed=0)
    other(torch.rand(2, 3, 2, 2)).sum().backward()
    assert other.scale.grad is not None and network.scale.grad is None


def test_seed_decides_the_weights_and_nothing_else_moves():
    """Equal seeds give equal weights, of networks and new heads, others other weights."""
    state = torch.get_rng_state()
    for make in (tiny, lambda seed: replace_head(tiny(0), 3, image_size=16, seed=seed)):
        one, two, other = make(1), make(1), make(2)
        assert torch.equal(torch.get_rng_state(), state) and equal(one, two) and not equal(one, other)
    assert 0.7 * 32**-0.5 < one.network.fc.weight.abs().max() <= 32**-0.5


@pytest.mark.parametrize("upsample", [None, 24])
def test_classifier_normalises_inside(upsample):
    """The network sees (x - mean) / std, upsampled by nearest neighbour; the gradient lives on the small image."""
    model = Classifier(nn.Identity(), upsample=upsample)
    x = torch.rand(2, 3, 8, 8).requires_grad_()
    out = model(x)
    want = torchvision.transforms.functional.normalize(x, IMAGENET_MEAN, IMAGENET_STD)
    if upsample:
        want = want.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.allclose(out, want, atol=1e-6)
    out.sum().backward()
    assert x.grad.shape == x.shape and x.grad.abs().min() > 0


def test_cost_of_known_networks():
    """ResNet-50 at 224 pixels is about 4.1 billion multiply-adds; a convolution by hand agrees exactly."""
    macs, parameters, memory = count_cost(make_model("resnet50", 1000, seed=0), 224)
    assert macs == pytest.approx(4.09e9, rel=0.01) and parameters == 25_557_032 and 50e6 < memory < 250e6
    conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    assert count_cost(conv, 8) == (8 * 8 * 4 * 3 * 9, 3 * 4 * 9 + 4, 4 * 4 * 64)


@pytest.mark.parametrize(("norm", "width", "avx", "device", "expected"), [
    ("batch", 16, True, "cpu", torch.channels_last), ("layer", 16, True, "cpu", torch.channels_last),
    ("group", 16, True, "cpu", torch.contiguous_format), ("batch", 6, True, "cpu", torch.contiguous_format),
    ("batch", 16, False, "cpu", torch.contiguous_format), ("group", 6, False, "cuda", torch.channels_last)])
def test_memory_format(norm, width, avx, device, expected, monkeypatch):
    """Channels last, but on a CPU for group norm, for narrow layers, whose backward pass may crash then, and without AVX."""
    monkeypatch.setattr(models.arithmetic, "has_avx", lambda: avx)
    assert models.memory_format(make_model("thin_resnet10", 10, norm=norm, width=width, seed=0), device) == expected


HEADS = {"resnet18": "fc", "mobilenet_v3_small": "classifier.3", "timm:resnet10t": "fc", "timm:deit_tiny_patch16_224": "head",
         "twinned": "network.fc"}


@pytest.mark.parametrize("name", HEADS)
def test_replace_head(name):
    """The head is found by what it does, in any network, also through normalisation and wings."""
    side = {"timm:deit_tiny_patch16_224": 224, "twinned": 16}.get(name, 64)
    if name == "twinned":
        model = twinsify(tiny(classes=9))
    elif name.startswith("timm:"):
        model = timm.create_model(name[5:], num_classes=9)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=9)
    model.train()
    modes, before = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    new = replace_head(model, 4, image_size=side, seed=0)
    after = new.state_dict()
    assert equal(model, before) and before.keys() == after.keys() and modes == [m.training for m in new.modules()]
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert changed == [f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"] and after[changed[1]].shape == (4,)


def test_heads_in_odd_places():
    """A head without bias, in double precision; the whole model being one layer."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.aux = nn.Linear(48, 5), nn.Linear(48, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1)), self.aux(x.flatten(1))

    auxiliary = Auxiliary()
    auxiliary.register_forward_hook(lambda m, inputs, outs: outs[0])
    assert find_head(auxiliary, 4) == "head"
    new = replace_head(nn.Sequential(nn.Flatten(), nn.Linear(48, 6, bias=False)).double(), 2, image_size=4, seed=0)
    assert new[1].bias is None and new[1].weight.dtype == torch.float64 and new[1].weight.shape == (2, 48)
    assert replace_head(nn.Linear(4, 6), 2, image_size=4, seed=0).weight.shape == (2, 4)


def test_auxiliary_outputs_are_named():
    """In training mode GoogLeNet gives several outputs: refused with what to do; in eval mode it works."""
    network = torchvision.models.googlenet(weights=None, num_classes=3, init_weights=False, aux_logits=True)
    assert find_head(Classifier(network), 32) == "network.fc"
    network.eval().training = True  # norms and auxiliary heads in eval mode, for small images
    network.aux1 = network.aux2 = nn.Identity()
    with pytest.raises(TypeError, match=r"expected logits of shape .*got \w+Outputs? from .*aux_logits"):
        Classifier(network)(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("convert", [lambda m: m, twinsify])
def test_features_are_what_the_head_multiplies(convert):
    """Features of each pass in turn, with their graph; the head of them is the output."""
    model, head = convert(tiny()).eval(), nn.Linear(32, 3)
    features, x = Features(model, "network.fc"), torch.rand(4, 3, 16, 16)
    view = with_head(model, "network.fc", head)
    with features.watching():
        logits = model(x)
        seen = features.take()
        assert seen.shape == (4, 32) and torch.equal(model.network.fc(seen), logits)
        assert torch.equal(view(x), head(seen)) and view.network.fc is head
        seen.sum().backward()
        assert model.network.conv1.weight.grad.abs().sum() > 0
        features.take()  # the head was called once more above
        model(x[:3])
        model(x[3:])
        assert torch.allclose(features.take(), seen, atol=1e-6)
    with pytest.raises(ValueError, match="float images"), features.watching():
        assert hooks(model) == 1
        model(x)
        model(x[0])
    assert hooks(model) == 0
    with features.watching():
        model(x[:1])
        assert features.take().shape == (1, 32)


def test_with_head_shares_weights_and_statistics():
    """All parameters and buffers but the head's are the same objects; modes and hooks are their own."""
    model, head = tiny(), nn.Linear(32, 3)
    view = with_head(model, "network.fc", head)
    yours = {**dict(view.named_parameters()), **dict(view.named_buffers())}
    mine = [*model.named_parameters(), *model.named_buffers()]
    assert all(yours[name] is tensor for name, tensor in mine if ".fc." not in name)
    assert {id(p) for p in view.network.fc.parameters()} == {id(p) for p in head.parameters()}
    model.eval().network.bn1.register_forward_hook(lambda *args: None)
    assert hooks(view) == 0 and all(m.training for m in view.modules())
    nested = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    assert with_head(nested, "1", other := nn.Linear(48, 2))[1] is other and nested[1].out_features == 5
    assert with_head(nn.Linear(4, 6), "", other) is other


@pytest.mark.parametrize("call, message", [
    (lambda: make_model("thin_resnet81", 10, seed=0), "got 'thin_resnet81'; did you mean 'thin_resnet18'?"),
    (lambda: tiny(norm="grop"), "did you mean 'group'"), (lambda: tiny(classes=0), "num_classes to be at least 1, got 0"),
    (lambda: tiny(std=(0.2, 0.2)), "one mean and one positive std"), (lambda: tiny(std=(58.0,) * 3), "divide by 255"),
    (lambda: replace_head(tiny(), 0, image_size=16, seed=0), "at least 1, got 0"),
    (lambda: replace_head(torchvision.models.squeezenet1_1(num_classes=3), 2, image_size=64, seed=0),
     "ends in a linear layer, got SqueezeNet in which none of 0"),
    (lambda: tiny()(torch.rand(3, 16, 16)), r"torch.float32 of shape \(3, 16, 16"),
    (lambda: tiny()(torch.rand(2, 1, 16, 16)), r"\(B, 3, S, S\)"),
    (lambda: tiny()(torch.zeros(2, 3, 9, 9, dtype=torch.uint8)), "got torch.uint8")])
def test_errors(call, message):
    """Bad calls say what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        call()
