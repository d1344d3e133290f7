"""Files of weights and of training states: written whole or not at all, read without running anything in them.

Weights are safetensors with JSON metadata; other people's come as safetensors or torch files and are never unpickled
beyond tensors. A training state is a torch file of tensors and plain types.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
STRIP = ("module.", "model.", "network.", "_orig_mod.")
IGNORE = ("attacker.", "normalizer.")
PLAIN_TYPES = (type(None), bool, int, float, str)


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file so that at `path` there is the old content or the whole new one, never a part, whenever killed.

    Args:
        write: called with a temporary path in the same folder, which it must fill; the folder is made if needed.
    Raises:
        OSError: the disk is full, with a message that says so; what was at `path` stays, the temporary file goes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f"expected free space for {path.name}, got a full disk or quota ({free:,} bytes free) in {path.parent}; "
            "make room and run the same command again, everything stored before is kept",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: str | Path, model: nn.Module, meta: Mapping, *, half: bool = False) -> None:
    """Store a network's state as safetensors, atomically; `load_weights` gives it back with `meta`.

    Args:
        meta: anything JSON can hold, such as the spec the weights come from.
        half: parameters of two or more dimensions are stored in float16 (unless too large for it); norm layers, biases,
            statistics and buffers keep their precision.
    """
    large = {name for name, p in model.named_parameters(remove_duplicate=False) if p.ndim >= 2} if half else set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        if name in large and (tensor.abs() <= torch.finfo(torch.float16).max).all():
            tensor = tensor.half()
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)  # safetensors refuses shared memory
    text = json.dumps(dict(meta), sort_keys=True, allow_nan=False)
    data = save(tensors, {"meta": text})
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def load_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors by name, on the CPU, float16 and bfloat16 widened to float32; and the metadata, {} where there is none.

    Files that end in .safetensors are read as such, all others as torch files, in which only tensors and plain types
    are accepted; the state may be wrapped in a dict under "state_dict", "model_state_dict", "model" or "net".

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or foreign file, pickled objects (which are not run), or no tensors in it.
    """
    path = _existing(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
                meta = json.loads((file.metadata() or {}).get("meta", "{}"))
        except (SafetensorError, ValueError) as error:
            raise _unreadable(path, "a whole safetensors file", error) from error
    else:
        state, meta = _unwrap(path, _load_torch(path)), {}
    small = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in small else tensor for name, tensor in state.items()}, meta


def load_into(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    *,
    strict: bool = True,
    strip: tuple[str, ...] = STRIP,
    ignore: tuple[str, ...] = IGNORE,
) -> nn.Module:
    """Copy tensors into a network, in place, and return it; nothing is copied if anything is wrong.

    Names need not be equal: prefixes that wrappers add are taken off, and the network inside a `Classifier` is found.
    Step counters of batch norm may be missing, as in old files, and so may the constants of the input's normalisation, which
    others keep in their data pipeline: those of the model stay.

    Args:
        strict: False allows tensors that are missing or unexpected; shapes must agree all the same.
        strip: prefixes to take off, in any order and repeatedly, until the network knows the name.
        ignore: prefixes of tensors to leave out if the network has no such name (parts of robustness libraries).
    Raises:
        ValueError: another architecture, another number of classes, or NaN or infinity in a tensor.
    """
    expected = model.state_dict()
    found: dict[str, torch.Tensor] = {}
    unexpected = []
    for key, tensor in state.items():
        names = list(_strip(key, strip))
        name = next((n for n in names + [f"network.{n}" for n in names] if n in expected and n not in found), None)
        if name is not None:
            found[name] = tensor
        elif not names[-1].startswith(ignore):
            unexpected.append(key)
    optional = ("num_batches_tracked", *(("normalize.mean", "normalize.std") if hasattr(model, "normalize") else ()))
    missing = [name for name in expected if name not in found and not name.endswith(optional)]
    if (strict and (missing or unexpected)) or not found:
        raise ValueError(
            f"expected the tensors of {type(getattr(model, 'network', model)).__name__}, got another architecture: "
            f"{_some(missing)} missing, {_some(unexpected)} unexpected; make the model these weights were saved from"
        )
    wrong = [name for name, tensor in found.items() if tensor.shape != expected[name].shape]
    if wrong:
        raise ValueError(_shape_message(wrong, expected, found))
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"expected finite weights, got NaN or infinity in {name}; use an earlier checkpoint")
    model.load_state_dict(found, strict=False)
    return model


def tensor_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, hex; the same for equal states whatever file or device they are in.

    (The bytes of a torch file depend on more than its tensors.)
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_training(path: str | Path, state: Mapping, *, config: str) -> None:
    """Store a training state atomically, with the hash of the config it belongs to.

    Args:
        state: tensors and None, bool, int, float, str in dicts, lists and tuples: what `load_training` accepts.
    Raises:
        TypeError: anything else in it, such as a NumPy number.
    """
    _check_plain(state, "state")
    buffer = io.BytesIO()
    torch.save({"config": config, "state": dict(state)}, buffer)
    atomic_write(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def load_training(path: str | Path, *, config: str) -> dict:
    """The state stored by `save_training`, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or foreign file, or the state of another config.
    """
    path = _existing(path)
    stored = _load_torch(path)
    if not isinstance(stored, dict) or stored.keys() != {"config", "state"}:
        raise ValueError(f"expected a training checkpoint, got another torch file in {path.name}; choose another path")
    if stored["config"] != config:
        raise ValueError(
            f"expected checkpoint of config {config}, got {stored['config']} in {path.name}; "
            "choose another run name, or delete the file to start again"
        )
    return stored["state"]


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, got no such file; check the path")
    return path


def _load_torch(path: Path) -> object:
    """The content of a torch file, tensors and plain types only."""
    data = io.BytesIO(path.read_bytes())  # what fails from here on is the content, not the disk
    try:
        return torch.load(data, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        refused = set(re.findall(r"GLOBAL ([\w.]+)", str(error)))
        with contextlib.suppress(Exception):  # older formats cannot be listed; the message above names one type
            refused |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        if not refused:
            raise _unreadable(path, "a whole torch file", error) from error
        raise ValueError(
            f"expected tensors and plain types only, got pickled objects in {path.name}: {_some(sorted(refused))}; "
            "nothing of them was run. If you trust the file, load it once elsewhere with weights_only=False and store "
            "its state dict with safetensors.torch.save_file(state_dict, 'weights.safetensors')"
        ) from error


def _unreadable(path: Path, wanted: str, error: Exception) -> ValueError:
    with open(path, "rb") as file:
        page = file.read(64).lstrip().startswith(b"<")
    got = "a web page" if page else f"a truncated or foreign one of {path.stat().st_size:,} bytes"
    detail = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return ValueError(f"expected {wanted}, got {got} in {path.name} ({detail}); delete it and make or fetch it again")


def _unwrap(path: Path, content: object) -> dict[str, torch.Tensor]:
    """The state dict in what a torch file holds, at most two wrappers deep."""
    for _ in range(2):
        inner = [content[key] for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        content = inner[0] if inner else content
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        keys = _some([str(key) for key in content]) if isinstance(content, dict) else None
        got = type(content).__name__ + (f" with {keys}" if keys else "")
        raise ValueError(f"expected a state dict, plain or under {', '.join(WRAPPERS)}, got {got} in {path.name}")
    return tensors


def _strip(key: str, prefixes: tuple[str, ...]) -> Iterator[str]:
    """The name as it is, then with one prefix less at a time."""
    while True:
        yield key
        prefix = next((p for p in prefixes if key.startswith(p)), None)
        if prefix is None:
            return
        key = key.removeprefix(prefix)


def _shape_message(wrong: list[str], expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    first = wrong[0]
    want, got = tuple(expected[first].shape), tuple(found[first].shape)
    head = first.rpartition(".")[0]
    if {name.rpartition(".")[0] for name in wrong} == {head} and want[1:] == got[1:] and len(want) in (1, 2):
        return (
            f"expected a head of {want[0]} classes in {head}, got {got[0]}; "
            f"make the model with {got[0]} classes, load, then replace_head"
        )
    return (
        f"expected {first} of shape {want}, got {got} ({len(wrong)} tensors differ); "
        "make the model these weights were saved from"
    )


def _check_plain(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in PLAIN_TYPES:
        raise TypeError(
            f"expected tensors and plain types in a checkpoint, got {type(value).__module__}.{type(value).__name__} "
            f"at {where}; convert it, for example with float()"
        )


def _some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
