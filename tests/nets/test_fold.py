"""The folded copy computes what the network computes, follows its weights, and never moves anything."""

import copy
import random
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from twinslib.nets.copies import duplicate
from twinslib.nets.fold import TOLERANCE, FoldedCopy
from twinslib.nets.heads import replace_head, with_head
from twinslib.nets.models import Classifier, make_model
from twinslib.nets.norms import TwinNorm, twinsify, wings
from twinslib.specs.choices import ARCHS, NORMS


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affine weights, different in every layer and wing; other weights change a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                module.running_mean.add_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.mul_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def logits_and_gradient(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    logits = model(x)
    return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]


def check_equal(copied: nn.Module, model: nn.Module, x: torch.Tensor, tolerance: float) -> None:
    """Logits and image gradients agree, relative to their own size."""
    for got, want in zip(logits_and_gradient(copied, x), logits_and_gradient(model, x), strict=True):
        assert (got - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch, count", [("tiny_resnet", 6), ("thin_resnet10", 12)])
def test_equals_the_network(arch, count, norm, channels_last):
    """To 1e-5 in float32 and 1e-12 in float64, for every norm, before and after new weights and a refresh."""
    model = shake(make_model(arch, 6, norm=norm, seed=0)).eval()
    side = ARCHS[arch].image_size
    x = torch.rand(3, 3, side, side)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
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
@pytest.mark.parametrize("share_affine", [True, False])
def test_each_wing(wing, share_affine):
    """The copy of one wing equals that wing and follows training of the twinned network, which stays as it was."""
    twin = shake(twinsify(shake(make_model("tiny_resnet", 6, seed=0)), share_affine=share_affine)).double()
    x = torch.rand(5, 3, 16, 16, dtype=torch.float64)
    folded = FoldedCopy(twin, wing=wing, dtype=torch.float64)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        with wings(twin.train(), 2):
            twin(x).logsumexp(1).sum().backward()
        optimizer.step()
        folded.refresh()
        with wings(twin.eval(), wing):
            check_equal(folded, twin, x, 1e-12)
    assert any(isinstance(m, TwinNorm) for m in twin.modules())
    assert not any(isinstance(m, TwinNorm) for m in folded.modules())


@pytest.mark.parametrize("wing", ["adaptive", "frozen"])
def test_each_of_two_adaptive_branches(wing):
    """The copy of a branch equals that branch with its own running statistics, both of which move in training."""
    twin = shake(twinsify(shake(make_model("tiny_resnet", 6, seed=0)), second="adaptive")).double()
    x = torch.rand(5, 3, 16, 16, dtype=torch.float64)
    folded = FoldedCopy(twin, wing=wing, dtype=torch.float64)
    before = folded(x)
    with wings(twin.train(), 2), torch.no_grad():
        twin(x)
    folded.refresh()
    assert not torch.allclose(folded(x), before, atol=1e-3)
    with wings(twin.eval(), wing):
        check_equal(folded, twin, x, 1e-12)


def test_follows_a_network_that_shares_its_weights():
    """The copy of a network with a second head follows training of the network that it shares all else with, and of that
    head."""
    model = shake(make_model("tiny_resnet", 6, seed=0)).double()
    head = nn.Linear(32, 3).double()
    view = with_head(model, "network.fc", head)
    folded = FoldedCopy(view, dtype=torch.float64)
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    check_equal(folded, copy.deepcopy(view).eval(), x, 1e-12)
    before = folded(x)
    model.train()(x)
    shake(model, 1)
    shake(head, 2)
    folded.refresh()
    hand = copy.deepcopy(model).eval()
    hand.network.fc = head
    assert not torch.allclose(folded(x), before, atol=1e-3)
    check_equal(folded, hand, x, 1e-12)


TORCHVISION = {"densenet121": 59, "googlenet": 57, "mobilenet_v3_small": 34, "shufflenet_v2_x0_5": 56, "mnasnet0_5": 52,
               "regnet_y_400mf": 53, "squeezenet1_1": 0, "resnet18": 20}  # fmt: skip


@pytest.mark.parametrize("name, count", TORCHVISION.items())
def test_other_networks(name, count):
    """torchvision's networks, without our normalisation; batch norms that follow no convolution stay."""
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = shake(torchvision.models.get_model(name, weights=None, num_classes=5, **extra)).eval()
    folded = FoldedCopy(model)
    assert folded.folded == count
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
        assert (folded(x) - want).abs().max() <= TOLERANCE * want.abs().max()
    assert folded.folded == count
    left = sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert left + folded.folded == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


TIMM = {"mobilenetv3_small_050": 0, "resnet10t": 14, "ghostnet_050": 79, "tinynet_e": 0, "regnetx_002": 0,
        "lcnet_050": 0, "convnext_atto": 0, "hardcorenas_a": 0}  # fmt: skip


@pytest.mark.parametrize("name, count", TIMM.items())
def test_timm_networks(name, count):
    """Norms with an activation inside are left as they are."""
    model = shake(pytest.importorskip("timm").create_model(name, num_classes=5)).eval()
    folded, x = FoldedCopy(model), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
        assert (folded(x) - want).abs().max() <= TOLERANCE * want.abs().max()
    assert folded.folded == count


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


def inside() -> nn.Module:
    return twinsify(
        nn.Sequential(nn.Conv2d(3, 4, 3), WithActivation(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )


@pytest.mark.parametrize(
    "network, folded",
    [
        (Odd, 1),
        (Untraceable, 0),
        (lambda: twinsify(Untraceable()), 0),
        (inside, 0),
        (lambda: nn.Sequential(Unlike(3, "autocast"), nn.Flatten()), 0),
        (lambda: nn.Sequential(Unlike(3, "no_grad"), nn.Flatten()), 0),
        (lambda: nn.Sequential(AsksWeights(3), nn.Flatten()), 1),
    ],
)
def test_what_cannot_be_folded_still_works(network, folded):
    """Only a norm alone behind a convolution is folded, an untraceable network is kept; refresh works for both."""
    model = shake(network()).eval().double()
    copied = FoldedCopy(model, dtype=torch.float64)
    assert copied.folded == folded
    for seed in (1, 2):
        check_equal(copied, model, torch.rand(2, 3, 8, 8, dtype=torch.float64), 1e-12)
        shake(model, seed)
        copied.refresh()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", ["tiny_resnet", "densenet"])
def test_bfloat16(arch, norm):
    """Near the float32 logits, float32 out, contiguous float32 gradient; left-over batch norms keep float32."""
    if arch == "densenet":
        model = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=6)
    else:
        model = make_model(arch, 6, norm=norm, seed=0)
    model = shake(model).eval()
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
def test_layouts_and_upsampling(layout, upsample):
    """Any layout of the images, upsampling inside, and a contiguous gradient of the small image."""
    model = shake(make_model("tiny_resnet", 6, upsample=upsample, seed=0)).eval()
    x = torch.rand(4, 3, 16, 16).to(memory_format=layout)
    folded = FoldedCopy(model)
    check_equal(folded, model, x, 1e-5)
    assert logits_and_gradient(folded, x)[1].is_contiguous()


def test_never_trains():
    """No parameter takes a gradient, train() changes nothing, and forward moves no statistics of either network."""
    model = shake(Odd())
    live = copy.deepcopy(model.state_dict())
    folded = FoldedCopy(model)
    kept = copy.deepcopy(folded.state_dict())
    x = torch.rand(3, 3, 8, 8)
    want = folded(x)
    folded.train()
    for _ in range(2):
        assert torch.equal(folded(x), want)
    assert not any(m.training for m in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters()) and all(
        p.requires_grad for p in model.parameters()
    )
    assert all(torch.equal(folded.state_dict()[k], kept[k]) for k in kept)
    assert all(torch.equal(model.state_dict()[k], live[k]) for k in live) and model.training


def test_refresh_follows_new_tensors():
    """Tensors replaced in the live network (another dtype, an assigned state) are seen by the next refresh."""
    model = shake(make_model("tiny_resnet", 6, seed=0)).eval()
    folded = FoldedCopy(model)
    x = torch.rand(2, 3, 16, 16)
    other = shake(copy.deepcopy(model), 3)
    model.load_state_dict(other.state_dict(), assign=True)
    model.double()
    folded.refresh()
    check_equal(folded, other, x, 1e-5)


def test_new_head_and_input_dtype():
    """A model with a replaced head is folded, and logits come back in the dtype of the images."""
    model = replace_head(make_model("tiny_resnet", 6, seed=0), 3, image_size=16, seed=1).eval()
    out = FoldedCopy(model)(torch.rand(2, 3, 16, 16, dtype=torch.float64))
    assert out.dtype == torch.float64 and out.shape == (2, 3)


def test_errors():
    """Unknown wings, and the frozen wing of an ordinary network, are refused."""
    with pytest.raises(ValueError, match="one of adaptive, frozen"):
        FoldedCopy(Odd(), wing="left")
    with pytest.raises(ValueError, match="make it with twinsify"):
        FoldedCopy(Odd(), wing="frozen")


class Block(nn.Module):
    """Convolution and norm, each as odd as its subclass or `dress` makes it."""

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
        value = (
            {**module._parameters, **module._buffers}[self.tensor]
            if self.how
            else getattr(module, self.tensor)
        )
        extra = float(value.detach().std()) if self.how == "float" else (value * 2).std()
        return super().forward(x) * (1 + extra)


class Unlike(Block):
    """What tracing forgets or decides once and for all."""

    def __init__(self, c: int, what: str) -> None:
        super().__init__(c)
        self.what, self.calls = what, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.what == "no_grad":
            with torch.no_grad():
                extra = super().forward(x)
            return x + extra
        if self.what == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)
        if self.what == "trains":
            self.norm.train()
            return super().forward(x)
        if self.what == "detach":
            return x + super().forward(x).detach()
        if self.what == "checkpoint":
            return checkpoint(super().forward, x, use_reentrant=False)
        if self.what == "in_place":
            return self.norm(self.conv(x).mul_(3))
        if self.what == "two_uses":
            x = self.conv(x)
            return self.norm(x) + x
        if self.what == "value":
            return super().forward(x) if x.mean() > -9 else x
        return super().forward(x) if x.shape[2] > 4 else x  # "shape"


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


def with_part(block: Block, name: str, make) -> Block:
    """The block with `make(layer)` in the place of a layer."""
    setattr(block, name, make(getattr(block, name)))
    return block


def overridden(layer: nn.Module) -> nn.Module:
    """`forward` replaced on the instance, by a function that holds the old one."""
    old = layer.forward
    layer.forward = lambda x: old(x) * 1.5
    return layer


def hooked(layer: nn.Module, kind: str) -> nn.Module:
    hook = {
        "forward": lambda m, inputs, out: out * 1.5,
        "forward_pre": lambda m, inputs: (inputs[0] * 1.5,),
        "full_backward": lambda m, gradient, _: (gradient[0] * 1.5,),
    }[kind]
    getattr(layer, f"register_{kind}_hook")(hook)
    return layer


def parametrized(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Double())
    return layer


LAYERS = ("conv", "norm")
BLOCKS = {
    **{
        f"plain {options}": partial(Block, **options)
        for options in (
            {},
            {"bias": False},
            {"groups": 2},
            {"padding_mode": "reflect"},
            {"padding_mode": "circular"},
        )
    },
    "bare": lambda c: with_part(
        Block(c), "norm", lambda _: nn.BatchNorm2d(c, affine=False, momentum=None, eps=0.1)
    ),
    "no statistics": lambda c: with_part(
        Block(c), "norm", lambda _: nn.BatchNorm2d(c, track_running_stats=False)
    ),
    "transposed": lambda c: with_part(Block(c), "conv", lambda _: nn.ConvTranspose2d(c, c, 3, padding=1)),
    "own conv": lambda c: with_part(Block(c), "conv", lambda _: OwnConv(c, c, 3, padding=1)),
    "own norm": lambda c: with_part(Block(c), "norm", lambda _: OwnNorm(c)),
    "twice": Twice,
    **{f"tied {what}": partial(Tied, what=what) for what in ("weight", "bias", "view", "norm")},
    **{
        f"reads {layer} {tensor} {how}": partial(Reads, layer=layer, tensor=tensor, how=how)
        for layer, tensor, how in (
            ("conv", "weight", ""),
            ("conv", "bias", ""),
            ("norm", "weight", ""),
            ("norm", "running_var", ""),
            ("conv", "weight", "float"),
            ("conv", "weight", "own"),
            ("norm", "running_var", "own"),
        )
    },
    **{
        f"unlike {what}": partial(Unlike, what=what)
        for what in ("no_grad", "trains", "detach", "checkpoint", "in_place", "two_uses", "value", "shape")
    },
    **{
        f"{kind} hook on {layer}": lambda c, layer=layer, kind=kind: with_part(
            Block(c), layer, partial(hooked, kind=kind)
        )
        for layer in LAYERS
        for kind in ("forward", "forward_pre", "full_backward")
    },
    "hook on a block": lambda c: hooked(Block(c), "forward"),
    **{
        f"parametrized {layer}": lambda c, layer=layer: with_part(Block(c), layer, parametrized)
        for layer in LAYERS
    },
    **{
        f"overridden {layer}": lambda c, layer=layer: with_part(Block(c), layer, overridden)
        for layer in LAYERS
    },
    "overridden block": lambda c: overridden(Block(c)),
    **{
        norm.__module__ + norm.__name__: lambda c, norm=norm: with_part(Block(c), "conv", norm)
        for norm in (
            torch.nn.utils.parametrizations.weight_norm,
            torch.nn.utils.parametrizations.spectral_norm,
            torch.nn.utils.weight_norm,
            torch.nn.utils.spectral_norm,
        )
    },
}


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
    names = [list(BLOCKS)[seed % len(BLOCKS)], *dice.choices(list(BLOCKS), k=2)]
    blocks = [BLOCKS[name](4) for name in dice.sample(names, 3)]
    if dice.random() < 0.2:
        blocks.append(blocks[0])
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=dice.random() < 0.5),
        nn.BatchNorm2d(4),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(4),
        nn.Linear(4, 5),
    )
    model = (
        dice.choice([Classifier, partial(hooked, kind="forward"), overridden])(model)
        if dice.random() < 0.3
        else model
    )
    shake(model, seed)
    x = torch.rand(3, 3, 8, 8)
    state = torch.get_rng_state()
    folded = FoldedCopy(model, channels_last=dice.random() < 0.5)
    for again in range(2 if seed % 3 else 3):
        if again:
            shake(model, seed + again)
            folded.refresh()
        kept, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
        got = logits_and_gradient(folded, x)
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items()), names
        want = logits_and_gradient(model.eval(), x)
        model.train()
        for a, b in zip(got, want, strict=True):
            assert (a - b).norm() <= TOLERANCE * b.norm(), (names, folded.folded)
        if again == 1:
            parent = model.network if isinstance(model, Classifier) else model
            parent[2] = duplicate(parent[2])


CHANGES = {
    "hook": lambda m: hooked(m[0], "forward"),
    "hook on the network": lambda m: hooked(m, "forward"),
    "hook gone": lambda m: m[2]._forward_hooks.clear(),
    "parametrization": lambda m: parametrized(m[0]),
    "overridden": lambda m: overridden(m[0]),
    "norm replaced": lambda m: m.__setitem__(1, nn.GroupNorm(3, 3).double()),
    "copied": lambda m: m.__setitem__(0, copy.deepcopy(m[0])),
    "layer added": lambda m: m.append(nn.Linear(3, 3).double()),
    "tied": lambda m: setattr(m[3], "weight", m[0].weight),
    "untied": lambda m: setattr(m[5], "weight", nn.Parameter(m[5].weight.detach() * 2)),
    "new tensors": lambda m: m.load_state_dict(shake(duplicate(m), 9).state_dict(), assign=True),
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
        hooked(model[2], "forward")
    model = shake(model if wing is None else twinsify(model)).eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    folded = FoldedCopy(model, wing=wing or "adaptive", dtype=torch.float64)
    folded(x)
    change(model)
    for seed in (1, 2):
        folded.refresh()
        with wings(model, wing):
            check_equal(folded, model.double().eval(), x, 1e-12)
        shake(model, seed)


@pytest.mark.parametrize("wing", ["adaptive", "frozen"])
def test_hooks_on_a_twinned_norm(wing):
    """A hook on a batch norm with two wings is in the copy of each."""
    model = twinsify(shake(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())))
    hooked(shake(model)[1], "forward")
    x = torch.rand(2, 3, 8, 8)
    folded = FoldedCopy(model, wing=wing)
    with wings(model.eval(), wing):
        check_equal(folded, model, x, TOLERANCE)
    assert folded.folded == 0


def test_what_surrounds_the_network():
    """The normalisation of a `Classifier` is refreshed too; a network that is one norm has wings; hooks, a forward of its
    own and subclasses of `Classifier` count."""

    class Tempered(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 3

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    hooked_one = hooked(Classifier(network), "forward")
    own = overridden(Classifier(network))
    x = torch.rand(2, 3, 8, 8)
    for model in (Classifier(network), Tempered(network), hooked_one, own, twinsify(nn.BatchNorm2d(3))):
        folded = FoldedCopy(shake(model).eval())
        check_equal(folded, model, x, TOLERANCE)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.2)
        folded.refresh()
        check_equal(folded, model, x, TOLERANCE)


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


def test_only_logits():
    """A network that gives a tuple is refused by name."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network.register_forward_hook(lambda m, inputs, out: (out, out))
    with pytest.raises(TypeError, match=r"expected logits \(a tensor\) from Sequential, got tuple"):
        FoldedCopy(network)(torch.rand(2, 3, 8, 8))
