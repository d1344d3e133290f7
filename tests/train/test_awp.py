"""Adversarial weight perturbation against the textbook: where the gradient is taken, and that nothing else moves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.train.test_loop import batch, device_set, network, spec, winged
from twinslib.train.awp import perturbed
from twinslib.train.loop import fit
from twinslib.train.step import OutOfTime, Step, generator


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


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(net: nn.Module, loss: torch.Tensor, gamma: float) -> dict[str, torch.Tensor]:
    """The textbook's weights by name: w + gamma ||w|| g / ||g|| for each tensor of two or more dimensions."""
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    return {name: p.detach() + gamma * p.detach().pow(2).sum().sqrt() * g / g.pow(2).sum().sqrt()
            for (name, p), g in zip(net.named_parameters(), gradients, strict=True) if p.ndim > 1}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 0.02))
def test_perturbation_by_hand(seed: int, gamma: float) -> None:
    """Inside, weights of two or more dimensions stand gamma times their norm up the gradient of the loss, which is higher
    there, others where they were, and gradients are those of that place; outside, every weight is restored exactly and the
    statistics have been updated once, by the pass inside."""
    net, (x, y) = small(seed), batch(8, torch.float64)
    before, hand, textbook = state(net), copy.deepcopy(net), copy.deepcopy(net)
    at_rest = F.cross_entropy(hand(x), y)
    want = moved(hand, at_rest, gamma)
    textbook.load_state_dict(want, strict=False)
    F.cross_entropy(textbook(x), y).backward()
    with perturbed(net, lambda: F.cross_entropy(net(x), y), gamma):
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.detach(), want.get(name, before[name]), rtol=1e-12, atol=1e-15)
            assert torch.equal(p.detach(), before[name]) is (p.ndim == 1)
        assert all(torch.equal(b, before[name]) for name, b in net.named_buffers()) and net[0].weight.grad is None
        loss = F.cross_entropy(net(x), y)
        loss.backward()
    assert loss > at_rest
    for (name, p), q in zip(net.named_parameters(), textbook.parameters(), strict=True):
        assert torch.equal(p.detach(), before[name])
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-14)
    for (name, buffer), b in zip(net.named_buffers(), textbook.buffers(), strict=True):
        torch.testing.assert_close(buffer, b, rtol=1e-12, atol=1e-15)
        assert not torch.equal(buffer, before[name]) and ("tracked" not in name or buffer == 1)


@pytest.mark.parametrize("where", ["body", "loss"])
def test_everything_is_restored_after_an_error(where: str) -> None:
    """Whether the pass that finds the direction fails half-way or what is done inside, weights and statistics are as before."""
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
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_weights_without_a_direction_stay() -> None:
    """A weight that is frozen, unused or has no gradient stays finite and where it was, while others move."""
    net, (x, y) = small(), batch(8, torch.float64)
    net[0].weight.requires_grad_(False)
    net.unused = nn.Linear(3, 3).double()
    with torch.no_grad():
        net[7].weight.zero_()  # no gradient reaches what is before it
    before = state(net)
    with perturbed(nn.ModuleList([net]), lambda: F.cross_entropy(net[:8](x), y), 0.1):
        assert all(torch.equal(net.get_parameter(name), before[name]) for name in ("0.weight", "3.weight", "unused.weight"))
        assert torch.equal(net[7].weight, before["7.weight"])  # its norm is 0
    with torch.no_grad():
        net[7].weight.fill_(0.01)
    with perturbed(net, lambda: F.cross_entropy(net[:8](x), y), 0.1):
        assert not torch.equal(net[7].weight, torch.full_like(net[7].weight, 0.01))
        assert torch.equal(net[0].weight, before["0.weight"])


@pytest.mark.parametrize("name", ["at_awp", "trades", "twins_at", "at_split"])
def test_a_step_by_hand(name: str) -> None:
    """A step attacks the images at the weights as they are, takes the gradient at the perturbed ones, on the same images, and
    applies it with decay and momentum to the unperturbed ones; statistics are those of the one pass at the perturbed ones."""
    s = spec(name, awp_gamma=0.02, optim={"weight_decay": 0.1})
    model, (x, y) = winged(s, network()).double(), batch(8, torch.float64)
    before, rest, there = state(model), copy.deepcopy(model), copy.deepcopy(model)
    attack = Step(copy.deepcopy(model), s, "cpu").attackers[0]
    inputs = {"clean": x, "adversarial": attack(x, y, generator("cpu", s.seed, "attack", 0))}
    there.load_state_dict(moved(rest, Step(rest, s, "cpu").loss(inputs, y)[0], 0.02), strict=False)
    want = Step(there, s, "cpu").loss(inputs, y)[0]
    gradients = torch.autograd.grad(want, list(there.parameters()))
    loss, _ = Step(model, s, "cpu")(x, y, 0, 0.05)
    torch.testing.assert_close(loss, want.detach(), rtol=1e-9, atol=0)
    for (k, p), g in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(p.detach(), before[k] - 0.05 * (g + 0.1 * before[k]), rtol=1e-8, atol=1e-12)
    for buffer, b in zip(model.buffers(), there.buffers(), strict=True):
        torch.testing.assert_close(buffer, b, rtol=1e-9, atol=1e-12)


def test_without_size_it_is_plain_training() -> None:
    """With gamma 0 the method is AT bit for bit; with its own gamma it is not."""
    trained = {}
    for label, s in (("at", spec("at")), ("zero", spec("at_awp", awp_gamma=0.0)), ("awp", spec("at_awp"))):
        trained[label] = network()
        fit(s, trained[label], device_set(), device="cpu")
    at, zero = (list(trained[label].state_dict().values()) for label in ("at", "zero"))
    assert all(map(torch.equal, at, zero))
    assert not any(map(torch.equal, trained["at"].parameters(), trained["awp"].parameters()))


def test_a_perturbation_of_size_zero_changes_nothing() -> None:
    """Neither weights nor statistics, though the direction is found."""
    net, (x, y) = small(), batch(8, torch.float64)
    before = state(net)
    with perturbed(net, lambda: F.cross_entropy(net(x), y), 0.0):
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_stopped_and_resumed(tmp_path) -> None:
    """Stopped after every step, it ends with the weights of an undisturbed run."""
    s, whole = spec("at_awp"), network()
    history, stops = fit(s, whole, device_set(), device="cpu"), 0
    while True:
        model = network(int(stops > 0))  # once there is a checkpoint, what is given plays no part
        try:
            again = fit(s, model, device_set(), device="cpu", checkpoint=tmp_path / "c", stop=lambda: True)
            break
        except OutOfTime:
            stops += 1
    assert stops == 5 and again.epochs == history.epochs
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), model.state_dict().values(), strict=True))
