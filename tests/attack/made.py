"""What the tests of attacks share: small networks, images, generators, devices."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from twinslib.attack import autoattack

DEVICES = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")])]
THREATS = ("linf", "l2")


def seeded(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def linear_net(classes=10, side=6, seed=0):
    """A linear network whose boundaries are known; random images spread over its classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes))
        nn.init.normal_(net[1].weight)
        net[1].bias.data = -0.5 * net[1].weight.data.sum(1)
    return net.eval()


def conv_net(classes=10, seed=0):
    """A small network with batch norm for images of 6 pixels; centred, so that random images spread over the classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16),
                            nn.ReLU(), nn.Flatten(), nn.Linear(64, classes))
        with torch.no_grad():
            for _ in range(30):
                logits = net(torch.rand(64, 3, 6, 6))
        net[-1].bias.data -= logits.mean(0)
    return net.eval()


def smooth_net(classes=5, device="cpu", dtype=torch.float32):
    """A small smooth network in eval mode for images of 8 pixels, whose batch norm has seen data; it takes no gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 3, stride=2),
                            nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(72, classes))
        net(torch.rand(32, 3, 8, 8))
    return net.eval().requires_grad_(False).to(device, dtype)


def sensitive_net(classes=5, device="cpu", dtype=torch.float32):
    """Two smooth layers that small perturbations can turn: nearly half of random images break at linf 2/255."""
    first = torch.randn(32, 192, generator=seeded(12)).to(device, dtype) / 4
    last = torch.randn(classes, 32, generator=seeded(13)).to(device, dtype)
    return lambda x: torch.tanh((x.flatten(1) - 0.5) @ first.T) @ last.T


def linear(classes, side=8, dtype=torch.float32):
    weight = torch.randn(classes, 3 * side * side, generator=seeded(3), dtype=torch.float64).to(dtype)
    return lambda x: F.linear(x.flatten(1), weight), weight


def batch(n=12, side=8, classes=5, low=0.0, high=1.0, device="cpu", dtype=torch.float32):
    """Float images and labels that no network has chosen."""
    x = (low + (high - low) * torch.rand(n, 3, side, side, generator=seeded(1))).to(device, dtype)
    return x, torch.randint(classes, (n,), generator=seeded(2)).to(device)


def pictures(net, n, side=6, low=0, high=256, device="cpu", wrong=0):
    """Random uint8 images, labelled as the network sees them, but for the first `wrong`."""
    images = torch.randint(low, high, (n, 3, side, side), dtype=torch.uint8, generator=seeded(1))
    logits = net(images / 255)
    labels = logits.argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % logits.shape[1]
    return images.to(device), labels.to(device)


def shorten(monkeypatch, steps, queries):
    """AutoAttack of few iterations."""
    made = autoattack._adversary

    def few(*args, **kwargs):
        adversary = made(*args, **kwargs)
        for part in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
            part.n_iter = steps
        adversary.square.n_queries = queries
        return adversary

    monkeypatch.setattr(autoattack, "_adversary", few)
