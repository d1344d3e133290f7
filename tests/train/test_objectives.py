"""Losses against formulas written out, and how the wings share a batch."""

from dataclasses import replace

import pytest
import torch

from twinslib.specs.choices import OBJECTIVES
from twinslib.specs.method import METHODS, MethodSpec, method
from twinslib.train.objectives import kl_sum, split_wings, wing_losses


def wing_loss(*arguments):
    """What is minimised: the sum over the halves."""
    return wing_losses(*arguments).sum()


def logits(n: int, classes: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    """Float64 logits of clean and adversarial images, leaves that need a gradient."""
    g = torch.Generator().manual_seed(seed)
    return {kind: torch.randn(n, classes, generator=g, dtype=torch.float64).mul_(3).requires_grad_()
            for kind in ("clean", "adversarial")}


def labels(n: int, classes: int = 5) -> torch.Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(9))


def ce(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, written out."""
    return -(z - z.logsumexp(1, keepdim=True))[range(len(y)), y].mean()


def kl(z: torch.Tensor, z_adv: torch.Tensor) -> torch.Tensor:
    """Sum of p log(p / q), written out."""
    p, q = z.softmax(1), z_adv.softmax(1)
    return (p * (p / q).log()).sum()


def test_kl_sum_moves_both_sides() -> None:
    """By the formula's gradients; finite where probabilities are zero."""
    z = logits(7)
    torch.testing.assert_close(torch.autograd.grad(kl_sum(z["clean"], z["adversarial"]), list(z.values())),
                               torch.autograd.grad(kl(z["clean"], z["adversarial"]), list(z.values())))
    far = {k: (v.detach() * 1e4).requires_grad_() for k, v in logits(4).items()}
    value = kl_sum(far["clean"], far["adversarial"])
    value.backward()
    assert torch.isfinite(value) and all(torch.isfinite(v.grad).all() for v in far.values())


@pytest.mark.parametrize(("name", "inputs", "expected"), [
    ("natural", ("clean",), lambda z, y: ce(z["clean"], y)), ("at", ("adversarial",), lambda z, y: ce(z["adversarial"], y)),
    ("trades", ("adversarial", "clean"), lambda z, y: ce(z["clean"], y) + 6 * kl(z["clean"], z["adversarial"]) / len(y))])
def test_single_network_losses(name: str, inputs: tuple[str, ...], expected) -> None:
    """Natural, AT and TRADES with beta 6, each of the passes that it makes, mean over the batch, against the formulas."""
    z, y = logits(8), labels(8)
    used = {kind: z[kind] for kind in inputs}
    assert METHODS[name].inputs == inputs == OBJECTIVES[name] and METHODS[name].attacks is (name != "natural")
    for divisor in ("batch", "wing"):
        torch.testing.assert_close(wing_loss(method(name, kl_divisor=divisor), used, y), expected(z, y))


@pytest.mark.parametrize(("name", "divisor"), [("twins_at", "batch"), ("twins_trades", "batch"), ("twins_trades", "wing")])
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_wings_are_summed_as_officially_and_normalised_on_request(name: str, divisor: str, weight: float) -> None:
    """lambda x frozen + adaptive; normalize_loss divides that sum by 1 + lambda and changes nothing else."""
    n, half, y = 10, 5, labels(10)
    z = logits(n)

    def wing(part: slice) -> torch.Tensor:
        adv = z["adversarial"][part]
        if name == "twins_at":
            return ce(adv, y[part])
        return ce(z["clean"][part], y[part]) + 6 * kl(z["clean"][part], adv) / (n if divisor == "batch" else half)

    expected = weight * wing(slice(0, half)) + wing(slice(half, n))
    official = wing_loss(method(name, twins_weight=weight, kl_divisor=divisor), z, y)
    torch.testing.assert_close(official, expected)
    normalised = wing_loss(method(name, twins_weight=weight, kl_divisor=divisor, normalize_loss=True), z, y)
    torch.testing.assert_close(normalised, expected / (1 + weight))


@pytest.mark.parametrize(("n", "weight", "normalize", "parts"), [
    (9, 0.4, False, [((0, 4), 0.4), ((4, 9), 1.0)]), (9, 3.0, True, [((0, 4), 0.75), ((4, 9), 0.25)]),
    (1, 0.4, False, [((0, 1), 1.0)])])
def test_split_wings(n: int, weight: float, normalize: bool, parts: list) -> None:
    """First half frozen, the rest adaptive; an odd image is adaptive's; a wing without images is left out."""
    twins = method("twins_at", twins_weight=weight, normalize_loss=normalize)
    want = [(slice(*ends), pytest.approx(w)) for ends, w in parts]
    assert split_wings(twins, n) == (n // 2, want)
    for wings, second in (("two_adaptive", n // 2), ("split", 0)):
        control = replace(twins, wings=wings)
        assert split_wings(control, n) == (second, want)
        assert wing_loss(control, logits(n), labels(n)) == wing_loss(twins, logits(n), labels(n))
    for wings in ("single", "frozen"):
        spec = MethodSpec(name="at", wings=wings, twins_weight=weight, normalize_loss=normalize)
        assert split_wings(spec, n) == (0, [(slice(0, n), 1.0)])
