"""Noise on training images, statistics under it, and how far stored ones are from those it brings."""

import math

import pytest
import torch
from torch import nn

from twinslib.nets.models import Classifier, make_model
from twinslib.specs import choices
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, ModelSpec, NoiseSpec, OptimSpec, RunSpec
from twinslib.train import noise
from twinslib.train.step import Step

IMAGES = torch.randint(0, 256, (32, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_levels() -> None:
    """By image each level of the set is drawn equally often, for each image on its own; by batch one for a whole batch, another
    for another; uniform anywhere between the least and the largest, whatever their order."""
    spec, g = NoiseSpec(sigmas=(0.0, 0.25, 1.0)), generator()
    sigma = noise.levels(spec, 3000, g)
    counts = torch.tensor([(sigma == s).sum() for s in spec.sigmas])
    assert counts.sum() == 3000 and (counts - 1000).abs().max() < 4 * math.sqrt(3000 * 2 / 9)
    drawn = [noise.levels(NoiseSpec(sigmas=(0.25, 0.5, 1.0), draw="batch"), 5, g) for _ in range(30)]
    assert all(sigma.unique().numel() == 1 and len(sigma) == 5 for sigma in drawn)
    assert {sigma[0].item() for sigma in drawn} == {0.25, 0.5, 1.0}
    sigma = noise.levels(NoiseSpec(sigmas=(1.0, 0.5), draw="uniform"), 2000, g)
    assert 0.5 <= sigma.min() < 0.51 and 0.99 < sigma.max() <= 1.0 and abs(sigma.mean() - 0.75) < 0.02


def test_noise_has_its_level_and_is_not_clipped() -> None:
    """x + sigma e: standard deviation sigma about the image, values beyond [0, 1], images of level 0 untouched."""
    x = torch.full((64, 3, 16, 16), 0.5, dtype=torch.float64)
    added = noise.noisy(x, NoiseSpec(sigmas=(0.0, 0.5)), generator()) - x
    scale = added.flatten(1).std(1)
    assert ((scale == 0) | ((scale - 0.5).abs() < 0.06)).all() and {True, False} == set((scale == 0).tolist())
    assert added.max() > 0.5 and added.dtype == torch.float64
    again = noise.noisy(x, NoiseSpec(sigmas=(0.0, 0.5)), generator())
    assert torch.equal(again - x, added)


# -- the first layer --------------------------------------------------------------------------------------------------
def test_first_layer_law() -> None:
    """Independent noise leaves each channel's mean and adds sum of w^2 sigma^2 / std^2 to its variance over images and places,
    after a bias-free convolution behind the normalisation of the input: exactly, from the Jacobian, and in samples.
    (Noise is taken with both signs, so that its product with the images, which is 0 in the mean, is 0 here.)"""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, bias=False).double()
    front = Classifier(nn.Identity()).double()  # layer 0: (x - mean) / std
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    sigma, w = 0.3, conv.weight.detach()
    expected = (w ** 2 * sigma ** 2 / std ** 2).sum((1, 2, 3))
    jacobian = torch.autograd.functional.jacobian(lambda x: conv(front(x)), torch.rand(1, 3, 3, 3, dtype=torch.float64))
    exact = (jacobian.reshape(5, -1) ** 2).sum(1) * sigma ** 2
    torch.testing.assert_close(exact, expected, rtol=1e-7, atol=0)  # std is float32
    x = IMAGES.double().repeat(16, 1, 1, 1) / 255
    noised = noise.noisy(x, NoiseSpec(sigmas=(sigma,)), generator())
    with torch.no_grad():
        before, after = (conv(front(y)) for y in (x, torch.cat([noised, 2 * x - noised])))
    assert before.var((0, 2, 3)).min() > 0.05 * expected.max()
    more = after.var((0, 2, 3), unbiased=False) - before.var((0, 2, 3), unbiased=False)
    assert torch.allclose(more, expected, rtol=0.03)
    torch.testing.assert_close(after.mean((0, 2, 3)), before.mean((0, 2, 3)))


# -- in training ------------------------------------------------------------------------------------------------------
DATA = DataSpec(name="toy_target", image_size=16)


def run(name: str, **changes: object) -> RunSpec:
    return RunSpec(data=DATA, model=ModelSpec(arch="tiny_resnet"), method=method(name), optim=OptimSpec(), **changes)


@pytest.mark.parametrize(("name", "spec"), [("noise", NoiseSpec(sigmas=(0.5,))), ("mixed_noise", NoiseSpec(sigmas=(0.0, 0.5))),
                                            ("mixed_noise", NoiseSpec(sigmas=(0.25, 0.5), draw="uniform"))], ids=str)
def test_training_sees_the_noise_of_its_spec(name: str, spec: NoiseSpec) -> None:
    """What a step's forward pass gets is its images with fresh noise of the spec's levels, the same for a step done again."""
    start = RunSpec(data=DATA, model=ModelSpec(arch="tiny_resnet"), method=method("natural"), optim=OptimSpec())
    step = Step(make_model("tiny_resnet", 4, seed=0), run(name, noise=spec, source=start), "cpu")
    seen, x, y = [], IMAGES.float() / 255, torch.arange(32) % 4
    step.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach() - x))
    for count in (0, 1, 1):
        step(x, y, count, 0.01)
    scale = seen[1].flatten(1).std(1)
    low, high = min(spec.sigmas), max(spec.sigmas)
    assert ((scale > 0.9 * low) & (scale < 1.1 * high) | (scale < 1e-6)).all()
    assert len(spec.sigmas) == 1 or scale.min() < low + 0.1 < high - 0.1 < scale.max()
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[0], seen[1])


# -- statistics estimated again ---------------------------------------------------------------------------------------
def test_reestimated_holds_the_statistics_of_noisy_images() -> None:
    """The first batch norm stores mean and unbiased variance of what it meets; weights and the network given stay as they are."""
    model = make_model("tiny_resnet", 4, seed=0).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    again = noise.reestimated(model, IMAGES, 0.5, seed=3, batch_size=32)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert not any(m.training for m in again.modules())

    met = []
    first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    first.register_forward_pre_hook(lambda _, inputs: met.append(inputs[0]))
    with torch.no_grad():
        model(noise.noisy(IMAGES.float() / 255, NoiseSpec(sigmas=(0.5,)), generator(3 * 1_000_003)))
    stored = next(m for m in again.modules() if isinstance(m, nn.BatchNorm2d))
    assert torch.allclose(stored.running_mean, met[0].mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(stored.running_var, met[0].var((0, 2, 3)), rtol=1e-4)


def test_reestimated_is_the_mean_over_batches() -> None:
    """Two batches count alike, a last batch that is not whole is left out, networks without batch norm come back equal."""
    model = make_model("tiny_resnet", 4, seed=0).eval()
    stored = [next(m for m in noise.reestimated(model, x, 0.0001, seed=0, batch_size=8).modules()
                   if isinstance(m, nn.BatchNorm2d)).running_mean for x in (IMAGES[:8], IMAGES[8:16], IMAGES[:16], IMAGES[:21])]
    assert torch.allclose((stored[0] + stored[1]) / 2, stored[2], atol=1e-4) and torch.equal(stored[2], stored[3])
    with pytest.raises(ValueError, match="at least two images to estimate statistics on, got 1"):
        noise.reestimated(model, IMAGES[:1], 0.5, seed=0)
    model = make_model("tiny_resnet", 4, norm="group", seed=0).eval()  # stores nothing
    again = noise.reestimated(model, IMAGES, 0.5, seed=0)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert noise.mismatch(model, IMAGES, 0.5) == {}


# -- mismatch ---------------------------------------------------------------------------------------------------------
class OneNorm(nn.Module):
    """Scales pixels by 2, then batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, eps=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(2 * x).mean((2, 3))


def test_mismatch_by_hand() -> None:
    """The four measures on one layer, from its formulas, with one channel changed at a time."""
    model = OneNorm().eval()
    x = 2 * IMAGES.double() / 255
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    model.norm.running_mean.copy_(mean)
    model.norm.running_var.copy_(var)
    (exact,) = noise.mismatch(model, IMAGES, 0.0, batch_size=7).values()
    assert all(abs(v) < 1e-5 for v in exact.values())

    model.norm.running_mean[0] += 0.3
    model.norm.running_var[1] = 4 * var[1] + 0.03  # with eps: four times the variance met
    (found,) = noise.mismatch(model, IMAGES, 0.0).values()
    v = (var + 0.01).tolist()
    assert list(found) == list(choices.MISMATCHES)
    assert found["mean_shift"] == pytest.approx(0.3 / math.sqrt(v[0]) / 3, rel=1e-4)
    assert found["log_variance"] == pytest.approx(math.log(4) / 3, rel=1e-4)
    assert found["divergence"] == pytest.approx((0.09 / v[0] / 2 + (0.25 - 1 + math.log(4)) / 2) / 3, rel=1e-4)
    assert found["wasserstein"] == pytest.approx((0.09 + v[1]) / 3, rel=1e-4)


def test_mismatch_grows_with_noise_and_re_estimation_undoes_it() -> None:
    """Statistics of clean images fit noisy ones the less the stronger the noise; those re-estimated at a level fit it."""
    model = noise.reestimated(make_model("tiny_resnet", 4, seed=0), IMAGES, 0.0001, seed=0, batch_size=32)

    def divergence(network: nn.Module, sigma: float) -> float:
        found = noise.mismatch(network, IMAGES, sigma, seed=1)
        return sum(layer["divergence"] for layer in found.values()) / len(found)

    assert divergence(model, 0.0) < divergence(model, 0.25) < divergence(model, 1.0)
    assert divergence(noise.reestimated(model, IMAGES, 1.0, seed=0, batch_size=32), 1.0) < divergence(model, 1.0) / 5
    with pytest.raises(ValueError, match="at least one image to measure statistics on, got none"):
        noise.mismatch(model, IMAGES[:0], 0.5)
