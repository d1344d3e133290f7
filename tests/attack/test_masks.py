"""Masks per test image: AutoAttack against closed forms and the package itself, blocks, global state, checks."""

import contextlib
import sys
from collections import namedtuple
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.attack.made import DEVICES, THREATS, conv_net, linear_net, pictures, seeded, shorten
from twinslib.attack import autoattack as attack_autoattack
from twinslib.attack.autoattack import autoattack_masks, checks
from twinslib.attack.masks import block_seed, clean_mask, pgd_losses, pgd_mask
from twinslib.attack.pgd import pgd
from twinslib.base.errors import Diverged
from twinslib.nets import arithmetic
from twinslib.specs import strength

FAST = ("apgd-ce", "apgd-t")
STANDARD = strength.STANDARD
KINDS = ("clean", "pgd", "losses", "autoattack", "checks")


def measure(kind, net, images, labels, *, number=float, integer=int, **changes):
    """Masks (losses, checks) of one kind, its arguments made by `number` and `integer`, with changes."""
    attack = dict(eps=number(0.03125), seed=integer(3))
    steps = dict(step_size=number(0.0078125), steps=integer(3))
    options = {"batch_size": integer(4)} | {
        "clean": {}, "pgd": attack | steps | dict(restarts=integer(2), block=integer(1)), "losses": attack | steps,
        "autoattack": attack | dict(attacks=["apgd-ce"], block=integer(1)), "checks": attack | steps}[kind] | changes
    if kind == "checks":
        del options["batch_size"]
        return torch.tensor(list(checks(net, images, labels, **options).values()))
    function = {"clean": clean_mask, "pgd": pgd_mask, "losses": pgd_losses, "autoattack": autoattack_masks}[kind]
    found = function(net, images, labels, **options)
    return found[1] if kind == "losses" else list(found.values())[-1] if kind == "autoattack" else found


def distances(net, images, threat):
    """Distance of each image from the nearest decision boundary of a linear network, pixel bounds left aside."""
    weight, logits = net[1].weight.detach().double(), net.double()(images.double() / 255).detach()
    net.float()
    top = logits.argmax(1)
    gaps = weight[top][:, None] - weight[None]
    dual = gaps.abs().sum(2) if threat == "linf" else gaps.norm(dim=2)
    own = F.one_hot(top, logits.shape[1]).bool()
    return ((logits.gather(1, top[:, None]) - logits) / dual).masked_fill(own, torch.inf).amin(1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("threat", "attacks", "classes"), [
    ("linf", STANDARD, 10), ("l2", FAST, 10), ("linf", FAST, 4), ("linf", ("apgd-ce", "fab"), 2)])
def test_autoattack_equals_the_closed_form(threat, attacks, classes, device):
    """Linear network, images away from the pixel bounds: robust exactly where the boundary is farther than eps."""
    net = linear_net(classes)
    images, labels = pictures(net, 12, low=77, high=179, device=device)
    distance = distances(net, images.cpu(), threat)
    eps = float(distance.median()) * 1.02
    decided = (distance / eps - 1).abs() > 0.01
    masks = autoattack_masks(net.to(device), images, labels, eps=eps, threat=threat, attacks=attacks, batch_size=12)
    final = masks["+".join(attacks)]
    assert decided.sum() >= 10 and 2 < int(final.sum()) < 10
    assert torch.equal(final[decided], (distance > eps)[decided])
    pgd = pgd_mask(net, images, labels, eps=eps, step_size=eps / 4, steps=40, threat=threat, batch_size=12)
    assert not (final & ~pgd)[decided].any()


def test_stages_equal_one_call_of_the_package():
    """Attacks run one by one on what is left give the mask of one call of the package with both, image by image."""
    import pyautoattack

    net = conv_net().requires_grad_(False)
    images, labels = pictures(net, 8, wrong=1)
    masks = autoattack_masks(net, images, labels, eps=4 / 255, attacks=FAST, batch_size=8, seed=5, block=3)
    with torch.random.fork_rng(devices=[]):
        adversary = pyautoattack.AutoAttack(net, eps=4 / 255, seed=block_seed(5, "autoattack", 3), version="standard")
        adversary.attacks_to_run = list(FAST)
        _, predicted = adversary.run_standard_evaluation(images / 255, labels, batch_size=8)
    counts = [int(mask.sum()) for mask in masks.values()]
    assert list(masks) == ["apgd-ce", "apgd-ce+apgd-t"]
    assert torch.equal(masks["apgd-ce+apgd-t"], predicted == labels)
    mask = pgd_mask(net, images, labels, eps=4 / 255, step_size=1 / 255, steps=20, restarts=2, batch_size=40)
    assert 7 >= mask.sum() >= counts[0] >= counts[1] > 0


@pytest.mark.parametrize("threat", THREATS)
def test_settings_are_those_of_the_standard_version(threat):
    """Every number of the four attacks equals the package's own standard set-up (a custom list starts from others)."""
    import pyautoattack

    net = linear_net()
    norm = {"linf": "Linf", "l2": "L2"}[threat]
    standard = pyautoattack.AutoAttack(net, eps=0.1, norm=norm, seed=1, version="standard")
    assert tuple(standard.attacks_to_run) == STANDARD
    for name in STANDARD:
        ours = attack_autoattack._adversary(net, name, 0.1, threat, "cpu", 1)
        part = {"apgd-ce": "apgd", "apgd-t": "apgd_targeted", "fab-t": "fab", "square": "square"}[name]
        expected, got = vars(getattr(standard, part)), vars(getattr(ours, part))
        assert {k: v for k, v in got.items() if k != "logger"} == {k: v for k, v in expected.items() if k != "logger"}
        assert ours.attacks_to_run == [name]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["clean", "pgd", "autoattack"])
def test_blocks_equal_the_whole_run(kind, device):
    """Blocks computed one at a time, last first, give the masks of one call."""
    net = conv_net()
    images, labels = pictures(net, 22, device=device, wrong=1)
    net.to(device)

    def masks(a, b, block):
        place = {} if kind == "clean" else {"block": block, "eps": 3 / 255}
        return measure(kind, net, images[a:b], labels[a:b], batch_size=8, **place)

    whole = masks(0, 22, 0)
    parts = {k: masks(8 * k, 8 * k + 8, k) for k in (2, 0, 1)}
    assert torch.equal(torch.cat([parts[k] for k in range(3)]), whole)
    assert whole.dtype == torch.bool and whole.device.type == "cpu" and whole.shape == (22,)
    assert not whole[0] and 0 < whole.sum() < 22


@pytest.mark.parametrize(("threat", "eps"), [("linf", 4 / 255), ("l2", 0.3)])
def test_losses_after_pgd_by_hand(threat, eps):
    """Every image, also one that is wrong at once, is attacked to the end from the start of its block."""
    net = conv_net()
    images, labels = pictures(net, 20, wrong=3)
    attack = dict(eps=eps, step_size=eps / 3, steps=4, threat=threat)
    mask, losses = pgd_losses(net, images, labels, **attack, seed=5, batch_size=8)
    assert (mask.dtype, losses.dtype) == (torch.bool, torch.float32) and not losses.requires_grad
    for number, start in enumerate((0, 8, 16)):
        part = slice(start, start + 8)
        x_adv = pgd(net, images[part] / 255, labels[part], **attack, generator=seeded(block_seed(5, "pgd", number)))
        logits = net(x_adv)
        assert torch.equal(mask[part], logits.argmax(1) == labels[part])
        torch.testing.assert_close(losses[part], F.cross_entropy(logits, labels[part], reduction="none"), rtol=1e-4, atol=1e-5)
    clean = F.cross_entropy(net(images / 255), labels, reduction="none")
    assert (losses > clean).sum() >= 18 and losses[:3].min() > clean[:3].min() and 0 < mask.sum() < 17
    assert len({block_seed(seed, name, block) for seed in (0, 1) for name in ("pgd", "autoattack") for block in (0, 1)}) == 8


def test_starts_depend_on_seed_and_block(monkeypatch):
    """Those of PGD's masks, and on nothing else."""
    net, seeds = conv_net(), []
    monkeypatch.setattr("twinslib.attack.masks.pgd_robust_mask",
                        lambda forward, x, y, generator, **_: seeds.append(generator.initial_seed()) or y == y)
    pgd_mask(net, *pictures(net, 4), eps=0.1, step_size=0.1, steps=1, batch_size=2, seed=5, block=2)
    assert seeds == [block_seed(5, "pgd", 2), block_seed(5, "pgd", 3)]


@pytest.mark.parametrize("fails", [False, True])
def test_global_state_is_given_back(fails):
    """Global random state, trace function, gradient flags, parameter gradients and statistics are as before."""
    net, calls = conv_net(), []
    images, labels = pictures(net, 4)
    statistics, before, trace_before = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state(), sys.gettrace()

    class Counted(nn.Sequential):
        def forward(self, x):
            calls.append(1)
            return super().forward(x) if len(calls) < 20 or not fails else 1 / 0

    def trace(frame, event, argument):
        return None

    sys.settrace(trace)
    try:
        with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
            autoattack_masks(Counted(*net).eval(), images, labels, eps=0.5, attacks=("fab-t",), batch_size=6)
        after = sys.gettrace()
    finally:
        sys.settrace(trace_before)
    assert after is trace and torch.equal(before, torch.get_rng_state())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(v, statistics[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_float32_inside_autocast(kind):
    """An autocast around the evaluation changes nothing, and the TF32 switches come out as they went in."""
    net = conv_net()
    images, labels = pictures(net, 10)
    seen = set()

    def forward(x):
        logits = net(x)
        seen.add((logits.dtype, *arithmetic.state().values()))
        return logits

    switches = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        measure(kind, forward, images, labels)
    assert {kind for found in seen for kind in found} == {torch.float32, "ieee"}
    assert switches == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_eps_zero_is_clean_accuracy():
    """With eps 0 every measure is the clean mask, and the losses are those of the clean images."""
    net = conv_net()
    images, labels = pictures(net, 10, wrong=4)
    clean, call = clean_mask(net, images, labels, batch_size=4), dict(eps=0, step_size=0.1, steps=3, batch_size=4)
    mask, losses = pgd_losses(net, images, labels, **call)
    assert clean.sum() == 6 and torch.equal(mask, clean) and torch.equal(clean, pgd_mask(net, images, labels, **call))
    torch.testing.assert_close(losses, F.cross_entropy(net(images / 255), labels, reduction="none"))
    assert torch.equal(clean, measure("autoattack", net, images, labels, eps=0))
    masks = autoattack_masks(net, images, labels, eps=0.5, batch_size=3)
    assert [int(m.sum()) for m in masks.values()] == [0, 0, 0, 0]


ALL, ATTACKS, AUTO = KINDS[:4], KINDS[1:4], ("autoattack",)
BAD = [  # what is changed, the error, and of which measures
    (dict(net=lambda x: linear_net(1)(x), labels=torch.zeros(4, dtype=torch.int64)), ValueError, "at least 2 classes", ALL),
    (dict(attacks=("apgd-tt",)), ValueError, "did you mean 'apgd-t'", AUTO),
    (dict(attacks=()), ValueError, "at least one attack", AUTO), (dict(attacks=("fab", "fab")), ValueError, "none twice", AUTO),
    (dict(eps=8), ValueError, "write 8/255", ATTACKS), (dict(threat="l1"), ValueError, "threat", ATTACKS),
    (dict(seed=True), TypeError, "seed", ATTACKS), (dict(block=0.5), TypeError, "block", ("pgd", "autoattack")),
    (dict(net=linear_net().train()), ValueError, "in training mode; use eval_mode", ALL),
    (dict(net=linear_net().double()), ValueError, "float32 network, got 1.weight", ALL),
    (dict(net=lambda x: linear_net()(x).double()), ValueError, "float32 logits", ALL),
    (dict(net=lambda x: linear_net()(x) * torch.nan), ValueError, "finite logits", ALL),
    (dict(net=lambda x: namedtuple("Out", "logits aux")(linear_net()(x), 0)), TypeError, "logits alone, got a Out", ALL),
    *((dict(labels=torch.full((4,), label)), ValueError, r"labels in 0\.\.9", ALL) for label in (10, -1)),
    *((dict(labels=labels), TypeError, "int64", ALL) for labels in (torch.zeros(3).long(), torch.zeros(4), [True] * 4)),
    (dict(labels=["a"] * 4), TypeError, "labels as a tensor or", ALL),
    (dict(images=torch.rand(4, 3, 6, 6)), TypeError, "uint8 images", ALL),
    (dict(images=np.zeros((4, 6, 6, 3), np.uint8)), TypeError, r"permute\(0, 3, 1, 2\)", ALL),
    (dict(batch_size=0), ValueError, "batch_size", ALL),
]


@pytest.mark.parametrize(("change", "error", "message", "kind"), [
    (change, error, message, kind) for change, error, message, kinds in BAD for kind in kinds])
def test_bad_arguments(change, error, message, kind):
    """Each wrong argument gives one clear message."""
    images, labels = pictures(linear_net(), 4)
    call = dict(net=linear_net(), images=images, labels=labels, batch_size=4) | change
    positional = [call.pop(name) for name in ("net", "images", "labels")]
    with pytest.raises(error, match=message):
        measure(kind, *positional, **({"attacks": FAST} if kind == "autoattack" else {}) | call)


@pytest.fixture
def short(monkeypatch):
    """Where it makes no difference how strong attacks are."""
    shorten(monkeypatch, 8, 50)


@pytest.mark.filterwarnings("error")
def test_arrays_and_lists_are_taken(short):
    """Images as an array, labels as array or list, of any integers, read-only and flipped ones too."""
    net = conv_net()
    x, y = pictures(net, 6, wrong=1)
    for kind in KINDS:
        want = measure(kind, net, x, y)
        for taken in ((x.numpy(), y.tolist()), (x.numpy()[:, :, ::-1][:, :, ::-1], y.numpy().astype(np.uint8)),
                      (np.broadcast_to(x.numpy(), x.shape), list(y))):
            assert torch.equal(measure(kind, net, *taken), want), kind
        for number, integer in ((np.float32, np.uint8), (torch.tensor, torch.tensor), (Fraction, int)):
            assert torch.equal(measure(kind, net, x, y, number=number, integer=integer), want), kind


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 11])
def test_targets_of_few_classes(classes, monkeypatch):
    """All wrong classes are targets, nine at most; what cannot run is refused with what can."""
    seen, made = [], attack_autoattack._adversary
    monkeypatch.setattr(attack_autoattack, "_adversary", lambda *args: seen.append(made(*args)) or seen[-1])
    possible = [name for name in STANDARD if classes >= attack_autoattack.N_CLASSES.get(name, 2)]
    if classes > 1:
        net = linear_net(classes)
        autoattack_masks(net, *pictures(net, 3), eps=0.3, attacks=possible, batch_size=3)
        assert {n for a in seen for n in (a.fab.n_target_classes, a.apgd_targeted.n_target_classes)} == {min(9, classes - 1)}
    if len(possible) < 4:
        with pytest.raises(ValueError, match=f"of birds for .*got {classes}; attack with {', '.join(possible) or 'nothing'}"):
            attack_autoattack.check_attacks(STANDARD, classes, "birds")


# -- what is not finite -----------------------------------------------------------------------------------------------
def rooted(net, where=lambda x: torch.ones(len(x), dtype=torch.bool)):
    """`net` with the root of 0 in its logits for some images: finite, but its gradient is not."""
    return lambda x: net(x) + torch.where(where(x), 0.0, 1.0).mul(x.flatten(1).sum(1)).mul(1e-6).sqrt()[:, None]


@pytest.mark.parametrize("threat", THREATS)
def test_a_network_without_gradients_is_refused(threat, short):
    """Neither PGD nor a part of AutoAttack that uses gradients calls it robust, and the checks say why."""
    net = conv_net().requires_grad_(False)
    images, labels = pictures(net, 12)
    call, steps = dict(eps=0.1, threat=threat), dict(step_size=0.03, steps=4)
    for measured, options in ((pgd_mask, steps), (pgd_losses, steps),
                              *((autoattack_masks, dict(attacks=(name, "square"))) for name in ("apgd-ce", "apgd-t", "fab-t"))):
        with pytest.raises(Diverged, match="finite gradients with respect to the images.*root at 0"):
            measured(rooted(net), images, labels, **options, **call, batch_size=12)
    found = checks(rooted(net), images, labels, **steps, **call)
    assert not found["gradient_nonzero"] and not found["norm_kept"]


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-t", "fab-t"])
def test_single_images_without_a_gradient_are_broken(name, threat, caplog, short):
    """They are not counted as robust, and the others, which no perturbation of this size can break, are."""
    net = conv_net().requires_grad_(False)
    images, labels = pictures(net, 12)
    images[3:5] //= 8  # darker than the others: what the network tells them by
    labels = net(images / 255).argmax(1)
    forward = rooted(net, lambda x: x.flatten(1).mean(1) < 0.2)
    call = dict(eps=1e-5, threat=threat, batch_size=12)
    mask = (pgd_mask(forward, images, labels, step_size=1e-5, steps=4, **call) if name == "pgd"
            else autoattack_masks(forward, images, labels, attacks=(name,), **call)[name])
    assert mask.tolist() == [i not in (3, 4) for i in range(12)]
    assert "2 of 12 images count as broken" in caplog.text


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["pgd", *STANDARD])
def test_logits_that_fail_under_attack_are_broken(name, value, short):
    """Class 0, which argmax finds in a row of NaN, is no exception; one logit is enough."""
    net = conv_net().requires_grad_(False)
    images, _ = pictures(net, 8)
    labels = torch.zeros(8, dtype=torch.int64)
    first = F.one_hot(labels, 10).bool()[:1]

    def forward(x):
        far = torch.cdist(x.flatten(1), images.flatten(1) / 255, p=torch.inf).amin(1) > 1e-6
        return torch.where(far[:, None] & first, value, net(x) + 20 * first)

    call = dict(eps=0.001, batch_size=8)
    mask = (pgd_mask(forward, images, labels, step_size=0.001, steps=2, **call) if name == "pgd"
            else autoattack_masks(forward, images, labels, attacks=(name,), **call)[name])
    assert clean_mask(forward, images, labels, batch_size=8).all() and not mask.any()


def broken_networks():
    """Each with the one check that must see it."""
    net, flipped = conv_net().requires_grad_(False), linear_net().requires_grad_(False)
    return {
        "repeatable": lambda x: net(x) + 0.1 * torch.randn(len(x), 10),
        "eval_mode": lambda x: net(x) - net(x).mean(0), "logits": lambda x: net(x).softmax(1),
        "gradient_nonzero": lambda x: net(x.mul(255).round().div(255)),
        "stronger_not_weaker": lambda x: flipped(2 * x.detach() - x),  # x itself, whose gradient points the wrong way
        "large_eps_breaks": lambda x: net(0.5 + 0.002 * (x - 0.5))
    }


def test_sound_network_passes_all_checks():
    """Nothing is flagged for an ordinary network in eval mode, under either threat."""
    net = conv_net()
    images, labels = pictures(net, 64)
    for threat, eps in (("linf", 4 / 255), ("l2", 0.2)):
        result = checks(net, images, labels, eps=eps, step_size=eps / 4, steps=10, threat=threat)
        assert all(result.values()), result
    dark = pictures(net, 16, high=2)
    assert not checks(net, *dark, eps=0.1, step_size=0.1, steps=1)["inputs_in_range"]


@pytest.mark.parametrize("name", list(broken_networks()))
def test_broken_network_fails_its_check(name):
    """Each fault is seen by the check that is there for it."""
    forward = broken_networks()[name]
    images, _ = pictures(conv_net(), 64)
    labels = forward(images / 255).argmax(1)
    assert not checks(forward, images, labels, eps=8 / 255, step_size=2 / 255, steps=10)[name]


def dynamic(x):
    """Differentiates at test time."""
    with torch.enable_grad():
        x.detach().requires_grad_().sum().backward()


@pytest.mark.parametrize(("fault", "check"), [
    (lambda x, logits: logits + 0.1 * torch.randn(logits.shape), "repeatable"), (lambda x, logits: logits.softmax(1), "logits"),
    (lambda x, logits: (dynamic(x), logits)[1], "no_gradient_in_forward")])
def test_warnings_of_the_package_become_checks(fault, check, caplog):
    """A randomised network, one that returns probabilities and one that differentiates at test time are logged."""
    net = linear_net().requires_grad_(False)
    images, labels = pictures(net, 6)
    for forward in (lambda x: fault(x, net(x)), net):
        caplog.clear()
        autoattack_masks(forward, images, labels, eps=0.002, attacks=("apgd-ce",), batch_size=6)
        assert (f"not passed: {check}" in caplog.text) == ("not passed" in caplog.text) == (forward is not net)
