"""Noise on whole levels: its distribution to the last bit, a network that floating point betrays, what is refused."""

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from twinslib.base.sequential import UNEVEN, certify_plan, exact_plan, sequential_plan
from twinslib.certify.levels import Levels, alias, weights
from twinslib.certify.smoothing import collect_votes

CPU = torch.device("cpu")


@pytest.mark.parametrize("sigma", [0.001, 0.12, 0.5])
def test_weights_are_the_rounded_gaussian(sigma):
    """In 40 digits: each weight but that of 0 is within one of 2^63 times the probability of its level."""
    values, counts = weights(sigma)
    assert sum(counts) == 2 ** 63 and min(counts) >= 0 and counts == counts[::-1] and values == sorted(values)
    with mpmath.workdps(40):
        s = 255 * mpmath.mpf(sigma)
        exact = [2 ** 63 * (mpmath.ncdf((0.5 - abs(j)) / s) - mpmath.ncdf((-0.5 - abs(j)) / s)) for j in values]
        off = [abs(count - e) for count, e in zip(counts, exact, strict=True)]
        beyond = 2 ** 64 * mpmath.ncdf((values[0] - 0.5) / s)
        assert all(o <= 1 for j, o in zip(values, off, strict=True) if j)
        assert (sum(off) + beyond) / 2 ** 64 <= Levels(sigma, 1, CPU).distance


def test_columns_hold_the_weights():
    """Counted over all columns, each value has its weight exactly: with its own part and as the other one."""
    values, counts = weights(0.05)
    own, other, threshold = alias(values, counts, 8)
    held, height = dict.fromkeys(values, 0), 2 ** 55
    for a, b, part in zip(own, other, threshold, strict=True):
        assert 0 <= part <= height
        held[a] += part
        held[b] += height - part
    assert [held[v] for v in values] == counts


@pytest.mark.parametrize("sigma", [0.004, 0.25])
def test_draws_follow_the_weights(sigma):
    """A million draws: chi-square over the levels, moments, whole numbers, no correlation of neighbours."""
    noise, draws = Levels(sigma, 1, CPU), torch.empty(1_000_000)
    noise.fill(draws, torch.Generator().manual_seed(0))
    values, counts = weights(sigma)
    got = np.bincount(draws.numpy().astype(int) - values[0], minlength=len(values))
    expected = np.array(counts) / 2.0 ** 63 * len(draws)
    large = expected > 20
    pooled = np.append(got[large], got[~large].sum()), np.append(expected[large], expected[~large].sum())
    assert stats.chisquare(*(p[pooled[1] > 0] for p in pooled)).pvalue > 1e-3 and (draws == draws.round()).all()
    assert abs(draws.std() / 255 / sigma - (1 + 1 / 12 / (255 * sigma) ** 2) ** 0.5) < 0.003
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.004


class Reader(nn.Module):
    """Answers 1 where some pixel under 2^-9 is no multiple of 2^-33: the sum of noise and 0 may be none, that of noise and 1/255,
    itself a multiple of 2^-31, has lost such bits."""

    def forward(self, x):
        fine = (x.double() * 2 ** 33 % 1 != 0) & (x.abs() < 2 ** -9)
        seen = fine.flatten(1).any(1, keepdim=True).to(x.dtype)
        return torch.cat([1 - seen, seen], 1)


@pytest.mark.parametrize("make", [certify_plan, lambda **rest: sequential_plan(radii=(0, 0.25), **rest),
                                  lambda **rest: exact_plan(radii=(0, 0.25), **rest)], ids=["certify", "sequential", "exact"])
def test_low_order_bits_give_a_false_certificate_but_not_a_sound_one(make):
    """Images .217 apart are certified farther than that: in the ordinary mode with different answers, in the sound one not."""
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[1] = 1
    apart = 3072 ** 0.5 / 255
    ordinary, sound = (collect_votes(Reader().eval(), images, make(sigma=0.25, n=1000, sound=sound)).certified()
                       for sound in (False, True))
    assert (ordinary.radius > apart).all() and ordinary.prediction.tolist() == [1, 0]
    assert (sound.radius > apart).all() and sound.prediction.tolist() == [0, 0]


def test_the_network_sees_a_function_of_the_sum():
    """Its inputs are (v + j) / 255, as division gives them."""
    seen = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    shown = []
    for level in (0, 200):
        seen.clear()
        collect_votes(net, torch.full((1, 3, 2, 2), level, dtype=torch.uint8), certify_plan(sigma=0.5, n=128, sound=True))
        shown.append(torch.cat(seen[-2:]))  # those that choose the class, those that bound its probability
    whole = [(x * 255).round() for x in shown]
    assert all(torch.equal(w / 255, x) for w, x in zip(whole, shown, strict=True))
    assert torch.equal(whole[0] + 200, whole[1]) and whole[0].std() > 100


def test_bounds_are_lower():
    """Off each bound, at each way to share alpha; radii asked for are reached where they are reported."""
    for make in (sequential_plan, exact_plan):
        plain, sound = (make(sigma=0.25, radii=(0, 0.25), n=2000, sound=sound) for sound in (False, True))
        history = np.array([[round(0.97 * look) for look in plain.looks], [*plain.looks]])
        assert (plain.bound(history) - sound.bound(history) <= 1.01 * UNEVEN).all()
        assert (sound.reach >= plain.reach).all() and (sound.reach <= plain.reach + 1).all()
        for i, look in enumerate(sound.looks):
            at = np.full((2, len(sound.looks)), -1)
            at[:, i] = sound.reach[1, i], sound.reach[1, i] - 1
            radius = 0.25 * stats.norm.ppf(np.maximum(sound.bound(at), 0.5))
            assert sound.reach[1, i] > look or (radius[0] >= 0.25 > radius[1])
    assert 0 < certify_plan(sigma=0.25).ceiling - certify_plan(sigma=0.25, sound=True).ceiling < 1e-5


@pytest.mark.parametrize(("images", "sigma", "message"), [
    (torch.rand(2, 3, 4, 4), 0.25, "uint8 images for a sound plan, .* got torch.float32"),
    (torch.zeros(1, 3, 1000, 1000, dtype=torch.uint8), 5.0, "of at most [0-9,]+ numbers for a sound .*, got 3,000,000"),
])
def test_refused(images, sigma, message):
    """Images that are not on whole levels, or so large that the noise would not be even enough."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises((TypeError, ValueError), match=message):
        collect_votes(net, images, certify_plan(sigma=sigma, n=100, sound=True))
