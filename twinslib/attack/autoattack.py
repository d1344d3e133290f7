"""The standard suite of AutoAttack image by image, and checks that an attack can be believed."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..base.errors import choose, integer
from ..nets.arithmetic import full_float32
from ..specs.choices import check_radius
from ..specs.strength import PARTS, STANDARD
from .masks import block_seed, blocks, check_attackable, clean_logits, frozen, log, tensors
from .pgd import Forward, finite, input_gradient, logits_of, pgd, pgd_robust_mask, random_point

N_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}  # as many logits stand in their losses; all others need two classes
FLAGS = {  # a piece of each warning of pyautoattack, and the check that it fails
    "randomized defense": "repeatable",
    "probability distribution": "logits",
    "zero gradient": "gradient_nonzero",
    "dynamic defense": "no_gradient_in_forward",
}


def check_attacks(attacks: Sequence[str], classes: int, what: str = "the network") -> None:
    """Refuse parts of AutoAttack that cannot run on so few classes; `what` says whose they are."""
    impossible = [name for name in attacks if classes < N_CLASSES.get(name, 2)]
    if impossible:
        needed = max(N_CLASSES.get(name, 2) for name in impossible)
        others = [name for name in STANDARD if classes >= N_CLASSES.get(name, 2)]
        raise ValueError(f"expected at least {needed} classes of {what} for {', '.join(impossible)}, got {classes}; "
                         f"attack with {', '.join(others) or 'nothing'}, or take more classes")


def autoattack_masks(forward: Forward, images: Tensor, labels: Tensor, *, eps: float, threat: str = "linf",
                     attacks: Sequence[str] | str = STANDARD, seed: int = 0, batch_size: int,
                     block: int = 0) -> dict[str, Tensor]:
    """AutoAttack (Croce and Hein 2020) with the numbers of its standard version: 1 restart, 9 targets, 5,000 queries.

    Each attack sees the images that all earlier ones left standing, so the masks of ("apgd-ce", "apgd-t", "fab-t",
    "square") are those of the standard version; only the seed differs, one per block here. With fewer than 10 classes
    all wrong ones are targets, and the attack keeps its name. Torch's global random state and the trace function, which
    pyautoattack resets, come out as they went in. What pyautoattack warns of, and an adversarial image that is not
    legal, is logged as a check that was not passed.

    See `clean_mask` for images, labels and errors, `pgd_mask` for seed, batch_size and block.

    Args:
        attacks: names in the order in which they run, from `PARTS`.
    Returns:
        masks: bool, shape (N,), on the CPU, for "apgd-ce", "apgd-ce+apgd-t", and so on.
    Raises:
        ValueError: also for an attack that cannot run on so few classes (`check_attacks`).
    """
    eps = check_radius(eps, threat)
    attacks = (attacks,) if isinstance(attacks, str) else tuple(map(str, attacks))
    images, labels = tensors(forward, images, labels)
    batch_size = integer(batch_size, "batch_size", 1)
    if not attacks or len(set(attacks)) < len(attacks):
        raise ValueError(f"expected at least one attack and none twice, got {attacks!r}")
    for name in attacks:
        choose(name, PARTS, "attack")
    masks = {"+".join(attacks[:i + 1]): [] for i in range(len(attacks))}
    failed: dict[str, None] = {}  # a set in order
    with full_float32(images.device), _kept_global_state(images.device), frozen(forward):
        for number, x, y in blocks(forward, images, labels, batch_size, block):
            logits = clean_logits(forward, x, labels)
            check_attacks(attacks, logits.shape[1])
            mask = logits.argmax(1) == y
            for stage, name in zip(masks, attacks, strict=True):
                left = mask.nonzero().squeeze(1)
                if eps > 0 and len(left):
                    x_left = x[left].contiguous()
                    watched = _Watched(forward, x_left, eps, threat)
                    adversary = _adversary(watched, name, eps, threat, x.device, block_seed(seed, "autoattack", number),
                                           logits.shape[1])
                    x_adv, y_adv = adversary.run_standard_evaluation(x_left, y[left], batch_size=batch_size)
                    mask = mask.index_put((left,), (y_adv == y[left]) & ~watched.broken)
                    if watched.broken.any():
                        log.warning("%s: %d of %d images count as broken: logits or gradient are not finite", name,
                                    int(watched.broken.sum()), len(left))
                    if watched.broken.all():
                        check_attackable(forward, x, y)
                    if not _legal(x_adv, x_left, eps, threat):
                        failed["norm_kept"] = None
                    for warning in adversary.logger.warnings:
                        if "possible to use the targeted DLR" not in warning:  # also said of apgd-dlr, which does not use it
                            failed[next((c for piece, c in FLAGS.items() if piece in warning), "no_other_warning")] = None
                            log.debug("pyautoattack: %s", warning)
                masks[stage].append(mask)
    if failed:
        log.warning("autoattack on block %d: not passed: %s", block, ", ".join(failed))
    return {stage: torch.cat(parts).cpu() for stage, parts in masks.items()}


def checks(forward: Forward, images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int,
           threat: str = "linf", seed: int = 0) -> dict[str, bool]:
    """What must hold before a robust accuracy is believed, tried on a small batch of images; name to passed.

    inputs_in_range: the pixels use more than the lowest two of 256 values (a set scaled to [0, 1] does not); repeatable: two
    clean passes agree; eval_mode: an image's logits do not depend on its batch; logits: the outputs are no probabilities;
    gradient_nonzero: and finite, for every image; norm_kept: by PGD; stronger_not_weaker: random noise breaks at most as many
    images as one step, and one step as many as PGD, give or take one in a hundred; large_eps_breaks: at most a quarter of the
    images stand when every pixel may change by half its range (linf), or eps is 10 (l2).
    """
    eps = check_radius(eps, threat)
    images, labels = tensors(forward, images, labels)
    with full_float32(images.device), frozen(forward):
        (_, x, y), = blocks(forward, images, labels, len(images), 0)
        logits = clean_logits(forward, x, y)
        half = clean_logits(forward, x[:(len(x) + 1) // 2], y)
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
            "repeatable": _agree(logits, clean_logits(forward, x, y)),
            "eval_mode": _agree(logits[:len(half)], half),
            "logits": not bool(((logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-4)).all()),
            "gradient_nonzero": bool(((slope > 0) & (slope < torch.inf)).all()),
            "norm_kept": _legal(x_adv, x, eps, threat),
            "stronger_not_weaker": many_steps <= one_step + slack and one_step <= noise_left + slack,
            "large_eps_breaks": 4 * left(large, large / 4, 20) <= len(x)
        }


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


def _adversary(forward: Forward, name: str, eps: float, threat: str, device: torch.device, seed: int, classes: int = 10):
    """pyautoattack set up for one attack; the numbers of the standard version must be set by hand for a custom list."""
    import pyautoattack
    from pyautoattack import checks as package_checks

    for key in package_checks.funcs:  # counters that are never reset: one dynamic network would mark all later ones
        package_checks.funcs[key] = 0
    adversary = pyautoattack.AutoAttack(forward, attacks=[name], device=device, eps=eps, seed=seed, version="custom",
                                        norm={"linf": "Linf", "l2": "L2"}[threat])
    adversary.apgd.n_restarts = adversary.apgd_targeted.n_restarts = adversary.fab.n_restarts = 1
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, classes - 1)
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
