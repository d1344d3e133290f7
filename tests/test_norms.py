"""Two-branch batch norm: wings, conversion there and back, and what must never change."""

import copy
import pickle

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from twinslib.norms import (
    ALL_FROZEN,
    NORMS,
    TwinNorm,
    freeze_statistics,
    norm_layer,
    to_plain,
    twin_norms,
    twinsify,
    wings,
)

TORCHVISION = (
    "resnet18",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "googlenet",
    "regnet_y_400mf",
    "resnext50_32x4d",
)
TIMM = ("timm:resnet10t", "timm:mobilenetv3_small_050", "timm:densenet121")  # the last two with norm and act in one


class OwnNetwork(nn.Module):
    """A user's network: one norm used twice, a 1d norm in the head, odd names."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8, eps=1e-3, momentum=None)
        self.same = self.norm
        self.head = nn.ModuleDict({"bn": nn.BatchNorm1d(8, affine=False), "out": nn.Linear(8, classes)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.same(self.again(x)))
        return self.head["out"](self.head["bn"](x.mean((2, 3))))


def build(name: str) -> nn.Module:
    """A network by name with statistics and affine weights that are not the initial ones."""
    torch.manual_seed(0)
    if name == "own":
        model = OwnNetwork()
    elif name.startswith("timm:"):
        model = pytest.importorskip("timm").create_model(name[5:], num_classes=5)
    else:
        extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, num_classes=5, **extra)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.9, 1.1)
                nn.init.normal_(module.bias, 0, 0.1)
    return model


def small() -> nn.Module:
    """A cheap network with two batch norms."""
    torch.manual_seed(0)
    stem, body = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 6, 3)
    return nn.Sequential(stem, nn.BatchNorm2d(4), nn.ReLU(), body, nn.BatchNorm2d(6), nn.Flatten())


def disturb(model: nn.Module) -> None:
    """Make the two wings of a network differ in everything they own."""
    generator = torch.Generator().manual_seed(1)
    for _, twin in twin_norms(model):
        twin.adaptive.running_mean.add_(torch.rand(twin.adaptive.running_mean.shape, generator=generator))
        for parameter in twin.frozen.parameters():
            parameter.data.add_(0.1 * torch.rand(parameter.shape, generator=generator))


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all buffers of the frozen wings."""
    return {name: buffer.clone() for name, buffer in model.named_buffers() if ".frozen." in f".{name}"}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", [*TORCHVISION, "own", *TIMM])
def test_twinsify_there_and_back(name):
    """The network is unchanged, twinned computes the same, a split equals both wings, and each wing exports exactly."""
    model = build(name).eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        logits = model(x)
        twin = twinsify(model)
        assert equal(model.state_dict(), before) and next(twin_norms(model), None) is None
        assert torch.equal(twin(x), logits)
        disturb(twin)
        with wings(twin, "adaptive"):
            adaptive = twin(x)
        with wings(twin, "frozen"):
            frozen = twin(x)
        assert not torch.allclose(adaptive, frozen, atol=1e-4)
        with wings(twin, 1):
            assert torch.allclose(twin(x), torch.cat((frozen[:1], adaptive[1:])), rtol=1e-3, atol=1e-4)
        for wing, want in (("adaptive", adaptive), ("frozen", frozen)):
            plain = to_plain(twin, wing)
            assert torch.equal(plain(x), want)
            assert plain.state_dict().keys() == before.keys()
            assert {n: type(m) for n, m in plain.named_modules()} == {n: type(m) for n, m in model.named_modules()}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "own", "timm:resnet10t"])
def test_frozen_stays_frozen(name):
    """Statistics of the frozen wing are bit-identical after train() anywhere, optimiser steps and half batches."""
    twin = twinsify(build(name))
    kept = statistics(twin)
    affine = {n: p.detach().clone() for n, p in twin.named_parameters() if ".frozen." in n}
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    adaptive = next(twin_norms(twin))[1].adaptive.running_mean.clone()
    for n in (2, "frozen", 0, 3):
        twin.eval()
        twin.train()
        for module in twin.modules():
            module.train()
            module.training = True  # set directly, past every train()
        with wings(twin, n):
            twin(torch.rand(5, 3, 64, 64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert kept and equal(statistics(twin), kept)
    assert all(not torch.equal(p, affine[n]) for n, p in twin.named_parameters() if n in affine)
    assert not torch.equal(next(twin_norms(twin))[1].adaptive.running_mean, adaptive)


def test_frozen_wing_keeps_the_mode_of_other_parts():
    """Only the norm of the frozen wing stays in eval mode; a part of a subclass, such as a drop layer, trains."""

    class NormWithDrop(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.drop = nn.Dropout(0.5)

    twin = twinsify(nn.Sequential(nn.Conv2d(3, 4, 1), NormWithDrop(4)))[1].train()
    assert twin.frozen.drop.training and not twin.frozen.training
    assert not twin.eval().frozen.drop.training


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 9), data=st.data(), train=st.booleans())
def test_split_equals_two_wings(batch, data, train):
    """Any batch size and any split: output, gradients and statistics equal two separate passes, to 1e-12 in float64."""
    n = data.draw(st.integers(0, batch))
    torch.manual_seed(batch)
    one = TwinNorm(nn.BatchNorm2d(3).double(), next(twin_norms(twinsify(small())))[1].wings)
    disturb(one)
    one.train(train)
    two = copy.deepcopy(one)
    x = torch.randn(batch, 3, 4, 5, dtype=torch.float64)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    with wings(one, n):
        out = one(x1)
    parts = [part for part in ((two.frozen, x2[:n]), (two.adaptive, x2[n:])) if len(part[1])]
    want = torch.cat([norm(part) for norm, part in parts])
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (want * weight).sum().backward()
    assert torch.allclose(out, want, atol=1e-12) and torch.allclose(x1.grad, x2.grad, atol=1e-12)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-12)
    for a, b in zip(one.buffers(), two.buffers(), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-12)


@pytest.mark.parametrize("batch, n", [(1, 0), (4, 3)])
def test_single_value_per_channel(batch, n):
    """One adaptive image at 1 x 1 in training: normalised with running statistics, which stay as they are."""
    twin = twinsify(nn.Sequential(nn.BatchNorm2d(3)))
    disturb(twin)
    before = copy.deepcopy(twin.state_dict())
    x = torch.randn(batch, 3, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value"):
        to_plain(twin).train()(x[:1])
    with wings(twin.train(), n):
        out = twin(x)
    assert equal(twin.state_dict(), before) and twin[0].adaptive.training
    assert torch.equal(out[n:], to_plain(twin).eval()(x[n:]))


def test_wings_nest_and_restore():
    """Outside every context all images are adaptive; nested contexts, also failing ones, give back what was."""
    twin = twinsify(small())
    state = next(twin_norms(twin))[1].wings
    with wings(twin, 3):
        with wings(twin, "frozen"):
            assert state.n_frozen == ALL_FROZEN
        with pytest.raises(RuntimeError), wings(twin, None):
            assert state.n_frozen == 0
            raise RuntimeError
        assert state.n_frozen == 3
    assert state.n_frozen == 0


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_their_own_wings(clone):
    """A copy has one state for all its layers, apart from the original's, and it starts all adaptive."""
    twin = twinsify(small()).eval()
    disturb(twin)
    x = torch.rand(4, 3, 8, 8)
    other = clone(twin)
    with wings(other, 2):
        assert torch.equal(other(x)[2:], twin(x)[2:]) and not torch.equal(other(x)[:2], twin(x)[:2])
    with wings(twin, 2):
        inside = copy.deepcopy(twin)
    assert torch.equal(inside(x), other(x))
    assert len({id(layer.wings) for _, layer in twin_norms(other)}) == 1


def test_share_affine():
    """Shared affine: the same Parameter objects, also in a copy; one gradient from both wings; otherwise separate."""
    for model in (twinsify(small(), share_affine=True), copy.deepcopy(twinsify(small(), share_affine=True))):
        for _, twin in twin_norms(model):
            assert twin.adaptive.weight is twin.frozen.weight and twin.adaptive.bias is twin.frozen.bias
            assert twin.adaptive.running_mean is not twin.frozen.running_mean
        assert len(list(model.parameters())) == len(list(small().parameters()))
        with wings(model, 2):
            model(torch.rand(4, 3, 8, 8)).sum().backward()
        assert next(twin_norms(model))[1].adaptive.bias.grad.abs().sum() > 0
    separate = next(twin_norms(twinsify(small())))[1]
    assert separate.adaptive.weight is not separate.frozen.weight
    assert torch.equal(separate.adaptive.weight, separate.frozen.weight)


def test_second_adaptive_is_ordinary():
    """The control with two adaptive wings updates both statistics, each from its own images."""
    twin = twinsify(small(), second="adaptive").train()
    plain = small().train()
    x = torch.rand(6, 3, 8, 8)
    with wings(twin, 4):
        twin(x)
    plain(x[:4])
    assert torch.allclose(twin[1].frozen.running_mean, plain[1].running_mean)
    assert not torch.allclose(twin[1].adaptive.running_mean, plain[1].running_mean)


def test_second_adaptive_normalises_with_its_own_batch():
    """In training each part of the batch meets the statistics of that part alone; in eval mode each branch its own."""
    twin = twinsify(small(), second="adaptive").train()
    x = torch.rand(6, 3, 8, 8)
    with wings(twin, 4):
        out = twin(x)
    plain = [small().train(), small().train()]
    want = torch.cat((plain[0](x[:4]), plain[1](x[4:])))
    assert torch.allclose(out, want, atol=1e-6) and not torch.allclose(small().train()(x), want, atol=1e-3)
    with torch.no_grad():
        for wing, network in zip(("frozen", "adaptive"), plain, strict=True):
            assert torch.allclose(to_plain(twin, wing).eval()(x), network.eval()(x), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "own"])
def test_freeze_statistics(name):
    """Each batch norm, of any kind, normalises with its running statistics and keeps them; all else trains, drop layers too,
    until train() is called."""
    model, x = build(name).train(), torch.rand(3, 3, 64, 64)
    drops = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    before = {k: v.clone() for k, v in model.named_buffers()}
    assert freeze_statistics(model) is model and model.training and all(drop.training for drop in drops)
    for drop in drops:
        drop.p = 0.0  # random otherwise
    plain = copy.deepcopy(model).eval()
    out, want = model(x), plain(x)
    assert torch.equal(out, want)
    out.square().sum().backward()
    want.square().sum().backward()
    for p, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, expected.grad)
    assert equal(dict(model.named_buffers()), before)
    model.train()(x)
    assert not equal(dict(model.named_buffers()), before)


def test_freeze_statistics_needs_batch_norm():
    """A network without statistics is refused by name."""
    with pytest.raises(ValueError, match="network with batch norm, got Sequential without; there is nothing to freeze"):
        freeze_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)))


def test_modes_are_kept():
    """Conversion keeps each layer's mode, apart from the frozen norms."""
    model = small().train()
    model[1].eval()
    twin = twinsify(model)
    assert twin[4].adaptive.training and not twin[1].adaptive.training
    assert not twin[4].frozen.training
    assert to_plain(twin, "frozen")[4].training


def test_root_and_shared_layers():
    """A bare batch norm becomes a TwinNorm; a norm used under two names stays one layer under both."""
    assert isinstance(twinsify(nn.BatchNorm2d(3)), TwinNorm)
    assert isinstance(to_plain(twinsify(nn.BatchNorm2d(3))), nn.BatchNorm2d)
    twin = twinsify(OwnNetwork())
    assert twin.norm is twin.same and isinstance(twin.head["bn"], TwinNorm)
    plain = to_plain(twin)
    assert plain.norm is plain.same and type(plain.norm) is nn.BatchNorm2d


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_and_bfloat16(memory_format):
    """A split batch keeps its memory format, and runs in bfloat16 autocast with float32 statistics."""
    twin = twinsify(small()).train()
    x = torch.rand(5, 3, 8, 8).to(memory_format=memory_format)
    with wings(twin, 2), torch.autocast("cpu", torch.bfloat16):
        out = twin[1](twin[0](x))
        twin(x).float().sum().backward()
    assert out.is_contiguous(memory_format=memory_format) and out.dtype == torch.bfloat16
    assert twin[1].adaptive.running_mean.dtype == torch.float32
    assert torch.isfinite(twin[0].weight.grad).all()


def test_sync_batchnorm_is_converted():
    """SyncBatchNorm, which does not run without a process group, is doubled like any other."""
    twin = twinsify(nn.SyncBatchNorm.convert_sync_batchnorm(small())).eval()
    assert type(twin[1].frozen) is nn.SyncBatchNorm
    with wings(twin, 1), torch.no_grad():
        assert torch.equal(twin(torch.zeros(2, 3, 8, 8)), small().eval()(torch.zeros(2, 3, 8, 8)))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: twinsify(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))), "network with BatchNorm2d, got Seq"),
        (lambda: twinsify(twinsify(small())), "twinned already"),
        (lambda: twinsify(nn.BatchNorm2d(3, track_running_stats=False)), "False in the network itself"),
        (lambda: twinsify(small(), second="fixed"), "one of adaptive, frozen, got 'fixed'"),
        (lambda: to_plain(twinsify(small()), "both"), "one of adaptive, frozen, got 'both'"),
        (lambda: to_plain(small(), "frozen"), "got an ordinary one"),
        (lambda: wings(small(), 2).__enter__(), "with wings for n_frozen 2, got an ordinary one"),
        (lambda: wings(twinsify(small()), -1).__enter__(), "got -1"),
        (lambda: wings(twinsify(small()), "half").__enter__(), "got 'half'"),
        (lambda: norm_layer("instance"), "one of batch, group, layer, got 'instance'"),
        (lambda: norm_layer("bach"), "did you mean 'batch'"),
    ],
)
def test_errors(call, message):
    """Bad calls say what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        call()


def test_more_frozen_images_than_images():
    """A split beyond the batch is refused by the layer, and the context still closes."""
    twin = twinsify(small())
    with pytest.raises(ValueError, match=r"0\.\.3 \(the batch\), got 4"), wings(twin, 4):
        twin(torch.rand(3, 3, 8, 8))
    assert next(twin_norms(twin))[1].wings.n_frozen == 0


def test_ordinary_network_accepts_all_adaptive():
    """Code for both kinds of networks can always say `adaptive`."""
    for n in (0, None, "adaptive"):
        with wings(small(), n):
            pass


@pytest.mark.parametrize("channels, groups", [(16, 16), (32, 32), (64, 32), (48, 24), (7, 7), (37, 1)])
def test_norm_layers(channels, groups):
    """Groups divide the channels and are at most 32; layer norm is one group."""
    assert norm_layer("group")(channels).num_groups == groups
    assert norm_layer("layer")(channels).num_groups == 1
    assert type(norm_layer("batch")(channels)) is nn.BatchNorm2d
    for norm in NORMS:
        assert norm_layer(norm)(channels)(torch.rand(2, channels, 3, 3)).shape == (2, channels, 3, 3)
