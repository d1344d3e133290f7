"""The folded copy computes what the network computes, follows its weights, and never moves anything."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint

from tests.nets.made import equal, hooked, overridden, shake, tiny
from twinslib.nets.copies import duplicate
from twinslib.nets.fold import TOLERANCE, FoldedCopy
from twinslib.nets.heads import replace_head
from twinslib.nets.models import Classifier
from twinslib.nets.norms import TwinNorm, twinsify, wings
from twinslib.specs.choices import NORMS

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
def test_equals_the_network(norm, channels_last):
    """To 1e-5 in float32 and 1e-12 in float64, for every norm, before and after new weights and a refresh."""
    model, x = shake(tiny(norm=norm)).eval(), torch.rand(3, 3, 16, 16)
    for dtype, tolerance in ((torch.float32, 1e-5), (DOUBLE, 1e-12)):
        model, x = model.to(dtype), x.to(dtype)
        folded = FoldedCopy(model, dtype=dtype, channels_last=channels_last)
        assert folded.folded == (6 if norm == "batch" else 0)
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
    """The copy of one wing, frozen or a second adaptive one, equals that wing and follows training of the twinned network."""
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


@pytest.mark.parametrize("make", [tiny, lambda: tiny(norm="group"),
                                  lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=6)])
def test_bfloat16(make):
    """Near the float32 logits, float32 out, contiguous float32 gradient; left-over batch norms keep float32."""
    model, x = shake(make()).eval(), torch.rand(4, 3, 32, 32)
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
    """Any layout of the images, upsampling inside, and a contiguous gradient of the small image."""
    model = shake(replace_head(tiny(upsample=upsample), 3, image_size=16, seed=1)).eval()
    x = torch.rand(4, 3, 16, 16).to(memory_format=layout)
    folded = FoldedCopy(model)
    check_equal(folded, model, x, 1e-5)
    assert logits_and_gradient(folded, x)[1].is_contiguous()
    assert folded(x.double()).dtype == DOUBLE and folded(x).shape == (4, 3)


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


# -- odd blocks --------------------------------------------------------------------------------------------------------
class Block(nn.Module):
    """Convolution and norm, each as odd as its subclass or what is put on its layers makes it."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, **options), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Odd(nn.Module):
    """What folding must not touch: a norm first, a shared convolution, a shared norm; and one pair that it may."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4)
        self.last, self.plain = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False, eps=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.first(x))
        return self.plain(self.last(self.norm(self.conv(x)) + x + self.other(self.other(x))))


class Tied(Block):
    """Two convolutions and two norms with one weight, of either kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        getattr(self, f"{kind}2").weight = getattr(self, kind).weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.conv2(super().forward(x)))


class Reads(Block):
    """A tensor of one of the layers is used once more, as a node, by its value, or before the pass."""

    def __init__(self, layer: str, tensor: str, how: str = "") -> None:
        super().__init__()
        self.layer, self.tensor, self.how = layer, tensor, how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        module = getattr(self, self.layer)
        own = {**module._parameters, **module._buffers}
        value = own[self.tensor] if self.how else getattr(module, self.tensor)
        extra = float(value.detach().std()) if self.how == "float" else (value * 2).std()
        return super().forward(x) * (1 + extra)


class Unlike(Block):
    """What tracing forgets or decides once and for all; or asks weights for nothing but where they are."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pass_on = super().forward
        if self.what == "no_grad":
            with torch.no_grad():
                extra = pass_on(x)
            return x + extra
        if self.what == "trains":
            self.norm.train()
        return {"trains": lambda: pass_on(x), "checkpoint": lambda: checkpoint(pass_on, x, use_reentrant=False),
                "two uses": lambda: (lambda y: self.norm(y) + y)(self.conv(x)),
                "value": lambda: pass_on(x) if x.mean() > -9 else x, "shape": lambda: pass_on(x) if x.shape[2] > 4 else x,
                "device": lambda: pass_on(x.to(next(self.parameters()).device)) + torch.zeros(1, device=x.device)}[self.what]()


class OwnConv(nn.Conv2d):
    """Standardises its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def with_part(name: str, make) -> Block:
    """A block with `make(layer)` in the place of a layer."""
    block = Block()
    setattr(block, name, make(getattr(block, name)))
    return block


ALL, FIRST, NONE = 2, 1, 0  # pairs folded of a network with a pair before the block
BLOCKS = [
    *((partial(Block, **options), ALL) for options in ({}, {"bias": False}, {"groups": 2}, {"padding_mode": "circular"})),
    (Odd, ALL), (partial(Tied, "conv"), FIRST), (partial(Tied, "norm"), FIRST), (partial(Reads, "conv", "weight"), FIRST),
    (partial(Reads, "norm", "running_var"), FIRST), (partial(Reads, "conv", "weight", "float"), NONE),
    (partial(Reads, "norm", "running_var", "own"), NONE),
    *((partial(Unlike, what), count) for what, count in {"no_grad": NONE, "trains": NONE, "checkpoint": ALL, "two uses": FIRST,
                                                         "value": NONE, "shape": NONE, "device": ALL}.items()),
    *((partial(with_part, "conv", make), count) for make, count in [
        (lambda m: nn.ConvTranspose2d(4, 4, 3), FIRST), (lambda m: OwnConv(4, 4, 3), FIRST), (weight_norm, NONE),
        (lambda m: parametrizations.weight_norm(m), FIRST), (overridden, FIRST), (hooked, NONE),
        (partial(hooked, kind="full_backward"), NONE)]),
    *((partial(with_part, "norm", make), count) for make, count in [
        (lambda m: nn.BatchNorm2d(4, affine=False, momentum=None, eps=0.1), ALL), (lambda m: OwnNorm(4), FIRST),
        (lambda m: nn.BatchNorm2d(4, track_running_stats=False), FIRST), (overridden, FIRST), (hooked, NONE)]),
    (lambda: overridden(Block()), ALL), (lambda: twinsify(Unlike("value")), NONE),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("wrap", [lambda m: m, Classifier])
@pytest.mark.parametrize("make, count", BLOCKS)
def test_odd_blocks(make, count, wrap):
    """Only a norm alone behind a convolution is folded."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), make(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                            nn.BatchNorm1d(4), nn.Linear(4, 5))
    model, x, state = shake(wrap(network)), torch.rand(3, 3, 8, 8), torch.get_rng_state()
    folded = FoldedCopy(model)
    for again in range(3):
        kept, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
        got = logits_and_gradient(folded, x)
        assert torch.equal(torch.get_rng_state(), state) and equal(model, kept)
        assert [module.training for module in model.modules()] == modes
        want = logits_and_gradient(model.eval(), x)
        model.train()
        assert all((a - b).norm() <= TOLERANCE * b.norm() for a, b in zip(got, want, strict=True))
        assert folded.folded == count
        if again == 1:
            network[2] = duplicate(network[2])
        shake(model, again + 1)
        folded.refresh()


# -- changes after the copy was made -----------------------------------------------------------------------------------
CHANGES = {
    "hook": lambda m: hooked(m[0]), "hook gone": lambda m: m[2]._forward_hooks.clear(), "overridden": lambda m: overridden(m[0]),
    "norm replaced": lambda m: m.__setitem__(1, nn.GroupNorm(3, 3).double()),
    "tied": lambda m: setattr(m[3], "weight", m[0].weight),
    "untied": lambda m: setattr(m[5], "weight", nn.Parameter(m[5].weight.detach() * 2)),
    "new tensors": lambda m: m.load_state_dict(shake(duplicate(m), 9).state_dict(), assign=True),
}


@pytest.mark.parametrize("wing", [None, "frozen"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_refresh_follows_changes_of_the_network(change, wing):
    """What is hooked, replaced, tied or untied after the copy was made is in the copy after the next refresh."""
    layers = [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), *(nn.Conv2d(3, 3, 1) for _ in range(3))]
    layers[5].weight = layers[4].weight
    hooked(layers[2])
    model = nn.Sequential(*layers, nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    model = shake(model if wing is None else twinsify(model)).eval()
    x = torch.rand(2, 3, 8, 8, dtype=DOUBLE)
    folded = FoldedCopy(model, wing=wing or "adaptive", dtype=DOUBLE)
    folded(x)
    change(model)
    for seed in (1, 2):
        folded.refresh()
        with wings(model, wing):
            check_equal(folded, model.eval(), x)
        shake(model, seed)


def test_what_surrounds_the_network():
    """The normalisation of a `Classifier` is refreshed too; a network that is one norm has wings."""

    class Tempered(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 3

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    twin = twinsify(copy.deepcopy(network))
    hooked(twin[1])
    x = torch.rand(2, 3, 8, 8)
    for model, wing in ((Classifier(network), "adaptive"), (Tempered(network), "adaptive"), (twin, "adaptive"), (twin, "frozen"),
                        (hooked(Classifier(network)), "adaptive"), (overridden(Classifier(network)), "adaptive"),
                        (twinsify(nn.BatchNorm2d(3)), "frozen")):
        folded = FoldedCopy(shake(model).eval(), wing=wing)
        for _ in range(2):
            with wings(model, wing):
                check_equal(folded, model, x, TOLERANCE)
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.add_(0.2)
            folded.refresh()


# -- the check with the first images -----------------------------------------------------------------------------------
@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
def test_a_wrong_fold_is_undone(context, caplog):
    """What tracing does not understand is noticed with the first images, in any mode of autograd, said once."""
    model, x = shake(nn.Sequential(nn.Conv2d(3, 4, 3), Unlike("trains"))).eval(), torch.rand(2, 3, 8, 8)
    folded = FoldedCopy(model)
    assert folded.folded == 1
    with context():
        for _ in range(2):
            folded(x)
    assert folded.folded == 0 and [r.levelname for r in caplog.records] == ["WARNING"]
    check_equal(folded, model, x, 1e-5)
