"""How an error says what a name or a number should have been; knows nothing of the rest of the package."""

import difflib
import numbers
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

Number = TypeVar("Number", int, float)


def shown(value: object, most: int = 200) -> str:
    """`repr` for a message: of many characters the first few, of an integer too long to be written what it is."""
    try:
        text = repr(value)
    except ValueError:
        return "an integer of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The end of a message, "; did you mean 'at'?", with the closest of the known names; empty if none is close."""
    close = difflib.get_close_matches(str(value), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def choose(value: str, legal: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `legal`, else raise a ValueError that lists them and guesses what was meant.

    >>> choose("tades", ["at", "trades"], "method")
    Traceback (most recent call last):
    ValueError: expected method to be one of at, trades, got 'tades'; did you mean 'trades'?
    """
    legal = list(legal)
    if value in legal:
        return value
    raise ValueError(f"expected {what} to be one of {', '.join(legal) or 'none'}, got {shown(value)}{did_you_mean(value, legal)}")


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message: a, b, c and 2 more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def check_keys(values: dict, legal: Sequence[str], where: str, needed: Sequence[str] = ()) -> None:
    """Refuse what is no mapping, has other keys than the legal ones, or lacks a needed one."""
    if not isinstance(values, dict):
        raise TypeError(f"expected a mapping for {where}, got {shown(values)}")
    for key in values:
        choose(key, legal, f"key of {where}")
    missing = [key for key in needed if key not in values]
    if missing:
        raise ValueError(f"expected {', '.join(missing)} in {where}, got only {', '.join(values) or 'nothing'}")


def real(value: object, name: str) -> float:
    """`value`, a number of Python, NumPy or torch, as a float; short floats as they are written, so float32(0.1) is 0.1.
    TypeError: text, a truth value, an array, nothing."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool | np.generic):
        return float(value)
    number = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if number.ndim or number.dtype.kind not in "iuf":
        raise TypeError(f"expected {name} to be a number, got {value!r}")
    return float(str(number[()])) if number.dtype.itemsize < 8 else float(number)


def integer(value: object, name: str, least: int | None = None) -> int:
    """`value`, an integer of Python, NumPy or torch, as an int. TypeError: anything else, also 100.0 and True. ValueError: less
    than `least`."""
    bound = "" if least is None else f" of at least {least}"
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"expected {name} to be an integer{bound}, got {value!r}; write one without a point") from None
    if least is not None and number < least:
        raise ValueError(f"expected {name} to be an integer{bound}, got {value!r}")
    return number


def each(kind: Callable[[object, str], Number]) -> Callable[[object, str], tuple[Number, ...]]:
    """A sequence of such numbers as a tuple."""
    def convert(values: object, name: str) -> tuple[Number, ...]:
        if isinstance(values, str | bytes | set | dict) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
            raise TypeError(f"expected {name} to be a sequence of numbers, got {values!r}; write a tuple, also for a single one")
        return tuple(kind(value, name) for value in values)

    return convert


def text(value: object, name: str) -> str:
    """The same, a string."""
    if not isinstance(value, str):
        raise TypeError(f"expected {name} as text, got {shown(value)}")
    return value


def truth(value: object, name: str) -> bool:
    """True or False, also of NumPy."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"expected {name} to be True or False, got {value!r}")
    return bool(value)


class Diverged(ValueError):
    """Loss, weights or logits are no longer finite: the result of this run, and no failure.

    Args:
        epochs: per-epoch rows of a training run until then.
    """

    def __init__(self, message: str, epochs: Sequence[dict] = ()) -> None:
        super().__init__(message)
        self.epochs = list(epochs)
