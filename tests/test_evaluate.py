"""Masks per test image: AutoAttack against closed forms and the package itself, blocks, global state, checks."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from twinslib import evaluate
from twinslib.attacks import eval_mode, pgd
from twinslib.evaluate import autoattack, autoattack_masks, block_seed, checks, clean_mask, pgd_losses, pgd_mask

DEVICES = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")])]
FAST = ("apgd-ce", "apgd-t")
STANDARD = evaluate.STANDARD


def linear_net(classes=10, side=6, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes))
        nn.init.normal_(net[1].weight)
        net[1].bias.data = -0.5 * net[1].weight.data.sum(1)
    return net.eval()


def conv_net(classes=10, seed=0):
    """A small network with batch norm; centred, so that random images spread over the classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16),
                            nn.ReLU(), nn.Flatten(), nn.Linear(64, classes))
        with torch.no_grad():
            for _ in range(30):
                logits = net(torch.rand(64, 3, 6, 6))
        net[-1].bias.data -= logits.mean(0)
    return net.eval()


def pictures(net, n, side=6, low=0, high=256, device="cpu"):
    """Random uint8 images, labelled as the network sees them."""
    images = torch.randint(low, high, (n, 3, side, side), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(1))
    labels = net(images / 255).argmax(1)
    return images.to(device), labels.to(device)


def distances(net, images, threat):
    """Distance of each image from the nearest decision boundary of a linear network, pixel bounds left aside."""
    weight, logits = net[1].weight.detach().double(), net.double()(images.double() / 255).detach()
    net.float()
    top = logits.argmax(1)
    gaps = weight[top][:, None] - weight[None]
    dual = gaps.abs().sum(2) if threat == "linf" else gaps.norm(dim=2)
    return ((logits.gather(1, top[:, None]) - logits) / dual).masked_fill(F.one_hot(top, 10).bool(), torch.inf).amin(1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("threat", "attacks"), [("linf", STANDARD), ("l2", FAST)])
def test_autoattack_equals_the_closed_form(threat, attacks, device):
    """Linear network, images away from the pixel bounds: robust exactly where the boundary is farther than eps."""
    net = linear_net()
    images, labels = pictures(net, 20, low=77, high=179, device=device)
    distance = distances(net, images.cpu(), threat)
    eps = float(distance.median()) * 1.02
    decided = (distance / eps - 1).abs() > 0.01
    masks = autoattack_masks(net.to(device), images, labels, eps=eps, threat=threat, attacks=attacks, batch_size=20)
    final = masks["+".join(attacks)]
    assert decided.sum() >= 18 and 5 < int(final.sum()) < 15
    assert torch.equal(final[decided], (distance > eps)[decided])
    pgd = pgd_mask(net, images, labels, eps=eps, step_size=eps / 4, steps=40, threat=threat, batch_size=20)
    assert not (final & ~pgd)[decided].any()


def test_stages_equal_one_call_of_the_package():
    """Attacks run one by one on what is left give the mask of one call of the package with both, image by image."""
    import pyautoattack

    net = conv_net().requires_grad_(False)
    images, labels = pictures(net, 12)
    labels[0] = (labels[0] + 1) % 10
    masks = autoattack_masks(net, images, labels, eps=4 / 255, attacks=FAST, batch_size=12, seed=5, block=3)
    with torch.random.fork_rng(devices=[]):
        adversary = pyautoattack.AutoAttack(net, eps=4 / 255, seed=block_seed(5, "autoattack", 3), version="standard")
        adversary.attacks_to_run = list(FAST)
        _, predicted = adversary.run_standard_evaluation(images / 255, labels, batch_size=12)
    counts = [int(mask.sum()) for mask in masks.values()]
    assert list(masks) == ["apgd-ce", "apgd-ce+apgd-t"]
    assert torch.equal(masks["apgd-ce+apgd-t"], predicted == labels)
    assert counts == sorted(counts, reverse=True) and 0 < counts[-1] < 11


@pytest.mark.parametrize("threat", ["linf", "l2"])
def test_settings_are_those_of_the_standard_version(threat):
    """Every number of the four attacks equals the package's own standard set-up (a custom list starts from others)."""
    import pyautoattack

    net = linear_net()
    norm = {"linf": "Linf", "l2": "L2"}[threat]
    standard = pyautoattack.AutoAttack(net, eps=0.1, norm=norm, seed=1, version="standard")
    assert tuple(standard.attacks_to_run) == STANDARD
    for name in STANDARD:
        ours = evaluate._adversary(net, name, 0.1, threat, "cpu", 1)
        part = {"apgd-ce": "apgd", "apgd-t": "apgd_targeted", "fab-t": "fab", "square": "square"}[name]
        expected, got = vars(getattr(standard, part)), vars(getattr(ours, part))
        assert {k: v for k, v in got.items() if k != "logger"} == {k: v for k, v in expected.items() if k != "logger"}
        assert ours.attacks_to_run == [name]


def test_pgd_never_beats_autoattack():
    """Convolutional network: AutoAttack leaves at most as many images as PGD, PGD at most the clean ones."""
    net = conv_net()
    images, labels = pictures(net, 24)
    eps = 4 / 255
    pgd = pgd_mask(net, images, labels, eps=eps, step_size=1 / 255, steps=20, restarts=2, batch_size=40)
    best = autoattack_masks(net, images, labels, eps=eps, attacks=FAST, batch_size=40)["apgd-ce+apgd-t"]
    assert 0 < best.sum() <= pgd.sum() < 24


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("measure", ["clean", "pgd", "autoattack"])
def test_blocks_equal_the_whole_run(measure, device):
    """Blocks computed one at a time, last first, give the masks of one call; another seed gives other starts."""
    net = conv_net()
    images, labels = pictures(net, 22, device=device)
    labels[1] = (labels[1] + 1) % 10
    net.to(device)

    def masks(a, b, block, seed=0):
        x, y = images[a:b], labels[a:b]
        if measure == "clean":
            return clean_mask(net, x, y, batch_size=8)
        call = dict(eps=3 / 255, batch_size=8, seed=seed, block=block)
        if measure == "pgd":
            return pgd_mask(net, x, y, step_size=1 / 255, steps=3, restarts=2, **call)
        return autoattack_masks(net, x, y, attacks=("apgd-ce",), **call)["apgd-ce"]

    whole = masks(0, 22, 0)
    parts = {k: masks(8 * k, 8 * k + 8, k) for k in (2, 0, 1)}
    assert torch.equal(torch.cat([parts[k] for k in range(3)]), whole)
    assert whole.dtype == torch.bool and whole.device.type == "cpu" and whole.shape == (22,)
    assert not whole[1] and 0 < whole.sum() < 22


@pytest.mark.parametrize(("threat", "eps"), [("linf", 4 / 255), ("l2", 0.3)])
def test_losses_after_pgd_by_hand(threat, eps):
    """Every image, also one that is wrong at once, is attacked to the end from the start of its block, and loss and prediction
    are those of the last iterate."""
    net = conv_net()
    images, labels = pictures(net, 20)
    labels[:3] = (labels[:3] + 1) % 10
    attack = dict(eps=eps, step_size=eps / 3, steps=4, threat=threat)
    mask, losses = pgd_losses(net, images, labels, **attack, seed=5, batch_size=8)
    assert mask.shape == losses.shape == (20,) and (mask.dtype, losses.dtype) == (torch.bool, torch.float32)
    assert mask.device.type == losses.device.type == "cpu" and not losses.requires_grad
    for number, start in enumerate((0, 8, 16)):
        part = slice(start, start + 8)
        generator = torch.Generator().manual_seed(block_seed(5, "pgd", number))
        x_adv = pgd(net, images[part] / 255, labels[part], **attack, generator=generator)
        probabilities = net(x_adv).double().softmax(1)
        assert torch.equal(mask[part], probabilities.argmax(1) == labels[part])
        own = probabilities[torch.arange(len(x_adv)), labels[part]]
        torch.testing.assert_close(losses[part].double(), -own.log(), rtol=1e-4, atol=1e-5)
    clean = F.cross_entropy(net(images / 255), labels, reduction="none")
    assert (losses > clean).sum() >= 18 and losses[:3].min() > clean[:3].min() and 0 < mask.sum() < 17
    other = pgd_losses(net, images, labels, **attack, seed=6, batch_size=8)[1]
    assert not torch.equal(other, losses)


def test_losses_without_an_attack():
    """With eps 0 they are the losses of the clean images, and the mask is the clean one."""
    net = conv_net()
    images, labels = pictures(net, 10)
    labels[::3] = (labels[::3] + 1) % 10
    mask, losses = pgd_losses(net, images, labels, eps=0, step_size=0.1, steps=3, batch_size=4)
    assert torch.equal(mask, clean_mask(net, images, labels, batch_size=4)) and mask.sum() == 6
    torch.testing.assert_close(losses, F.cross_entropy(net(images / 255), labels, reduction="none"))


def test_starts_depend_on_seed_and_block():
    """The start is drawn from (seed, block) and does not depend on the network or on earlier blocks."""
    net = conv_net()
    images, labels = pictures(net, 4)

    def start(seed, block, spoil=0.0):
        seen = []

        def forward(x):
            seen.append(x.detach().clone())
            return net(x) + spoil

        pgd_mask(forward, images, labels, eps=0.1, step_size=0.1, steps=1, batch_size=4, seed=seed, block=block)
        return next(x for x in seen if len(x) == 4 and not torch.equal(x, images / 255))

    assert torch.equal(start(0, 0), start(0, 0, spoil=1.0))
    assert not torch.equal(start(0, 0), start(1, 0)) and not torch.equal(start(0, 0), start(0, 1))
    seeds = {block_seed(s, p, b) for s in range(20) for p in ("pgd", "autoattack") for b in range(20)}
    assert len(seeds) == 800 and all(0 <= s < 2 ** 63 for s in seeds)


def test_global_state_is_given_back():
    """Global random state, trace function, gradient flags and parameter gradients are as before, statistics too."""
    net = conv_net()
    images, labels = pictures(net, 6)
    statistics = {k: v.clone() for k, v in net.state_dict().items()}

    def trace(frame, event, argument):
        return None

    before, trace_before = torch.get_rng_state(), sys.gettrace()
    cuda_before = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    sys.settrace(trace)
    try:
        autoattack_masks(net, images, labels, eps=0.5, attacks=("fab-t",), batch_size=6)
        after = sys.gettrace()
    finally:
        sys.settrace(trace_before)
    assert after is trace
    assert torch.equal(before, torch.get_rng_state())
    assert all(map(torch.equal, cuda_before, torch.cuda.get_rng_state_all() if cuda_before else []))
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(v, statistics[k]) for k, v in net.state_dict().items())


def test_global_state_is_given_back_after_an_error():
    """A network that fails half-way leaves random state and gradient flags as they were."""
    net = linear_net()
    images, labels = pictures(net, 4)
    calls = []

    class Failing(nn.Sequential):
        def forward(self, x):
            calls.append(1)
            if len(calls) > 20:
                raise ArithmeticError
            return super().forward(x)

    failing, before = Failing(*net).eval(), torch.get_rng_state()
    with pytest.raises(ArithmeticError):
        autoattack_masks(failing, images, labels, eps=0.02, attacks=FAST, batch_size=4)
    assert torch.equal(before, torch.get_rng_state()) and all(p.requires_grad for p in failing.parameters())


@pytest.mark.parametrize("kind", ["clean", "pgd", "losses", "autoattack"])
def test_float32_inside_autocast(kind):
    """An autocast around the evaluation changes nothing, and the TF32 switches come out as they went in."""
    net = conv_net()
    images, labels = pictures(net, 10)
    seen = set()

    def forward(x):
        logits = net(x)
        seen.add((logits.dtype, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return logits

    switches = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        if kind == "clean":
            clean_mask(forward, images, labels, batch_size=5)
        elif kind == "pgd":
            pgd_mask(forward, images, labels, eps=0.01, step_size=0.01, steps=2, batch_size=5)
        elif kind == "losses":
            pgd_losses(forward, images, labels, eps=0.01, step_size=0.01, steps=2, batch_size=5)
        else:
            autoattack_masks(forward, images, labels, eps=0.01, attacks=("apgd-ce",), batch_size=5)
    assert seen == {(torch.float32, False, False)}
    assert switches == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_eps_zero_is_clean_accuracy():
    """With eps 0 every measure is the clean mask."""
    net = conv_net()
    images, labels = pictures(net, 10)
    labels[::3] = (labels[::3] + 1) % 10
    clean = clean_mask(net, images, labels, batch_size=4)
    assert clean.sum() == 6
    assert torch.equal(clean, pgd_mask(net, images, labels, eps=0, step_size=0.1, steps=3, batch_size=4))
    assert torch.equal(clean, autoattack_masks(net, images, labels, eps=0, attacks=FAST, batch_size=4)["apgd-ce"])


def test_no_image_left_ends_well():
    """Where the first attack breaks everything, the later stages are all False and nothing fails."""
    net = linear_net()
    images, labels = pictures(net, 5)
    masks = autoattack_masks(net, images, labels, eps=0.5, batch_size=3)
    assert [int(m.sum()) for m in masks.values()] == [0, 0, 0, 0]


def with_(**changes):
    return changes


BAD = [
    (with_(net=linear_net(9)), ValueError, "at least 10 classes", "autoattack"),
    (with_(attacks=("apgd-tt",)), ValueError, "did you mean 'apgd-t'", "autoattack"),
    (with_(attacks=()), ValueError, "at least one attack", "autoattack"),
    (with_(attacks=("square", "square")), ValueError, "none twice", "autoattack"),
    (with_(eps=8), ValueError, "write 8/255", "pgd losses autoattack"),
    (with_(threat="l1"), ValueError, "threat", "pgd losses autoattack"),
    (with_(net=linear_net().train()), ValueError, "in training mode; use eval_mode", "clean pgd losses autoattack"),
    (with_(net=linear_net().double()), ValueError, "float32 network, got 1.weight", "clean pgd losses autoattack"),
    (with_(net=lambda x: linear_net()(x).double()), ValueError, "float32 logits", "clean pgd losses autoattack"),
    (with_(net=lambda x: linear_net()(x) * torch.nan), ValueError, "finite logits", "clean pgd losses autoattack"),
    (with_(labels=torch.full((4,), 10)), ValueError, r"labels in 0\.\.9", "clean pgd losses autoattack"),
    (with_(labels=torch.full((4,), -1)), ValueError, r"labels in 0\.\.9", "clean pgd losses autoattack"),
    (with_(labels=torch.zeros(3, dtype=torch.int64)), TypeError, "int64 labels of shape", "clean pgd losses autoattack"),
    (with_(labels=torch.zeros(4)), TypeError, "int64", "clean pgd losses autoattack"),
    (with_(images=torch.rand(4, 3, 6, 6)), TypeError, "uint8 images", "clean pgd losses autoattack"),
    (with_(images=torch.zeros(4, 6, 6, 3, dtype=torch.uint8)), TypeError, "uint8 images", "clean pgd losses autoattack"),
    (with_(batch_size=0), ValueError, "batch_size", "clean pgd losses autoattack"),
]


@pytest.mark.parametrize(("change", "error", "message", "kind"), [
    (change, error, message, kind) for change, error, message, kinds in BAD for kind in kinds.split()])
def test_bad_arguments(change, error, message, kind):
    """Each wrong argument gives one clear message."""
    images, labels = pictures(linear_net(), 4)
    call = dict(net=linear_net(), images=images, labels=labels, batch_size=4) | change
    positional = [call.pop(name) for name in ("net", "images", "labels")]
    with pytest.raises(error, match=message):
        if kind == "clean":
            clean_mask(*positional, **call)
        elif kind == "pgd":
            pgd_mask(*positional, **(dict(eps=0.1, step_size=0.1, steps=1) | call))
        elif kind == "losses":
            pgd_losses(*positional, **(dict(eps=0.1, step_size=0.1, steps=1) | call))
        else:
            autoattack_masks(*positional, **(dict(eps=0.1, attacks=FAST) | call))


def test_a_frozen_norm_does_not_make_training_mode():
    """A network put into eval mode for the call is accepted and comes back with its own modes."""
    net = conv_net().train()
    net[1].eval()
    images, labels = pictures(conv_net(), 4)
    with eval_mode(net):
        assert clean_mask(net, images, labels, batch_size=4).all()
    assert net[4].training and not net[1].training


class Flipped(torch.autograd.Function):
    """Identity whose gradient points the wrong way."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def broken_networks():
    """Each with the one check that must see it."""
    net, flipped = conv_net().requires_grad_(False), linear_net().requires_grad_(False)
    noise = torch.Generator().manual_seed(0)
    return {
        "repeatable": lambda x: net(x) + 0.1 * torch.randn(len(x), 10, generator=noise),
        "eval_mode": lambda x: net(x) - net(x).mean(0),
        "logits": lambda x: net(x).softmax(1),
        "gradient_nonzero": lambda x: net(x.mul(255).round().div(255)),
        "stronger_not_weaker": lambda x: flipped(Flipped.apply(x)),
        "large_eps_breaks": lambda x: net(0.5 + 0.002 * (x - 0.5)),
    }


def test_sound_network_passes_all_checks():
    """Nothing is flagged for an ordinary network in eval mode, under either threat."""
    net = conv_net()
    images, labels = pictures(net, 64)
    for threat, eps in (("linf", 4 / 255), ("l2", 0.2)):
        result = checks(net, images, labels, eps=eps, step_size=eps / 4, steps=10, threat=threat)
        assert all(result.values()), result


@pytest.mark.parametrize("name", list(broken_networks()))
def test_broken_network_fails_its_check(name):
    """Each fault is seen by the check that is there for it."""
    forward = broken_networks()[name]
    images, _ = pictures(conv_net(), 64)
    labels = forward(images / 255).argmax(1)
    assert not checks(forward, images, labels, eps=8 / 255, step_size=2 / 255, steps=10)[name]


def test_images_scaled_twice_are_seen():
    """Pixels of 0 and 1 in a uint8 array, as rounding a float image gives, fail the range check."""
    net = conv_net()
    images, labels = pictures(net, 16, high=2)
    assert not checks(net, images, labels, eps=0.1, step_size=0.1, steps=1)["inputs_in_range"]


@pytest.mark.parametrize(("fault", "check"), [
    (lambda logits: logits + 0.1 * torch.randn(logits.shape), "repeatable"),
    (lambda logits: logits.softmax(1), "logits"),
])
def test_warnings_of_the_package_become_checks(fault, check, caplog):
    """A randomised network and one that returns probabilities are recorded and logged; a later sound one is not."""
    net = linear_net().requires_grad_(False)
    images, labels = pictures(net, 6)
    call = dict(eps=0.002, attacks=("apgd-ce",), batch_size=6)
    result = autoattack(lambda x: fault(net(x)), images, labels, **call)
    assert not result.checks[check]
    autoattack_masks(lambda x: fault(net(x)), images, labels, **call)
    assert check in caplog.text
    assert all(autoattack(net, images, labels, **call).checks.values())


def test_a_gradient_inside_the_network_is_recorded():
    """A defence that differentiates at test time is flagged, and does not mark the next network."""
    net = linear_net().requires_grad_(False)
    images, labels = pictures(net, 4)

    def dynamic(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            leaf.sum().backward()
        return net(x)

    call = dict(eps=0.002, attacks=("apgd-ce",), batch_size=4)
    assert not autoattack(dynamic, images, labels, **call).checks["no_gradient_in_forward"]
    assert autoattack(net, images, labels, **call).checks["no_gradient_in_forward"]
