"""Frames as Markdown tables."""

import math

import pandas as pd


def to_markdown(frame: pd.DataFrame) -> str:
    """The frame as a Markdown table, without its index; columns are padded so that the source reads well too."""
    cells = [[str(c) for c in frame.columns], *([_text(v) for v in row] for row in frame.itertuples(index=False))]
    cells = [[c.replace("|", "\\|").replace("\n", " ") for c in row] for row in cells]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(frame.columns))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _text(value: object) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
