"""Randomized smoothing: votes of noisy copies, for any torch module, and what they certify.

The smoothed classifier answers with the class that `forward(x + e)`, e ~ N(0, sigma^2 I), gives most often (Cohen et al.
2019). A plan (`sequential.certify_plan`, `exact_plan`) says how many votes each image gets and what they
prove; `collect_votes` draws them; `Votes` keeps the integers, from which radii at any alpha follow without new draws.

    plan = exact_plan(sigma=0.25, radii=(0, 0.25, 0.5, 0.75))
    votes = collect_votes(FoldedCopy(model), images, plan, labels=labels, file="votes.npz")
    certified_accuracy(votes.certified(), plan.radii)

Noise is counted, not streamed: it depends on (seed, index of the image, number of the draw) only, and is made in blocks of
64 draws, each by one call of torch's generator with a seed of its own (3 % slower than one long call on a CPU; a Philox
counter in tensor code takes 3 times as long). So votes do not depend on the batch size, on which images are asked for, on
their order or on interruptions. On CPU and CUDA the noise differs, and convolutions may round differently in another batch
size, which moves a vote only where two logits agree to rounding.

Votes belong to what the network computes: its logits on fixed images (`fingerprint`) are kept with them, and a network whose
answer to an image depends on chance or on other images is refused.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..attack.pgd import Forward
from ..base.errors import Diverged, integer, real
from ..base.sequential import Plan
from ..nets.arithmetic import full_float32
from ..nets.checkpoint import tensor_hash
from ..store.votes import Votes, blank_votes, continued_votes, load_votes
from .fingerprint import fingerprint
from .inputs import as_tensors, check_arguments, checksums
from .levels import Levels

BLOCK = 64  # draws made by one call of the generator; part of what names the noise
SELECT, ESTIMATE = 0, 1  # streams of draws: those that choose the class, those that bound its probability
BATCH = {"cpu": 256}  # 1.12 times as fast as 512 there: activations beyond 32 MB are new memory at every layer (glibc)
ROUND = 16  # full batches between two looks of the host, where they are fast
PATIENCE = 5.0  # most seconds between two looks of the host that one has to wait for, a batch of 64 draws aside


def collect_votes(forward: Forward, images: Tensor | np.ndarray, plan: Plan, *,
                  labels: Tensor | np.ndarray | Sequence[int] | None = None, indices: Sequence[int] | None = None,
                  seed: int = 0, precision: str = "float32", model_hash: str | None = None, batch_size: int | None = None,
                  file: str | Path | None = None, save_every: float = 60.0,
                  stop: Callable[[], bool] = lambda: False) -> Votes:
    """Draw what `plan` needs for each image; the votes are the same however the work is cut or continued.

    Images share batches and leave when they are done. Counts stay on the device; the host reads them once in about 16
    batches, or as often as `save_every` and `stop` need, down to 64 draws; where it reads them changes no batch unless one
    batch alone takes too long. For speed, pass `fold.FoldedCopy(model)` and a batch that fills the device.

    Args:
        forward: images (B, ...) to logits (B, C), each image on its own, on the device of the images. A module must be in
            eval mode. Exactly this function, in this precision, is what is certified.
        images: (N, 3, S, S) uint8, or floats in [0, 1] of any shape (N, ...); noise is added as they are, without clipping. A
            sound plan needs uint8, of any shape.
            An array goes to the device of the network.
        labels: integers (N,), for accuracies, logs and stop_if_wrong.
        indices: numbers of the images in their data set, which name their noise; 0..N-1 by default.
        precision: "float32", "float64", or "bfloat16" by autocast, which also takes a network in bfloat16.
        model_hash: names the network in the file; by default 16 hex digits of the hash of a module's state.
        batch_size: most copies in one forward pass; None: 256 on a CPU, else 512.
        file: where votes are kept; if it exists, finished images are taken from it and unfinished ones continued.
        save_every: about so many seconds between two writes of `file`, which is what a killed process loses.
        stop: asked at least every few seconds; when true, the votes so far are saved and returned, `finished` saying what is
            missing.
    Returns:
        votes of the images, in their order.
    Raises:
        ValueError, TypeError: before any work: a module in training mode, a network whose logits depend on the batch or on
            chance, images not in [0, 1], a label outside the logits, or a file of another network, sigma, plan, seed or image.
        Diverged: logits that are not numbers.
    """
    images, labels = as_tensors(forward, images, labels)
    batch_size = BATCH.get(images.device.type, 512) if batch_size is None else integer(batch_size, "batch_size")
    seed, save_every = integer(seed, "seed"), real(save_every, "save_every")
    index = check_arguments(forward, images, plan, labels, indices, precision, batch_size, save_every, file)
    if model_hash is None:
        if not isinstance(forward, nn.Module):
            raise ValueError("expected model_hash for a callable that is no module, got None; name the network")
        model_hash = tensor_hash(forward.state_dict())[:16]
    elif not isinstance(model_hash, str):
        raise TypeError(f"expected model_hash to be text, got {model_hash!r}")
    sampler = _Sampler(forward, images, index, plan, seed, precision, batch_size)
    label = np.full(len(images), -1) if labels is None else labels.cpu().numpy()
    if label.max() >= sampler.classes or (labels is not None and label.min() < 0):
        raise ValueError(f"expected labels in 0..{sampler.classes - 1}, the classes of the network, got {label.min()}.."
                         f"{label.max()}; replace the head or choose the matching data")
    if plan.stop_if_wrong and labels is None:
        raise ValueError("expected labels with stop_if_wrong, got None")
    votes = blank_votes(plan, index, label, checksums(images), sampler.classes, seed=seed, precision=precision,
                        model_hash=model_hash, noise=f"{images.device.type}-{BLOCK}",
                        fingerprint=fingerprint(sampler.look, tuple(images.shape[1:]), precision))
    if file is not None and Path(file).exists():
        votes = continued_votes(votes, load_votes(file), Path(file).name)
    saved, changed, todo = time.monotonic(), False, [row for row in range(len(images)) if not votes.finished[row]]
    work: list[_Work] = []
    while work or todo:
        if not work:
            work = _next_work(votes, todo, max(batch_size, BLOCK) * ROUND // BLOCK * BLOCK)
            group, todo = todo[:len(work)], todo[len(work):]
        began = time.perf_counter()
        part, work = _cut(work, sampler.blocks_within(min(save_every, PATIENCE)))
        counts = sampler.count(part)
        _record(votes, part, counts, time.perf_counter() - began)
        changed = True
        if not work:
            todo = [row for row in group if not votes.finished[row]] + todo
        if file is not None and time.monotonic() - saved >= save_every:
            votes.save(file)
            saved, changed = time.monotonic(), False
        if (work or todo) and stop():
            break
    if file is not None and changed:
        votes.save(file)
    return votes.rows(np.arange(len(images)))


class _Work(NamedTuple):
    """Draws first..last - 1 of one stream of one image."""

    row: int
    stream: int
    first: int
    last: int


def _next_work(votes: Votes, todo: list[int], quantum: int) -> list[_Work]:
    """The next stretch of draws for the first images of `todo`, up to about `quantum` draws in all."""
    work, total = [], 0
    for row in todo:
        if total >= quantum:
            break
        pilot = int(votes.pilot[row].sum())
        stream, done = (SELECT, pilot) if pilot < votes.plan.n0 else (ESTIMATE, int(votes.draws[row]))
        end = votes.plan.n0 if stream == SELECT else next(look for look in votes.plan.looks if look > done)
        last = min(end, (done // BLOCK) * BLOCK + quantum)
        work.append(_Work(row, stream, done, last))
        total += last - done
    return work


def _cut(work: list[_Work], blocks: int) -> tuple[list[_Work], list[_Work]]:
    """The first so many blocks of draws, and the rest."""
    for i, item in enumerate(work):
        start, there = item.first // BLOCK, -(-item.last // BLOCK) - item.first // BLOCK
        if there > blocks:
            middle = (start + blocks) * BLOCK
            head = [item._replace(last=middle)] if blocks else []
            return work[:i] + head, [item._replace(first=middle) if blocks else item, *work[i + 1:]]
        blocks -= there
    return work, []


def _record(votes: Votes, work: list[_Work], counts: np.ndarray, seconds: float) -> None:
    """Add counts, shape (work, classes + 1), the last column of which are logits that are not numbers."""
    bad = np.flatnonzero(counts[:, -1])
    if len(bad):
        raise Diverged(f"expected logits that are numbers, got NaN for noisy copies of image {votes.index[work[bad[0]].row]}; "
                       "check the weights and the precision")
    plan, total = votes.plan, sum(item.last - item.first for item in work)
    for item, count in zip(work, counts[:, :-1], strict=True):
        row = item.row
        votes.seconds[row] += seconds * (item.last - item.first) / total
        if item.stream == SELECT:
            votes.pilot[row] += count
            if item.last == plan.n0:
                votes.chosen[row] = votes.pilot[row].argmax()
                votes.finished[row] = plan.stop_if_wrong and votes.chosen[row] != votes.label[row]
            continue
        votes.votes[row] += count
        votes.draws[row] = item.last
        if item.last in plan.looks:
            votes.history[row, plan.looks.index(item.last)] = votes.votes[row, votes.chosen[row]]
            votes.finished[row] = plan.settled(votes.history[row])


class _Sampler:
    """Runs noisy copies of images through `forward` and counts its answers."""

    def __init__(self, forward: Forward, images: Tensor, index: np.ndarray, plan: Plan, seed: int, precision: str,
                 batch_size: int) -> None:
        self.forward, self.images, self.index, self.sigma, self.seed = forward, images, index, plan.sigma, seed
        self.levels = Levels(plan.sigma, images[0].numel(), images.device) if plan.sound else None
        self.precision, self.batch_size, self.device = precision, batch_size, images.device
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.spatial = images.ndim == 4
        self.blocks = max(1, batch_size // BLOCK)
        self.generator = torch.Generator(self.device)
        self.speed = 0.0  # draws in a second, at the best
        logits = self._first(self._clean(torch.zeros(1, dtype=torch.int64)).div_(255 if self.levels else 1))
        if not isinstance(logits, Tensor):
            raise TypeError(f"expected logits as one tensor, got {type(logits).__name__}; wrap the network so that it gives "
                            "its logits only")
        if logits.ndim != 2 or logits.shape[0] != 1 or not logits.is_floating_point():
            raise ValueError(f"expected floating-point logits of shape (1, classes) for one image, got {tuple(logits.shape)} in "
                             f"{logits.dtype}; noise and votes need a classifier")
        if not torch.isfinite(logits).all():
            raise Diverged("expected finite logits on a clean image, got NaN or infinity; check the weights")
        self.classes = logits.shape[1]

    def _first(self, x: Tensor) -> object:
        """What the network says to one image; an error of its own says what it was given."""
        try:
            with _arithmetic(self.device, self.precision):
                return self.forward(self._outer(x))
        except Diverged:
            raise
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
            shape = ", ".join(map(str, self.images.shape[1:]))
            raise ValueError(f"expected a network that answers a single image, shape (1, {shape}) in {self.dtype}, got "
                             f"{type(error).__name__}: {error}; check the size of the images and the order of their axes"
                             ) from error

    def look(self, images: Tensor) -> Tensor:
        """Logits of images without noise, float32 on the CPU, in batches as they are certified."""
        began = time.perf_counter()
        x = images.to(self.device, self.dtype)
        x = x.permute(0, 2, 3, 1).contiguous() if self.spatial else x
        with _arithmetic(self.device, self.precision):
            logits = torch.cat([self.forward(part) for part in self._outer(x).split(self.batch_size)]).cpu()
        self._clock(len(images), began)
        return logits

    def blocks_within(self, seconds: float) -> int:
        """How many blocks of draws so much time is enough for, at least one: whole batches, unless it is too short for one."""
        blocks = max(1, int(self.speed * seconds / BLOCK))
        return blocks // self.blocks * self.blocks or blocks

    def _clock(self, draws: int, began: float) -> None:
        self.speed = max(self.speed, draws / max(time.perf_counter() - began, 1e-6))

    def count(self, work: list[_Work]) -> np.ndarray:
        """Votes of each item, shape (work, classes + 1), the last column for logits with NaN; waits for the device once."""
        began = time.perf_counter()
        pieces = [(slot, noise_seed(self.seed, int(self.index[item.row]), item.stream, block),
                   max(item.first - block * BLOCK, 0), min(item.last - block * BLOCK, BLOCK))
                  for slot, item in enumerate(work) for block in range(item.first // BLOCK, -(-item.last // BLOCK))]
        clean = self._clean(torch.tensor([item.row for item in work]))
        slots = torch.tensor([piece[0] for piece in pieces]).to(self.device)
        sizes = torch.tensor([piece[3] - piece[2] for piece in pieces]).to(self.device)
        noise = torch.empty((self.blocks, BLOCK, *clean.shape[1:]), dtype=torch.float32, device=self.device)
        counts = torch.zeros(len(work) * (self.classes + 1), dtype=torch.int64, device=self.device)
        with _arithmetic(self.device, self.precision):
            for start in range(0, len(pieces), self.blocks):
                batch = pieces[start:start + self.blocks]
                for (_, seed, _, _), block in zip(batch, noise, strict=False):
                    generator = self.generator.manual_seed(seed)
                    if self.levels:
                        self.levels.fill(block, generator)
                    else:
                        block.normal_(0, self.sigma, generator=generator)
                own = slots[start:start + len(batch)]
                x = noise[:len(batch)].to(self.dtype).add_(clean[own].unsqueeze(1))
                x = x.div_(255) if self.levels else x
                if all(last - first == BLOCK for _, _, first, last in batch):
                    x = x.flatten(0, 1)
                else:
                    x = torch.cat([copies[first:last] for (_, _, first, last), copies in zip(batch, x, strict=True)])
                logits = torch.cat([self.forward(part) for part in self._outer(x).split(self.batch_size)])
                answer = torch.where(logits.isnan().any(1), self.classes, logits.argmax(1))
                place = own.repeat_interleave(sizes[start:start + len(batch)], output_size=len(x))
                counts.index_add_(0, place * (self.classes + 1) + answer, torch.ones_like(answer))
        found = counts.view(len(work), -1).cpu().numpy()
        self._clock(int(found.sum()), began)
        return found

    def _clean(self, rows: Tensor) -> Tensor:
        """Images in [0, 1], of a sound plan in 0..255; those with channels as (N, H, W, C): noise drawn in this order is in
        channels-last order."""
        x = self.images[rows.to(self.device)]
        x = x.to(self.dtype).div_(255) if x.dtype == torch.uint8 and not self.levels else x.to(self.dtype)
        return x.permute(0, 2, 3, 1).contiguous() if self.spatial else x

    def _outer(self, x: Tensor) -> Tensor:
        """The batch as the network takes it, images in channels-last memory."""
        return x.permute(0, 3, 1, 2) if self.spatial else x


def noise_seed(seed: int, index: int, stream: int, block: int) -> int:
    """Seed of the generator for one block of draws, below 2^63.

    For an image it is an affine map of 2 * block + stream with an odd factor: all its blocks differ, also in the low 32
    bits, which are all that torch's generator for the CPU looks at. Factor and offset are hashed from (seed, index).
    """
    digest = hashlib.sha256(f"{seed}/smoothing/{index}".encode()).digest()
    factor, offset = int.from_bytes(digest[:8], "big") | 1, int.from_bytes(digest[8:16], "big")
    return (factor * (2 * block + stream) + offset) % 2 ** 63


@contextmanager
def _arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """No gradients, no TF32, autocast for bfloat16 only."""
    with full_float32(device), torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        yield
