"""Tensors out of torch files that also hold pickled objects: a state of training with its arguments, a whole network.

Nothing in the file is run. The unpickler here knows how to put a tensor together; every other name, whatever it is,
stands for an `Inert`, which keeps the items and attributes it is given and does nothing. Nothing is ever imported.
"""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's older format
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}


class Items(dict):
    """An ordered dict without attributes of its own."""

    def __setstate__(self, state: object) -> None:
        """Attributes, such as the version numbers of a state dict's modules, are of no use here."""


class Inert(dict):
    """Stands for an object of any class: the items and attributes that the file gives it, as a dict."""

    def __new__(cls, *args: object, **kwargs: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    __hash__ = object.__hash__  # it may be a key of another dict
    __eq__ = object.__eq__

    def __call__(self, *args: object, **kwargs: object) -> "Inert":
        return Inert()

    def __setstate__(self, state: object) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.update(part)

    def append(self, item: object) -> None:
        """Items of lists and sets are of no use here."""

    extend = add = append


def read_inert(path: Path) -> tuple[object, list[str]]:
    """What a torch file holds, with an `Inert` for every object, and the names of what is left out; ValueError for no torch
    file (or a truncated one), whatever is wrong with it."""
    left_out: dict[str, None] = {}
    try:
        with path.open("rb") as file:
            content = (_read_zip if zipfile.is_zipfile(file) else _read_older)(file, left_out)
    except Exception as error:  # what a foreign file makes of the unpickler is of any type
        raise ValueError(f"no torch file: {type(error).__name__} {error}") from error
    return content, sorted(left_out)


def module_state(module: dict) -> dict[str, torch.Tensor]:
    """The state dict of a whole network that was pickled, from the attributes in which modules keep their parts."""
    passing = module.get("_non_persistent_buffers_set") or ()
    tensors = {**(module.get("_parameters") or {}), **(module.get("_buffers") or {})}
    state = {str(k): v for k, v in tensors.items() if isinstance(v, torch.Tensor) and k not in passing}
    for name, child in (module.get("_modules") or {}).items():
        if isinstance(child, dict):
            state |= {f"{name}.{k}": v for k, v in module_state(child).items()}
    return state


def _unpickler(file: io.BufferedIOBase, left_out: dict[str, None], storage: Callable[..., torch.Tensor]) -> pickle.Unpickler:
    def tensor(data: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> torch.Tensor:
        return data.as_strided(size, stride, offset)  # refused beyond the end of the storage

    def parameter(data: torch.Tensor, *_: object) -> torch.Tensor:
        return data

    known = {
        "torch._utils._rebuild_tensor": tensor, "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": parameter, "torch._utils._rebuild_parameter_with_state": parameter,
        "collections.OrderedDict": type("Items", (Items,), {}),
    }  # made for this file alone, so that it cannot change what others use

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            if module in ("torch", "torch.cuda") and name in STORAGES:
                return STORAGES[name]
            if f"{module}.{name}" in known:
                return known[f"{module}.{name}"]
            left_out[f"{module}.{name}"] = None
            return type("Inert", (Inert,), {})

        def persistent_load(self, key: object) -> object:
            kind, *rest = key
            return storage(*rest) if kind == "storage" else rest[0]  # the class of a module, so an Inert

    return Reader(file, encoding="utf-8")


def _read_zip(file: io.BufferedIOBase, left_out: dict[str, None]) -> object:
    with zipfile.ZipFile(file) as archive:
        (index,) = (name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        root = index.removesuffix("data.pkl")
        _check_order(f"{root}byteorder" not in archive.namelist() or archive.read(f"{root}byteorder") == b"little")
        storages: dict[str, torch.Tensor] = {}

        def storage(dtype: torch.dtype, key: str, *_: object) -> torch.Tensor:
            if key not in storages:
                storages[key] = _numbers(archive.read(f"{root}data/{key}"), dtype)
            return storages[key]

        return _unpickler(io.BytesIO(archive.read(index)), left_out, storage).load()


def _read_older(file: io.BufferedIOBase, left_out: dict[str, None]) -> object:
    """Magic number, version, machine, the objects, the keys of storages, and each storage's length and data."""
    room = file.seek(0, io.SEEK_END)
    file.seek(0)
    storages: dict[str, torch.Tensor] = {}

    def storage(dtype: torch.dtype, key: str, _: str, numel: int, view: object = None) -> torch.Tensor:
        if view is not None or not 0 <= numel * dtype.itemsize <= room:
            raise ValueError(f"a storage of {numel} numbers in a file of {room} bytes")
        return storages.setdefault(key, torch.empty(numel, dtype=dtype))

    def load() -> object:
        return _unpickler(file, left_out, storage).load()

    if (load(), load()) != (MAGIC, PROTOCOL):
        raise ValueError("another magic number")
    _check_order(load()["little_endian"])
    content = load()
    for key in load():
        data = storages[key]
        if int.from_bytes(file.read(8), "little") != data.numel():
            raise ValueError(f"another length of storage {key}")
        data.copy_(_numbers(file.read(data.numel() * data.dtype.itemsize), data.dtype))
    return content


def _numbers(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    if len(data) % dtype.itemsize:
        raise ValueError(f"{len(data)} bytes of {dtype}")
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _check_order(little: bool) -> None:
    if not little:
        raise ValueError("numbers of a machine with another byte order")
