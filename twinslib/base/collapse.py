"""Whether a run lost its robustness while it trained, or never had any, read off its validation images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

NEVER = "never robust"


@dataclass(frozen=True)
class Collapse:
    """What happened and the epoch in which it was seen; str() says it in words."""

    kind: str  # at once, slowly or never robust
    epoch: int  # of the measurement `low`; of a run that was never robust, of its best one
    high: float  # robust accuracy before and after, in [0, 1]; where there was no fall the best of all, twice
    low: float

    def __str__(self) -> str:
        if self.kind == NEVER:
            return f"was never robust: at most {100 * self.high:.1f} % on validation images"
        how = "in epoch {}, as in catastrophic overfitting" if self.kind == "at once" else "slowly, by epoch {}"
        return (f"lost its robustness {how.format(self.epoch)}: on validation images it fell from {100 * self.high:.1f} to "
                f"{100 * self.low:.1f} %")


def collapsed(rows: Sequence[dict], *, images: int = 500, classes: int = 10) -> Collapse | None:
    """The first loss of robustness of a run, "never robust" where there was none to lose, None where all is well.

    Lost is at least half of the best robust accuracy so far: "at once" if half of the measurement just before went too,
    as in catastrophic overfitting (Wong, Rice and Kolter 2020, whose code looks for a fall of 20 points on a training batch;
    networks that never reach much need a relative bound), otherwise "slowly". Robust overfitting that takes less is not meant.
    Against the noise of few images, a best counts from two standard errors above chance on, a fall from three of the difference
    on. A run that still trains can be "never robust" because it has not begun to be.

    Args:
        rows: per-epoch rows; looked at is `val_robust_acc`, PGD on validation images, and without it the answer is None.
        images, classes: how many validation images and classes there are.
    """
    measured = [(row["val_robust_acc"], row["epoch"]) for row in rows if "val_robust_acc" in row]
    if not measured:
        return None
    chance = 1 / classes
    floor = chance + 2 * math.sqrt(chance * (1 - chance) / images)
    best = before = 0.0
    for now, epoch in measured:
        mean = (best + now) / 2
        noise = 3 * math.sqrt(2 * mean * (1 - mean) / images)
        if best > floor and now <= best / 2 and best - now > noise:
            at_once = now <= before / 2
            return Collapse("at once" if at_once else "slowly", epoch, before if at_once else best, now)
        best, before = max(best, now), now
    if best > floor:
        return None
    return Collapse(NEVER, next(epoch for now, epoch in measured if now == best), best, best)
