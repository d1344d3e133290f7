"""Strict reading of plain values by annotations, the one text of a spec, and the hash that names a result."""

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Sequence

import numpy as np

from ..base.errors import choose, real, shown

LARGEST = 10**9  # integer that a parameter may be
T = typing.TypeVar("T")
Some = typing.Annotated[T, "not empty"]  # a list or mapping of at least one thing, no plain value twice


def _require(ok: bool, expected: str, got: object, then: str = "") -> None:
    if not ok:
        raise ValueError(f"expected {expected}, got {shown(got)}" + (f"; {then}" if then else ""))


def _require_least(spec: object, least: int, *names: str, most: float = math.inf) -> None:
    """Refuse fields of `spec` that are below 0, or (least 1) not above it, or above `most`."""
    for name in names:
        value = getattr(spec, name)
        _require(value > 0 if least else value >= 0, f"{name} {'>' if least else '>='} 0", value)
        _require(value <= most, f"{name} of at most {most:,}", value)


def _in_words(spec: object) -> str:
    return ", ".join(f"{key} {value}" for key, value in to_dict(spec).items())


def _set_fields(spec: object) -> dict[str, object]:
    """The fields of a spec that do not hold their default."""
    return {name: getattr(spec, name) for name, default in _defaults(type(spec)).items() if getattr(spec, name) != default}


@functools.cache
def _defaults(cls: type) -> dict[str, object]:
    return {f.name: f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            for f in dataclasses.fields(cls)}


def to_dict(spec: object) -> dict:
    """Canonical nested dict of a spec: fields that hold their default are left out."""
    return {name: _plain(value) for name, value in _set_fields(spec).items()}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return to_dict(value) if dataclasses.is_dataclass(value) else value


@functools.lru_cache(maxsize=2**14)  # runs of a plan share most of their parts
def canonical_json(spec: object) -> str:
    """The one text of a spec; equal specs have equal texts (fields are read again, so 1 for 1.0 makes no difference)."""
    hints = _members(type(spec))[0]
    texts = {name: canonical_json(value) if dataclasses.is_dataclass(value) else json.dumps(
        _plain(read(hints[name], value, name)), sort_keys=True, separators=(",", ":"))
        for name, value in _set_fields(spec).items()}
    return "{" + ",".join(f"{json.dumps(name)}:{texts[name]}" for name in sorted(texts)) + "}"


def spec_hash(spec: object) -> str:
    """12 hex digits that name the result of a spec: the SHA-256 of its one text."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:12]


def from_dict(cls: type, values: dict, where: str = "") -> object:
    """Build the dataclass `cls` from a plain dict; see `read` for what is converted. `where`: what the values are called in
    messages; the name of the class by default. ValueError: unknown or missing keys, numbers that are not finite, values that the
    class refuses. TypeError: a value of another type, null where the field knows none."""
    if dataclasses.is_dataclass(values) and isinstance(values, cls):
        return values
    fields = _read_members(cls, values, where or cls.__name__)
    try:
        return cls(**fields)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{error} (in {where})" if where else str(error)) from None


def strict(function: Callable[..., T], where: str = "") -> Callable[..., T]:
    """`function` of keyword arguments, which are read as its annotations say; unknown and missing ones are refused. `where`: what
    the arguments are called in messages, where they are a mapping with a name."""
    @functools.wraps(function)
    def called(**values: object) -> T:
        return function(**_read_members(function, values, where))

    return called


def _read_members(thing: Callable, values: dict, where: str) -> dict[str, object]:
    """The fields of a dataclass or TypedDict, or the arguments of a function, each as its annotation asks for it."""
    if not isinstance(values, dict):
        raise TypeError(f"expected a mapping for {where}, got {shown(values)}")
    hints, needed, others = _members(thing)
    for key in values:
        if not others:
            choose(key, hints, f"key of {where}" if where else "parameter")
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"expected {', '.join(missing)} in {where or 'the parameters'}, "
                         f"got only {', '.join(values) or 'nothing'}")
    inside = f"{where}." if where else ""
    return {key: read(hints[key], value, inside + key) if key in hints else value for key, value in values.items()}


@functools.cache
def _members(thing: Callable) -> tuple[dict[str, object], list[str], bool]:
    """(annotations, what has no default, whether there may be others) of a dataclass, a TypedDict or a function."""
    hints = typing.get_type_hints(thing, localns={getattr(thing, "__name__", ""): thing}, include_extras=True)
    if typing.is_typeddict(thing):
        return hints, [name for name in hints if name in thing.__required_keys__], False
    given = inspect.signature(thing).parameters.values()
    others = [p.name for p in given if p.kind is p.VAR_KEYWORD]
    hints = {name: hint for name, hint in hints.items() if name not in ("return", *others)}
    return hints, [p.name for p in given if p.default is p.empty and p.name not in others], bool(others)


def read(hint: object, value: object, where: str) -> object:
    """`value` as the annotation `hint` asks for it: an int is taken for a float, the text 8/255 for that fraction, a list for a
    tuple, a mapping for a dataclass, a number of NumPy for Python's, and nothing else converted. `hint`: a class, one of its
    choices with None, `tuple`, `Sequence` or `dict` of hints, a dataclass, a TypedDict, or `Some` of a list or mapping.

    >>> read(tuple[float, ...], [1, "8/255"], "radii")
    (1.0, 0.03137254901960784)
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, np.generic):
        value = real(value, where) if value.dtype.kind == "f" else value.item()
    if origin is typing.NotRequired:
        return read(inner[0], value, where)
    if origin is typing.Annotated:
        found = read(inner[0], value, where)
        if not found:
            raise ValueError(f"expected at least one entry in {where}, got none")
        return _distinct(found, where)
    if isinstance(hint, types.UnionType) or origin is typing.Union:
        if value is None and type(None) in inner:
            return None
        hint = next(h for h in inner if h is not type(None))
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Callable or hint is object:
        return value
    if typing.is_typeddict(hint):
        return _read_members(hint, value, where)
    if value is None:
        raise TypeError(f"expected a value for {where}, got nothing (null)")
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if hint is dict or origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"expected a mapping for {where}, got {shown(value)}")
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"expected text as key of {where}, got {shown(key)}; put it in quotes")
        return {key: read(inner[1], v, f"{where}.{key}") for key, v in value.items()} if inner else value
    if hint is list or origin in (tuple, Sequence):
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected a list for {where}, got {shown(value)}")
        return tuple(read(inner[0], v, where) for v in value) if inner else value
    if hint is float:
        return _number(value, where)
    if type(value) is not hint:
        raise TypeError(f"expected {hint.__name__} for {where}, got {shown(value)}")
    if hint is int and abs(value) > LARGEST:
        raise ValueError(f"expected an integer between -{LARGEST:,} and {LARGEST:,} for {where}, got {shown(value)}")
    return value


def _distinct(values: T, where: str) -> T:
    plain = [value for value in values if isinstance(value, str | int | float)]
    _require(len(set(plain)) == len(plain), f"{where} without repeats", list(values))
    return values


def _number(value: object, where: str) -> float:
    fraction = re.fullmatch(r"(\d+(?:\.\d+)?) ?/ ?([1-9]\d*)", value) if isinstance(value, str) else None
    if fraction:
        value = float(fraction[1]) / float(fraction[2])
    if isinstance(value, str):
        raise TypeError(f"expected a number for {where}, got the text {shown(value)}; in YAML write 1.0e-3, not 1e-3, and a "
                        "fraction as 8/255")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"expected float for {where}, got {shown(value)}")
    if not (math.isfinite(value) if isinstance(value, float) else abs(value) <= LARGEST):
        raise ValueError(f"expected a finite number for {where}, got {shown(value)}")
    return float(value)
