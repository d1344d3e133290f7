"""The folded copy computes what the network computes, follows its weights, and never moves anything."""

import copy
import random
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from tests.nets.made import equal, hooked, overridden, shake, tiny
from twinslib.nets.copies import duplicate
from twinslib.nets.fold import TOLERANCE, FoldedCopy
from twinslib.nets.heads import replace_head, with_head
from twinslib.nets.models import Classifier, make_model
from twinslib.nets.norms import TwinNorm, twinsify, wings
from twinslib.specs.choices import ARCHS, NORMS

DOUBLE = torch.float64


def logits_and_gradient(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    logits = model(x)
    return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]


def check_equal(copied: nn.Module, model: nn.Module, x: torch.Tensor, tolerance: float = 1e-12) -> None:
    """Logits and image gradients agree, relative to their own size."""
    for got, want in zip(logits_and_gradient(copied, x), logits_and_gradient(model, x), strict=True):
        assert (got - want).abs().max() <= tolerance * want.abs().max()


# -- whole networks ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch, count", [("tiny_resnet", 6), ("thin_resnet10", 12)])
def test_equals_the_network(arch, count, norm, channels_last):
    """To 1e-5 in float32 and 1e-12 in float64, for every norm, before and after new weights and a refresh."""
    model = shake(make_model(arch, 6, norm=norm, seed=0)).eval()
    side = ARCHS[arch].image_size
    x = torch.rand(3, 3, side, side)
    for dtype, tolerance in ((torch.float32, 1e-5), (DOUBLE, 1e-12)):
        model, x = model.to(dtype), x.to(dtype)
        folded = FoldedCopy(model, dtype=dtype, channels_last=channels_last)
        assert folded.folded == (count if norm == "batch" else 0)
        check_equal(folded, model, x, tolerance)
        old = folded(x)
        shake(model, 1)
        assert torch.equal(folded(x), old)
        folded.refresh()
        assert not torch.allclose(folded(x), old, atol=1e-3)
        check_equal(folded, model, x, tolerance)


@pytest.mark.parametrize("wing", ["adaptive", "frozen"])
@pytest.mark.parametrize("options", [{"share_affine": True}, {"share_affine": False}, {"second": "adaptive"}], ids=str)
def test_each_wing(wing, options):
    """The copy of one wing, frozen or a second adaptive one, equals that wing and follows training of the twinned network,
    which stays as it was."""
    twin = shake(twinsify(shake(tiny()), **options)).double()
    x = torch.rand(5, 3, 16, 16, dtype=DOUBLE)
    folded = FoldedCopy(twin, wing=wing, dtype=DOUBLE)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        with wings(twin.train(), 2):
            twin(x).logsumexp(1).sum().backward()
        optimizer.step()
        before = folded(x)
        folded.refresh()
        assert not torch.allclose(folded(x), before, atol=1e-3)
        with wings(twin.eval(), wing):
            check_equal(folded, twin, x)
    assert any(isinstance(m, TwinNorm) for m in twin.modules())
    assert not any(isinstance(m, TwinNorm) for m in folded.modules())


def test_follows_a_network_that_shares_its_weights():
    """The copy of a network with a second head follows training of the network that it shares all else with, and of that
    head."""
    model, head = shake(tiny()).double(), nn.Linear(32, 3).double()
    view = with_head(model, "network.fc", head)
    folded = FoldedCopy(view, dtype=DOUBLE)
    x = torch.rand(4, 3, 16, 16, dtype=DOUBLE)
    check_equal(folded, copy.deepcopy(view).eval(), x)
    before = folded(x)
    model.train()(x)
    shake(model, 1)
    shake(head, 2)
    folded.refresh()
    hand = copy.deepcopy(model).eval()
    hand.network.fc = head
    assert not torch.allclose(folded(x), before, atol=1e-3)
    check_equal(folded, hand, x)


OTHERS = {"densenet121": 59, "googlenet": 57, "mobilenet_v3_small": 34, "shufflenet_v2_x0_5": 56, "mnasnet0_5": 52,
          "regnet_y_400mf": 53, "squeezenet1_1": 0, "resnet18": 20, "timm:mobilenetv3_small_050": 0, "timm:resnet10t": 14,
          "timm:ghostnet_050": 79, "timm:convnext_atto": 0, "timm:hardcorenas_a": 0}


@pytest.mark.parametrize("name, count", OTHERS.items())
def test_other_networks(name, count):
    """Those of torchvision and timm, without our normalisation; batch norms that follow no convolution, or that have an
    activation inside, stay."""
    if name.startswith("timm:"):
        model = pytest.importorskip("timm").create_model(name[5:], num_classes=5)
    else:
        extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, num_classes=5, **extra)
    folded, x = FoldedCopy(shake(model).eval()), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
        assert (folded(x) - want).abs().max() <= TOLERANCE * want.abs().max()
    left, there = (sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (folded, model))
    assert folded.folded == count and left + count == there


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", ["tiny_resnet", "densenet"])
def test_bfloat16(arch, norm):
    """Near the float32 logits, float32 out, contiguous float32 gradient; left-over batch norms keep float32."""
    densenet = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=6)
    model = shake(densenet if arch == "densenet" else tiny(norm=norm)).eval()
    x = torch.rand(4, 3, 32, 32)
    folded = FoldedCopy(model, dtype=torch.bfloat16)
    logits, gradient = logits_and_gradient(folded, x)
    want, want_gradient = logits_and_gradient(model, x)
    assert logits.dtype == torch.float32 and gradient.dtype == torch.float32 and gradient.is_contiguous()
    assert (logits - want).abs().max() < 0.05 * want.abs().max()
    assert torch.cosine_similarity(gradient.flatten(), want_gradient.flatten(), 0) > 0.95
    for module in folded.modules():
        dtype = torch.float32 if isinstance(module, nn.BatchNorm2d) else torch.bfloat16
        assert all(p.dtype == dtype for p in module.parameters(recurse=False))
    assert folded.normalize is None or folded.normalize.mean.dtype == torch.float32


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("upsample", [None, 32])
def test_images_of_any_kind(layout, upsample):
    """Any layout of the images, upsampling inside, and a contiguous gradient of the small image; logits in the dtype of the
    images, also with a replaced head."""
    model = shake(replace_head(tiny(upsample=upsample), 3, image_size=16, seed=1)).eval()
    x = torch.rand(4, 3, 16, 16).to(memory_format=layout)
    folded = FoldedCopy(model)
    check_equal(folded, model, x, 1e-5)
    assert logits_and_gradient(folded, x)[1].is_contiguous()
    assert folded(x.double()).dtype == DOUBLE and folded(x).shape == (4, 3)


def test_never_trains():
    """No parameter takes a gradient, train() changes nothing, and forward moves no statistics of either network."""
    model = shake(Odd())
    live, folded = copy.deepcopy(model), FoldedCopy(model)
    kept, x = copy.deepcopy(folded.state_dict()), torch.rand(3, 3, 8, 8)
    want = folded(x)
    folded.train()
    for _ in range(2):
        assert torch.equal(folded(x), want)
    assert not any(m.training for m in folded.modules()) and not any(p.requires_grad for p in folded.parameters())
    assert all(p.requires_grad for p in model.parameters()) and model.training
    assert equal(folded, kept) and equal(model, live)


def test_what_is_refused():
    """Unknown wings, the frozen wing of an ordinary network, and a network that gives a tuple."""
    with pytest.raises(ValueError, match="one of adaptive, frozen"):
        FoldedCopy(Odd(), wing="left")
    with pytest.raises(ValueError, match="make it with twinsify"):
        FoldedCopy(Odd(), wing="frozen")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network.register_forward_hook(lambda m, inputs, out: (out, out))
    with pytest.raises(TypeError, match=r"expected logits \(a tensor\) from Sequential, got tuple"):
        FoldedCopy(network)(torch.rand(2, 3, 8, 8))


# -- odd parts ---------------------------------------------------------------------------------------------------------
class Odd(nn.Module):
    """What folding must not touch: a shared convolution, a shared norm, a norm first, a convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3)
        self.last, self.plain = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False, eps=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.first(x))
        x = self.norm(self.conv(x)) + x + self.other(self.other(x))
        return self.plain(self.last(x)).mean((2, 3))


class Untraceable(nn.Module):
    """A forward that depends on values, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class WithActivation(nn.BatchNorm2d):
    """A batch norm with a trained activation inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(super().forward(x))


class Block(nn.Module):
    """Convolution and norm, each as odd as its subclass or what is put on its layers makes it."""

    def __init__(self, c: int, **options) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c, c, 3, padding=1, **options), nn.BatchNorm2d(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Twice(Block):
    """One convolution before two norms."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.other = nn.BatchNorm2d(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.other(self.conv(x / 2))


class Tied(Block):
    """Two convolutions and two norms with one weight, one bias, or views of one tensor."""

    def __init__(self, c: int, what: str) -> None:
        super().__init__(c)
        self.conv2, self.norm2 = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
        if what == "view":
            both = torch.randn(c + 1, c, 3, 3) / 5
            self.conv.weight, self.conv2.weight = nn.Parameter(both[:c]), nn.Parameter(both[1:])
        elif what == "norm":
            self.norm2.weight, self.norm2.running_var = self.norm.weight, self.norm.running_var
        else:
            setattr(self.conv2, what, getattr(self.conv, what))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.conv2(super().forward(x)))


class Reads(Block):
    """A tensor of one of the layers is used once more, as a node, by its value, or before the pass."""

    def __init__(self, c: int, layer: str, tensor: str, how: str = "") -> None:
        super().__init__(c)
        self.layer, self.tensor, self.how = layer, tensor, how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        module = getattr(self, self.layer)
        own = {**module._parameters, **module._buffers}
        value = own[self.tensor] if self.how else getattr(module, self.tensor)
        extra = float(value.detach().std()) if self.how == "float" else (value * 2).std()
        return super().forward(x) * (1 + extra)


class Unlike(Block):
    """What tracing forgets or decides once and for all."""

    def __init__(self, c: int, what: str) -> None:
        super().__init__(c)
        self.what = what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pass_on = super().forward
        if self.what == "no_grad":
            with torch.no_grad():
                extra = pass_on(x)
            return x + extra
        if self.what == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return pass_on(x)
        if self.what == "trains":
            self.norm.train()
        return {"trains": lambda: pass_on(x), "detach": lambda: x + pass_on(x).detach(),
                "checkpoint": lambda: checkpoint(pass_on, x, use_reentrant=False),
                "in_place": lambda: self.norm(self.conv(x).mul_(3)),
                "two_uses": lambda: (lambda y: self.norm(y) + y)(self.conv(x)),
                "value": lambda: pass_on(x) if x.mean() > -9 else x,
                "shape": lambda: pass_on(x) if x.shape[2] > 4 else x}[self.what]()


class AsksWeights(Block):
    """Puts its input where its weights are, which says nothing about their values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = next(self.parameters())
        return super().forward(x.to(weight.device)) + torch.zeros(1, device=x.device)


class OwnConv(nn.Conv2d):
    """Standardises its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Double(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w * 2


def parametrized(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Double())
    return layer


@pytest.mark.parametrize("network, folded", [
    (Odd, 1), (Untraceable, 0), (lambda: twinsify(Untraceable()), 0),
    (lambda: twinsify(nn.Sequential(nn.Conv2d(3, 4, 3), WithActivation(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())), 0),
    (lambda: nn.Sequential(Unlike(3, "autocast"), nn.Flatten()), 0),
    (lambda: nn.Sequential(Unlike(3, "no_grad"), nn.Flatten()), 0),
    (lambda: nn.Sequential(AsksWeights(3), nn.Flatten()), 1)])
def test_what_cannot_be_folded_still_works(network, folded):
    """Only a norm alone behind a convolution is folded, an untraceable network is kept; refresh works for both."""
    model = shake(network()).eval().double()
    copied = FoldedCopy(model, dtype=DOUBLE)
    assert copied.folded == folded
    for seed in (1, 2):
        check_equal(copied, model, torch.rand(2, 3, 8, 8, dtype=DOUBLE))
        shake(model, seed)
        copied.refresh()


# -- random networks ---------------------------------------------------------------------------------------------------
def with_part(make, name: str, c: int) -> Block:
    """A block with `make(layer)` in the place of a layer."""
    block = Block(c)
    setattr(block, name, make(getattr(block, name)))
    return block


PARTS = {  # what stands in the place of a layer of a block
    "conv": [lambda m: nn.ConvTranspose2d(*m.weight.shape[:2], 3, padding=1),
             lambda m: OwnConv(*m.weight.shape[:2], 3, padding=1), parametrized, overridden,
             *(partial(hooked, kind=kind) for kind in ("forward", "forward_pre", "full_backward")),
             parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm, spectral_norm],
    "norm": [lambda m: nn.BatchNorm2d(m.num_features, affine=False, momentum=None, eps=0.1),
             lambda m: nn.BatchNorm2d(m.num_features, track_running_stats=False), lambda m: OwnNorm(m.num_features),
             parametrized, overridden,
             *(partial(hooked, kind=kind) for kind in ("forward", "forward_pre", "full_backward"))],
}
READ = [("conv", "weight", ""), ("conv", "bias", ""), ("norm", "weight", ""), ("norm", "running_var", ""),
        ("conv", "weight", "float"), ("conv", "weight", "own"), ("norm", "running_var", "own")]
BLOCKS = [  # from a number of channels to a block
    *(partial(Block, **options) for options in ({}, {"bias": False}, {"groups": 2}, {"padding_mode": "reflect"},
                                                {"padding_mode": "circular"})),
    Twice, *(partial(Tied, what=what) for what in ("weight", "bias", "view", "norm")),
    *(partial(Reads, layer=layer, tensor=tensor, how=how) for layer, tensor, how in READ),
    *(partial(Unlike, what=what) for what in ("no_grad", "trains", "detach", "checkpoint", "in_place", "two_uses", "value",
                                              "shape")),
    *(partial(with_part, make, name) for name, makes in PARTS.items() for make in makes),
    lambda c: hooked(Block(c)), lambda c: overridden(Block(c)),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("start", range(0, 204, 12))
def test_random_networks(start):
    """Networks of random blocks, some used twice, hooked or overridden as a whole: the copy equals the network to 1e-4,
    also after new weights and after a block is replaced; statistics, modes and global random state stay."""
    for seed in range(start, start + 12):
        check_random(seed)


def check_random(seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    chosen = [seed % len(BLOCKS), *dice.choices(range(len(BLOCKS)), k=2)]
    blocks = [BLOCKS[number](4) for number in dice.sample(chosen, 3)]
    if dice.random() < 0.2:
        blocks.append(blocks[0])
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=dice.random() < 0.5), nn.BatchNorm2d(4), *blocks, nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 5))
    if dice.random() < 0.3:
        model = dice.choice([Classifier, hooked, overridden])(model)
    shake(model, seed)
    x, state = torch.rand(3, 3, 8, 8), torch.get_rng_state()
    folded = FoldedCopy(model, channels_last=dice.random() < 0.5)
    for again in range(2 if seed % 3 else 3):
        if again:
            shake(model, seed + again)
            folded.refresh()
        kept, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
        got = logits_and_gradient(folded, x)
        assert torch.equal(torch.get_rng_state(), state) and equal(model, kept), chosen
        assert [module.training for module in model.modules()] == modes
        want = logits_and_gradient(model.eval(), x)
        model.train()
        for a, b in zip(got, want, strict=True):
            assert (a - b).norm() <= TOLERANCE * b.norm(), (chosen, folded.folded)
        if again == 1:
            parent = model.network if isinstance(model, Classifier) else model
            parent[2] = duplicate(parent[2])


# -- changes after the copy was made -----------------------------------------------------------------------------------
CHANGES = {
    "hook": lambda m: hooked(m[0]), "hook on the network": lambda m: hooked(m),
    "hook gone": lambda m: m[2]._forward_hooks.clear(), "parametrization": lambda m: parametrized(m[0]),
    "overridden": lambda m: overridden(m[0]), "norm replaced": lambda m: m.__setitem__(1, nn.GroupNorm(3, 3).double()),
    "copied": lambda m: m.__setitem__(0, copy.deepcopy(m[0])),
    "layer added": lambda m: m.append(nn.Linear(3, 3).double()), "tied": lambda m: setattr(m[3], "weight", m[0].weight),
    "untied": lambda m: setattr(m[5], "weight", nn.Parameter(m[5].weight.detach() * 2)),
    "new tensors": lambda m: m.load_state_dict(shake(duplicate(m), 9).state_dict(), assign=True),
    "rounded": lambda m: m.float().double()
}


@pytest.mark.parametrize("wing", [None, "adaptive", "frozen"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_refresh_follows_changes_of_the_network(change, wing):
    """What is hooked, replaced, added, tied or untied after the copy was made is in the copy after the next refresh, and
    what is trained afterwards too."""
    layers = [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), *(nn.Conv2d(3, 3, 1) for _ in range(3))]
    layers[5].weight = layers[4].weight
    model = nn.Sequential(*layers, nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    if change is CHANGES["hook gone"]:
        hooked(model[2])
    model = shake(model if wing is None else twinsify(model)).eval()
    x = torch.rand(2, 3, 8, 8, dtype=DOUBLE)
    folded = FoldedCopy(model, wing=wing or "adaptive", dtype=DOUBLE)
    folded(x)
    change(model)
    for seed in (1, 2):
        folded.refresh()
        with wings(model, wing):
            check_equal(folded, model.double().eval(), x)
        shake(model, seed)


def test_what_surrounds_the_network():
    """The normalisation of a `Classifier` is refreshed too; a network that is one norm has wings; hooks, also on a norm with
    two wings, a forward of its own and subclasses of `Classifier` count."""

    class Tempered(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 3

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    twin = twinsify(copy.deepcopy(network))
    hooked(twin[1])
    x = torch.rand(2, 3, 8, 8)
    for model in (Classifier(network), Tempered(network), hooked(Classifier(network)), overridden(Classifier(network)),
                  twinsify(nn.BatchNorm2d(3)), twin):
        for wing in ("adaptive", "frozen") if any(isinstance(m, TwinNorm) for m in model.modules()) else ("adaptive",):
            folded = FoldedCopy(shake(model).eval(), wing=wing)
            for _ in range(2):
                with wings(model, wing):
                    check_equal(folded, model, x, TOLERANCE)
                for buffer in model.buffers():
                    if buffer.is_floating_point():
                        buffer.add_(0.2)
                folded.refresh()
            assert model is not twin or folded.folded == 0


# -- the check with the first images -----------------------------------------------------------------------------------
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_wrong_fold_is_undone(context, caplog):
    """What tracing does not understand is noticed with the first images, in any mode of autograd, said once, and the
    network copied as it is."""
    model, x = shake(nn.Sequential(nn.Conv2d(3, 4, 3), Unlike(4, "trains"))).eval(), torch.rand(2, 3, 8, 8)
    folded = FoldedCopy(model)
    assert folded.folded == 1
    with context():
        for _ in range(2):
            folded(x)
    assert folded.folded == 0
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "Sequential" in caplog.text
    check_equal(folded, model, x, 1e-5)


def test_a_right_fold_is_checked_once(caplog):
    """The check is over after the first images, and nothing is said; an image that the network does not take raises the
    network's own error and decides nothing."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    folded = FoldedCopy(shake(model).eval())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        folded(torch.rand(2, 3, 9, 9))
    assert folded(torch.rand(0, 3, 8, 8)).shape == (0, 2) and folded._unchecked
    check_equal(folded, model, torch.rand(2, 3, 8, 8), TOLERANCE)
    assert folded.folded == 1 and not folded._unchecked and not caplog.records
