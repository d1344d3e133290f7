"""Strict reading of specs from plain values, their one text, and the hash that names a result."""

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing

from ..base.errors import choose


def _require(ok: bool, expected: str, got: object, then: str = "") -> None:
    if not ok:
        raise ValueError(f"expected {expected}, got {got!r}" + (f"; {then}" if then else ""))


def _require_least(spec: object, least: int, *names: str) -> None:
    """Refuse fields of `spec` that are below 0, or (least 1) not above it."""
    for name in names:
        value = getattr(spec, name)
        _require(value > 0 if least else value >= 0, f"{name} {'>' if least else '>='} 0", value)


def _in_words(spec: object) -> str:
    return ", ".join(f"{key} {value}" for key, value in to_dict(spec).items())


def to_dict(spec: object) -> dict:
    """Canonical nested dict of a spec: fields that hold their default are left out."""
    out = {}
    for f in dataclasses.fields(spec):
        value = getattr(spec, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if default is not dataclasses.MISSING and value == default:
            continue
        out[f.name] = _plain(value)
    return out


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return to_dict(value) if dataclasses.is_dataclass(value) else value


def canonical_json(spec: object) -> str:
    """The one text of a spec; equal specs have equal texts (fields are read again, so 1 for 1.0 makes no difference)."""
    return json.dumps(to_dict(from_dict(type(spec), to_dict(spec))), sort_keys=True, separators=(",", ":"))


def spec_hash(spec: object) -> str:
    """12 hex digits that name the result of a spec: the SHA-256 of its one text."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:12]


def from_dict(cls: type, values: dict, where: str = "") -> object:
    """Build the dataclass `cls` from a plain dict; an int is taken for a float, a list for a tuple, and nothing else converted.

    Args:
        where: what the values are called in messages; the name of the class by default.
    Raises:
        ValueError: unknown or missing keys, numbers that are not finite, values that the class refuses.
        TypeError: a value of another type, null where the field knows none.
    """
    if dataclasses.is_dataclass(values) and isinstance(values, cls):
        return values
    where = where or cls.__name__
    if not isinstance(values, dict):
        raise TypeError(f"expected a mapping for {where}, got {values!r}")
    hints = _hints(cls)
    for key in values:
        choose(key, hints, f"key of {where}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in values
               and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise ValueError(f"expected {', '.join(missing)} in {where}, got only {', '.join(values) or 'nothing'}")
    return cls(**{key: _read(hints[key], value, f"{where}.{key}") for key, value in values.items()})


@functools.cache
def _hints(cls: type) -> dict[str, object]:
    return typing.get_type_hints(cls, localns={cls.__name__: cls})


def _read(hint: object, value: object, where: str) -> object:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (
        hint,)
    if value is None:
        if type(None) in options:
            return None
        raise TypeError(f"expected a value for {where}, got nothing (null)")
    hint = next(h for h in options if h is not type(None))
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected a list for {where}, got {value!r}")
        return tuple(_read(typing.get_args(hint)[0], v, where) for v in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number for {where}, got {value!r}")
        return float(value)
    if hint is float and isinstance(value, str):
        raise TypeError(f"expected a number for {where}, got the text {value!r}; "
                        "in YAML write 1.0e-3 or 0.0314, not 1e-3 or 8/255")
    if type(value) is not hint:
        raise TypeError(f"expected {hint.__name__} for {where}, got {value!r}")
    return value
