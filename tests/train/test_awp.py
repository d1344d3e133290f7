"""Adversarial weight perturbation against the textbook: where the gradient is taken, and that nothing else moves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.train.made import batch, close, equal, gradients, network, spec, state, winged
from twinslib.train.awp import perturbed
from twinslib.train.step import Step, generator


def small(seed: int = 0) -> nn.Module:
    """Two convolutions with bias and batch norm, and a head, in float64 and training mode."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.Tanh(),
                        nn.Flatten(), nn.Linear(8 * 144, 10)).double()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1:
                p.uniform_(0.5, 1.5)
    return net.train()


def moved(net: nn.Module, loss: torch.Tensor, gamma: float) -> dict[str, torch.Tensor]:
    """The textbook's weights by name: w + gamma ||w|| g / ||g|| for each tensor of two or more dimensions."""
    return {name: p.detach() + gamma * p.detach().pow(2).sum().sqrt() * g / g.pow(2).sum().sqrt()
            for (name, p), g in zip(net.named_parameters(), gradients(loss, net).values(), strict=True) if p.ndim > 1}


@pytest.mark.parametrize(("seed", "gamma"), [(1, 1e-3), (2, 0.02)])
def test_perturbation_by_hand(seed: int, gamma: float) -> None:
    """Inside, weights of two or more dimensions stand gamma times their norm up the gradient of the loss."""
    net, (x, y) = small(seed), batch(8, torch.float64)
    before, hand, textbook = state(net), copy.deepcopy(net), copy.deepcopy(net)
    at_rest = F.cross_entropy(hand(x), y)
    want = moved(hand, at_rest, gamma)
    textbook.load_state_dict(want, strict=False)
    F.cross_entropy(textbook(x), y).backward()
    with perturbed(net, lambda: F.cross_entropy(net(x), y), gamma):
        close(dict(net.named_parameters()), {n: want.get(n, before[n]) for n, _ in net.named_parameters()}, 1e-12, 1e-15)
        assert all(torch.equal(b, before[name]) for name, b in net.named_buffers()) and net[0].weight.grad is None
        loss = F.cross_entropy(net(x), y)
        loss.backward()
    assert loss > at_rest
    for (name, p), q in zip(net.named_parameters(), textbook.parameters(), strict=True):
        assert torch.equal(p.detach(), before[name])
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-14)
    close(dict(net.named_buffers()), dict(textbook.named_buffers()), 1e-12, 1e-15)
    assert not any(torch.equal(b, before[name]) for name, b in net.named_buffers())


@pytest.mark.parametrize("where", ["body", "loss"])
def test_everything_is_restored(where: str) -> None:
    """Whether the pass that finds the direction fails half-way, or what is done inside, weights and statistics are as before."""
    net, (x, y) = small(), batch(8, torch.float64)
    before = state(net)

    def loss() -> torch.Tensor:
        logits = net(x)
        if where == "loss":
            raise ArithmeticError
        return F.cross_entropy(logits, y)

    with pytest.raises(ArithmeticError), perturbed(net, loss, 0.1):
        assert not torch.equal(net[0].weight, before["0.weight"])
        raise ArithmeticError
    assert equal(net, before)


def test_weights_without_a_direction_stay() -> None:
    """A weight that is frozen, unused or has no gradient stays finite and where it was, while others move."""
    net, (x, y) = small(), batch(8, torch.float64)
    net[0].weight.requires_grad_(False)
    net.unused = nn.Linear(3, 3).double()
    for fill, still in ((0.0, True), (0.01, False)):  # at 0 no gradient reaches what is before it, and its own norm is 0
        nn.init.constant_(net[7].weight, fill)
        before = state(net)
        with perturbed(nn.ModuleList([net]), lambda: F.cross_entropy(net[:8](x), y), 0.1):
            assert all(torch.equal(net.get_parameter(name), before[name]) for name in ("0.weight", "unused.weight"))
            assert all(torch.equal(net.get_parameter(name), before[name]) is still for name in ("3.weight", "7.weight"))


@pytest.mark.parametrize("name", ["at_awp", "twins_at"])
def test_a_step_by_hand(name: str) -> None:
    """A step attacks the images at the weights as they are, takes the gradient at the perturbed ones, on the same images."""
    s = spec(name, awp_gamma=0.02, optim={"weight_decay": 0.1})
    model, (x, y) = winged(s, network()).double(), batch(8, torch.float64)
    before, rest, there = state(model), copy.deepcopy(model), copy.deepcopy(model)
    attack = Step(copy.deepcopy(model), s, "cpu").attackers[0]
    inputs = {"clean": x, "adversarial": attack(x, y, generator("cpu", s.seed, "attack", 0))}
    there.load_state_dict(moved(rest, Step(rest, s, "cpu").loss(inputs, y)[0], 0.02), strict=False)
    want = Step(there, s, "cpu").loss(inputs, y)[0]
    loss, _ = Step(model, s, "cpu")(x, y, 0, 0.05)
    torch.testing.assert_close(loss, want.detach(), rtol=1e-9, atol=0)
    close(dict(model.named_parameters()), {k: nn.Parameter(before[k] - 0.05 * (g + 0.1 * before[k]))
                                           for k, g in gradients(want, there).items()}, rtol=1e-8, atol=1e-12)
    close(dict(model.named_buffers()), dict(there.named_buffers()), rtol=1e-9, atol=1e-12)
