"""One training step: attack, loss through the wings, update.

Random numbers are counted, not streamed: the generator of each purpose is seeded by (seed, purpose, step), so a
checkpoint needs no random state and adding a measurement cannot shift training.
"""

import contextlib
from functools import partial

import torch

from ..attack import pgd
from ..attack.masks import block_seed
from ..data.sets import DeviceSet
from ..nets import arithmetic, norms
from ..nets.copies import device_of
from ..nets.fold import FoldedCopy
from ..nets.heads import find_head
from ..nets.models import memory_format
from ..specs.run import AttackSpec, RunSpec
from . import awp
from .compiled import compile_if_faster
from .dynamics import Recorder
from .noise import noisy
from .objectives import split_wings, wing_losses
from .passes import Passes
from .retain import Retention


class OutOfTime(Exception):
    """The time budget is spent; a checkpoint has been written."""


def generator(device: torch.device | str, seed: int, purpose: str, count: int) -> torch.Generator:
    """Generator on `device` for the `count`-th use of `purpose`; streams of different purposes are independent.

    >>> generator("cpu", 0, "attack", 1).initial_seed() == generator("cpu", 0, "attack", 2).initial_seed()
    False
    """
    return torch.Generator(device).manual_seed(block_seed(seed, purpose, count))


class Attacker:
    """Adversarial examples for training: PGD against a folded, frozen copy of the attacked wing in eval mode.

    The copy follows the live network by `refresh`; the live network's modes and statistics are never touched.

    Args:
        size: side of the images in pixels.
    """

    def __init__(self, model: torch.nn.Module, attack: AttackSpec, *, wing: str = "adaptive", precision: str,
                 passes: Passes, size: int) -> None:
        self.spec = attack
        self.copy = FoldedCopy(model, wing=wing, dtype=arithmetic.dtype(precision))
        self.copy.check(torch.zeros(2, 3, size, size, device=device_of(model)))  # not in the first step
        self.forward = passes.through(self.copy)

    def __call__(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
        """Images for x; eps and step size are `strength` times the spec's."""
        self.copy.refresh()
        a = self.spec
        return pgd.pgd(self.forward, x, y, eps=a.eps * strength, step_size=a.step_size * strength, steps=a.steps,
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
            old = x[:0] if self.delta is None else self.delta
            self.delta = torch.cat((old, torch.zeros_like(x[len(old):])))
        return (x + self.delta[:len(x)]).clamp_(0, 1).requires_grad_()

    def update(self, x: torch.Tensor, perturbed: torch.Tensor, strength: float) -> None:
        """After the backward pass through `perturbed`."""
        eps = self.spec.eps * strength
        moved = pgd.ascend(perturbed.detach(), perturbed.grad, x, eps, eps, self.spec.threat)
        self.delta[:len(x)] = moved - x


class Step:
    """One optimiser step: attack, one pass per input through the wings, one backward pass, one SGD step.

    Args:
        precision: "float32" or "bfloat16"; None: what the spec asks for, where the device has it (`arithmetic.chosen`).
        start: the network that training starts from with its own head; needed by methods that stay near it.
        source: images of the source task on the device; needed by joint training.
        recorder: keeps how the weights move, without changing them.
        compiled: whether attacks are compiled by torch; None: where that is measured to be faster. Afterwards whether they are.
    """

    def __init__(self, model: torch.nn.Module, spec: RunSpec, device: torch.device | str, *, precision: str | None = None,
                 start: torch.nn.Module | None = None, source: DeviceSet | None = None,
                 recorder: Recorder | None = None, compiled: bool | None = False) -> None:
        self.recorder = recorder
        self.model, self.spec, self.device = model.train(), spec, device  # measurements use copies, so the mode stays
        self.passes = Passes()
        self.forward = self.passes.through(partial(pgd.logits_of, model))
        if spec.method.wings == "frozen":
            norms.freeze_statistics(model)
        size = spec.data.crop or spec.data.image_size
        if spec.method.trains == "head":
            head = model.get_submodule(find_head(model, size))
            model.eval().requires_grad_(False)
            head.train().requires_grad_(True)
        self.memory_format = memory_format(model, device)
        self.device_type = torch.device(device).type
        self.precision = precision or arithmetic.chosen(spec.optim.precision, device)
        make_attack = partial(Attacker, passes=self.passes, precision=self.precision, size=size)
        self.retention = Retention(model, spec, start=start, source=source, count=self.passes.through, make_attack=make_attack)
        self.attackers = []
        self.free = FreePerturbation(spec.attack) if spec.method.replays > 1 else None
        if spec.method.attacks and not self.free:
            wings = ("adaptive", "frozen") if spec.method.attack_wing == "alternating" else (spec.method.attack_wing,)
            self.attackers = [make_attack(model, spec.attack, wing=wing) for wing in wings]
        self.compiled = False
        if compiled is not False:
            images = torch.rand((spec.optim.batch_size, 3, size, size), generator=self._generator("compile", 0), device=device)
            for attacker in self.attackers:
                self.compiled |= compile_if_faster(attacker.copy, images, always=bool(compiled))
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
            for kind in self.spec.method.inputs:
                x = inputs[kind] if joint is None else torch.cat((inputs[kind], joint[0]))
                x = x.contiguous(memory_format=self.memory_format)
                out = torch.cat([self._pass(x[part]) for part, _ in parts]) if sequential else self._pass(x)
                logits[kind] = out[:len(y)]
                extra.append(self.retention.loss(kind, inputs[kind], None if joint is None else joint[1]))
        logits = {kind: value.float() if value.dtype == torch.bfloat16 else value for kind, value in logits.items()}
        halves = wing_losses(self.spec.method, logits, y)
        return sum((e for e in extra if e is not None), halves.sum()), logits[self.spec.method.inputs[0]], halves

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
        recorder = self.recorder if self.recorder and self.recorder.wants(count) else None
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

    def _generator(self, purpose: str, count: int) -> torch.Generator:
        return generator(self.device, self.spec.seed, purpose, count)
