"""Small drawings made of numbers: an interval as a bar, the verdicts of many claims as a strip."""

import math
from collections.abc import Iterable, Mapping

from markupsafe import Markup

from .entries import Shown

WIDTH, HEIGHT, EDGE = 132, 18, 6  # of a bar, in its own units


def extents(shown: Iterable[Shown]) -> dict[str, tuple[float, float]]:
    """Unit -> the ends of an axis that holds every effect of it, with its interval and what is claimed; of differences it is even
    about 0. What a network gains over its own start would dwarf what networks differ by: it may lie beyond."""
    out: dict[str, tuple[float, float]] = {}
    for s in sorted(shown, key=lambda s: s.effect.method == s.effect.baseline):
        if s.effect.method == s.effect.baseline and s.effect.unit in out:
            continue
        far = [abs(x - s.neutral) for x in (s.effect.value, s.effect.low, s.effect.high, s.claimed)
               if x is not None and not math.isnan(x)]
        reach = max(out.get(s.effect.unit, (0, s.neutral))[1] - s.neutral, *far)
        out[s.effect.unit] = max(0.0, s.neutral - reach) if s.neutral else -reach, s.neutral + reach
    return out


def interval(shown: Shown, extent: tuple[float, float]) -> Markup:
    """The effect as a dot on its interval, with a line at no effect and a dashed one at what is claimed; a triangle where it lies
    beyond the axis. It is hidden from screen readers: the same numbers stand beside it as text."""
    low, high = extent
    scale = (WIDTH - 2 * EDGE) / (high - low or 1)

    def x(value: float) -> str:
        return f"{EDGE + (min(max(value, low), high) - low) * scale:.1f}"

    def line(name: str, start: float, end: float, upright: bool) -> str:
        y = (1, HEIGHT - 1) if upright else (middle, middle)
        return f'<line class="{name}" x1="{x(start)}" y1="{y[0]}" x2="{x(end)}" y2="{y[1]}"/>'

    e, middle = shown.effect, HEIGHT // 2
    parts = [line("axis", low, high, False), line("zero", shown.neutral, shown.neutral, True)]
    if shown.claimed is not None:
        parts.append(line("claimed", shown.claimed, shown.claimed, True))
    if not math.isnan(e.low) and e.low < high and e.high > low:
        parts.append(line("range", e.low, e.high, False))
    if low <= e.value <= high:
        parts.append(f'<circle class="value" cx="{x(e.value)}" cy="{middle}" r="4"/>')
    else:
        tip = EDGE if e.value < low else WIDTH - EDGE
        back = tip + (9 if e.value < low else -9)
        parts.append(f'<path class="value" d="M{tip} {middle} L{back} {middle - 5} V{middle + 5} Z"/>')
    side = shown.side.partition(" ")[0]
    return Markup(f'<svg class="bar {side}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" aria-hidden="true" '
                  f'focusable="false">{"".join(parts)}</svg>')


def strip(counts: Mapping[str, int], classes: Mapping[str, str]) -> Markup:
    """Verdict -> claims as one bar of as many parts, hidden from screen readers: the counts stand beside it as text."""
    total, at, parts = sum(counts.values()) or 1, 0.0, []
    for verdict, count in counts.items():
        width = 100 * count / total
        if count:
            parts.append(f'<rect class="{classes[verdict]}" x="{at:.2f}" y="0" width="{width:.2f}" height="10"/>')
        at += width
    return Markup('<svg class="strip" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
                  f'{"".join(parts)}</svg>')
