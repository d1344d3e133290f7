"""Clean, PGD and AutoAttack accuracy as one boolean per test image; every number here is computed in float32.

Images are attacked in blocks of `batch_size`. The random numbers of a block depend on (seed, attack, number of the
block) only, so a caller may compute blocks one at a time, in any order and after any interruption (`block` is the
number of the first), and get the masks of an undisturbed run.

`forward` is a callable from float32 images (B, 3, S, S) in [0, 1] to logits, in eval mode, with frozen parameters, on
the device of the images. Robust accuracy under any attack is an upper bound of the robust accuracy.

An image counts as broken where its logits or its gradient turn out not finite under attack, since then it was not
attacked; a network whose gradient is finite on no image is refused (`Diverged`), for its accuracy would say nothing.
"""
import hashlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .arithmetic import full_float32
from .attacks import (
    Forward,
    check_radius,
    finite,
    input_gradient,
    logits_of,
    pgd,
    pgd_robust_mask,
    random_point,
)
from .errors import Diverged, choose, integer
from .strength import PARTS, STANDARD

log = logging.getLogger(__name__)

ATTACKS = PARTS
N_TARGETS = 9
N_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}  # as many logits stand in their losses; all others need two classes
TRIED = 8  # images whose gradients tell a network that cannot be attacked from one that is broken everywhere
MEND = "mend the layer that it comes from, such as a root at 0 or a division by 0"
FLAGS = {  # a piece of each warning of pyautoattack, and the check that it fails
    "randomized defense": "repeatable",
    "probability distribution": "logits",
    "zero gradient": "gradient_nonzero",
    "dynamic defense": "no_gradient_in_forward",
}


class AutoAttackResult(NamedTuple):
    """masks: cumulative, keyed by the attacks so far joined by "+"; checks: name to passed."""

    masks: dict[str, Tensor]
    checks: dict[str, bool]


def check_attacks(attacks: Sequence[str], classes: int, what: str = "the network") -> None:
    """Refuse parts of AutoAttack that cannot run on a network of so few classes.

    Args:
        what: whose classes they are, for the message.
    """
    impossible = [name for name in attacks if classes < N_CLASSES.get(name, 2)]
    if impossible:
        needed = max(N_CLASSES.get(name, 2) for name in impossible)
        others = [name for name in STANDARD if classes >= N_CLASSES.get(name, 2)]
        raise ValueError(f"expected at least {needed} classes of {what} for {', '.join(impossible)}, got {classes}; "
                         f"attack with {', '.join(others) or 'nothing'}, or take more classes")


def block_seed(seed: int, purpose: str, block: int) -> int:
    """Seed of one block, in 0..2^63 - 1; the streams of different seeds, purposes and blocks are unrelated."""
    digest = hashlib.sha256(f"{integer(seed, 'seed')}/{purpose}/{block}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def clean_mask(forward: Forward, images: Tensor, labels: Tensor, *, batch_size: int) -> Tensor:
    """True where the clean image is classified correctly.

    Args:
        images: uint8, shape (N, 3, S, S), a tensor on the device of the network or a NumPy array.
        labels: integers, shape (N,), each below the number of logits; a tensor, an array or a list.
        batch_size: images per forward pass; changes nothing but rounding.
    Returns:
        bool, shape (N,), on the CPU.
    Raises:
        ValueError, TypeError: wrong shape or type, a label outside the logits, a network in training mode
            or not in float32, or one that does not return logits alone.
        Diverged: logits that are not finite.
    """
    images, labels = _tensors(forward, images, labels)
    with full_float32(images.device):
        masks = [_logits(forward, x, labels).argmax(1) == y
                 for _, x, y in _blocks(forward, images, labels, batch_size, 0)]
        return torch.cat(masks).cpu()


def pgd_mask(forward: Forward, images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int,
             restarts: int = 1, threat: str = "linf", loss: str = "ce", random_start: bool = True, seed: int = 0,
             batch_size: int, block: int = 0) -> Tensor:
    """True where the prediction is right on the clean image and on every PGD iterate of every restart.

    See `clean_mask` for images, labels, result and errors, `attacks.pgd_robust_mask` for the attack. `Diverged` here
    stands for a network without finite gradients; logits that are not finite break the image.

    Args:
        seed: of the random starts, which are the same for every network.
        batch_size: images per block; part of what names the result.
        block: number of the first block in images.
    """
    images, labels = _tensors(forward, images, labels)
    masks = []
    with full_float32(images.device):
        for number, x, y in _blocks(forward, images, labels, batch_size, block):
            _logits(forward, x[:1], labels)
            generator = torch.Generator(x.device).manual_seed(block_seed(seed, "pgd", number))
            mask = pgd_robust_mask(forward, x, y, eps=eps, step_size=step_size, steps=steps, restarts=restarts,
                                   threat=threat, loss=loss, random_start=random_start, generator=generator)
            if eps > 0 and steps > 0 and not mask.any():
                _check_attackable(forward, x, y)
            masks.append(mask)
        return torch.cat(masks).cpu()


def pgd_losses(forward: Forward, images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int,
               threat: str = "linf", seed: int = 0, batch_size: int) -> tuple[Tensor, Tensor]:
    """(True where the prediction is right at PGD's last iterate, cross-entropy there in nats), each (N,), on the CPU.

    Every image is attacked to the end, so that losses can be averaged; see `pgd_mask` for the arguments, `attacks.pgd` for the
    attack.

    Raises:
        Diverged: a gradient or logits that are not finite.
        others: see `clean_mask`.
    """
    images, labels = _tensors(forward, images, labels)
    masks, losses = [], []
    with full_float32(images.device):
        for number, x, y in _blocks(forward, images, labels, batch_size, 0):
            _logits(forward, x[:1], labels)
            generator = torch.Generator(x.device).manual_seed(block_seed(seed, "pgd", number))
            x_adv = pgd(forward, x, y, eps=eps, step_size=step_size, steps=steps, threat=threat, generator=generator)
            check_attacked(x_adv)
            logits = _logits(forward, x_adv, labels)
            masks.append(logits.argmax(1) == y)
            losses.append(torch.nn.functional.cross_entropy(logits, y, reduction="none"))
        return torch.cat(masks).cpu(), torch.cat(losses).cpu()


def check_attacked(x_adv: Tensor) -> None:
    """Refuse what `attacks.pgd` returns where a gradient was not finite."""
    failed = int((~finite(x_adv)).sum())
    if failed:
        raise Diverged(f"expected finite gradients with respect to the images, got NaN or infinity on {failed} of "
                       f"{len(x_adv)} images; {MEND}")


def autoattack_masks(forward: Forward, images: Tensor, labels: Tensor, *, eps: float, threat: str = "linf",
                     attacks: tuple[str, ...] = STANDARD, seed: int = 0, batch_size: int,
                     block: int = 0) -> dict[str, Tensor]:
    """The masks of `autoattack`, cumulative after each attack; a check that failed is logged as a warning."""
    masks, checks = autoattack(forward, images, labels, eps=eps, threat=threat, attacks=attacks, seed=seed,
                               batch_size=batch_size, block=block)
    failed = [name for name, passed in checks.items() if not passed]
    if failed:
        log.warning("autoattack on block %d: not passed: %s", block, ", ".join(failed))
    return masks


def autoattack(forward: Forward, images: Tensor, labels: Tensor, *, eps: float, threat: str = "linf",
               attacks: tuple[str, ...] = STANDARD, seed: int = 0, batch_size: int, block: int = 0) -> AutoAttackResult:
    """AutoAttack (Croce and Hein 2020) with the numbers of its standard version: 1 restart, 9 targets, 5,000 queries.

    Each attack sees the images that all earlier ones left standing, so `masks` of ("apgd-ce", "apgd-t", "fab-t",
    "square") are those of the standard version; only the seed differs, one per block here. With fewer than 10 classes
    all wrong ones are targets, and the attack keeps its name. Torch's global random state and the trace function, which
    pyautoattack resets, come out as they went in.

    See `clean_mask` for images, labels and errors, `pgd_mask` for seed, batch_size and block.

    Args:
        attacks: names in the order in which they run, from `ATTACKS`.
    Returns:
        masks: bool, shape (N,), on the CPU, for "apgd-ce", "apgd-ce+apgd-t", and so on.
        checks: the warnings of pyautoattack as named checks, and whether every adversarial image is legal.
    Raises:
        ValueError: also for an attack that cannot run on so few classes (`check_attacks`).
    """
    eps = check_radius(eps, threat)
    attacks = (attacks,) if isinstance(attacks, str) else tuple(map(str, attacks))
    images, labels = _tensors(forward, images, labels)
    batch_size = integer(batch_size, "batch_size", 1)
    if not attacks or len(set(attacks)) < len(attacks):
        raise ValueError(f"expected at least one attack and none twice, got {attacks!r}")
    for name in attacks:
        choose(name, ATTACKS, "attack")
    stages = ["+".join(attacks[:i + 1]) for i in range(len(attacks))]
    masks = {stage: [] for stage in stages}
    checks = dict.fromkeys([*FLAGS.values(), "no_other_warning", "norm_kept"], True)
    with full_float32(images.device), _kept_global_state(images.device), _frozen(forward):
        for number, x, y in _blocks(forward, images, labels, batch_size, block):
            logits = _logits(forward, x, labels)
            classes = logits.shape[1]
            check_attacks(attacks, classes)
            mask = logits.argmax(1) == y
            for stage, name in zip(stages, attacks, strict=True):
                left = mask.nonzero().squeeze(1)
                if eps > 0 and len(left):
                    x_left = x[left].contiguous()
                    watched = _Watched(forward, x_left, eps, threat)
                    adversary = _adversary(watched, name, eps, threat, x.device,
                                           block_seed(seed, "autoattack", number), min(N_TARGETS, classes - 1))
                    x_adv, y_adv = adversary.run_standard_evaluation(x_left, y[left], batch_size=batch_size)
                    mask = mask.index_put((left,), (y_adv == y[left]) & ~watched.broken)
                    if watched.broken.any():
                        log.warning("%s: %d of %d images count as broken: logits or gradient are not finite", name,
                                    int(watched.broken.sum()), len(left))
                    if watched.broken.all():
                        _check_attackable(forward, x, y)
                    checks["norm_kept"] &= _legal(x_adv, x_left, eps, threat)
                    for warning in adversary.logger.warnings:
                        if "possible to use the targeted DLR" in warning:  # also said of apgd-dlr, which does not use it
                            continue
                        check = next((c for piece, c in FLAGS.items() if piece in warning), "no_other_warning")
                        checks[check] = False
                        log.debug("pyautoattack: %s", warning)
                masks[stage].append(mask)
    return AutoAttackResult({stage: torch.cat(parts).cpu() for stage, parts in masks.items()}, checks)


def checks(forward: Forward, images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int,
           threat: str = "linf", seed: int = 0) -> dict[str, bool]:
    """What must hold before a robust accuracy is believed, tried on a small batch of images; name to passed.

    inputs_in_range: the pixels use more than the lowest two of 256 values (a set scaled to [0, 1] does not);
    repeatable: two clean passes agree; eval_mode: an image's logits do not depend on its batch; logits: the outputs
    are no probabilities; gradient_nonzero: and finite, for every image; norm_kept: by PGD; stronger_not_weaker: random
    noise breaks at most as many images as one step, and one step as many as PGD, give or take one in a hundred;
    large_eps_breaks: at most a quarter of the images stand when every pixel may change by half its range (linf), or eps
    is 10 (l2).
    """
    eps = check_radius(eps, threat)
    images, labels = _tensors(forward, images, labels)
    with full_float32(images.device), _frozen(forward):
        (_, x, y), = _blocks(forward, images, labels, len(images), 0)
        logits = _logits(forward, x, y)
        half = _logits(forward, x[:(len(x) + 1) // 2], y)
        generator = torch.Generator(x.device).manual_seed(block_seed(seed, "checks", 0))
        attack = {"threat": threat, "generator": generator}

        def left(eps: float, step_size: float, steps: int) -> int:
            return int(pgd_robust_mask(forward, x, y, eps=eps, step_size=step_size, steps=steps, **attack).sum())

        x_adv = pgd(forward, x, y, eps=eps, step_size=step_size, steps=steps, **attack)
        with torch.no_grad():
            noisy = logits_of(forward, random_point(x, eps, threat, generator))
        noise_left = int((noisy.argmax(1).eq(y) & logits.argmax(1).eq(y) & finite(noisy)).sum())
        one_step, many_steps = left(eps, eps, 1), left(eps, step_size, steps)
        slack = max(1, len(x) // 100)
        large = 0.5 if threat == "linf" else 10.0
        slope = input_gradient(forward, x, y).flatten(1).abs().amax(1)
        return {
            "inputs_in_range": bool(0 <= x.min() and 1 / 255 < x.max() <= 1),
            "repeatable": _agree(logits, _logits(forward, x, y)),
            "eval_mode": _agree(logits[:len(half)], half),
            "logits": not bool(((logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-4)).all()),
            "gradient_nonzero": bool(((slope > 0) & (slope < torch.inf)).all()),
            "norm_kept": _legal(x_adv, x, eps, threat),
            "stronger_not_weaker": many_steps <= one_step + slack and one_step <= noise_left + slack,
            "large_eps_breaks": 4 * left(large, large / 4, 20) <= len(x),
        }


def _tensors(forward: Forward, images: Tensor | np.ndarray,
             labels: Tensor | np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Both as tensors, labels in int64 where they are integers; arrays and lists go to the device of the network."""
    network = forward.parameters() if isinstance(forward, nn.Module) else ()
    device = images.device if isinstance(images, Tensor) else next((p.device for p in network), torch.device("cpu"))
    images, labels = _tensor(images, "images").to(device), _tensor(labels, "labels").to(device)
    integers = labels.dtype != torch.bool and torch.can_cast(labels.dtype, torch.int64)
    return images, labels.long() if integers else labels


def _tensor(values: object, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    try:
        return torch.from_numpy(np.require(values, requirements=("C", "W")))
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected {name} as a tensor or an array, got a {type(values).__name__}: {error}") from None


def _blocks(forward: Forward, images: Tensor, labels: Tensor, batch_size: int,
            first: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Check the arguments, then yield (number, x float32 contiguous NCHW in [0, 1], y) block by block."""
    if isinstance(forward, nn.Module):
        training = next((name or "the network" for name, m in forward.named_modules() if m.training), None)
        if training is not None:
            raise ValueError(f"expected a network in eval mode, got {training} in training mode; use eval_mode(model)")
        other = next((name for name, p in forward.named_parameters() if p.dtype != torch.float32), None)
        if other is not None:
            raise ValueError(f"expected a float32 network, got {other} in {forward.get_parameter(other).dtype}; robust "
                             "accuracy is measured in float32 only")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        hint = "; use permute(0, 3, 1, 2)" if images.ndim == 4 and images.shape[-1] == 3 else ""
        raise TypeError(f"expected uint8 images of shape (N, 3, S, S), got {tuple(images.shape)} in {images.dtype}{hint}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or len(labels) == 0:
        raise TypeError(f"expected int64 labels of shape ({len(images)},), at least one, got {tuple(labels.shape)} in "
                        f"{labels.dtype}")
    batch_size, first = integer(batch_size, "batch_size", 1), integer(first, "block", 0)
    for i, start in enumerate(range(0, len(images), batch_size)):
        x = images[start:start + batch_size].float().div_(255).contiguous()
        yield first + i, x, labels[start:start + batch_size]


def _logits(forward: Forward, x: Tensor, y: Tensor) -> Tensor:
    """Logits, checked (NaN would otherwise count as a prediction of class 0); y may be the labels of more images."""
    with torch.no_grad():
        logits = logits_of(forward, x)
    if logits.dtype != torch.float32 or logits.shape[1] < 2:
        raise ValueError(f"expected float32 logits of at least 2 classes, got {logits.shape[1]} in {logits.dtype}; "
                         "evaluate a float32 copy of the network")
    if not torch.isfinite(logits).all():
        raise Diverged("expected finite logits, got NaN or infinity; check the weights")
    if y.min() < 0 or y.max() >= logits.shape[1]:
        raise ValueError(f"expected labels in 0..{logits.shape[1] - 1}, the classes of the network, got "
                         f"{int(y.min())}..{int(y.max())}; replace the head or choose the matching data")
    return logits


def _check_attackable(forward: Forward, x: Tensor, y: Tensor) -> None:
    """Refuse a network that has a finite gradient on none of the first images; asked where nothing stands."""
    if not finite(input_gradient(forward, x[:TRIED], y[:TRIED])).any():
        raise Diverged("expected finite gradients with respect to the images, got NaN or infinity on every image "
                       f"that was tried; {MEND}")


class _Watched:
    """A network for pyautoattack, to which NaN is the largest logit and no direction.

    Logits and gradients that are not finite reach it as zeros, and the image that they belong to is noted in `broken`:
    any within `eps` of the point where that happened, and the nearest (FAB looks farther).
    """

    def __init__(self, forward: Forward, images: Tensor, eps: float, threat: str) -> None:
        self.forward, self.images = forward, images.flatten(1)
        self.eps, self.p = eps, torch.inf if threat == "linf" else 2.0
        self.broken = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def __call__(self, x: Tensor) -> Tensor:
        place, x = x.detach(), x.view_as(x)  # a view, since the hook of a leaf would hold the leaf itself
        if x.requires_grad:
            x.register_hook(lambda gradient: self._cleaned(place, gradient))
        return self._cleaned(place, logits_of(self.forward, x))

    def _cleaned(self, x: Tensor, values: Tensor) -> Tensor:
        bad = ~finite(values.detach())
        if not bad.any():
            return values
        distance = torch.cdist(x[bad].flatten(1), self.images, p=self.p, compute_mode="donot_use_mm_for_euclid_dist")
        self.broken |= (distance <= distance.amin(1, keepdim=True).clamp(min=1.001 * self.eps)).any(0)
        return values.masked_fill(bad.view(-1, *[1] * (values.ndim - 1)), 0)


def _adversary(forward: Forward, name: str, eps: float, threat: str, device: torch.device, seed: int,
               targets: int = N_TARGETS):
    """pyautoattack set up for one attack; the numbers of the standard version must be set by hand for a custom list."""
    import pyautoattack
    from pyautoattack import checks as package_checks

    for key in package_checks.funcs:  # counters that are never reset: one dynamic network would mark all later ones
        package_checks.funcs[key] = 0
    adversary = pyautoattack.AutoAttack(forward, attacks=[name], device=device, eps=eps, seed=seed, version="custom",
                                        norm={"linf": "Linf", "l2": "L2"}[threat])
    adversary.apgd.n_restarts = adversary.apgd_targeted.n_restarts = adversary.fab.n_restarts = 1
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
    adversary.square.n_restarts, adversary.square.n_queries = 1, 5000
    adversary.logger = adversary.apgd.logger = adversary.apgd_targeted.logger = _WarningRecorder()
    return adversary


class _WarningRecorder:
    """Stands in for the logger of pyautoattack: keeps its warnings, passes the rest on at debug level."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def debug(self, message: str) -> None:
        log.debug("pyautoattack: %s", message)

    info = debug

    def warning(self, message: str) -> None:
        self.warnings.append(message)


def _legal(x_adv: Tensor, x: Tensor, eps: float, threat: str) -> bool:
    delta = (x_adv - x).flatten(1)
    size = delta.abs().amax() if threat == "linf" else delta.norm(dim=1).amax()
    return bool((size <= eps * (1 + 1e-5) + 1e-6) & (x_adv.min() >= 0) & (x_adv.max() <= 1))


def _agree(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


@contextmanager
def _kept_global_state(device: torch.device) -> Iterator[None]:
    """Give torch's global random states and the trace function back, which pyautoattack sets."""
    trace = sys.gettrace()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        sys.settrace(trace)


@contextmanager
def _frozen(forward: Forward) -> Iterator[None]:
    """No parameter asks for a gradient inside (FAB runs a full backward pass, which would fill them)."""
    parameters = [p for p in forward.parameters() if p.requires_grad] if isinstance(forward, nn.Module) else []
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
