"""Files of weights as others publish them, known by their content, not by their name.

Only tensors and plain values are read, and nothing in a file is run.
"""

import datetime
import hashlib
import io
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..base.errors import choose, some
from .constants import stand_beside
from .pickles import MAGIC, legible, module_state, read_inert

log = logging.getLogger(__name__)
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
State = dict[str, torch.Tensor]


def read(path: Path, key: str = "") -> tuple[State, dict]:
    """(tensors by name on the CPU, our own metadata or {}) of a safetensors file, a torch file, or a folder with one.

    A torch file may wrap the state dict in dicts, hold pickled objects beside it, or be a whole pickled network: of
    objects only the tensors are taken, and a warning names the rest. Normalisation constants that stand beside the state
    dict, or in the JSON files of a folder, come as "beside.mean" and "beside.std".

    Args:
        key: which of several state dicts, such as "state_dict_ema".
    Raises:
        ValueError: a truncated or foreign file, no network in it, or several and no key.
    """
    if path.is_dir():
        parts = [read(part, key) for part in _weights_in(path)]
        state = {name: tensor for part, _ in parts for name, tensor in part.items()}
        return state | stand_beside(*_configs(path)), parts[0][1]
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, got no such file; check the path")
    if not _is_safetensors(path):
        return _network_in(path, *_read_torch(path), key), {}
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    except (SafetensorError, ValueError) as error:
        raise unreadable(path, "a whole safetensors file", error) from error
    if key:
        raise ValueError(f"expected no key for {path.name}, got {key!r}; a safetensors file holds one state dict, "
                         "choose a part of it by prefix")
    return state, meta


def load_torch(content: bytes, path: Path) -> object:
    """What the bytes of a torch file of ours, at `path`, hold: tensors and plain types only; ValueError for anything else."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes of the reader is of any type
        raise unreadable(path, "a whole file of weights", error) from error


def unreadable(path: Path, wanted: str, error: Exception) -> ValueError:
    """The error for a file that is not what it should be: what it is instead, and what to do."""
    with path.open("rb") as file:
        head = file.read(512)
    text, inside = head.strip(), _zipped(path)
    got = f"a truncated or foreign one of {path.stat().st_size:,} bytes"
    then = "delete it and make or fetch it again"
    if head.startswith(b"version https://git-lfs"):
        got, then = "a Git LFS pointer in place of the file", "fetch the file itself with git lfs pull"
    elif text.startswith(b"<"):
        got = "a web page"
    elif text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text):
        got = f"a text that begins with {text.decode('ascii').splitlines()[0][:40]!r}"
    elif head.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")) or head[257:262] == b"ustar":
        got, then = "a compressed archive", "unpack it and take the file inside"
    elif head.startswith(b"\x80") and pickle.dumps(MAGIC, 2)[2:-1] not in head:
        got, then = "a damaged or too large pickle", "store the state dict with torch.save, where you trust it"
    elif head.startswith(b"\x89HDF"):
        got, then = "an HDF5 file, as Keras writes them", "take the weights for PyTorch"
    elif _is_program(inside):
        got = "a TorchScript program, which would have to be run"
        then = "store its state dict where you trust it: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"
    elif inside and all(name.endswith(".npy") for name in inside):
        got, then = "arrays of NumPy", "store them as a state dict of tensors with torch.save"
    elif any(name.endswith("archive_format") or "exported_program" in name for name in inside):
        got, then = "a program of torch.export", "store the state dict of the network in its place"
    elif inside and not any(name.endswith("data.pkl") for name in inside):
        got, then = f"a zip archive of {some(inside)}", "unpack it and take the file inside"
    detail = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    if detail.startswith("Weights only load failed"):
        detail = "not tensors and plain types only"
    return ValueError(f"expected {wanted}, got {got} in {path.name} ({detail}); {then}")


def check_name(path: Path) -> None:
    """Refuse a file whose name ends in digits of a SHA-256, as torch.hub names files, that is not its own.

    Where such digits can be a date, or a count padded with zeros, they are taken for that, and logged.
    """
    named = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", path.name)
    if not named or not path.is_file():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found.startswith(named[1]):
        return
    if not (_is_date(named[1]) or re.fullmatch(r"00\d+", named[1])):
        raise ValueError(f"expected weights whose SHA-256 begins with {named[1]}, as the name {path.name} says, got "
                         f"{found}; take the published file, or give another network a name of its own")
    log.info("%s: its SHA-256 does not begin with %s, which is taken for a date or a count", path.name, named[1])


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_torch(path: Path) -> tuple[object, list[str]]:
    """(content, names of pickled objects that were left out) of a torch file."""
    try:
        if _is_program(_zipped(path)):
            raise ValueError("code")
        content, left_out = read_inert(path)
    except ValueError as error:
        raise unreadable(path, "a whole file of weights", error) from error
    if left_out:
        log.warning("%s holds pickled objects: %s; nothing of them was run, and only tensors and plain values are taken",
                    path.name, some(left_out))
    return content, left_out


def _network_in(path: Path, content: object, left_out: list[str], key: str) -> State:
    """The state dict of the one network in a torch file, or that called `key`, with constants that stand beside it."""
    try:
        found = dict(_networks(content, set())) if isinstance(content, dict) else {}
    except ValueError as error:
        raise unreadable(path, "a whole file of weights", error) from None
    if not found and (state := _small_network(content)):
        found = {(): state}
    if not found:
        got = type(content).__name__
        got += f" with {some([legible(k) for k in content])}" if isinstance(content, dict) and content else ""
        got += f" and pickled objects (nothing of them was run): {some(left_out)}," if left_out else ""
        raise ValueError(f"expected a state dict, plain or under {', '.join(WRAPPERS)}, got {got} in {path.name}; "
                         "take the file that holds the weights")
    names = {".".join(map(str, where)): where for where in found}
    if key:
        where = names[choose(key, names, f"key of {path.name}")]
    elif len(found) == 1 or all(same(state, next(iter(found.values()))) for state in found.values()):
        where = next(iter(found))
    else:
        listed = legible(", ".join(name or "the file itself" for name in names))
        raise ValueError(f"expected one network in {path.name}, got several: {listed}; choose one by key, under weights")
    levels = [content]
    for step in where:
        levels.append(levels[-1][step])
    return found[where] | stand_beside(*levels[:-1])


def _networks(content: Mapping, seen: set[int], where: tuple = (), depth: int = 3) -> Iterator[tuple[tuple, State]]:
    """State dicts at most `depth` dicts deep, each once, with its keys from the top.

    They are known by names with a dot, of which one at least is a matrix; a whole network by its modules.
    """
    seen.add(id(content))
    if "_modules" in content and "_parameters" in content:
        yield where, module_state(content)
        return
    state = _tensors(content)
    if any("." in name and tensor.ndim >= 2 for name, tensor in state.items()):
        yield where, state
    for name, inner in content.items() if depth else ():
        if isinstance(inner, dict) and id(inner) not in seen:
            yield from _networks(inner, seen, (*where, name), depth - 1)


def _small_network(content: object) -> State:
    """Tensors of any name, plain or in the usual wrappers."""
    for _ in range(2):
        inner = [content[k] for k in WRAPPERS if isinstance(content, dict) and isinstance(content.get(k), dict)]
        content = inner[0] if inner else content
    return _tensors(content) if isinstance(content, dict) else {}


def _tensors(content: Mapping) -> State:
    return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """True for the same names and the same values."""
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a)


def _weights_in(folder: Path) -> list[Path]:
    """The one file of weights in a folder, as the Hugging Face hub offers networks, or its parts."""
    for kinds in ((".safetensors",), (".bin", ".pt", ".pth", ".th", ".ckpt")):
        files = sorted(path for path in folder.iterdir() if path.suffix in kinds)
        parts = re.search(r"-of-0*(\d+)\.\w+$", files[0].name) if files else None
        if len(files) == 1 or (parts and len(files) == int(parts[1])):
            return files
        if files:
            names = some([path.name for path in files])
            raise ValueError(f"expected one file of weights in the folder {folder.name}, got {names}; "
                             "put the one you mean beside the folder, and give its name")
    raise ValueError(f"expected a file of weights in the folder {folder.name}, got none; put model.safetensors there")


def _configs(folder: Path) -> list[dict]:
    """What the JSON files of a folder from the hub say of its network and of its images."""
    out = []
    for path in (folder / "config.json", folder / "preprocessor_config.json"):
        try:
            values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError as error:
            raise ValueError(f"expected JSON in {folder.name}/{path.name}, got {error}; fetch it again") from None
        if isinstance(values, dict) and values.get("do_normalize", True):
            out += [values, values.get("pretrained_cfg") or {}]
    return out


def _zipped(path: Path) -> list[str]:
    """Names in a zip archive; [] for another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return []


def _is_program(names: list[str]) -> bool:
    return any(name.rpartition("/")[2] == "constants.pkl" for name in names)


def _is_date(digits: str) -> bool:
    """True for a day of 1990 to 2099, also with the day or the month first, or with a time behind it."""
    forms = {8: ("%Y%m%d", "%d%m%Y", "%m%d%Y"), 10: ("%Y%m%d%H",), 12: ("%Y%m%d%H%M",), 14: ("%Y%m%d%H%M%S",)}
    for form in forms.get(len(digits), ()) if digits.isdecimal() else ():
        try:
            if 1990 <= datetime.datetime.strptime(digits, form).year < 2100:
                return True
        except ValueError:
            continue
    return False
