"""What a reader finds in a figure: the marks of a panel, its words, and whether all of it can be read."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text


def drawn(ax: Axes, look: dict | None = None) -> list[list[tuple[float, float]]]:
    """Places of the marks of each line with markers or intervals, rounded; of those in the colour of `look`."""
    lines = [c.lines[0] for c in ax.containers]
    return [[(round(float(x), 3), round(float(y), 3)) for x, y in line.get_xydata()] for line in lines
            if look is None or to_hex(line.get_color()) == to_hex(look["color"])]


def intervals(ax: Axes) -> list[tuple[float, float]]:
    """Ends of all intervals of a panel, whichever axis they lie along."""
    segments = [s for c in ax.containers for bars in c.lines[2] for s in bars.get_segments() if len(s) and np.isfinite(s).all()]
    return [tuple(np.round(s[:, 0] if s[0, 1] == s[1, 1] else s[:, 1], 3).tolist()) for s in segments]


def words(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text) if text.get_text()]


def assert_legible(fig: Figure, size: float = 7) -> None:
    """It is no wider than a page, no text is below `size` points or leaves it, and no two texts touch."""
    fig.draw_without_rendering()
    texts = [*fig.texts]
    for ax in fig.axes:
        ticks = [t for axis in (ax.xaxis, ax.yaxis) for t in axis.get_major_ticks()
                 if min(axis.get_view_interval()) <= t.get_loc() <= max(axis.get_view_interval())]
        texts += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts, *(t.label1 for t in ticks if ax.axison)]
    texts += [text for legend in fig.legends for text in legend.get_texts()]
    boxes = {t: Text.get_window_extent(t) for t in texts if t.get_text() and t.get_visible()}  # of the text, not its arrow
    assert fig.get_figwidth() <= 7 and min(t.get_fontsize() for t in boxes) >= size
    for box in boxes.values():
        assert -0.5 <= box.x0 and box.x1 <= fig.bbox.x1 + 0.5 and -0.5 <= box.y0 and box.y1 <= fig.bbox.y1 + 0.5
    touching = [(a.get_text(), b.get_text()) for (a, first), (b, second) in itertools.combinations(boxes.items(), 2)
                if first.padded(-1).overlaps(second.padded(-1))]
    assert not touching
