"""The only training loop. It knows specs, not papers; a resumed run gives the same weights, bit for bit on CPU."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..attack import masks
from ..base.collapse import NEVER, collapsed
from ..base.errors import Diverged
from ..data.augment import augment
from ..data.sets import DeviceSet
from ..nets import arithmetic
from ..nets.checkpoint import load_training, not_finite, save_training
from ..nets.fold import FoldedCopy
from ..nets.models import memory_format
from ..specs.run import RunSpec
from ..specs.schedules import climb, factor
from .follow import BLOCK, Follower
from .step import OutOfTime, Step, generator

log = logging.getLogger(__name__)


@dataclass
class History:
    """What a run leaves behind besides its weights: one row per epoch, the arrays of its `follow.Follower`, and with keep_best
    the state of the network after the epoch that was best on the validation images. `precision` is the arithmetic it was made in,
    `compiled` whether its attacks were compiled.
    """

    precision: str = "float32"
    compiled: bool = False
    epochs: list[dict] = field(default_factory=list)
    course: dict[str, np.ndarray] = field(default_factory=dict)
    best: dict[str, torch.Tensor] = field(default_factory=dict)


@torch.enable_grad()
def fit(spec: RunSpec, model: torch.nn.Module, data: DeviceSet, *, device: torch.device | str,
        start: torch.nn.Module | None = None, source: DeviceSet | None = None,
        checkpoint: Path | None = None, compiled: bool = False, stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[int, int], None] = lambda done, total: None) -> History:
    """Train `model` (already with its head and wings, on `device`) as `spec` says; returns the per-epoch rows.

    Args:
        start: on `device`, the network that training starts from with its own head, for methods that stay near it.
        source: training images of the source task, for joint training.
        checkpoint: file for the state at each epoch's end; where it exists, training continues from it, in its precision.
        compiled: compile the attack where that is measured to be faster at the start; a resumed run goes on as it began.
        stop: asked after every step; when true, the state is saved and OutOfTime raised.
    Raises:
        Diverged: loss or a weight is not finite, with the rows until then; the last good checkpoint stays.
        ValueError: the checkpoint belongs to another spec, weights of others to start from are not finite, no training images, or
            halves of batches of one image.
    """
    optim = spec.optim
    smallest = 2 if spec.method.halves else 1
    if min(optim.batch_size, len(data.train_y)) < smallest:
        raise ValueError(f"expected batches and a training set of at least {smallest} for method {spec.method.name!r}, got "
                         f"batch_size {optim.batch_size} and {len(data.train_y)} images; raise batch_size or train_images")
    if broken := not_finite(model, model.state_dict()):
        kind = Diverged if spec.weights is None else ValueError  # a file of others is no result
        raise kind(f"expected finite weights to start from, got NaN or infinity in {broken}; use another source")
    model.to(device=device, memory_format=memory_format(model, device))
    follower = Follower(spec, model, data) if spec.follow else None
    state = load_training(checkpoint, run=spec.hash) if checkpoint is not None and checkpoint.exists() else None
    precision = arithmetic.chosen(optim.precision, device)
    if state:  # goes on in the precision it was made in; one that does not say was made as its spec asks
        precision = state.get("precision", optim.precision)
    step_fn = Step(model, spec, device, precision=precision, start=start, source=source,
                   recorder=follower.recorder if follower else None,
                   compiled=state.get("compiled", False) if state else (None if compiled else False))
    n, batch, replays = len(data.train_y), optim.batch_size, spec.method.replays
    per_epoch = -(-n // batch) * replays  # optimiser steps
    total = per_epoch * optim.epochs
    history, first = History(precision, step_fn.compiled), 0
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss x images, correct, images of the running epoch
    if state:
        model.load_state_dict(state["model"])
        step_fn.load_state_dict(state["step_fn"])
        step_fn.optimizer.load_state_dict(state["optimizer"])
        history.epochs, history.best, first = state["epochs"], state["best"], state["step"]
        step_fn.passes.forward, step_fn.passes.backward = state["passes"]
        sums.copy_(state["sums"])
        if follower:
            follower.load_state_dict(state["follower"])
    elif follower:
        follower.measure(model, 0)

    def save(step: int) -> None:
        if checkpoint is not None:
            save_training(checkpoint, {"model": model.state_dict(), "optimizer": step_fn.optimizer.state_dict(),
                                       "step_fn": step_fn.state_dict(), "best": history.best,
                                       "follower": follower.state_dict() if follower else {},
                                       "passes": [step_fn.passes.forward, step_fn.passes.backward],
                                       "epochs": history.epochs, "step": step, "sums": sums.cpu(),
                                       "precision": precision, "compiled": step_fn.compiled}, run=spec.hash)

    order = None
    for step in range(first, total):
        epoch, i = divmod(step, per_epoch)
        if order is None or i == 0:
            order = torch.randperm(n, generator=generator("cpu", spec.seed, "order", epoch)).to(device)
        index = order[i // replays * batch:(i // replays + 1) * batch]
        x = augment(data.train_x[index], spec.data.augment, generator(device, spec.seed, "augment", step // replays),
                    size=spec.data.crop)
        y = data.train_y[index]
        lr = optim.lr * factor(optim.schedule, step, total, optim.milestones, optim.warmup)
        loss, correct = step_fn(x, y, step, lr, climb(step, total, spec.attack.eps_warmup))
        sums += torch.stack([loss.double() * len(y), correct.double(), torch.full_like(loss, len(y)).double()])
        if i == per_epoch - 1:
            row = _epoch_row(spec, model, data, epoch, lr, sums, history.epochs)
            row["forward_images"], row["backward_images"] = step_fn.passes.take()
            before = [r["val_robust_acc"] for r in history.epochs if "val_robust_acc" in r]
            history.epochs.append(row)
            if optim.keep_best and row.get("val_robust_acc", -1.0) > max(before, default=-1.0):
                history.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
            found = collapsed(history.epochs, images=len(data.val_y), classes=data.num_classes)
            if found and (epoch + 1 == optim.epochs if found.kind == NEVER else epoch + 1 == found.epoch):
                log.info("method %s, seed %d, %s: %s", spec.method.name, spec.seed, spec.data.name, found)
            sums.zero_()
            if follower:
                follower.measure(model, epoch + 1)
            log.info("method %s, seed %d, %s: epoch %d/%d, %s", spec.method.name, spec.seed, spec.data.name, epoch + 1,
                     optim.epochs, ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch" and "images" not in k))
            if step + 1 < total:
                save(step + 1)
        on_step(step + 1, total)
        if step + 1 < total and stop():
            save(step + 1)
            raise OutOfTime(f"stopped at step {step + 1} of {total}")
    history.course = follower.arrays() if follower else {}
    return history


def _epoch_row(spec: RunSpec, model: torch.nn.Module, data: DeviceSet, epoch: int, lr: float,
               sums: torch.Tensor, before: Sequence[dict]) -> dict:
    loss, correct, images = sums.tolist()
    broken = not_finite(model, model.state_dict())
    if broken or not torch.isfinite(sums).all():
        what = f"weights of {broken}" if broken else f"a mean loss of {loss / images}"
        raise Diverged(f"expected finite loss and weights, got {what} in epoch {epoch + 1} of {spec.method.name} on "
                       f"{spec.data.name} (lr {spec.optim.lr:g}); lower lr", before)
    row = {"epoch": epoch + 1, "lr": lr, "train_loss": loss / images, "train_acc": correct / images}
    every = spec.optim.val_every
    if len(data.val_y) and every and ((epoch + 1) % every == 0 or epoch + 1 == spec.optim.epochs):
        copy, images = FoldedCopy(model), (data.val_x, data.val_y)
        row["val_clean_acc"] = masks.clean_mask(copy, *images, batch_size=BLOCK).float().mean().item()
        if spec.method.attacks:
            attack = spec.attack.measured(spec.optim.val_steps)
            mask = masks.pgd_mask(copy, *images, **attack, seed=spec.seed, batch_size=BLOCK)
            row["val_robust_acc"] = mask.float().mean().item()
    return row
