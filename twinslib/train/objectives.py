"""What is minimised, as functions of logits; wings are slices of the batch with weights.

Sources: TWINS (arXiv 2303.11135) and its official code; TRADES (arXiv 1901.08573).
"""

import torch
import torch.nn.functional as F

from ..specs.method import MethodSpec


def kl_sum(clean_logits: torch.Tensor, adv_logits: torch.Tensor) -> torch.Tensor:
    """KL(p(x) || p(x')) summed over the images; gradients flow through both sides, as in the official code.

    In logarithms: where a probability underflows to 0, the gradient with respect to it would be NaN.
    """
    return F.kl_div(F.log_softmax(adv_logits, 1), F.log_softmax(clean_logits, 1), reduction="sum", log_target=True)


def _wing_loss(method: MethodSpec, logits: dict[str, torch.Tensor], y: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The loss of one wing, of a batch of so many images in all."""
    loss = F.cross_entropy(logits["adversarial" if method.objective == "at" else "clean"], y)
    if method.objective != "trades":
        return loss
    divisor = batch_size if method.kl_divisor == "batch" else len(y)
    return loss + method.trades_beta * (kl_sum(logits["clean"], logits["adversarial"]) / divisor)


def split_wings(method: MethodSpec, batch_size: int) -> tuple[int, list[tuple[slice, float]]]:
    """How many first images take the second branch, and the (slice, weight) of each half that gets any image.

    TWINS splits the batch, it does not copy it (official code: first half frozen, second half adaptive); with an odd
    batch the adaptive wing gets the extra image, a batch of one goes to the adaptive wing alone. Controls with other
    branches split alike.

    >>> split_wings(MethodSpec(name="twins_at", wings="twins", twins_weight=0.4), 9)
    (4, [(slice(0, 4, None), 0.4), (slice(4, 9, None), 1.0)])
    """
    if not method.halves:
        return 0, [(slice(0, batch_size), 1.0)]
    first = batch_size // 2
    parts = [(slice(0, first), method.twins_weight), (slice(first, batch_size), 1.0)]
    scale = 1 + method.twins_weight if method.normalize_loss else 1.0
    return first if method.two_branches else 0, [(part, weight / scale) for part, weight in parts if part.stop > part.start]


def wing_losses(method: MethodSpec, logits: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    """The weighted loss of each half that gets any image, in their order, shape (1,) or (2,); their sum is minimised (TWINS
    official code: lambda * frozen + adaptive, not normalised)."""
    return torch.stack([w * _wing_loss(method, {k: v[part] for k, v in logits.items()}, y[part], len(y))
                        for part, w in split_wings(method, len(y))[1]])
