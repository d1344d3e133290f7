"""Networks by name, normalisation inside, heads replaced without knowing their names."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from twinslib.nets import models
from twinslib.nets.heads import Features, find_head, replace_head, with_head
from twinslib.nets.models import Classifier, Normalize, count_cost, make_model
from twinslib.nets.norms import twinsify
from twinslib.specs.choices import ARCHS, IMAGENET_MEAN, IMAGENET_STD, NORMS

SMALL = ("tiny_resnet", "thin_resnet10", "thin_resnet18", "resnet18")


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", SMALL)
def test_small_networks(arch, norm):
    """Logits of the right shape, gradients everywhere, any image side, and the norm that was asked for."""
    model = make_model(arch, 7, norm=norm, seed=0)
    side = ARCHS[arch].image_size
    model(torch.rand(2, 3, side, side)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model(torch.rand(2, 3, side + 3, side + 3)).shape == (2, 7)
    kinds = {type(m) for m in model.modules() if "Norm" in type(m).__name__ and not isinstance(m, Normalize)}
    assert kinds == {nn.BatchNorm2d if norm == "batch" else nn.GroupNorm}


@pytest.mark.parametrize("arch, millions", [("thin_resnet18", 2.8), ("resnet18", 11.2), ("resnet50", 23.5)])
def test_sizes(arch, millions):
    """Parameter counts are those of the known architectures (ten classes)."""
    parameters = sum(p.numel() for p in make_model(arch, 10, seed=0).parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("arch", ["thin_resnet10", "resnet50"])
def test_seed_decides_the_weights_and_nothing_else_moves(arch):
    """Equal seeds give equal weights, others other weights, and the global generator is where it was."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one = make_model(arch, 4, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert equal_states(one, make_model(arch, 4, seed=1))
    assert not equal_states(one, make_model(arch, 4, seed=2))


def test_large_networks_take_norms():
    """torchvision's networks are built with the asked norm too."""
    model = make_model("resnet50", 3, norm="group", seed=0)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


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


HEADS = {
    "resnet18": "fc",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "efficientnet_b0": "classifier.1",
    "shufflenet_v2_x0_5": "fc",
    "regnet_y_400mf": "fc",
    "googlenet": "fc",
}


@pytest.mark.parametrize("name", HEADS)
def test_replace_head_torchvision(name):
    """The head is found by what it does; everything else, the given network and its modes stay as they are."""
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=9, **extra).train()
    modes = [m.training for m in model.modules()]
    before = copy.deepcopy(model.state_dict())
    assert find_head(model, 64) == HEADS[name]
    new = replace_head(model, 4, image_size=64, seed=0)
    after = new.state_dict()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[k], before[k]) for k in before)
    changed = [k for k in before if not torch.equal(before[k], after[k])] if before.keys() == after.keys() else None
    assert changed == [f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"]
    assert modes == [m.training for m in new.modules()]
    with torch.no_grad():
        assert new.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "deit_tiny_patch16_224"])
def test_replace_head_timm(name):
    """timm's networks, convolutional or with attention."""
    model = pytest.importorskip("timm").create_model(name, num_classes=9)
    side = 224 if name == "deit_tiny_patch16_224" else 64
    assert replace_head(model, 4, image_size=side, seed=0).eval()(torch.rand(2, 3, side, side)).shape == (2, 4)


@pytest.mark.parametrize("convert", [lambda m: m, twinsify])
def test_replace_head_through_classifier(convert):
    """Works through normalisation and wings; the seed decides the head, without touching the global generator."""
    model = convert(make_model("tiny_resnet", 10, seed=0))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, two, other = (replace_head(model, 3, image_size=16, seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert equal_states(one, two) and not equal_states(one, other)
    assert one.network.fc.weight.shape == (3, 32) and model.network.fc.out_features == 10
    bound = 32**-0.5
    assert 0.7 * bound < one.network.fc.weight.abs().max() <= bound  # PyTorch's default initialisation


def test_replace_head_keeps_dtype_bias_and_odd_places():
    """A head without bias, in double precision, in a list, and even the whole model being one layer."""
    parts = nn.Sequential(nn.Flatten(), nn.ModuleList([nn.Linear(48, 6, bias=False)])[0]).double()
    new = replace_head(parts, 2, image_size=4, seed=0)
    assert new[1].bias is None and new[1].weight.dtype == torch.float64 and new[1].weight.shape == (2, 48)
    layer = replace_head(nn.Linear(4, 6), 2, image_size=4, seed=0)
    assert layer.weight.shape == (2, 4)


def test_the_last_layer_that_gives_the_output_is_the_head():
    """An auxiliary layer that runs later does not count: its output is not the model's."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.aux = nn.Linear(48, 5), nn.Linear(48, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.head(x.flatten(1))
            self.seen = self.aux(x.flatten(1))
            return logits

    assert find_head(Auxiliary(), 4) == "head"


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("convert", [lambda m: m, twinsify])
def test_features_are_what_the_head_multiplies(convert):
    """Features of each pass in turn, with their graph; the head of them is the output."""
    model = convert(make_model("tiny_resnet", 5, seed=0)).eval()
    features, x = Features(model, "network.fc"), torch.rand(4, 3, 16, 16)
    with features.watching():
        logits = model(x)
        seen = features.take()
        assert seen.shape == (4, 32) and torch.equal(model.network.fc(seen), logits)
        seen.sum().backward()
        assert model.network.conv1.weight.grad.abs().sum() > 0
        features.take()  # the head was called once more above
        model(x[:3])
        model(x[3:])
        assert torch.allclose(features.take(), seen, atol=1e-6)


def test_features_are_watched_inside_the_context_only():
    """No hook before and after, also after an error, nor in copies made outside; what was not taken is forgotten."""
    model = make_model("tiny_resnet", 5, seed=0).eval()
    features, x = Features(model, "network.fc"), torch.rand(2, 3, 16, 16)
    assert hooks(model) == 0
    with pytest.raises(ValueError, match="float images"), features.watching():
        assert hooks(model) == 1
        model(x)
        model(x[0])
    assert hooks(model) == hooks(copy.deepcopy(model)) == 0
    model(x)
    with features.watching():
        model(x[:1])
        assert features.take().shape == (1, 32)


@pytest.mark.parametrize("convert", [lambda m: m, twinsify])
def test_with_head_is_the_same_network_with_another_head(convert):
    """Same features, the other head; the given network computes what it did."""
    model, head = convert(make_model("tiny_resnet", 5, seed=0)).eval(), nn.Linear(32, 3)
    x = torch.rand(4, 3, 16, 16)
    logits = model(x)
    view, features = with_head(model, "network.fc", head), Features(model, "network.fc")
    with features.watching():
        assert torch.equal(model(x), logits)
        seen = features.take()
    assert torch.equal(view(x), head(seen)) and view.network.fc is head
    nested = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    assert with_head(nested, "1", other := nn.Linear(48, 2))[1] is other and nested[1].out_features == 5
    assert with_head(nn.Linear(4, 6), "", other) is other


def test_with_head_shares_weights_and_statistics():
    """All parameters and buffers but the head's are the same objects, so training one network trains the other, both ways."""
    model, head = make_model("tiny_resnet", 5, seed=0), nn.Linear(32, 3)
    view = with_head(model, "network.fc", head)
    for mine, yours in ((model.named_parameters(), view.named_parameters()), (model.named_buffers(), view.named_buffers())):
        yours = dict(yours)
        assert all(yours[name] is tensor for name, tensor in mine if ".fc." not in name)
    assert {id(p) for p in view.network.fc.parameters()} == {id(p) for p in head.parameters()}
    x = torch.rand(4, 3, 16, 16)
    for trained, other in ((model, view), (view, model)):
        before = other.eval()(x)
        optimizer = torch.optim.SGD([p for n, p in trained.named_parameters() if ".fc." not in n], lr=0.5)
        trained.train()(x).logsumexp(1).sum().backward()
        optimizer.step()
        assert not torch.allclose(other.eval()(x), before, atol=1e-3)
        state = trained.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items() if ".fc." not in k)


def test_with_head_has_modes_and_hooks_of_its_own():
    """eval() and hooks of one network do not reach the other."""
    model = make_model("tiny_resnet", 5, seed=0).train()
    view = with_head(model, "network.fc", nn.Linear(32, 3)).eval()
    assert all(m.training for m in model.modules()) and not any(m.training for m in view.modules())
    model.network.bn1.register_forward_hook(lambda *args: None)
    assert hooks(view) == 0
    view.network.conv1.register_forward_pre_hook(lambda *args: None)
    assert hooks(model) == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_model("thin_resnet81", 10, seed=0), "got 'thin_resnet81'; did you mean 'thin_resnet18'?"),
        (lambda: make_model("alexnet", 10, seed=0), "expected arch to be one of tiny_resnet, thin_resnet10"),
        (lambda: make_model("tiny_resnet", 10, norm="grop", seed=0), "did you mean 'group'"),
        (lambda: make_model("tiny_resnet", 0, seed=0), "num_classes to be at least 1, got 0"),
        (lambda: make_model("tiny_resnet", 2, std=(0.2, 0.2), seed=0), "one mean and one positive std"),
        (lambda: replace_head(make_model("tiny_resnet", 2, seed=0), 0, image_size=16, seed=0), "at least 1, got 0"),
        (
            lambda: replace_head(torchvision.models.squeezenet1_1(num_classes=3), 2, image_size=64, seed=0),
            "ends in a linear layer, got SqueezeNet in which none of 0",
        ),
        (lambda: make_model("tiny_resnet", 2, seed=0)(torch.rand(3, 16, 16)), r"torch.float32 of shape \(3, 16, 16"),
        (lambda: make_model("tiny_resnet", 2, seed=0)(torch.rand(2, 1, 16, 16)), r"\(B, 3, S, S\)"),
        (lambda: make_model("tiny_resnet", 2, seed=0)(torch.zeros(2, 3, 9, 9, dtype=torch.uint8)), "got torch.uint8"),
    ],
)
def test_errors(call, message):
    """Bad calls say what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        call()


def test_cost_of_known_networks():
    """ResNet-50 at 224 pixels is about 4.1 billion multiply-adds; a convolution by hand agrees exactly."""
    macs, parameters, memory = count_cost(make_model("resnet50", 1000, seed=0), 224)
    assert macs == pytest.approx(4.09e9, rel=0.01)
    assert parameters == 25_557_032
    assert 50e6 < memory < 250e6
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
