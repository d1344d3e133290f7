"""PGD by property: legal, strong where the best answer is known, repeatable, and leaving the network as it was."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.attack.made import DEVICES, THREATS, batch, linear, seeded, sensitive_net
from tests.attack.made import smooth_net as conv_net
from twinslib.attack import pgd as attack_pgd
from twinslib.attack.pgd import pgd, pgd_robust_mask, random_point
from twinslib.nets.models import eval_mode
from twinslib.specs import choices

RADII = {"linf": 8 / 255, "l2": 0.5}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("loss", "random_start"), [("ce", False), ("kl", True), ("margin", True)])
@pytest.mark.parametrize("threat", THREATS)
def test_attack_is_legal(threat, loss, random_start, device):
    """Within eps, within [0, 1], detached, of the same kind as x, and at least as bad as the clean image."""
    x, y = batch(device=device)
    net, eps = conv_net(device=device), RADII[threat]
    x_adv = pgd(net, x, y, eps=eps, step_size=eps / 4, steps=10, threat=threat, loss=loss, random_start=random_start,
                generator=seeded(4, device))
    delta = (x_adv - x).flatten(1)
    size = delta.abs().amax(1) if threat == "linf" else delta.norm(dim=1)
    assert size.max() <= eps + 1e-6 and size.min() > eps / 2
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert (x_adv.dtype, x_adv.device, x_adv.shape, x_adv.requires_grad) == (x.dtype, x.device, x.shape, False)

    def badness(images):
        if loss == "ce":
            return F.cross_entropy(net(images), y, reduction="none")
        if loss == "kl":
            return F.kl_div(net(images).log_softmax(1), net(x).softmax(1), reduction="none").sum(1)
        others = torch.where(F.one_hot(y, 5).bool(), -torch.inf, net(images)).amax(1)
        return others - net(images).gather(1, y[:, None])[:, 0]

    assert (badness(x_adv) > badness(x)).all()


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("threat", THREATS)
def test_attack_is_strong(threat, random_start, loss):
    """Two-class linear model away from the pixel bounds: the best point is x + eps times the dual of w, reached."""
    x, y = batch(classes=2, low=0.3, high=0.7, dtype=torch.float64)
    forward, weight = linear(2, dtype=torch.float64)
    eps = RADII[threat] / 4
    w = (weight[1 - y] - weight[y])
    best = w.sign() if threat == "linf" else w / w.norm(dim=1, keepdim=True)
    x_adv = pgd(forward, x, y, eps=eps, step_size=eps / 3, steps=100, threat=threat, loss=loss,
                random_start=random_start, generator=seeded(5))
    torch.testing.assert_close(x_adv, x + eps * best.view_as(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("threat", THREATS)
def test_pgd_is_the_textbook_iteration(threat):
    """The loop start, step, project, clip written out, with the same start; the last iterate is kept."""
    x, y = batch()
    net, eps = conv_net(), RADII[threat]
    step_size = eps / 4
    if threat == "linf":
        expected = (x + (2 * torch.rand(x.shape, generator=seeded(6)) - 1) * eps).clamp(0, 1)
    else:
        generator = seeded(6)
        direction = torch.randn(x.shape, generator=generator)
        radius = eps * torch.rand(len(x), generator=generator)
        expected = (x + torch.einsum("bchw,b->bchw", direction, radius / direction.flatten(1).norm(dim=1))).clamp(0, 1)
    for _ in range(7):
        leaf = expected.clone().requires_grad_()
        F.cross_entropy(net(leaf), y).backward()
        if threat == "linf":
            moved = torch.min(torch.max(expected + step_size * leaf.grad.sign(), x - eps), x + eps)
        else:
            length = leaf.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            moved = x + torch.renorm(expected + step_size * leaf.grad / length - x, 2, 0, eps)
        expected = moved.clamp(0, 1)
    x_adv = pgd(net, x, y, eps=eps, step_size=step_size, steps=7, threat=threat, generator=seeded(6))
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-6)


def refuse(_):
    raise AssertionError("the network must not be asked")


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("threat", THREATS)
def test_tiny_and_huge_gradients_move_alike(threat, scale):
    """The step does not depend on the size of the gradient, from 1e-12 to 1e12."""
    x, y = batch(classes=2, low=0.3, high=0.7)
    forward, _ = linear(2)
    call = dict(eps=0.05, step_size=0.01, steps=3, threat=threat, loss="margin", random_start=False)
    torch.testing.assert_close(pgd(lambda z: scale * forward(z), x, y, **call), pgd(forward, x, y, **call))


def test_attack_touches_nothing_but_the_images():
    """Parameter gradients stay None, batch statistics keep their bits, x is not written to, no_grad is no obstacle."""
    x, y = batch()
    net = conv_net().requires_grad_(True).train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    x_before, before = x.clone(), torch.get_rng_state()
    with eval_mode(net), torch.no_grad():
        for threat in THREATS:
            call = dict(eps=0.1, step_size=0.02, steps=3, threat=threat)
            pgd_robust_mask(net, x, y, generator=seeded(), **call)
            for loss in choices.LOSSES:
                one, two, other = (pgd(net, x, y, generator=seeded(s), loss=loss, **call) for s in (7, 7, 8))
                assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(x, x_before) and not x.requires_grad


def test_eval_mode_restores_each_module():
    """A frozen norm inside a training network stays frozen afterwards, also when the body raises; without it an attack warns."""
    net = conv_net().train()
    with pytest.warns(UserWarning, match="use eval_mode"):
        pgd(net, *batch(), eps=0.1, step_size=0.1, steps=1, generator=seeded())
    net[1].eval()
    modes = [m.training for m in net.modules()]
    with pytest.raises(KeyError), eval_mode(net):
        assert not any(m.training for m in net.modules())
        raise KeyError
    assert [m.training for m in net.modules()] == modes and not net[1].training and net[4].training


BAD = [
    (dict(eps=8), ValueError, r"expected eps in \[0, 1\] \(pixel units\), got 8; write 8/255"),
    (dict(eps=float("nan")), ValueError, "got nan"), (dict(eps=-1.0, threat="l2"), ValueError, "at least 0"),
    (dict(eps="8/255"), TypeError, "eps to be a number"), (dict(step_size=2), ValueError, "write 2/255"),
    (dict(step_size=0), ValueError, "step_size above 0"), (dict(step_size=True), TypeError, "step_size to be a number"),
    (dict(steps=-1), ValueError, "steps to be an integer of at least 0"), (dict(steps=2.5), TypeError, "steps to be an integer"),
    (dict(threat="linff"), ValueError, "did you mean 'linf'"), (dict(loss="cee"), ValueError, "did you mean 'ce'"),
    (dict(generator=None), ValueError, "random_start=False"), (dict(generator=0), TypeError, r"torch.Generator\(\)"),
    (dict(loss="kl", random_start=False), ValueError, "gradient is zero"),
    (dict(x=torch.zeros(12, 3, 8, 8, dtype=torch.uint8)), TypeError, "divide uint8"),
    (dict(x=torch.zeros(3, 8, 8)), TypeError, "shape"), (dict(y=torch.zeros(12)), TypeError, "int64"),
    (dict(y=torch.zeros(11, dtype=torch.int64)), TypeError, r"shape \(12,\)"),
    (dict(y=[0] * 12), TypeError, "y to be a tensor, got a list"),
    (dict(y=torch.zeros(12, dtype=torch.int64, device="meta")), TypeError, "on cpu"),
]
@pytest.mark.parametrize(("attack", "change", "error", "message"), [
    *((pgd, *bad) for bad in BAD), *((pgd_robust_mask, *bad) for bad in BAD if not {"loss", "random_start"} & bad[0].keys()),
    (pgd_robust_mask, dict(restarts=0), ValueError, "restarts")])
def test_bad_arguments_fail_before_any_work(attack, change, error, message):
    """Each wrong argument gives one clear message before the network is asked."""
    x, y = batch()
    call = dict(x=x, y=y, eps=8 / 255, step_size=2 / 255, steps=3, generator=seeded()) | change
    with pytest.raises(error, match=message):
        attack(refuse, call.pop("x"), call.pop("y"), **call)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("threat", THREATS)
def test_robust_mask_is_the_worst_of_all_iterates(threat, restarts, device):
    """Equal to attacking every image to the end and looking at every iterate, written out without compaction."""
    x, _ = batch(n=40, device=device, dtype=torch.float64)
    net = sensitive_net(device=device, dtype=torch.float64)
    y = net(x).argmax(1)
    y[::7] = (y[::7] + 1) % 5
    eps, step_size, steps = RADII[threat] / 8, RADII[threat] / 20, 6
    generator = seeded(11, device)
    expected = net(x).argmax(1) == y
    clean = expected.clone()
    for _ in range(restarts):
        x_adv = random_point(x, eps, threat, generator)
        expected &= net(x_adv).argmax(1) == y
        for _ in range(steps):
            x_adv = attack_pgd.ascend(x_adv, attack_pgd.input_gradient(net, x_adv, y), x, eps, step_size, threat)
            expected &= net(x_adv).argmax(1) == y
    mask = pgd_robust_mask(net, x, y, eps=eps, step_size=step_size, steps=steps, restarts=restarts, threat=threat,
                           generator=seeded(11, device))
    assert torch.equal(mask, expected)
    assert 0 < int(mask.sum()) < int(clean.sum()) < 40


def test_broken_images_leave_the_batch():
    """At most steps + 1 passes a restart and one on the clean images; far fewer images than without compaction."""
    x, _ = batch(n=64)
    net, passes = sensitive_net(), []
    y = net(x).argmax(1)

    def counted(z):
        passes.append(len(z))
        return net(z)

    steps, restarts = 20, 2
    mask = pgd_robust_mask(counted, x, y, eps=6 / 255, step_size=1 / 255, steps=steps, restarts=restarts, generator=seeded())
    assert len(passes) <= 1 + restarts * (steps + 1)
    assert 0 < mask.sum() < 16 and sum(passes) < 0.6 * 64 * (1 + restarts * (steps + 1))


@pytest.mark.parametrize(("change", "error", "message"), [
    (lambda out: (out, out), TypeError, r"logits alone, got a tuple.*model\(x\)\[0\]"),
    (lambda out: out[:1], ValueError, r"shape \(12, classes\)"), (lambda out: out.detach(), ValueError, "no_grad or detach"),
    (lambda out: out.detach() + torch.zeros(1, requires_grad=True), ValueError, "no_grad or detach")])
def test_networks_that_do_not_return_logits(change, error, message):
    """Several outputs, another shape, or no way back to the images: one clear message."""
    x, y = batch()
    y = conv_net()(x).argmax(1)
    for attack in (pgd, pgd_robust_mask):
        with pytest.raises(error, match=message):
            attack(lambda z: change(conv_net()(z)), x, y, eps=0.1, step_size=0.1, steps=1, generator=seeded())


def spoiled(net, x, which, value, *, pixels=slice(None), later=False):
    """`net` with gradient `value` for images that lie near x[which], there or only away from the clean image; its logits are
    finite whatever it is given."""
    def forward(z):
        distance = torch.cdist(z.nan_to_num(0.5).flatten(1), x[which].flatten(1), p=math.inf)
        near = distance.amin(1)
        hit = (near < 0.4) & z.isfinite().flatten(1).all(1) & ((near > 0.012) | (not later))
        where = torch.zeros_like(z, dtype=torch.bool)
        where.flatten(1)[:, pixels] = hit[:, None]
        z = z.view_as(z)  # the hook of a leaf would see what was added up
        if z.requires_grad:
            z.register_hook(lambda gradient: gradient.masked_fill(where, value))
        return net(z.nan_to_num(0.5))

    return forward


@pytest.mark.parametrize(("value", "later"), [(math.nan, True), (math.inf, False)])
@pytest.mark.parametrize("pixels", [slice(None), slice(7, 8)], ids=["image", "pixel"])
@pytest.mark.parametrize("threat", THREATS)
def test_an_image_without_a_gradient_is_not_robust(threat, value, pixels, later, caplog):
    """Not one pixel of it at one iterate may be missing; the other images come out as with a sound network."""
    x, _ = batch()
    net = conv_net()
    y, eps = net(x).argmax(1), {"linf": 0.02, "l2": 0.3}[threat]
    call = dict(eps=eps, step_size=eps / 2, steps=6, threat=threat)
    sound = pgd_robust_mask(net, x, y, generator=seeded(), **call)
    forward = spoiled(net, x, slice(0, 5), value, pixels=pixels, later=later)
    mask = pgd_robust_mask(forward, x, y, generator=seeded(), **call)
    assert not mask[:5].any() and torch.equal(mask[5:], sound[5:]) and sound[:5].any() and sound[5:].any()
    assert "of 12 images count as broken: their gradient is not finite" in caplog.text


@pytest.mark.parametrize(("loss", "value"), [("ce", math.nan), ("kl", math.inf), ("margin", math.nan)])
@pytest.mark.parametrize("threat", THREATS)
def test_training_sees_what_was_not_attacked(threat, value, loss):
    """The last iterate of such an image is not finite, nor is the loss on it; all other images are attacked as ever."""
    x, y = batch()
    net, eps = conv_net(), RADII[threat]
    call = dict(eps=eps, step_size=eps / 4, steps=3, threat=threat, loss=loss)
    x_adv = pgd(spoiled(net, x, [2, 7], value), x, y, generator=seeded(), **call)
    kept = torch.ones(12, dtype=torch.bool)
    kept[[2, 7]] = False
    assert torch.equal(attack_pgd.finite(x_adv), kept) and not F.cross_entropy(net(x_adv), y).isfinite()
    assert torch.equal(x_adv[kept], pgd(net, x, y, generator=seeded(), **call)[kept])
