"""The only training loop. It knows specs, not papers; a resumed run gives the same weights, bit for bit on CPU.

Random numbers are counted, not streamed: the generator of each purpose is seeded by (seed, purpose, step), so a
checkpoint needs no random state and adding a measurement cannot shift training.
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from . import arithmetic, attacks, awp, evaluate, norms
from .checkpoint import load_training, save_training
from .collapse import NEVER, collapsed
from .config import AttackSpec, RunSpec
from .data import DeviceSet, augment
from .dynamics import Recorder
from .errors import Diverged
from .fold import FoldedCopy
from .follow import Follower
from .models import find_head, memory_format
from .noise import noisy
from .objectives import OBJECTIVES, split_wings, wing_losses
from .passes import Passes
from .retain import Retention
from .schedules import climb, factor

log = logging.getLogger(__name__)


class OutOfTime(Exception):
    """The time budget is spent; a checkpoint has been written."""


def generator(device: torch.device | str, seed: int, purpose: str, count: int) -> torch.Generator:
    """Generator on `device` for the `count`-th use of `purpose`; streams of different purposes are independent."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{count}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass
class History:
    """What a run leaves behind besides its weights: one row per epoch, the arrays of its `follow.Follower`, and with keep_best
    the state of the network after the epoch that was best on the validation images. `precision` is the arithmetic it was made in.
    """

    precision: str = "float32"
    epochs: list[dict] = field(default_factory=list)
    course: dict[str, np.ndarray] = field(default_factory=dict)
    best: dict[str, torch.Tensor] = field(default_factory=dict)


class Attacker:
    """Adversarial examples for training: PGD against a folded, frozen copy of the attacked wing in eval mode.

    The copy follows the live network by `refresh`; the live network's modes and statistics are never touched.
    """

    def __init__(self, model: torch.nn.Module, attack: AttackSpec, *, wing: str = "adaptive", precision: str,
                 passes: Passes) -> None:
        self.spec = attack
        self.copy = FoldedCopy(model, wing=wing, dtype=arithmetic.dtype(precision))
        self.forward = passes.through(self.copy)

    def __call__(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
        """Images for x; eps and step size are `strength` times the spec's."""
        self.copy.refresh()
        a = self.spec
        return attacks.pgd(self.forward, x, y, eps=a.eps * strength, step_size=a.step_size * strength, steps=a.steps,
                           threat=a.threat, loss=a.loss, random_start=a.random_start, generator=generator)


class FreePerturbation:
    """The perturbation of Free adversarial training (Shafahi et al. 2019, Algorithm 1): it starts at 0, goes on from batch to
    batch, and after each backward pass for the weights moves by eps along the gradient that the images got in it.

    Two departures from the public code: images are clipped to [0, 1] before they pass, not only after, and a strength below 1
    scales eps.
    """

    def __init__(self, attack: AttackSpec) -> None:
        self.spec, self.delta = attack, None

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """Perturbed images, which take a gradient."""
        if self.delta is None or len(self.delta) < len(x):
            delta = torch.zeros_like(x)
            if self.delta is not None:
                delta[:len(self.delta)] = self.delta
            self.delta = delta
        return (x + self.delta[:len(x)]).clamp_(0, 1).requires_grad_()

    def update(self, x: torch.Tensor, perturbed: torch.Tensor, strength: float) -> None:
        """After the backward pass through `perturbed`."""
        eps = self.spec.eps * strength
        moved = attacks.ascend(perturbed.detach(), perturbed.grad, x, eps, eps, self.spec.threat)
        self.delta[:len(x)] = moved - x


class Step:
    """One optimiser step: attack, one pass per input through the wings, one backward pass, one SGD step.

    Args:
        precision: "float32" or "bfloat16"; None: what the spec asks for, where the device has it (`arithmetic.chosen`).
        start: the network that training starts from with its own head; needed by methods that stay near it.
        source: images of the source task on the device; needed by joint training.
        recorder: keeps how the weights move, without changing them.
    """

    def __init__(self, model: torch.nn.Module, spec: RunSpec, device: torch.device | str, *, precision: str | None = None,
                 start: torch.nn.Module | None = None, source: DeviceSet | None = None,
                 recorder: Recorder | None = None) -> None:
        self.recorder = recorder
        self.model, self.spec, self.device = model.train(), spec, device  # measurements use copies, so the mode stays
        self.passes = Passes()
        self.forward = self.passes.through(model)
        if spec.method.wings == "frozen":
            norms.freeze_statistics(model)
        if spec.method.trains == "head":
            self._freeze_body()
        self.memory_format = memory_format(model, device)
        self.objective = OBJECTIVES[spec.method.objective]
        self.device_type = torch.device(device).type
        self.precision = precision or arithmetic.chosen(spec.optim.precision, device)
        self.retention = Retention(model, spec, start=start, source=source,
                                   count=self.passes.through,
                                   make_attack=partial(Attacker, passes=self.passes, precision=self.precision))
        self.attackers = []
        self.free = FreePerturbation(spec.attack) if spec.method.replays > 1 else None
        if self.objective.attacks and not self.free:
            wings = ("adaptive", "frozen") if spec.method.attack_wing == "alternating" else (spec.method.attack_wing,)
            self.attackers = [Attacker(model, spec.attack, wing=wing, precision=self.precision, passes=self.passes)
                              for wing in wings]
        self.optimizer = torch.optim.SGD(self.retention.groups(), lr=spec.optim.lr, momentum=spec.optim.momentum,
                                         weight_decay=spec.optim.weight_decay)

    def loss(self, inputs: dict[str, torch.Tensor], y: torch.Tensor,
             joint: tuple[torch.Tensor, torch.Tensor] | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(loss, logits of the first pass, losses of the halves) for images by kind ("clean", "adversarial"), through the
        wings.

        Args:
            joint: source images and labels, which pass together with the adversarial ones.
        """
        n_frozen, parts = split_wings(self.spec.method, len(y))
        sequential = self.spec.method.wings == "split"
        with (norms.wings(self.model, n_frozen), self.retention.watching(),
              torch.autocast(self.device_type, torch.bfloat16, enabled=self.precision == "bfloat16")):
            logits, extra = {}, []
            for kind in self.objective.inputs:
                x = inputs[kind] if joint is None else torch.cat((inputs[kind], joint[0]))
                x = x.contiguous(memory_format=self.memory_format)
                out = torch.cat([self._pass(x[part]) for part, _ in parts]) if sequential else self._pass(x)
                logits[kind] = out[:len(y)]
                extra.append(self.retention.loss(kind, inputs[kind], None if joint is None else joint[1]))
        logits = {kind: value.float() if value.dtype == torch.bfloat16 else value for kind, value in logits.items()}
        halves = wing_losses(self.spec.method, logits, y)
        return sum((e for e in extra if e is not None), halves.sum()), logits[self.objective.inputs[0]], halves

    def __call__(self, x: torch.Tensor, y: torch.Tensor, count: int, lr: float,
                 strength: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, S, S) float32 in [0, 1] of step `count`, attacked with `strength` times eps; returns (loss, correct
        predictions of the first pass) on the device."""
        inputs = {"clean": x if self.spec.noise is None else noisy(x, self.spec.noise, self._generator("noise", count))}
        if self.attackers:
            attack = self.attackers[count % len(self.attackers)]
            inputs["adversarial"] = attack(x, y, self._generator("attack", count), strength)
        elif self.free:
            inputs["adversarial"] = self.free.images(x)
        joint = self.retention.draw(len(y), lambda purpose: self._generator(purpose, count))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        recorder = self.recorder if self.recorder is not None and self.recorder.wants(count) else None
        gamma = self.spec.method.awp_gamma
        with awp.perturbed(self.model, lambda: self.loss(inputs, y)[0], gamma) if gamma else contextlib.nullcontext():
            loss, logits, halves = self.loss(inputs, y, joint)
            if recorder:
                with self.passes.paused():
                    recorder.before(self.model, halves)
            loss.backward()
        if self.free:
            self.free.update(x, inputs["adversarial"], strength)
        self.retention.add_gradients()
        if recorder:
            recorder.gradients()
        self.optimizer.step()
        if recorder:
            recorder.after(count, lr)
        return loss.detach(), (logits.detach().argmax(1) == y).sum()

    def state_dict(self) -> dict:
        """What a checkpoint needs besides network and optimiser."""
        return {"retention": self.retention.state_dict(), "delta": self.free.delta if self.free else None}

    def load_state_dict(self, state: dict) -> None:
        self.retention.load_state_dict(state["retention"])
        if self.free:
            self.free.delta = None if state["delta"] is None else state["delta"].to(self.device)

    def _pass(self, x: torch.Tensor) -> torch.Tensor:
        """The one rule for batches that are too small for batch statistics, whatever the method and its halves; `TwinNorm` has
        it for its wings."""
        with norms.single_image(self.model) if len(x) == 1 else contextlib.nullcontext():
            return self.forward(x)

    def _freeze_body(self) -> None:
        head = self.model.get_submodule(find_head(self.model, self.spec.data.crop or self.spec.data.image_size))
        self.model.eval().requires_grad_(False)
        head.train().requires_grad_(True)

    def _generator(self, purpose: str, count: int) -> torch.Generator:
        return generator("cpu" if purpose == "source" else self.device, self.spec.seed, purpose, count)


def fit(spec: RunSpec, model: torch.nn.Module, data: DeviceSet, *, device: torch.device | str,
        start: torch.nn.Module | None = None, source: DeviceSet | None = None,
        checkpoint: Path | None = None, stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[int, int], None] = lambda done, total: None) -> History:
    """Train `model` (already with its head and wings, on `device`) as `spec` says; returns the per-epoch rows.

    Args:
        start: on `device`, the network that training starts from with its own head, for methods that stay near it.
        source: training images of the source task, for joint training.
        checkpoint: file for the state at each epoch's end; where it exists, training continues from it, in its precision.
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
    broken = _not_finite(model)
    if broken:
        kind = Diverged if spec.weights is None else ValueError  # a file of others is no result
        raise kind(f"expected finite weights to start from, got NaN or infinity in {broken}; use another source")
    model.to(device=device, memory_format=memory_format(model, device))
    follower = Follower(spec, model, data) if spec.follow else None
    state = load_training(checkpoint, config=spec.hash) if checkpoint is not None and checkpoint.exists() else None
    precision = begun_in(state, spec) if state else arithmetic.chosen(spec.optim.precision, device)
    step_fn = Step(model, spec, device, precision=precision, start=start, source=source,
                   recorder=follower.recorder if follower else None)
    n, batch, replays = len(data.train_y), optim.batch_size, spec.method.replays
    per_epoch = -(-n // batch) * replays  # optimiser steps
    total = per_epoch * optim.epochs
    history, first = History(precision), 0
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
                                       "precision": precision}, config=spec.hash)

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


def begun_in(state: dict, spec: RunSpec) -> str:
    """The precision that a checkpoint was made in; one that does not say was made as its spec asks."""
    return state.get("precision", spec.optim.precision)


def _epoch_row(spec: RunSpec, model: torch.nn.Module, data: DeviceSet, epoch: int, lr: float,
               sums: torch.Tensor, before: Sequence[dict]) -> dict:
    loss, correct, images = sums.tolist()
    broken = _not_finite(model)
    if broken or not torch.isfinite(sums).all():
        what = f"weights of {broken}" if broken else f"a mean loss of {loss / images}"
        raise Diverged(f"expected finite loss and weights, got {what} in epoch {epoch + 1} of {spec.method.name} on "
                       f"{spec.data.name} (lr {spec.optim.lr:g}); lower lr", before)
    row = {"epoch": epoch + 1, "lr": lr, "train_loss": loss / images, "train_acc": correct / images}
    every = spec.optim.val_every
    if len(data.val_y) and every and ((epoch + 1) % every == 0 or epoch + 1 == spec.optim.epochs):
        copy = FoldedCopy(model)
        block = dict(batch_size=250)
        row["val_clean_acc"] = evaluate.clean_mask(copy, data.val_x, data.val_y, **block).float().mean().item()
        if OBJECTIVES[spec.method.objective].attacks:
            mask = evaluate.pgd_mask(copy, data.val_x, data.val_y, **spec.attack.measured(spec.optim.val_steps), seed=spec.seed,
                                     **block)
            row["val_robust_acc"] = mask.float().mean().item()
    return row


def _not_finite(model: torch.nn.Module) -> str | None:
    return next((name for name, value in model.state_dict().items() if not torch.isfinite(value).all()), None)
