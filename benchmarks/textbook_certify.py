"""CERTIFY as one would write it down first: one image at a time, all draws, one wait for the device per batch.

Ordinary good PyTorch: no gradients, the count is vectorised. It shares no code with twinslib.
"""

import torch
from scipy import stats
from torch import nn


class TextbookCertifier:
    """Algorithm CERTIFY of Cohen, Rosenfeld and Kolter (2019).

    Args:
        model: images (B, 3, S, S) in [0, 1] to logits, in eval mode.
        sigma: standard deviation of the noise.
    """

    def __init__(self, model: nn.Module, sigma: float, num_classes: int, batch_size: int = 400) -> None:
        self.model, self.sigma, self.num_classes, self.batch_size = model, sigma, num_classes, batch_size

    @torch.no_grad()
    def count(self, x: torch.Tensor, n: int) -> torch.Tensor:
        """Votes (C,) of n noisy copies of one image (3, S, S)."""
        counts = torch.zeros(self.num_classes, dtype=torch.int64)
        while n > 0:
            size = min(self.batch_size, n)
            n -= size
            batch = x.repeat(size, 1, 1, 1)
            predictions = self.model(batch + torch.randn_like(batch) * self.sigma).argmax(1)
            counts += predictions.bincount(minlength=self.num_classes).cpu()
        return counts

    def certify(self, x: torch.Tensor, n0: int, n: int, alpha: float) -> tuple[int, float]:
        """(class, radius), or (-1, 0.0) for an abstention."""
        choice = int(self.count(x, n0).argmax())
        votes = int(self.count(x, n)[choice])
        low = stats.beta.ppf(alpha, votes, n - votes + 1) if votes else 0.0
        return (choice, float(self.sigma * stats.norm.ppf(low))) if low > 0.5 else (-1, 0.0)
