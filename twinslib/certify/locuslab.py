"""Logs in the format of locuslab/smoothing (Cohen et al. 2019): tab-separated text, one line per image.

CERTIFY: `idx label predict radius correct time`; PREDICT: the same without radius. `predict` is -1 for an abstention, time is
H:MM:SS.ffffff or, in older logs, seconds. The format holds neither sigma nor n nor alpha: keep the votes.

Descendants add columns (SmoothAdv's PREDICT: `basePredict`, the answer without smoothing) or write True and False for
`correct`. They are read by the names of the columns; what is not known is left out.
"""

import datetime
import re
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from ..base.bounds import ceiling, check_draws
from ..base.certified import ABSTAIN, Certified
from ..base.errors import choose
from ..base.files import atomic_write

CERTIFY = ("idx", "label", "predict", "radius", "correct", "time")
PREDICT = ("idx", "label", "predict", "correct", "time")
TRUTH = {"True": 1, "False": 0}
DIGITS = 3  # significant ones of a radius
CLOCK = re.compile(r"(?:(\d+) days?, )?(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")


def round_down(radius: float, digits: int = DIGITS) -> str:
    """`radius` with at most that many significant digits, never rounded up: reading it back gives at most `radius`, and
    exactly that where so many digits are enough."""
    exact = Decimal(repr(float(radius)))
    if not exact.is_finite() or exact < 0 or digits < 1:
        raise ValueError(f"expected a finite radius of at least 0 and one digit or more, got {radius} and {digits}")
    if exact == 0:
        return "0.0"
    text = f"{exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=ROUND_DOWN):f}"
    whole, _, rest = text.partition(".")
    return f"{whole}.{rest.rstrip('0') or '0'}"


def write_log(path: str | Path, certified: Certified, *, time_format: str = "clock") -> None:
    """Write a CERTIFY log, or a PREDICT log if there are no radii, whole or not at all; radii are rounded down.

    Args:
        time_format: "clock" for H:MM:SS.ffffff, "seconds" for seconds with one digit after the point.
    Raises:
        ValueError: unknown labels (the format has no place for that), or an unknown time_format.
    """
    choose(time_format, ("clock", "seconds"), "time_format")
    if (certified.label < 0).any():
        raise ValueError("expected a label for each image, got none; pass labels when votes are collected")
    columns = PREDICT if len(certified.radius) and np.isnan(certified.radius).all() else CERTIFY
    lines = ["\t".join(columns)]
    for index, label, prediction, radius, correct, seconds in zip(
            certified.index, certified.label, certified.prediction, certified.radius, certified.correct, certified.seconds,
            strict=True):
        clock = f"{seconds:.1f}"
        if time_format == "clock":
            whole = round(float(seconds) * 1e6)
            clock = f"{whole // 3_600_000_000}:{whole // 60_000_000 % 60:02}:{whole % 60_000_000 / 1e6:09.6f}"
        radii = [round_down(radius)] if columns == CERTIFY else []
        lines.append("\t".join([str(index), str(label), str(prediction), *radii, str(int(correct)), clock]))
    atomic_write(path, lambda part: part.write_text("\n".join(lines) + "\n"))


def read_log(path: str | Path, *, sigma: float | None = None, n: int | None = None, alpha: float = 0.001,
             lower: bool = False, recompute: bool = False) -> Certified:
    """Read a log of either kind; radii come as they stand there, and the shares of time in seconds.

    Args:
        sigma, n: what the log is said to be made with, both or none: a radius that n draws cannot give at alpha is refused
            (five of the seven matched logs that locuslab ships do not fit the default alpha .001, but .01).
        lower: take the smallest radius that rounds to each entry. Logs by others round to the nearest, so an image just
            below a radius counts as certified there; ours round down and need no more.
        recompute: accept any column `correct`, which is computed from label and prediction anyhow (the logs of
            diffusion-denoised smoothing hold a running total there).
    Raises:
        FileNotFoundError: no such file.
        ValueError: a column that is missing or comes twice, a cut or doubled line, `correct` that contradicts its row, an n that
            can never certify at alpha, or radii above the ceiling.
    """
    path = Path(path)
    lines = path.read_text().splitlines()
    header = tuple(lines[0].split("\t")) if lines else ()
    if not set(PREDICT) <= set(header) or len(set(header)) < len(header) or "" in header:
        raise ValueError(f"expected {' '.join(CERTIFY)}, or the same without radius, separated by tabs and each once in the "
                         f"first line of {path.name}, got {lines[0] if lines else 'an empty file'!r}")
    if (sigma is None) != (n is None):
        raise ValueError(f"expected sigma and n, or neither, got sigma {sigma} and n {n}")
    if n is not None:
        check_draws(n, alpha)
    top = np.inf if sigma is None else ceiling(n, alpha, sigma)
    rows, seen = [], {}
    for number, line in enumerate(lines[1:], 2):
        where = f"line {number} of {path.name}"
        fields = line.split("\t")
        if len(fields) != len(header):
            raise ValueError(f"expected {len(header)} fields in {where}, got {len(fields)}; delete a line that was cut off")
        try:
            row = dict(zip(header, fields, strict=True))
            index, label, prediction = (int(row[key]) for key in ("idx", "label", "predict"))
            correct = None if recompute else int(TRUTH.get(row["correct"], row["correct"]))
            radius, least = _radius(row["radius"]) if "radius" in row else (np.nan, np.nan)
            seconds = _seconds(row["time"])
        except (ValueError, InvalidOperation) as error:
            raise ValueError(f"expected numbers in {where}, got {line!r} ({error})") from error
        if seen.setdefault(index, number) != number:
            raise ValueError(f"expected each image once, got idx {index} in line {seen[index]} and {where}; two logs are mixed")
        if correct not in (None, prediction == label):
            raise ValueError(f"expected correct to be {int(prediction == label)} in {where}, got {correct}; if it is a running "
                             "total, pass recompute=True")
        if prediction < ABSTAIN or label < 0 or radius < 0 or radius == np.inf or (prediction == ABSTAIN and radius > 0):
            raise ValueError(f"expected a class or {ABSTAIN} with radius 0, and a radius of at least 0, in {where}, got {line!r}")
        if least > top:
            raise ValueError(f"expected radii of at most {round_down(top, 4)} (sigma {sigma:g}, n {n}, alpha {alpha:g}), got "
                             f"{row['radius']} in {where}; the log is of another sigma, n or alpha")
        rows.append((index, label, prediction, least if lower else radius, seconds))
    columns = list(zip(*rows, strict=True)) or [()] * 5
    kinds = (np.int64, np.int64, np.int64, np.float64, np.float64)
    return Certified(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))


def _radius(text: str) -> tuple[float, float]:
    """The radius as written, and the smallest one that rounds to it at three significant digits."""
    value = Decimal(text)
    if value <= 0 or not value.is_finite():
        return float(value), float(value)
    half = value.adjusted() - DIGITS - (value == Decimal(1).scaleb(value.adjusted()))  # the grid is finer below 0.1, 1, ...
    return float(value), float(value - Decimal(5).scaleb(half))


def _seconds(text: str) -> float:
    clock = CLOCK.fullmatch(text)
    if clock is None:
        return float(text)
    days, hours, minutes, seconds = clock.groups()
    return datetime.timedelta(days=int(days or 0), hours=int(hours), minutes=int(minutes)).total_seconds() + float(seconds)
