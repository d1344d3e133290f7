"""Votes of noisy copies: linear networks with known radii, independence of the way the work is cut, what is refused."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from twinslib.base.certified import certified_accuracy
from twinslib.base.errors import Diverged
from twinslib.base.sequential import certify_plan, exact_plan, sequential_plan
from twinslib.certify import smoothing
from twinslib.certify.smoothing import ESTIMATE, SELECT, collect_votes, noise_seed
from twinslib.nets.checkpoint import tensor_hash
from twinslib.nets.fold import FoldedCopy
from twinslib.nets.models import make_model
from twinslib.store import votes as store_votes
from twinslib.store.votes import ARRAYS, join_votes, load_votes

LOOKS = 6  # forward passes before the first draw: one image, and those that say what the network computes
INTEGERS = [name for name in ARRAYS if name != "seconds"]


def linear(weight, bias):
    """Two classes; class 1 where weight x + bias > 0."""
    net = nn.Linear(len(weight), 2)
    with torch.no_grad():
        net.weight.copy_(torch.stack([torch.zeros(len(weight)), torch.tensor(weight)]))
        net.bias.copy_(torch.tensor([0.0, bias]))
    return net.eval()


def at_margins(margins, weight=(1.0, -1.0, 0.5)):
    """(network, points in [0, 1], labels) whose signed distances from the decision plane are `margins`."""
    margins, w = torch.as_tensor(margins, dtype=torch.float32), torch.tensor(weight)
    x = 0.5 + margins[:, None] * w / w.norm()
    assert 0 <= x.min() and x.max() <= 1
    return linear(weight, -0.5 * sum(weight)), x, (margins > 0).long()


class Tiny(nn.Module):
    """A convolution, so that memory format and batches matter, in float64, so that rounding moves no vote."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(1)
    net, images = Tiny().double().eval(), torch.randint(0, 256, (9, 3, 5, 5), dtype=torch.uint8)
    with torch.no_grad():  # so that each class is answered somewhere
        net.head.bias -= net(images.double() / 255 + 0.5 * torch.randn(images.shape)).mean(0)
    return net, images, torch.arange(9) % 3


def tiny_votes(tiny, plan, rows=range(9), **rest):
    net, images, labels = tiny
    rows = torch.tensor(list(rows))
    return collect_votes(net, images[rows], plan, labels=labels[rows], indices=(rows + 100).tolist(), precision="float64", **rest)


PLANS = {
    "certify": certify_plan(sigma=0.5, n=300, n0=70, alpha=0.05),
    "sequential": sequential_plan(sigma=0.5, n=300, n0=70, alpha=0.05, radii=(0, 0.2)),
    "exact": exact_plan(sigma=0.5, n=300, n0=70, alpha=0.05, radii=(0, 0.2)),
    "sound": certify_plan(sigma=0.5, n=300, n0=70, alpha=0.05, sound=True),
}


def assert_equal(a, b, names=INTEGERS):
    for name in names:
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


@pytest.fixture(scope="module")
def undisturbed(tiny):
    votes = {name: tiny_votes(tiny, plan) for name, plan in PLANS.items()}
    assert len(set(votes["sequential"].draws)) > 1  # some stop early
    assert 0 < votes["certify"].history[:, -1].min() < 290  # and the votes differ
    return votes


@pytest.mark.parametrize("plan", PLANS)
def test_batches_change_nothing(tiny, undisturbed, plan):
    """Every integer is the same for any batch size, alone, in any company and at any place."""
    for batch_size in (1, 7, 64, 100, 1000):
        rows = range(9) if batch_size > 7 else range(2)
        votes = tiny_votes(tiny, PLANS[plan], rows, batch_size=batch_size)
        assert_equal(votes, undisturbed[plan].rows(np.array(rows)))
    for rows in ([4], [8, 2, 5]):
        assert_equal(tiny_votes(tiny, PLANS[plan], rows), undisturbed[plan].rows(np.array(rows)))
    there = collect_votes(tiny[0], tiny[1][4:5], PLANS[plan], indices=[100], precision="float64")
    assert not np.array_equal(there.votes[0], undisturbed[plan].votes[4])
    assert not np.array_equal(tiny_votes(tiny, PLANS[plan], [4], seed=1).votes[0], undisturbed[plan].votes[4])


@pytest.mark.parametrize("plan", PLANS)
def test_interruption_changes_nothing(tiny, undisturbed, plan, tmp_path, monkeypatch):
    """Stopped after each round, then killed in the middle of forward passes again and again: the same integers."""
    monkeypatch.setattr(smoothing, "ROUND", 1)
    file, rounds = tmp_path / "votes.npz", 0
    votes = tiny_votes(tiny, PLANS[plan], file=file, batch_size=64, stop=lambda: True)
    while not votes.finished.all():
        with pytest.raises(ValueError, match="unfinished; call collect_votes again"):
            votes.certified()
        votes, rounds = tiny_votes(tiny, PLANS[plan], file=file, batch_size=64, stop=lambda: True), rounds + 1
        assert rounds < 200
    assert rounds > 10
    assert_equal(votes, undisturbed[plan])

    net, killed, file = copy.deepcopy(tiny[0]), 0, tmp_path / "killed.npz"

    def die(*_):
        nonlocal passes
        passes -= 1
        if passes < 0:
            raise KeyboardInterrupt

    net.register_forward_pre_hook(die)
    while True:
        passes = 9
        try:
            votes = tiny_votes((net, *tiny[1:]), PLANS[plan], file=file, batch_size=64, save_every=0)
            break
        except KeyboardInterrupt:
            killed += 1
            assert killed < 200
    assert killed > 3
    assert_equal(votes, undisturbed[plan])


class SlowTiny(nn.Module):
    """A network whose copies take `cost` seconds each, on a clock that only it moves."""

    def __init__(self, net, cost, monkeypatch):
        super().__init__()
        self.net, self.cost, self.now, self.sizes = net, cost, 0.0, []
        for name in ("perf_counter", "monotonic"):
            monkeypatch.setattr(smoothing.time, name, lambda: self.now)

    def forward(self, x):
        self.now += self.cost * len(x)
        self.sizes.append(len(x))
        return self.net(x)


@pytest.mark.parametrize(("cost", "save_every", "most", "least_batch"), [
    (0.5, 60.0, 32.0, 64),  # 224 pixels on a CPU: a block takes half a minute, a batch of 256 two
    (0.5, 0.0, 32.0, 64),
    (0.015, 60.0, 5.0, 256),  # whole batches, as many as fit
    (1e-3, 60.0, 5.0, 256), (1e-3, 0.2, 0.2, 64),
])
def test_rounds_are_as_small_as_they_must_be(tiny, undisturbed, tmp_path, monkeypatch, cost, save_every, most, least_batch):
    """Between two questions to `stop`, and from one file to the next, pass no more seconds than asked for, down to one block."""
    net = SlowTiny(tiny[0], cost, monkeypatch).eval()
    asked, saved, save = [0.0], [0.0], store_votes.Votes.save
    monkeypatch.setattr(store_votes.Votes, "save", lambda votes, path: (saved.append(net.now), save(votes, path)))
    votes = tiny_votes((net, *tiny[1:]), PLANS["certify"], batch_size=256, file=tmp_path / "v.npz", save_every=save_every,
                       stop=lambda: bool(asked.append(net.now)))
    start = cost * sum(net.sizes[:LOOKS])
    assert_equal(votes, undisturbed["certify"])
    assert max(np.diff([start, *asked[1:]])) <= most + 1e-9 and max(np.diff([start, *saved[1:]])) <= save_every + most + 1e-9
    assert sorted(net.sizes[LOOKS:])[len(net.sizes) // 2] >= 0.5 * least_batch  # blocks that end at n0 or n are smaller
    if least_batch == 256:
        reference = SlowTiny(tiny[0], 0.0, monkeypatch).eval()
        tiny_votes((reference, *tiny[1:]), PLANS["certify"], batch_size=256)
        assert net.sizes == reference.sizes


def test_more_images_join_a_file(tiny, undisturbed, tmp_path):
    """Finished images are taken from the file without a draw, others are added, and none is lost."""
    file, calls, net = tmp_path / "votes.npz", [], copy.deepcopy(tiny[0])
    tiny_votes(tiny, PLANS["certify"], [1, 2], file=file)
    tiny_votes(tiny, PLANS["certify"], [0, 2, 7], file=file)
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    again = tiny_votes((net, *tiny[1:]), PLANS["certify"], [7, 1], file=file)
    assert len(calls) == LOOKS
    assert_equal(again, undisturbed["certify"].rows(np.array([7, 1])))
    assert sorted(load_votes(file).index) == [100, 101, 102, 107]


class Spy:
    """A callable that keeps the batches it sees; answers with the sign of the first number of each image."""

    def __init__(self):
        self.seen = []

    def __call__(self, x):
        self.seen.append(x.detach().clone())
        first = x.flatten(1)[:, :1]
        return torch.cat([torch.zeros_like(first), first - 0.5], 1)


def test_noise_is_normal_fresh_and_added_to_the_image():
    """What the network sees: the image plus sigma times independent standard normal numbers, none used twice."""
    spy, images = Spy(), torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    plan = certify_plan(sigma=0.5, n=1000, n0=200)
    votes = collect_votes(spy, images, plan, model_hash="spy")
    assert torch.equal(spy.seen[0], images[:1])
    x = torch.cat(spy.seen[LOOKS:])
    assert len(x) == 2 * 1200
    own = (x[:, None] - images).square().mean((2, 3, 4)).argmin(1)
    z = ((x - images[own]) / 0.5).flatten(1)
    assert own.bincount().tolist() == [1200, 1200] and len(torch.unique(z, dim=0)) == len(z)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    assert (z.T @ z / len(z) - torch.eye(48)).abs().max() < 4.5 / math.sqrt(len(z))  # pixels
    copies = z @ z.T / 48 - torch.diag(z.square().mean(1))  # any two copies, of one image or of two
    assert copies.abs().max() < 6.5 / math.sqrt(48) and abs(copies.mean()) < 0.002
    ones = [int((x[own == i].flatten(1)[:, 0] > 0.5).sum()) for i in (0, 1)]
    assert (votes.pilot + votes.votes)[:, 1].tolist() == ones
    assert votes.pilot.sum(1).tolist() == [200, 200] and votes.votes.sum(1).tolist() == votes.draws.tolist() == [1000, 1000]


def test_noise_depends_on_nothing_but_seed_index_and_draw():
    """Other pixels, sigma, n or plan: the same standard normal numbers, in the same order."""
    def normal(plan, images, **rest):
        spy = Spy()
        collect_votes(spy, images, plan, model_hash="spy", **{"batch_size": 8} | rest)
        return (torch.cat(spy.seen[LOOKS:]) - images[0]) / plan.sigma

    torch.manual_seed(3)
    z = normal(certify_plan(sigma=0.5, n=200, n0=100), torch.zeros(1, 3, 4, 4))
    torch.manual_seed(4)
    for other in (normal(certify_plan(sigma=1.0, n=200, n0=100), torch.rand(1, 3, 4, 4)),
                  normal(certify_plan(sigma=0.25, n=130, n0=100), torch.zeros(1, 3, 4, 4), batch_size=512)):
        torch.testing.assert_close(other, z[:len(other)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_seeds_of_an_image_never_meet(seed):
    """200,000 blocks of both streams differ in the low 32 bits, and so do all, the step being odd; others have others."""
    low = {noise_seed(seed, 17, stream, block) % 2 ** 32 for stream in (SELECT, ESTIMATE) for block in range(100_000)}
    assert len(low) == 200_000
    assert all((noise_seed(seed, i, ESTIMATE, 0) - noise_seed(seed, i, SELECT, 0)) % 2 for i in range(50))
    others = [noise_seed(s, i, ESTIMATE, 0) for s in range(20) for i in range(20)]
    assert len(set(others)) == 400 and 0 <= min(others) and max(others) < 2 ** 63


@pytest.mark.parametrize("method", ["certify", "sequential", "exact"])
def test_linear_network_is_not_certified_beyond_its_radius(method):
    """10,000 certifications of known truth at alpha .05: the share above it is no more, by the binomial test, nor none."""
    sigma, alpha = 0.5, 0.05
    margins = np.random.default_rng(0).uniform(-0.4, 0.4, 10_000)
    net, x, labels = at_margins(margins)
    make = {"certify": certify_plan, "sequential": sequential_plan, "exact": exact_plan}[method]
    looks = {} if method == "certify" else {"radii": (0, 0.3), "first": 64, "ratio": 1.3}
    plan = make(sigma=sigma, n=128 if method == "certify" else 192, n0=30, alpha=alpha, **looks)
    certified = collect_votes(net, x, plan, labels=labels, batch_size=4096).certified()
    answered = certified.prediction >= 0
    truth = np.where(certified.correct, np.abs(margins), -1.0)
    wrong = int((certified.radius[answered] > truth[answered]).sum())
    assert stats.binomtest(wrong, len(margins), alpha, "greater").pvalue > 1e-3
    assert wrong > 0.2 * alpha * len(margins) and answered.mean() > 0.5


def test_radius_approaches_the_truth():
    """A point .4 from the plane, sigma .25: radii grow with n up to .4, for any sigma that sees both sides."""
    net, x, _ = at_margins([0.4])
    sizes = (100, 1000, 10_000, 100_000)
    radii = [collect_votes(net, x, certify_plan(sigma=0.25, n=n), seed=2).certified().radius[0] for n in sizes]
    assert radii == sorted(radii) and radii[0] < 0.3 and 0.39 < radii[-1] < 0.4
    wide = collect_votes(net, x, certify_plan(sigma=0.5, n=20_000)).certified().radius[0]
    assert 0.38 < wide < 0.4


def test_sequential_votes_are_a_prefix():
    """At each look the votes are those of CERTIFY with that n and the same seed; draws end when radii are settled."""
    net, x, _ = at_margins([0.02, 0.1, 0.35, -0.3, 0.5])
    plan = sequential_plan(sigma=0.25, n=20_000, radii=(0, 0.25))
    votes = collect_votes(net, x, plan)
    for i, look in enumerate(plan.looks[:6]):
        fixed = collect_votes(net, x, certify_plan(sigma=0.25, n=look))
        seen = votes.history[:, i] >= 0
        assert seen.any() and np.array_equal(votes.history[seen, i], fixed.history[seen, 0])
        ends = votes.draws == look
        assert np.array_equal(votes.votes[ends], fixed.votes[ends])
    assert votes.finished.all() and votes.draws[0] > votes.draws[2] and votes.draws.max() < 20_000
    radius = votes.certified().radius
    assert ((radius > 0) & (radius <= [0.02, 0.1, 0.35, 0.3, 0.5])).all() and radius[[2, 3, 4]].min() >= 0.25


def test_another_alpha_needs_no_draws(undisturbed):
    """Radii at another alpha from the stored integers, by scipy; smaller alpha, smaller radii."""
    votes = undisturbed["certify"]
    for alpha in (0.2, 0.001):
        radius = votes.certified(alpha).radius
        k = votes.votes[np.arange(9), votes.pilot.argmax(1)]
        low = np.array([stats.binomtest(int(v), 300).proportion_ci(1 - 2 * alpha, "exact").low for v in k])
        assert radius == pytest.approx(np.where(low > 0.5, 0.5 * stats.norm.ppf(low), 0), abs=1e-8)
    sequential = undisturbed["sequential"]
    for v in (sequential, undisturbed["exact"]):
        assert (v.certified(0.001).radius <= v.certified().radius).all() and v.certified().radius.max() > 0
    shares, rows, looks = sequential.shares(), np.arange(9), np.array(sequential.plan.looks)
    assert shares.estimate == pytest.approx(sequential.votes[rows, sequential.chosen] / sequential.draws)
    assert shares.label == pytest.approx(sequential.votes[rows, rows % 3] / sequential.draws)
    assert (shares.low < shares.estimate).all() and (shares.low > 0).any()
    by_hand = [max(stats.binomtest(int(k), int(n)).proportion_ci(1 - 2 * a, "exact").low
                   for k, n, a in zip(row, looks, sequential.plan.alphas, strict=True) if k >= 0) for row in sequential.history]
    assert shares.low == pytest.approx(np.array(by_hand), abs=1e-8)


def test_stop_if_wrong_is_flagged_and_keeps_accuracy():
    """No draws where the pilot errs, the same certified accuracy, and the flag in the file."""
    net, x, labels = at_margins(np.tile([0.3, -0.3, 0.05], 10))
    labels[::6] = 1 - labels[::6]
    plan = sequential_plan(sigma=0.25, n=2000, radii=(0, 0.1), alpha=0.05)
    whole = collect_votes(net, x, plan, labels=labels)
    votes = collect_votes(net, x, dataclasses.replace(plan, stop_if_wrong=True), labels=labels)
    wrong = votes.chosen != labels.numpy()
    assert 5 <= wrong.sum() < 15 and (votes.draws[wrong] == 0).all() and votes.settings["stop_if_wrong"]
    assert_equal(votes.rows(~wrong), whole.rows(~wrong))
    right = [certified_accuracy(v.certified(), plan.radii) for v in (whole, votes)]
    assert right[0] == right[1] and 0 < right[0][1].accuracy < 1
    assert votes.certified().label_used and not whole.certified().label_used
    with pytest.raises(ValueError, match="labels with stop_if_wrong"):
        collect_votes(net, x, votes.plan)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_stored_certifications_do_not_depend_on_batches(precision, dtype, tmp_path):
    """As the store certifies: a folded copy in either precision, in other batches and interrupted."""
    g = torch.Generator().manual_seed(0)
    model, images = make_model("tiny_resnet", 3, norm="group", seed=0).eval(), torch.randint(
        0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=g)
    with torch.no_grad():  # so that each class is answered somewhere
        [*model.parameters()][-1].sub_(model(images / 255 + 0.5 * torch.randn(images.shape, generator=g)).mean(0))
    fast = FoldedCopy(model, dtype=dtype)
    plan, file = certify_plan(sigma=0.5, n=320, n0=64), tmp_path / "votes.npz"
    whole = collect_votes(fast, images, plan, precision=precision)
    if precision == "float32":  # a network with folded batch norms answers as the one that it copies, under another hash
        batch = make_model("tiny_resnet", 3, seed=0).eval()
        slow, folded = (collect_votes(network, images, plan) for network in (batch, FoldedCopy(batch)))
        assert np.abs(slow.votes - folded.votes).max() <= 1 and slow.model_hash != folded.model_hash
    while not collect_votes(fast, images, plan, precision=precision, batch_size=100, file=file, stop=lambda: True).finished.all():
        pass
    assert np.abs(whole.votes - load_votes(file).votes).sum() <= 0.01 * 2 * whole.draws.sum()
    assert whole.votes.max() < 320 and np.array_equal(whole.draws, load_votes(file).draws)


def test_bfloat16_is_said_and_stored():
    """The network then runs under autocast, and a network in bfloat16 is taken; not unless the caller says so."""
    net, x, _ = at_margins([0.1, 0.2])
    types = set()
    net.register_forward_hook(lambda module, inputs, out: types.add(out.dtype))
    plan = certify_plan(sigma=0.25, n=64, n0=16)
    assert collect_votes(net, x, plan, precision="bfloat16").settings["precision"] == "bfloat16" and types == {torch.bfloat16}
    types.clear()
    with torch.autocast("cpu", torch.bfloat16):
        collect_votes(net, x, plan)
    assert types == {torch.float32}
    with pytest.raises(ValueError, match="expected a network in float32, got weight in torch.bfloat16"):
        collect_votes(net.bfloat16(), x, plan)


@pytest.mark.parametrize("change", [
    {"votes": lambda v: v + 1}, {"draws": lambda v: v * 2, "votes": lambda v: v * 2}, {"label": lambda v: v + 3},
    {"votes": lambda v: v[:5]}, {"votes": lambda v: v + np.array([300, -300, 0], np.int32)}, {"chosen": lambda v: v + 3},
    {"pilot": lambda v: v + np.array([70, -70, 0], np.int32)}, {"history": lambda v: np.full_like(v, 300)},
    {"history": lambda v: np.full_like(v, -1)},
])
def test_contradicting_counts_are_refused(undisturbed, tmp_path, change):
    """Votes above n, below 0 or at a look above those drawn for the class, counts that do not add up, unknown classes."""
    votes = undisturbed["certify"]
    dataclasses.replace(votes, **{name: f(getattr(votes, name)) for name, f in change.items()}).save(tmp_path / "votes.npz")
    with pytest.raises(ValueError, match="add up to the draws|at most n|damaged"):
        load_votes(tmp_path / "votes.npz")


def test_files(undisturbed, tmp_path):
    """Loaded votes equal the saved ones, settings included."""
    file = tmp_path / "votes.npz"
    with pytest.raises(FileNotFoundError):
        load_votes(file)
    for votes in undisturbed.values():
        votes.save(file)
        loaded = load_votes(file)
        assert_equal(loaded, votes, ARRAYS)
        assert loaded.settings == votes.settings and loaded.plan == votes.plan
    for content in (b"", b"PK\x03\x04 not a zip"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or foreign"):
            load_votes(file)
    np.savez(file, a=np.ones(3))
    with pytest.raises(ValueError, match="expected a file of votes"):
        load_votes(file)


def test_nothing_is_mixed(tiny, tmp_path):
    """A file of another sigma, model, seed, plan, precision or image is refused, with what differs; nothing is overwritten."""
    file = tmp_path / "votes.npz"
    net, images, labels = tiny
    plan = certify_plan(sigma=0.5, n=64, n0=16)
    collect_votes(net, images, plan, labels=labels, precision="float64", file=file)
    before = file.read_bytes()
    other = copy.deepcopy(net)
    other.head.bias.data += 0.1
    for forward, arguments, message in [
        (net, {"plan": certify_plan(sigma=0.25, n=64, n0=16)}, "sigma: 0.25 here, 0.5 there"),
        (net, {"plan": certify_plan(sigma=0.5, n=128, n0=16)}, "looks: .128. here"),
        (other, {}, "differs in model_hash"),
        (net, {"seed": 3}, "seed: 3 here, 0 there"),
        (copy.deepcopy(net).float(), {"precision": "float32", "model_hash": tensor_hash(net.state_dict())[:16]},
         "differs in precision: float32 here"),
        (net, {"images": images.flip(0)}, "image 0 to have the same pixels"),
        (net, {"labels": labels.flip(0)}, "image 0 to have the same label"),
    ]:
        arguments = {"images": images, "plan": plan, "labels": labels, "precision": "float64", "file": file} | arguments
        with pytest.raises(ValueError, match=message):
            collect_votes(forward, **arguments)
    assert file.read_bytes() == before


def test_parts_are_joined(tiny, undisturbed):
    """Disjoint parts make the whole; another model or an image twice is refused."""
    parts = [tiny_votes(tiny, PLANS["certify"], rows) for rows in (range(4), range(4, 9))]
    assert_equal(join_votes(parts), undisturbed["certify"])
    with pytest.raises(ValueError, match="image 100 twice"):
        join_votes([parts[0], parts[0]])
    with pytest.raises(ValueError, match="model_hash: b here"):
        join_votes([parts[0], dataclasses.replace(parts[1], model_hash="b")])


class Outputs(nn.Module):
    """A network that gives more than its logits."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x.flatten(1)[:, :2])


def batch_statistics(net):
    net[1] = nn.BatchNorm1d(2, track_running_stats=False).eval()


def infinite(net):
    nn.init.constant_(net[0].bias, float("nan"))


@pytest.mark.parametrize(("change", "message"), [
    ({"seed": 1.5}, "seed to be an integer, got 1.5"), ({"batch_size": 0}, "batch_size .* of at least 1"),
    ({"save_every": "60"}, "save_every to be a number, got '60'"),
    ({"model_hash": 7}, "model_hash to be text, got 7"), ({"precision": "half"}, "precision to be one of float32"),
    ({"plan": {"sigma": 0.25}}, "a network and a plan, got Sequential and dict"),
    ({"forward": 3}, "a network and a plan, got int and Plan"), ({"file": "/dev/null/votes.npz"}, "a file that can be written"),
    ({"images": [torch.rand(3)] * 2}, "one tensor or array, got list; use torch.stack"),
    ({"images": torch.rand(0, 3)}, "at least one image"), ({"images": torch.rand(2, 3) - 0.5}, "images in"),
    ({"images": torch.rand(2, 3) * 255}, r"images in \[0, 1\].*divide by 255"),
    ({"images": torch.ones(2, 3, dtype=torch.int64)}, "uint8 of shape"),
    *(({"labels": labels}, r"int64 labels of shape \(2,\)") for labels in ([0.0, 1.0], ["cat", "dog"], [True, False], 1)),
    ({"labels": torch.tensor([0, 2])}, r"labels in 0..1, the classes of the network, got 0..2"),
    ({"indices": [3, 3]}, "different indices"), ({"indices": [3]}, "2 different indices"),
    ({"forward": Outputs(lambda z: (z, z)).eval()}, "logits as one tensor, got tuple; wrap the network"),
    ({"forward": Outputs(nn.Linear(3, 2)).eval()}, r"answers a single image, shape \(1, 3\) .* RuntimeError"),
    ({"forward": nn.Conv2d(3, 2, 3).eval(), "images": torch.rand(2, 4, 4, 3)}, "the order of their axes"),
    (lambda net: net.train(), "the network in training mode"), (lambda net: net[2].train(), "got 2 in training mode"),
    (batch_statistics, "running statistics, got none in 1"),
    (infinite, "finite logits on a clean image"),
])
def test_refused(change, message, tmp_path):
    """What is expected, what came and what to do, before any draw."""
    net, seen = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).eval(), []
    if callable(change):
        change(net)
    net.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    arguments = {"forward": net, "images": torch.rand(2, 3), "plan": certify_plan(sigma=0.25), "file": tmp_path / "votes.npz"}
    with pytest.raises(Diverged if change is infinite else (ValueError, TypeError), match=message):
        collect_votes(**arguments | (change if isinstance(change, dict) else {}))
    assert sum(seen) <= 1 and not (tmp_path / "votes.npz").exists()


def test_callables_and_their_answers_are_checked():
    """A callable needs a name; its answer must be logits; NaN under noise ends the run and names the image."""
    x, plan = torch.full((3, 2), 0.5), certify_plan(sigma=0.25, n=64)
    with pytest.raises(ValueError, match="model_hash for a callable"):
        collect_votes(lambda x: x, x, plan)
    with pytest.raises(ValueError, match=r"logits of shape \(1, classes\)"):
        collect_votes(lambda x: x.argmax(1), x, plan, model_hash="f")
    with pytest.raises(Diverged, match="NaN for noisy copies of image 7"):
        collect_votes(lambda x: x.sqrt(), x, plan, model_hash="f", indices=[7, 8, 9])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_votes_do_not_depend_on_batches(tiny, tmp_path):
    """On a GPU as well: any batch size, subset and interruption, and no wait between batches."""
    net, images, labels = copy.deepcopy(tiny[0]).cuda(), tiny[1].cuda(), tiny[2].cuda()
    plan, rest = PLANS["sequential"], {"labels": labels, "precision": "float64"}
    votes = collect_votes(net, images, plan, **rest)
    for batch_size in (7, 64):
        assert_equal(collect_votes(net, images, plan, batch_size=batch_size, **rest), votes)
    part = {"labels": labels[3:6], "precision": "float64", "indices": [3, 4, 5]}
    assert_equal(collect_votes(net, images[3:6], plan, **part), votes.rows(np.arange(3, 6)))
    while not collect_votes(net, images, plan, file=tmp_path / "v.npz", stop=lambda: True, **rest).finished.all():
        pass
    assert_equal(load_votes(tmp_path / "v.npz"), votes)
