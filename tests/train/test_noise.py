"""Noise on training images, statistics under it, and how far stored ones are from those it brings."""

import math

import pytest
import torch
from torch import nn

from twinslib.nets.models import make_model
from twinslib.specs import choices
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, ModelSpec, NoiseSpec, OptimSpec, RunSpec
from twinslib.train import noise
from twinslib.train.step import Step

IMAGES = torch.randint(0, 256, (32, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_levels() -> None:
    """By image each level of the set is drawn equally often, for each image on its own."""
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


@pytest.mark.parametrize(("name", "spec"), [("noise", NoiseSpec(sigmas=(0.5,))), ("mixed_noise", NoiseSpec(sigmas=(0.0, 0.5)))])
def test_training_sees_the_noise_of_its_spec(name: str, spec: NoiseSpec) -> None:
    """What a step's forward pass gets is its images with fresh noise of the spec's levels, the same for a step done again."""
    shared = dict(data=DataSpec(name="toy_target", image_size=16), model=ModelSpec(arch="tiny_resnet"), optim=OptimSpec())
    run = RunSpec(**shared, method=method(name), noise=spec, source=RunSpec(**shared, method=method("natural")))
    step = Step(make_model("tiny_resnet", 4, seed=0), run, "cpu")
    seen, x, y = [], IMAGES.float() / 255, torch.arange(32) % 4
    step.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach() - x))
    for count in (0, 1, 1):
        step(x, y, count, 0.01)
    scale = seen[1].flatten(1).std(1)
    assert {round(2 * s) / 2 for s in scale.tolist()} == set(spec.sigmas) and ((scale - 0.5).abs().min() < 0.05)
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[0], seen[1])


def test_reestimated_holds_the_statistics_of_noisy_images() -> None:
    """The first batch norm stores mean and unbiased variance of what it meets; weights and the network given stay as they are."""
    model = make_model("tiny_resnet", 4, seed=0).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    again = noise.reestimated(model, IMAGES, 0.5, seed=3, batch_size=32)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert not any(m.training for m in again.modules())
    met = []
    model.network.bn1.register_forward_pre_hook(lambda _, inputs: met.append(inputs[0]))
    with torch.no_grad():
        model(noise.noisy(IMAGES.float() / 255, NoiseSpec(sigmas=(0.5,)), generator(3 * 1_000_003)))
    assert torch.allclose(again.network.bn1.running_mean, met[0].mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(again.network.bn1.running_var, met[0].var((0, 2, 3)), rtol=1e-4)


def test_reestimated_is_the_mean_over_batches() -> None:
    """Two batches count alike, a last batch that is not whole is left out, networks without batch norm come back equal."""
    model = make_model("tiny_resnet", 4, seed=0).eval()
    one, two, both, more = (noise.reestimated(model, x, 0.0001, seed=0, batch_size=8).network.bn1.running_mean
                            for x in (IMAGES[:8], IMAGES[8:16], IMAGES[:16], IMAGES[:21]))
    assert torch.allclose((one + two) / 2, both, atol=1e-4) and torch.equal(both, more)
    for act, message in ((lambda: noise.reestimated(model, IMAGES[:1], 0.5, seed=0), "at least two images .* got 1"),
                         (lambda: noise.mismatch(model, IMAGES[:0], 0.5), "at least one image .* got none")):
        with pytest.raises(ValueError, match=message):
            act()
    model = make_model("tiny_resnet", 4, norm="group", seed=0).eval()  # stores nothing
    again = noise.reestimated(model, IMAGES, 0.5, seed=0)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert noise.mismatch(model, IMAGES, 0.5) == {}


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
