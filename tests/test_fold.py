"""The folded copy computes what the network computes, follows its weights, and never moves anything."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from twinslib.fold import FoldedCopy
from twinslib.models import ARCHS, make_model, replace_head, with_head
from twinslib.norms import NORMS, TwinNorm, twinsify, wings


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affine weights, different in every layer and wing; other weights change a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
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


@pytest.mark.parametrize("name, some", [("densenet121", True), ("mobilenet_v3_small", True), ("googlenet", True)])
def test_other_networks(name, some):
    """torchvision's networks, without our normalisation; batch norms that follow no convolution stay."""
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = shake(torchvision.models.get_model(name, weights=None, num_classes=5, **extra)).eval().double()
    folded = FoldedCopy(model, dtype=torch.float64)
    assert (folded.folded > 0) is some
    check_equal(folded, model, torch.rand(2, 3, 64, 64, dtype=torch.float64), 1e-9)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert left + folded.folded == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_timm_network():
    """Norms with an activation inside are left as they are."""
    model = shake(pytest.importorskip("timm").create_model("mobilenetv3_small_050", num_classes=5)).eval().double()
    check_equal(FoldedCopy(model, dtype=torch.float64), model, torch.rand(2, 3, 64, 64, dtype=torch.float64), 1e-9)


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
    return twinsify(nn.Sequential(nn.Conv2d(3, 4, 3), WithActivation(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


@pytest.mark.parametrize(
    "network, folded", [(Odd, 1), (Untraceable, 0), (lambda: twinsify(Untraceable()), 0), (inside, 0)]
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
    assert not any(p.requires_grad for p in folded.parameters()) and all(p.requires_grad for p in model.parameters())
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
