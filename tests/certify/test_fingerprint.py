"""Votes belong to what a network computes, and each answer to its image alone."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from twinslib.base.errors import Diverged
from twinslib.base.logits import IMAGES, TOLERANCE, distance
from twinslib.base.sequential import certify_plan
from twinslib.certify.fingerprint import fixed_images
from twinslib.certify.smoothing import collect_votes
from twinslib.nets.fold import FoldedCopy
from twinslib.nets.models import make_model
from twinslib.nets.norms import twinsify, wings
from twinslib.store.votes import join_votes, load_votes

PLAN, X = certify_plan(sigma=0.25, n=64, n0=8, alpha=0.1), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def network(norm="group"):
    model = make_model("tiny_resnet", 4, norm=norm, seed=0).eval()
    with torch.no_grad():
        [*model.parameters()][-1].uniform_(-1, 1)
    return model


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 4)).eval()


class Then(nn.Module):
    """f of the logits of a network; the weights, their names and their hash are those of any other f."""

    def __init__(self, net, f=lambda z: z, before=lambda x: x):
        super().__init__()
        self.net, self.f, self.before = net, f, before
        self.eval()

    def forward(self, x):
        return self.f(self.net(self.before(x)))


OTHERS = {"sign": {"f": lambda z: -z}, "order of classes": {"f": lambda z: z.flip(1)},
          "normalisation": {"before": lambda x: (x - 0.05) / 0.9}, "upsampling": {"before": lambda x: F.interpolate(x, size=16)}}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OTHERS)
def test_votes_of_two_functions_are_not_mixed(name, precision, tmp_path):
    """The same weights under the same hash, another function: refused before a draw, whether finished, stopped or joined."""
    one, other = Then(network()), Then(network(), **OTHERS[name])
    file, rest = tmp_path / "votes.npz", {"precision": precision, "model_hash": "m"}
    votes = collect_votes(one, X, PLAN, file=file, **rest)
    before = file.read_bytes()
    for images, indices in ((X, [0, 1]), (X[:1], [5])):
        with pytest.raises(ValueError, match="votes.npz, got one of the same model_hash that computes something else"):
            collect_votes(other, images, PLAN, file=file, indices=indices, **rest)
    assert file.read_bytes() == before
    with pytest.raises(ValueError, match="computes something else"):
        join_votes([votes.rows(np.array([0])), collect_votes(other, X[1:], PLAN, indices=[1], **rest)])


def twin():
    """Two branches that differ."""
    model = twinsify(network("batch")).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "frozen" in name and buffer.is_floating_point():
                buffer.add_(0.5)
    return model


def test_another_branch_is_another_function(tmp_path):
    """Twin norms answer by their branch; votes of the adaptive one are not continued by the frozen one."""
    model, file = twin(), tmp_path / "votes.npz"
    for _ in range(2):
        collect_votes(FoldedCopy(model, wing="adaptive"), X, PLAN, file=file, model_hash="m")
    with pytest.raises(ValueError, match="computes something else"):
        collect_votes(FoldedCopy(model, wing="frozen"), X, PLAN, file=file, model_hash="m")
    with wings(model, 1), pytest.raises(ValueError, match="on its own"):
        collect_votes(model, X, PLAN)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_rounding_is_the_same_function(precision, dtype, norm, tmp_path):
    """Another memory format, batch size or order of sums goes on with the same file, in either precision."""
    model, file = network(norm), tmp_path / "votes.npz"
    for number, (channels_last, batch_size) in enumerate(((True, 512), (False, 3), (True, 1))):
        copy = FoldedCopy(model, dtype=dtype, channels_last=channels_last)
        collect_votes(copy, X[:1], PLAN, indices=[number], precision=precision, batch_size=batch_size, file=file, model_hash="m")
    assert len(load_votes(file).index) == 3
    if precision == "float32":  # as another processor would compute it
        exact = collect_votes(Then(model.double()), X, PLAN, precision="float64", model_hash="m")
        assert distance(exact.fingerprint, load_votes(file).fingerprint) < 1e-5 < TOLERANCE["bfloat16"]


def test_fingerprint_is_kept_with_the_votes(tmp_path):
    """Float32 logits on images that are the same everywhere; a damaged one is refused, one of earlier versions is missing."""
    file = tmp_path / "votes.npz"
    net = convolutions()
    votes = collect_votes(net, X, PLAN, file=file)
    kept = load_votes(file)
    with torch.no_grad():
        logits = net(fixed_images((3, 8, 8))[:IMAGES])
    assert kept.fingerprint.dtype == np.float32 and kept.fingerprint == pytest.approx(logits.numpy(), abs=1e-5)
    x = fixed_images((3, 8, 8))
    assert x.min() >= 0 and x.max() <= 1 and len(torch.unique(x.flatten(1), dim=0)) == 2 * IMAGES and x[0].std((1, 2)).max() < 0.1
    assert x[0, 0, 0, 0].item() == pytest.approx(0.46901, abs=1e-4)
    for wrong in (votes.fingerprint[:3], votes.fingerprint * np.nan):
        dataclasses.replace(votes, fingerprint=wrong).save(file)
        with pytest.raises(ValueError, match="counts that do not"):
            load_votes(file)
    old = dataclasses.replace(votes, fingerprint=None)
    old.save(file)
    assert load_votes(file).fingerprint is None and np.array_equal(load_votes(file).certified().radius, votes.certified().radius)
    for call in (lambda: collect_votes(net, X, PLAN, file=file), lambda: join_votes([old.rows(np.array([0])), votes])):
        with pytest.raises(ValueError, match="an earlier version can be read, not continued or joined"):
            call()


class Attention(nn.Module):
    """Every image looks at every other of its batch."""

    def forward(self, z):
        return z + torch.softmax(z @ z.T, 1) @ z


def noisy(own=None):
    return lambda x: x + 0.1 * torch.randn(x.shape, generator=own)


MIXERS = {
    "batch statistics": lambda: lambda z: F.batch_norm(torch.stack([z, z / 2], 2), None, None, training=True).mean(2),
    "attention over the batch": Attention,
    "mean of the batch": lambda: lambda z: z - 0.05 * z.mean(0),
    "moved by two": lambda: lambda z: z.roll(2, 0),
    "size of the batch": lambda: lambda z: z * torch.tensor([1.0, 1, 1, len(z)]),
    "first images otherwise": lambda: lambda z: torch.cat([-z[:3], z[3:]]),
}
RANDOM = {
    "dropout": lambda: lambda z: F.dropout(z, 0.5, training=True),
    "rare dropout": lambda: lambda z: F.dropout(z, 1e-6, training=True),
    "order of the batch": lambda: lambda z: z[torch.randperm(len(z))],
    "NumPy": lambda: lambda z: z + float(np.random.normal() > 9),  # noqa: NPY002
    "own generator": lambda: noisy(torch.Generator()),
    "counts its calls": lambda: lambda z, seen=[]: seen.append(1) or z + torch.tensor([1.0, 0, 0, 0]) * len(seen),  # noqa: B006
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*MIXERS, *RANDOM])
def test_answers_that_depend_on_more_than_the_image_are_refused(name, precision, tmp_path):
    """In eval mode, by what they compute: other images, their number, chance or earlier calls; nothing is drawn or written."""
    calls = []
    net = Then(convolutions(), (MIXERS | RANDOM)[name]())
    net.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    message = "answers each image on its own" if name in MIXERS else "answers an image twice with the same logits"
    with pytest.raises(ValueError, match=message):
        collect_votes(net, X, PLAN, precision=precision, file=tmp_path / "votes.npz")
    assert len(calls) <= 6 and not (tmp_path / "votes.npz").exists()


def test_callables_are_checked_too():
    """Noise or crops inside the network, in a callable that is no module; logits that are finite on plain images only."""
    net, x = convolutions(), torch.full((1, 3, 8, 8), 0.5)
    with pytest.raises(ValueError, match="twice with the same logits"), torch.no_grad():
        collect_votes(lambda x: net(x.roll(int(torch.randint(3, ())), 3)), X, PLAN, model_hash="m")
    with pytest.raises(Diverged, match="finite logits on fixed images"), torch.no_grad():
        collect_votes(lambda x: net(x) + (0.9 - x.flatten(1).amax(1, keepdim=True)).sqrt(), x, PLAN, model_hash="m")


def test_batches_of_one_have_no_company():
    """Statistics of a single image are a function of it: taken with batch_size 1, refused with more."""
    net = Then(convolutions(), lambda z: (z - z.mean()) / z.std())
    assert collect_votes(net, X, PLAN, batch_size=1).finished.all()
    with pytest.raises(ValueError, match="on its own"):
        collect_votes(net, X, PLAN, batch_size=2)
