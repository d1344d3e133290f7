"""Two-branch batch norm: wings, conversion there and back, and what must never change."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

from tests.nets.made import equal, overridden, shake, small
from twinslib.nets.norms import TwinNorm, freeze_statistics, norm_layer, to_plain, twin_norms, twinsify, wings
from twinslib.nets.split import ALL_FROZEN
from twinslib.train.noise import reestimated

NETWORKS = ("resnet18", "mobilenet_v3_small", "own", "timm:resnet10t")  # the last with norm and activation in one


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
    if name.startswith("timm:"):
        model = pytest.importorskip("timm").create_model(name[5:], num_classes=5)
    else:
        model = OwnNetwork() if name == "own" else torchvision.models.get_model(name, weights=None, num_classes=5)
    return shake(model)


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all buffers of the frozen wings."""
    return {name: buffer.clone() for name, buffer in model.named_buffers() if ".frozen." in f".{name}"}


def state_of(model: nn.Module):
    return next(twin_norms(model))[1].wings


# -- the mathematics ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETWORKS)
def test_twinsify_there_and_back(name):
    """The network is unchanged, twinned computes the same, a split equals both wings, and each wing exports exactly."""
    model = build(name).eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        logits = model(x)
        twin = twinsify(model)
        assert equal(model, before) and next(twin_norms(model), None) is None
        assert torch.equal(twin(x), logits)
        shake(twin)
        found = {}
        for wing in ("adaptive", "frozen"):
            with wings(twin, wing):
                found[wing] = twin(x)
            plain = to_plain(twin, wing)
            assert torch.equal(plain(x), found[wing]) and plain.state_dict().keys() == before.keys()
            assert {n: type(m) for n, m in plain.named_modules()} == {n: type(m) for n, m in model.named_modules()}
        assert not torch.allclose(*found.values(), atol=1e-4)
        with wings(twin, 1):
            assert torch.allclose(twin(x), torch.cat((found["frozen"][:1], found["adaptive"][1:])), rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 9), data=st.data(), train=st.booleans())
def test_split_equals_two_wings(batch, data, train):
    """Any batch size and any split: output, gradients and statistics equal two separate passes, to 1e-12 in float64."""
    n = data.draw(st.integers(0, batch))
    torch.manual_seed(batch)
    one = TwinNorm(nn.BatchNorm2d(3).double(), state_of(twinsify(small())))
    shake(one).train(train)
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


def test_share_affine():
    """Shared affine: the same Parameter objects, also in a copy; one gradient from both wings; otherwise separate."""
    model = copy.deepcopy(twinsify(small(), share_affine=True))
    for _, twin in twin_norms(model):
        assert twin.adaptive.weight is twin.frozen.weight and twin.adaptive.bias is twin.frozen.bias
        assert twin.adaptive.running_mean is not twin.frozen.running_mean
    assert len(list(model.parameters())) == len(list(small().parameters()))
    with wings(model, 2):
        model(torch.rand(4, 3, 8, 8)).sum().backward()
    assert model[1].adaptive.bias.grad.abs().sum() > 0
    separate = twinsify(small())[1]
    assert separate.adaptive.weight is not separate.frozen.weight
    assert torch.equal(separate.adaptive.weight, separate.frozen.weight)


# -- frozen stays frozen -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "own", "timm:resnet10t"])
def test_frozen_stays_frozen(name):
    """Statistics of the frozen wing are bit-identical after train() anywhere, optimiser steps and half batches."""
    twin = twinsify(build(name))
    kept, adaptive = statistics(twin), next(twin_norms(twin))[1].adaptive.running_mean.clone()
    affine = {n: p.detach().clone() for n, p in twin.named_parameters() if ".frozen." in n}
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    for n in (2, "frozen", 0, 3):
        twin.eval()
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


RESETS = {
    "update_bn": lambda m: update_bn([torch.rand(4, 3, 8, 8)], m),
    "averaged": lambda m: update_bn([torch.rand(4, 3, 8, 8)], AveragedModel(m)),
    "reset": lambda m: m.apply(lambda layer: getattr(layer, "reset_running_stats", int)()),
    "synchronised": lambda m: RESETS["reset"](nn.SyncBatchNorm.convert_sync_batchnorm(m)),
    "estimated": lambda m: reestimated(m, torch.zeros(8, 3, 8, 8, dtype=torch.uint8), 0.1, seed=0),
}


@pytest.mark.parametrize("reset", RESETS.values(), ids=RESETS)
def test_frozen_statistics_survive_resets(reset):
    """What resets or estimates the statistics of batch norms reaches the adaptive wing only."""
    twin = copy.deepcopy(shake(twinsify(small())))
    kept = statistics(twin)
    made = reset(twin)
    assert equal(statistics(twin), kept) and (not isinstance(made, nn.Module) or equal(statistics(made), kept))
    for network in (to_plain(twin, "frozen"), to_plain(twin), twinsify(small(), second="adaptive")):
        RESETS["reset"](network)
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
        assert norms and not any(m.running_mean.any() or "reset_running_stats" in vars(m) for m in norms)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "own"])
def test_freeze_statistics(name):
    """Each batch norm, of any kind, normalises with its running statistics and keeps them."""
    model, x = build(name).train(), torch.rand(3, 3, 64, 64)
    drops = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    before = {k: v.clone() for k, v in model.named_buffers()}
    assert freeze_statistics(model) is model and model.training and all(drop.training for drop in drops)
    for drop in drops:
        drop.p = 0.0  # random otherwise
    plain = copy.deepcopy(model).eval()
    out, want = model(x), plain(x)
    assert torch.equal(out, want)
    for loss in (out, want):
        loss.square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
    assert equal(dict(model.named_buffers()), before)
    model.train()(x)
    assert not equal(dict(model.named_buffers()), before)


def test_modes_are_kept():
    """Conversion keeps each layer's mode, apart from the frozen norms; parts of a subclass, such as a drop layer, follow it."""

    class NormWithDrop(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.drop = nn.Dropout(0.5)

    model = nn.Sequential(nn.BatchNorm2d(3).eval(), NormWithDrop(3))
    twin = twinsify(model)
    assert [n.adaptive.training for n in twin] == [False, True] and not any(n.frozen.training for n in twin)
    assert twin[1].frozen.drop.training and to_plain(twin, "frozen")[1].training and not twin.eval()[1].frozen.drop.training


# -- the context -------------------------------------------------------------------------------------------------------
def test_wings_nest_and_restore():
    """Outside every context all images are adaptive; nested contexts, also failing ones, give back what was."""
    twin = twinsify(small())
    state = state_of(twin)
    with wings(twin, 3):
        with wings(twin, "frozen"):
            assert state.n_frozen == ALL_FROZEN
        with pytest.raises(RuntimeError), wings(twin, None):
            assert state.n_frozen == 0
            raise RuntimeError
        with pytest.raises(ValueError, match=r"0\.\.3 \(the batch\), got 4"), wings(twin, np.uint8(4)):
            assert state.n_frozen == 4
            twin(torch.rand(3, 3, 8, 8))
        assert state.n_frozen == 3
    assert state.n_frozen == 0
    for n in (0, None, "adaptive", np.int64(0)):
        with wings(small(), n):
            pass


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("n", [3, "frozen"])
def test_copies_keep_their_own_wings(clone, n):
    """What is copied or saved, also inside a context, is all adaptive, with one state of its own for all its layers."""
    twin = shake(twinsify(small()).eval())
    x = torch.rand(4, 3, 8, 8)
    want = twin(x)
    with wings(twin, n):
        inside = clone(twin)
        assert torch.equal(inside(x), want) and not torch.equal(twin(x), want)
    for made in (inside, clone(twin)):
        assert set(vars(made)) == set(vars(twin)) and torch.equal(made(x), want)
        assert len({layer.wings for _, layer in twin_norms(made)}) == 1
        with wings(made, n):
            assert not torch.equal(made(x), want) and torch.equal(twin(x), want)


class Joined(nn.Module):
    """Two twinned networks, one of them called with chunks, with several frames an image, or not at all in order."""

    def __init__(self, *parts: nn.Module, cut=lambda x: [x]) -> None:
        super().__init__()
        self.parts, self.cut = nn.ModuleList(parts), cut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outs = [torch.cat([part(piece) for piece in self.cut(x)]) for part in self.parts]
        return sum(out.view(len(x), -1) for out in outs)


CUTS = {"chunks": lambda x: x.chunk(2), "crops": lambda x: [torch.cat((x, x.flip(3)))]}


@pytest.mark.parametrize("call", [lambda model, x: model(x=x), lambda model, x: nn.Sequential(model)(x)])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_cut_batches_are_refused(cut, call):
    """A network that cuts or folds its batch inside has no first images at its norms."""
    model, x = twinsify(Joined(small(), cut=cut)), torch.rand(8, 3, 8, 8)
    for n in (4, 1, 8):
        with pytest.raises(ValueError, match="expected 8 rows at each batch norm, one per image"), wings(model, n):
            call(model, x)
    for n in (0, "frozen"):
        with wings(model, n):
            call(model, x)
    assert "_compiled_call_impl" not in vars(model)


def test_batches_are_counted_at_the_entry():
    """Calls in one context may differ in size, a network inside another has its own batch, images may be anywhere."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, scale: float, batch: dict, flip: bool = False) -> torch.Tensor:
            return self.net(scale * batch["x"])

    model, x = twinsify(Outer()), torch.rand(8, 3, 8, 8)
    with wings(model, 3):
        for size in (8, 3, 5):
            assert len(model(1.0, {"n": 1, "x": x[:size]}, flip=True)) == size
    with wings(model.net, 3):
        assert len(model(1.0, {"x": x})) == 8
    with wings(model, 3):
        model.net(x)
        with pytest.raises(ValueError, match="expected 8 rows .* got 4"):
            model.net[1](torch.rand(4, 4, 6, 6))
    with pytest.raises(ValueError, match="a tensor of images among the inputs inside"), wings(model, 3):
        model(1.0, {})


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_passes_split_as_they_did(reentrant, inside):
    """Gradients with activation checkpoints equal those without, whatever the context in which parts run again."""
    gradients = []
    for on in (True, False):
        model, x = shake(twinsify(small()).eval()), torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        x.requires_grad_()
        if on:
            model.forward = lambda x, body=model.forward: checkpoint(body, x, use_reentrant=reentrant)
        model(x).sum().backward()  # no context so far
        outs = []
        for n in (2, 5, "frozen", "adaptive"):
            with wings(model, n):
                outs.append((model(x) * torch.arange(96.0).view(1, -1)).square().sum())
                if inside:
                    outs.pop().backward()
        if outs:
            with wings(model, 1):
                sum(outs).backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6 * b.abs().max())


# -- other machinery of torch ------------------------------------------------------------------------------------------
def test_other_kinds_of_layers_and_networks():
    """A bare batch norm becomes a TwinNorm; a norm used under two names stays one layer under both."""
    assert isinstance(to_plain(twinsify(nn.BatchNorm2d(3))), nn.BatchNorm2d)
    twin = twinsify(OwnNetwork())
    assert twin.norm is twin.same and isinstance(twin.head["bn"], TwinNorm)
    assert (plain := to_plain(twin)).norm is plain.same and type(plain.norm) is nn.BatchNorm2d
    twin, x = shake(twinsify(small()).eval()), torch.rand(4, 3, 8, 8)
    with wings(twin, 3):
        want = twin(x)
    twin.compile(backend="eager")
    with wings(twin, 3):
        assert torch.equal(twin(x), want)
    assert twin._compiled_call_impl is not None and not torch.equal(twin(x), want)


def test_copies_hold_nothing_of_the_network():
    """Functions put on a module or its hooks that hold a part of the network hold that of the copy."""
    model = small().train()
    overridden(model[1])
    model[3].forward = lambda x, old=model[3].forward, *, times=2: old(x) * times
    model[4].register_forward_hook(lambda m, inputs, out: out * model[0].weight.sum())
    model[0].seen = model[0].weight * 2
    kept = copy.deepcopy(model.state_dict())
    x = torch.rand(4, 3, 8, 8)
    for made in (to_plain(model).eval(), twinsify(model).eval()):
        made(x)
        assert equal(model, kept)
        before = made(x)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        assert torch.equal(made(x), before)
        model.load_state_dict(kept)


GROUPED = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))


@pytest.mark.parametrize("call, message", [
    (lambda: twinsify(GROUPED), "network with BatchNorm2d, got Seq"), (lambda: twinsify(twinsify(small())), "twinned already"),
    (lambda: freeze_statistics(GROUPED), "network with batch norm, got Sequential without"),
    (lambda: twinsify(nn.BatchNorm2d(3, track_running_stats=False)), "False in the network itself"),
    (lambda: twinsify(small(), second="fixed"), "one of adaptive, frozen, got 'fixed'"),
    (lambda: to_plain(twinsify(small()), "both"), "one of adaptive, frozen, got 'both'"),
    (lambda: to_plain(small(), "frozen"), "got an ordinary one"),
    (lambda: to_plain(overridden(twinsify(nn.BatchNorm2d(3)))), "a method of its own"),
    (lambda: wings(small(), 2).__enter__(), "with wings for n_frozen 2, got an ordinary one"),
    *((lambda n=n: wings(twinsify(small()), n).__enter__(), "a number of images, .*got " + re.escape(repr(n)))
      for n in (-1, "half", True, 1.0, [2])),
    (lambda: norm_layer("bach"), "one of batch, group, layer, got 'bach'; did you mean 'batch'")])
def test_errors(call, message):
    """Bad calls say what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        call()
