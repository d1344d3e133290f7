"""A device that is not there: tensors on `meta` whose values are kept aside, so that what is meant for a GPU runs without one."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # of operations whose answer the host waits for
REPEAT = torch.ops.aten.repeat_interleave.Tensor
ANSWERS = (torch.ops.aten.is_nonzero.default, torch.ops.aten.item.default)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class Absent(torch.Tensor):
    """A tensor of the absent device: to torch one on `meta`, its values in an ordinary tensor."""

    @staticmethod
    def __new__(cls, kept: torch.Tensor) -> "Absent":
        return torch.Tensor._make_wrapper_subclass(cls, kept.shape, strides=kept.stride(), dtype=kept.dtype, device=META,
                                                   storage_offset=kept.storage_offset())

    def __init__(self, kept: torch.Tensor) -> None:
        self.kept = kept

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on the absent device outside of `absent()`")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.tolist, torch.Tensor.__format__):
            return func(args[0].cpu(), *args[1:])
        if func == torch.Tensor.data.__set__:
            args[0].kept = args[1].kept
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict) -> "Absent":
        made = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
        made.__dict__.update({key: value for key, value in vars(self).items() if key != "kept"})  # that it is a parameter
        return made

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.cpu().__reduce_ex__(protocol)  # as tensors of a GPU are stored


class Generator(torch.Generator):
    """One for either device; on the absent one it gives the numbers that the CPU's gives."""

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        return super().__new__(cls, "cpu")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self._device


class Waits(TorchDispatchMode):
    """Runs what is asked of the absent device, and counts where the host has to wait for it: (what, function of the library).

    "read" is a value or a shape that the host needs, "sent" a tensor that it copies there. A tensor of each device in one
    operation is an error, as it is on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors: list[torch.Tensor] = []

        def kept(value: object) -> object:
            if isinstance(value, torch.Tensor):
                tensors.append(value)
            return value.kept if isinstance(value, Absent) else value

        def named(value: object) -> object:
            return known[id(value)] if id(value) in known else Absent(value) if isinstance(value, torch.Tensor) else value

        inner, options = each(args, kept), each(kwargs or {}, kept)
        here = {isinstance(t, Absent) for t in tensors}
        if any(t.device == META and not isinstance(t, Absent) for t in tensors):
            raise RuntimeError(f"{func}: a tensor without values, sent to the device as a list in {place()}")
        target = isinstance(tensors[0], Absent) if tensors else False
        sends_indices = target and func in INDEXING  # as torch does for a GPU
        if len(here) > 1 and func not in COPIES and not sends_indices:
            raise RuntimeError(f"{func}: tensors of two devices in {place()}")
        if options.get("device") is not None:
            target, options["device"] = torch.device(options["device"]) == META, torch.device("cpu")
        sized = func is REPEAT and options.get("output_size") is not None
        masked = func in INDEXING and any(t is not None and t.dtype == torch.bool for t in inner[1])
        if here and here != {target}:
            self.counted["sent" if target else "read", place()] += 1
        elif target and (masked or func in ANSWERS or (READS & set(func.tags) and func not in INDEXING and not sized)):
            self.counted["read", place()] += 1
        found = func(*inner, **options)
        if not target:
            return found
        known = {id(t.kept): t for t in tensors if isinstance(t, Absent)}
        return each(found, named)


def each(value: object, change: Callable[[object], object]) -> object:
    """The same lists, tuples and dicts with each of their leaves changed."""
    if isinstance(value, list | tuple):
        return type(value)([each(part, change) for part in value])
    return {key: each(part, change) for key, part in value.items()} if isinstance(value, dict) else change(value)


class Draws(TorchFunctionMode):
    """Refuses random numbers of one device from a generator of the other, as torch does for a GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None:
            device = torch.device(kwargs.get("device") or (args[0].device if isinstance(args[0], torch.Tensor) else "cpu"))
            if generator.device != device:
                raise RuntimeError(f"{func.__name__} on {device} with a generator of {generator.device} in {place()}")
        return func(*args, **kwargs)


def place() -> str:
    """The function of the library that runs now."""
    frame = sys._getframe(1)
    while frame and not frame.f_globals.get("__name__", "").startswith("twinslib."):
        frame = frame.f_back
    return f"{frame.f_globals['__name__'].removeprefix('twinslib.')}.{frame.f_code.co_name}" if frame else "the test"


@contextmanager
def absent(monkeypatch) -> Iterator[Waits]:
    """Inside, the device `meta` is there, with generators, and an autocast that leaves it as it is."""
    autocast = torch.autocast
    with monkeypatch.context() as patch, Draws(), Waits() as waits:
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch, "autocast", lambda device, *rest, **more: autocast(device.replace("meta", "cpu"), *rest, **more))
        yield waits
