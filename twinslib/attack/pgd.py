"""Projected gradient descent on images, in [0, 1] pixel units, for training and for evaluation.

An attack needs a `forward`, any callable from images to logits, and nothing else: which network, which branch of its
norms, folded or not, is the caller's business. Gradients are taken with respect to the images only, so parameter
gradients are never touched; `eval_mode` keeps running statistics untouched as well.
"""

import logging
import math
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import choose, integer
from ..specs.choices import LOSSES, check_radius, check_step_size

log = logging.getLogger(__name__)
Forward = Callable[[Tensor], Tensor]


def pgd(forward: Forward, x: Tensor, y: Tensor, *, eps: float, step_size: float, steps: int, threat: str = "linf",
        loss: str = "ce", random_start: bool = True, generator: torch.Generator | None = None) -> Tensor:
    """Last iterate of projected gradient ascent: within `eps` of x and within [0, 1], not always the worst iterate.

    Madry et al. 2018, as the official TWINS code runs it: random start in the ball, clip; then `steps` times a step of
    `step_size` along the sign of the gradient (linf) or the unit gradient (l2), project, clip. Nothing here waits for
    the device. eps 0 or steps 0 return x itself. Where a gradient is not finite the image becomes NaN, and with it the
    loss: it must not pass for an image that was attacked.

    >>> x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    >>> pgd(lambda x: x.flatten(1), x, y, eps=0.25, step_size=0.25, steps=1, random_start=False)
    tensor([[[[0.2500, 0.7500]]]])

    Args:
        forward: images (B, C, H, W) in [0, 1] to logits (B, K); its parameters should be frozen, its norms in eval.
        x: clean images, float32 (float64 for checks), shape (B, C, H, W), in [0, 1]; the range is not checked.
        y: true labels, int64, shape (B,).
        eps, step_size: radius of the ball and length of one step, in pixel units, measured in `threat`, "linf" or "l2".
        loss: what is ascended, "ce" (cross-entropy), "kl" (TRADES: KL from the clean softmax) or "margin" (largest
            wrong logit minus the true one).
        random_start: start at `random_point`; "kl" needs it, its gradient at x is zero.
        generator: source of the start, on the device of x; required with random_start.
    Returns:
        x_adv, detached, with shape, type and device of x.
    Raises:
        ValueError, TypeError: an argument out of range, an unknown name, shapes that do not fit, a network that returns
            anything but logits, or logits without a gradient with respect to the images.
    """
    choose(loss, LOSSES, "loss")
    if loss == "kl" and not random_start:
        raise ValueError("expected random_start=True with loss 'kl', got False; at x itself the gradient is zero")
    eps, step_size, steps = _check_arguments(forward, x, y, eps, step_size, steps, threat, random_start, generator)
    x = x.detach()
    if eps == 0 or steps == 0:
        return x
    reference = _clean_logits(forward, x) if loss == "kl" else None
    x_adv = random_point(x, eps, threat, generator) if random_start else x
    for _ in range(steps):
        _, gradient = _logits_and_gradient(forward, x_adv, y, loss, reference)
        x_adv = ascend(x_adv, gradient, x, eps, step_size, threat)
    return x_adv


def pgd_robust_mask(forward: Forward, x: Tensor, y: Tensor, *, eps: float, step_size: float, steps: int,
                    restarts: int = 1, threat: str = "linf", generator: torch.Generator) -> Tensor:
    """True where the prediction stays right on the clean image and on every iterate of every restart; bool, (B,), on the
    device of x. The attack is `pgd` on the cross-entropy from random starts, with the same arguments.

    The worst case over all iterates, so at most the accuracy at `pgd`'s last iterate. An image leaves the batch soon
    after it is broken (when half of the batch is), and the logits that give the gradient also give the verdict: the
    only additional forward passes are one on the clean images and one on each restart's last iterate. Starting noise
    is drawn for the whole batch, so that it does not depend on the network. An image whose logits or gradient are not
    finite at any iterate counts as broken: it was not attacked, so nothing shows that it is robust.
    """
    eps, step_size, steps = _check_arguments(forward, x, y, eps, step_size, steps, threat, True, generator)
    restarts = integer(restarts, "restarts", 1)
    x = x.detach()
    robust = _right(_clean_logits(forward, x), y)
    if eps == 0 or steps == 0:
        return robust
    lost = torch.zeros((), dtype=torch.int64, device=x.device)  # images that only a gradient broke
    for _ in range(restarts):
        start = random_point(x, eps, threat, generator)
        keep = robust.nonzero().squeeze(1)
        x_now, y_now, x_adv, alive = x[keep], y[keep], start[keep], robust[keep]
        for _ in range(steps):
            if len(keep) == 0:
                break
            logits, gradient = _logits_and_gradient(forward, x_adv, y_now)
            right = alive & _right(logits, y_now)
            alive = right & finite(gradient)
            lost += (right & ~alive).sum()
            x_adv = ascend(x_adv, gradient, x_now, eps, step_size, threat)
            if 2 * int(alive.sum()) <= len(alive):
                robust[keep] = alive
                still = alive.nonzero().squeeze(1)
                keep, x_now, y_now, x_adv, alive = keep[still], x_now[still], y_now[still], x_adv[still], alive[still]
        if len(keep):
            robust[keep] = alive & _right(_clean_logits(forward, x_adv), y_now)
    if lost:
        log.warning("%d of %d images count as broken: their gradient is not finite", int(lost), len(x))
    return robust


def random_point(x: Tensor, eps: float, threat: str, generator: torch.Generator) -> Tensor:
    """A random point within `eps` of each image, clipped to [0, 1]: where `pgd` starts.

    linf: uniform in the box; l2: Gaussian direction, uniform radius.
    """
    eps, kind = check_radius(eps, threat), {"generator": generator, "device": x.device, "dtype": x.dtype}
    if threat == "linf":
        return (x + torch.rand(x.shape, **kind).mul_(2).sub_(1).mul_(eps)).clamp_(0, 1)
    direction = _unit(torch.randn(x.shape, **kind))
    radius = torch.rand(len(x), **kind).mul_(eps).view(-1, 1, 1, 1)
    return (x + direction * radius).clamp_(0, 1)


def input_gradient(forward: Forward, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each image's cross-entropy with respect to its own pixels, shape of x; all zero means a masked gradient.

    `forward` must treat the images independently of each other, as a network in eval mode does.
    """
    return _logits_and_gradient(forward, x, y)[1]


def logits_of(forward: Forward, x: Tensor) -> Tensor:
    """forward(x), refused unless it is a tensor with a row of logits for each image."""
    logits = forward(x)
    if not isinstance(logits, Tensor):
        raise TypeError(f"expected the network to return logits alone, got a {type(logits).__name__}; wrap it, for example "
                        "lambda x: model(x)[0]")
    if logits.shape[:-1] != x.shape[:1]:
        raise ValueError(f"expected logits of shape ({len(x)}, classes), got {tuple(logits.shape)}")
    return logits


def finite(values: Tensor) -> Tensor:
    """True for each image all of whose values are finite; values (B, ...), result bool (B,).

    >>> finite(torch.tensor([[1.0, 2.0], [1.0, float("nan")]]))
    tensor([ True, False])
    """
    return values.mul(0).flatten(1).sum(1) == 0  # 0 times NaN or infinity is NaN; far cheaper than isfinite on a CPU


def _clean_logits(forward: Forward, x: Tensor) -> Tensor:
    with torch.no_grad():
        return logits_of(forward, x).detach()


def _right(logits: Tensor, y: Tensor) -> Tensor:
    """True where y is predicted; never with a logit that is not finite (argmax takes NaN for the largest)."""
    return (logits.argmax(1) == y) & finite(logits)


def _logits_and_gradient(forward: Forward, x: Tensor, y: Tensor, loss: str = "ce",
                         reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits (detached) and the gradient of the summed loss: a sum, so that no image's share shrinks with the batch."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = logits_of(forward, x)
        value = _loss(logits, y, loss, reference)
        gradient, = torch.autograd.grad(value, x, allow_unused=True) if value.requires_grad else (None,)
    if gradient is None:
        raise ValueError("expected logits with a gradient with respect to the images, got none; call it outside "
                         "torch.inference_mode, and without no_grad or detach in the network")
    return logits.detach(), gradient


def _loss(logits: Tensor, y: Tensor, loss: str, reference: Tensor | None) -> Tensor:
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if loss == "ce":
        return F.cross_entropy(logits, y, reduction="sum")
    if loss == "kl":
        target = reference.to(logits.dtype).log_softmax(1)
        return F.kl_div(logits.log_softmax(1), target, reduction="sum", log_target=True)
    true = y.unsqueeze(1)
    return (logits.scatter(1, true, -math.inf).amax(1) - logits.gather(1, true).squeeze(1)).sum()


def ascend(x_adv: Tensor, gradient: Tensor, x: Tensor, eps: float, step_size: float, threat: str) -> Tensor:
    """One ascent step from x_adv, projected onto the ball around x, then onto [0, 1] (which keeps it in the ball).

    A pixel (linf) or an image (l2) whose gradient is not finite becomes NaN.
    """
    if threat == "linf":
        direction = gradient.sign().add_(gradient, alpha=0)  # the sign of NaN is 0: as if nothing could be gained
        return x_adv.add(direction, alpha=step_size).clamp(x - eps, x + eps).clamp_(0, 1)
    delta = x_adv.add(_unit(gradient), alpha=step_size).sub_(x)
    return (x + delta * (eps / _norm(delta)).clamp(max=1)).clamp_(0, 1)


def _norm(v: Tensor) -> Tensor:
    """L2 norm of each image, shape (B, 1, 1, 1), at least the smallest normal number."""
    return v.flatten(1).norm(dim=1).clamp(min=torch.finfo(v.dtype).tiny).view(-1, 1, 1, 1)


def _unit(v: Tensor) -> Tensor:
    """v over its L2 norm, image by image; scaled by its largest entry first, so that tiny gradients do not vanish."""
    largest = v.flatten(1).abs().amax(1).clamp(min=torch.finfo(v.dtype).tiny).view(-1, 1, 1, 1)
    v = v / largest
    return v / _norm(v)


def _check_arguments(forward: Forward, x: Tensor, y: Tensor, eps: float, step_size: float, steps: int, threat: str,
                     random_start: bool, generator: torch.Generator | None) -> tuple[float, float, int]:
    """Refuse what does not fit; (eps, step_size, steps) as plain numbers."""
    eps = check_radius(eps, threat)
    step_size, steps = check_step_size(step_size, threat), integer(steps, "steps", 0)
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"expected {name} to be a tensor, got a {type(value).__name__}; use torch.as_tensor")
    if x.ndim != 4 or x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected x of shape (B, C, H, W) in float32, got {tuple(x.shape)} in {x.dtype}; "
                        "divide uint8 images by 255 first")
    if y.shape != x.shape[:1] or y.dtype != torch.int64 or y.device != x.device:
        raise TypeError(f"expected y of shape ({len(x)},) in int64 on {x.device}, got {tuple(y.shape)} in {y.dtype} on "
                        f"{y.device}")
    if random_start and eps > 0 and steps > 0:
        if generator is None:
            raise ValueError(f"expected a torch.Generator on {x.device} for the random start, got None; "
                             "pass generator, or random_start=False")
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"expected a torch.Generator, got {generator!r}; use torch.Generator().manual_seed(0)")
        if generator.device.type != x.device.type:
            raise ValueError(f"expected a generator on {x.device}, the device of x, got one on {generator.device}")
    if isinstance(forward, nn.Module) and forward.training:
        warnings.warn("expected a network in eval mode, got one in training mode: attacking it moves the running "
                      "statistics of its norms; use eval_mode(model)", stacklevel=3)
    return eps, step_size, steps
