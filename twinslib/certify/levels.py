"""Noise on whole 8-bit levels: certificates that hold for the arithmetic that is run.

Why. In floating point x + e is no Gaussian around x: the low-order bits of a sum tell where x was. So a network can answer one
class under noise at x and another at x', both always, though x' lies well within the radius that the votes at x would prove of
exact numbers (Voracek and Hein, ICLR 2023, arXiv 2207.07209).

What is drawn. Pixels are whole numbers v in 0..255, noise is whole numbers J, and the network is given (v + J) / 255. The sum
is exact, so whatever is rounded after it, the answer is some function F of v + J and tells nothing else of v. Let E be exact
Gaussian noise of standard deviation s = 255 sigma and Q the rounding to the nearest whole number.

Proof. F(Q(.)) is a classifier of real images. If P(F(Q(v + E)) = c) >= p > 1/2 then, by theorem 1 of Cohen et al. (2019),
P(F(Q(v' + E)) = c) >= Phi(Phi^-1(p) - r / sigma) for every v' at a distance r (in [0, 1] pixels). For whole numbers v,
Q(v + E) = v + Q(E), but for ties, which have probability 0: so it is a statement about sums with the whole numbers Q(E). Their
components are independent, j with probability Phi((j + 1/2) / s) - Phi((j - 1/2) / s). `Levels` draws J from integer weights that
differ from these by at most `distance` in total variation for one component, hence by D = d distance for all d of an image.
Votes are drawn with probability p' = P(F(v + J) = c) <= P(F(v + Q(E)) = c) + D, and at v' what is run answers c with
probability at least Phi(Phi^-1(p' - D) - r / sigma) - D. That is at least 1/2 for r up to
sigma (Phi^-1(p' - D) - Phi^-1(1/2 + D)), which is at least sigma Phi^-1(p' - 2 D), since Phi^-1 is convex above 1/2. A sound
plan takes `sequential.UNEVEN` >= 2 D off each bound.

So: within the radius, for every image of whole levels, the smoothed classifier with the noise that is run has the same answer,
with probability at least 1 - alpha. What is left to trust are the random bits, and that the network answers an input in the
same way in any batch (`fingerprint` asks).
"""

import decimal
from decimal import Decimal
from functools import lru_cache

import torch
from torch import Tensor

from ..base.sequential import UNEVEN

BITS = 63  # of a random integer
REACH = Decimal("9.2")  # standard deviations; less than 2^-63 lies beyond
PI = Decimal("3.14159265358979323846264338327950288419716939937510")


class Levels:
    """Draws Gaussian noise rounded to whole 8-bit levels, on one device.

    Each component takes one random integer of 63 bits and two tables (Walker's alias method, with integer weights, so nothing
    is rounded once the weights stand).

    Args:
        sigma: standard deviation in [0, 1] pixels.
        size: numbers in an image.
    Raises:
        ValueError: an image too large for `UNEVEN`.
    """

    def __init__(self, sigma: float, size: int, device: torch.device) -> None:
        values, counts = weights(sigma)
        self.distance = (len(values) + 1) * 2.0 ** -BITS
        if 2 * size * self.distance > UNEVEN:
            raise ValueError(f"expected images of at most {int(UNEVEN / 2 / self.distance):,} numbers for a sound plan of sigma "
                             f"{sigma:g}, got {size:,}; use a smaller sigma or smaller images")
        self.column_bits = max(len(values) - 1, 1).bit_length()
        own, other, threshold = alias(values, counts, self.column_bits)
        self.threshold = torch.tensor(threshold, device=device)
        self.outcome = torch.tensor([other, own], dtype=torch.float32, device=device).T.flatten()

    def fill(self, out: Tensor, generator: torch.Generator) -> None:
        """Put independent noise into `out`, float32, in levels."""
        bits = torch.empty(out.shape, dtype=torch.int64, device=out.device).random_(generator=generator)
        column = bits & (2 ** self.column_bits - 1)
        own = bits.bitwise_right_shift_(self.column_bits) < self.threshold.take(column)
        out.copy_(self.outcome.take(column.mul_(2).add_(own)))


@lru_cache(maxsize=16)
def weights(sigma: float) -> tuple[list[int], list[int]]:
    """Levels and their integer weights, which add up to 2^63: each is that of the rounded Gaussian, rounded down; what is left
    over, and what lies beyond the last, is given to 0.

    So the two distributions differ by less than (levels + 1) / 2^63 in total variation.
    """
    with decimal.localcontext(prec=50):
        s = 255 * Decimal(sigma)
        last = int(REACH * s) + 1
        above = [_normal((j + Decimal("0.5")) / s) for j in range(last + 1)]
        counts = [int((b - a) * 2 ** BITS) for a, b in zip(above, above[1:], strict=False)]
    counts = counts[::-1] + [2 ** BITS - 2 * sum(counts)] + counts
    return list(range(-last, last + 1)), counts


def _normal(x: Decimal) -> Decimal:
    """Phi(x) - 1/2 for x >= 0: the density times x + x^3 / 3 + x^5 / 15 + ..., a series of positive terms."""
    term = total = x
    k = 1
    while term > total * Decimal("1e-45"):
        k += 2
        term *= x * x / k
        total += term
    return total * (-x * x / 2).exp() / (2 * PI).sqrt()


def alias(values: list[int], counts: list[int], column_bits: int) -> tuple[list[int], list[int], list[int]]:
    """2^column_bits columns (own value, other value, how much of the column is the own one's), of equal integer height, that hold
    each value as often as its count; counts add up to 2^63."""
    columns, height = 2 ** column_bits, 2 ** (BITS - column_bits)
    own = values + [0] * (columns - len(values))
    left, other, threshold = counts + [0] * (columns - len(counts)), list(own), [height] * columns
    small = [i for i, count in enumerate(left) if count < height]
    large = [i for i, count in enumerate(left) if count >= height]
    while small and large:
        i, j = small.pop(), large.pop()
        threshold[i], other[i] = left[i], own[j]
        left[j] -= height - left[i]
        (small if left[j] < height else large).append(j)
    assert not small, "counts that add up fill the columns exactly"
    return own, other, threshold
