"""Tensors out of torch files and pickles, whatever objects these hold beside them: a training state, a whole network.

Nothing in the file is run. The unpickler here knows how to put a tensor together; every other name, whatever it is,
stands for an `Inert`, which keeps the items and attributes it is given and does nothing. Nothing is ever imported, and
memory and time stay in proportion to the size of the file.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's older format
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32,  # refused later, as integers
}
LARGEST = 2**24  # bytes of objects, without the numbers of tensors: each becomes up to a hundred
DEEPEST, MOST, LONGEST = 100, 100_000, 1000  # modules inside each other and in all, and letters of a name, of a whole network
PLAIN = str | int | float | bytes | None
REFUSED = (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)
Storage = Callable[..., torch.Tensor]  # of what a file says of some numbers


class Inert(dict):
    """Stands for an object of any class: the items and attributes that the file gives it, as a dict."""

    def __new__(cls, *args: object, **kwargs: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    __hash__ = object.__hash__  # it may be a key of another dict
    __eq__ = object.__eq__
    __repr__ = object.__repr__  # what is inside may be without end

    def __call__(self, *args: object, **kwargs: object) -> "Inert":
        return Inert()

    def __setstate__(self, state: object) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.update(part)

    def append(self, item: object) -> None:
        """Items of lists and sets are of no use here."""

    extend = add = append


class Items(dict):
    """An ordered dict without attributes of its own."""

    def __init__(self, pairs: Iterable[tuple[object, object]] = ()) -> None:
        super().__init__((_key(key), value) for key, value in pairs)

    def __setstate__(self, state: object) -> None:
        """Attributes, such as the version numbers of a state dict's modules, are of no use here."""


def read_inert(path: Path) -> tuple[object, list[str]]:
    """What a torch file or a pickle holds, with an `Inert` for every object, and the names of what is left out; ValueError for
    another file (or a truncated one), whatever is wrong with it."""
    reading = _Reading(path.stat().st_size)
    try:
        content = reading.zipped(path) if zipfile.is_zipfile(path) else reading.older(path.read_bytes())
    except Exception as error:  # what a foreign file makes of the unpickler is of any type
        raise ValueError(legible(f"{type(error).__name__} {error}")) from error
    return content, sorted(reading.left_out)


def legible(text: object) -> str:
    """What a file says, for a message: the first 200 letters, in one line.

    >>> legible("a\\nb")
    'a\\\\nb'
    """
    return ascii(str(text)[:200])[1:-1]


def module_state(module: dict) -> dict[str, torch.Tensor]:
    """The state dict of a whole network that was pickled, from the attributes in which modules keep their parts."""
    state = {}
    for count, (prefix, part) in enumerate(_modules(module)):
        if count == MOST:
            raise ValueError(f"expected a network of at most {MOST:,} modules, got more")
        passing = part.get("_non_persistent_buffers_set") or ()
        tensors = {**(part.get("_parameters") or {}), **(part.get("_buffers") or {})}
        state |= {f"{prefix}{k}": v for k, v in tensors.items() if isinstance(v, torch.Tensor) and k not in passing
                  and len(str(k)) <= LONGEST}
    return state


def _modules(module: dict, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, dict]]:
    """A module and those inside it, each with what stands before its names."""
    if depth > DEEPEST or len(prefix) > LONGEST:
        raise ValueError(f"expected a network of at most {DEEPEST} modules inside each other, got more, or longer names")
    yield prefix, module
    for name, child in (module.get("_modules") or {}).items():
        if isinstance(child, dict):
            yield from _modules(child, f"{prefix}{name}.", depth + 1)


def _key(key: object) -> object:
    """What stands for a key of a dict: itself if it is plain; tuples inside tuples can take for ever to be hashed."""
    return key if isinstance(key, PLAIN) else Inert()


class _Reading:
    """One file being read: the names that it may use, those that were left out, and the memory that is left to it."""

    def __init__(self, size: int) -> None:
        self.left_out: dict[str, None] = {}
        self.left = 8 * size + 2**20
        self.inert = type("Inert", (Inert,), {})  # made for this file alone, as `Items`, so that it cannot change others
        self.known = {
            "torch._utils._rebuild_tensor": self._tensor, "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": lambda data, offset, size, stride, _, __, dtype, *___: self._tensor(
                data.view(dtype), offset, size, stride),
            "torch._utils._rebuild_qtensor": self._tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._tensor._rebuild_from_type_v2": lambda function, kind, args, state: function(*args),
            "torch._utils._rebuild_sparse_tensor": _sparse, "torch.serialization._get_layout": lambda name: name,
            "torch._utils._rebuild_meta_tensor_no_storage": lambda dtype, size, *_: torch.empty(
                size, dtype=dtype, device="meta"),
            "torch.storage._load_from_bytes": self.older, "torch.Size": tuple, "torch.Tensor": self.inert,
            "collections.OrderedDict": type("Items", (Items,), {}),
        }

    def find(self, module: str, name: str) -> object:
        """What stands for the object of that name."""
        full = f"{module}.{name}"
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if full not in self.known:
            self.left_out[legible(full)] = None
        return self.known.get(full, self.inert)

    def zipped(self, path: Path) -> object:
        """What a file of torch's format holds, a zip archive."""
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("compressed, as torch never is")
            (index,) = (name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
            root = index.removesuffix("data.pkl")
            _check_order(f"{root}byteorder" not in archive.namelist() or archive.read(f"{root}byteorder") == b"little")
            storages: dict[str, torch.Tensor] = {}

            def storage(dtype: torch.dtype, key: str, *_: object) -> torch.Tensor:
                if _text(key) not in storages:
                    storages[key] = self._numbers(archive.read(f"{root}data/{key}"), dtype)
                return storages[key]

            return self._load(archive.read(index), storage)[0]

    def older(self, content: bytes) -> object:
        """What a file of torch's older format holds: magic number, version, machine, the objects, the keys of storages, and each
        storage's length and data. What begins with anything else is a pickle, and taken whole."""
        self._spend(len(content))
        at, storages = 0, {}

        def storage(dtype: torch.dtype, key: str, _: str, numel: int, view: object = None) -> torch.Tensor:
            if _text(key) not in storages:
                if view is not None or numel < 0:
                    raise ValueError("a storage that is part of another")
                self._spend(numel * dtype.itemsize)
                storages[key] = torch.empty(numel, dtype=dtype)
            return storages[key]

        def load() -> object:
            nonlocal at
            value, size = self._load(content[at:at + LARGEST + 1], storage)
            at += size
            return value

        first = load()
        if type(first) is not int or first != MAGIC:
            return first
        if load() != PROTOCOL:
            raise ValueError("another version")
        _check_order(load()["little_endian"])
        value, keys = load(), load()
        for key in keys:
            data = storages.pop(_text(key))
            if int.from_bytes(content[at:at + 8], "little") != data.numel():
                raise ValueError(f"another length of storage {key}")
            end = at + 8 + data.nbytes
            data.copy_(self._numbers(content[at + 8:end], data.dtype))
            at = end
        if storages:
            raise ValueError(f"{len(storages)} storages without numbers")
        return value

    def _load(self, content: bytes, storage: Storage) -> tuple[object, int]:
        """(first object of a pickle, how many bytes it takes)."""
        file = io.BytesIO(content[:LARGEST])
        try:
            return _Unpickler(file, self.find, storage).load(), file.tell()
        except (EOFError, pickle.UnpicklingError) as error:
            if len(content) > LARGEST:
                raise ValueError(f"more than {LARGEST:,} bytes of objects") from error
            raise

    def _spend(self, size: float) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError("it asks for more numbers than it holds")

    def _tensor(self, data: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> torch.Tensor:
        self._spend(math.prod(map(float, size)) * data.itemsize)
        return data.as_strided(size, stride, offset)  # refused beyond the end of the storage

    def _numbers(self, data: bytes, dtype: torch.dtype) -> torch.Tensor:
        self._spend(len(data))
        if len(data) % dtype.itemsize:
            raise ValueError(f"{len(data)} bytes of {dtype}")
        return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


class _Unpickler(pickle._Unpickler):
    """Python's own, in Python: that in C sets memory aside for whatever number a file names. Where an opcode would hash or set
    what the file likes, it does not."""

    def __init__(self, file: io.BytesIO, find: Callable[[str, str], object], storage: Storage) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.find_class, self.storage = find, storage

    def persistent_load(self, key: object) -> object:
        kind, *rest = key
        return self.storage(*rest) if kind == "storage" else rest[0]  # the class of a module, so an Inert

    def plain_keys(self) -> None:
        """Of the items behind the last mark."""
        self.stack[::2] = [_key(key) for key in self.stack[::2]]

    def load_dict(self) -> None:
        self.plain_keys()
        super().load_dict()

    def load_setitems(self) -> None:
        self.plain_keys()
        super().load_setitems()

    def load_setitem(self) -> None:
        self.stack[-2] = _key(self.stack[-2])
        super().load_setitem()

    def load_additems(self) -> None:
        self.pop_mark()

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.append(Inert())

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], Inert | Items):
            raise pickle.UnpicklingError(f"attributes of {type(self.stack[-2]).__name__}")
        super().load_build()

    def load_refused(self) -> None:
        raise pickle.UnpicklingError("an opcode that no file of weights needs")

    dispatch = pickle._Unpickler.dispatch | {
        pickle.DICT[0]: load_dict, pickle.SETITEMS[0]: load_setitems, pickle.SETITEM[0]: load_setitem,
        pickle.ADDITEMS[0]: load_additems, pickle.FROZENSET[0]: load_frozenset, pickle.BUILD[0]: load_build,
        **dict.fromkeys((code[0] for code in REFUSED), load_refused)}


def _sparse(layout: str, parts: tuple) -> torch.Tensor:
    if layout != "torch.sparse_coo":
        raise ValueError(f"a sparse tensor of layout {layout}")
    return torch.sparse_coo_tensor(*parts[:3], check_invariants=True)


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise ValueError("a storage without a name")
    return key


def _check_order(little: bool) -> None:
    if not little:
        raise ValueError("numbers of a machine with another byte order")
