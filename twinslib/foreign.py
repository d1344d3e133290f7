"""Files of weights as others publish them: what a file or folder holds, and the network and the normalisation in it.

Files are known by their content, not by their name. Only tensors and plain values are read, and nothing in a file is run.
"""

import csv
import datetime
import hashlib
import io
import json
import logging
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .errors import choose, some
from .pickles import module_state, read_inert

log = logging.getLogger(__name__)
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
MEAN = re.compile(r"(.*[._])?(mean|means|mu)")
STDS = ("std", "stds", "sd", "sds", "stdev", "sigma")
WANTED = "a whole file of weights, safetensors or torch"

State = dict[str, torch.Tensor]


# -- files -----------------------------------------------------------------------------------------------------------
def read(path: Path, key: str = "") -> tuple[State, dict]:
    """(tensors by name on the CPU, our own metadata or {}) of a safetensors file, a torch file, or a folder with one of them.

    A torch file may wrap the state dict in dicts, hold pickled objects beside it, or be a whole pickled network: of objects only
    the tensors are taken, and a warning names the rest. Normalisation constants that stand beside the state dict, or in the JSON
    files of a folder, come as "beside.mean" and "beside.std".

    Args:
        key: which of several state dicts, such as "state_dict_ema".
    Raises:
        FileNotFoundError: no such file.
        ValueError: a truncated or foreign file, no network in it, or several and no key.
    """
    if path.is_dir():
        inside = _weights_in(path)
        state, meta = read(inside, key)
        return state | _beside(*_configs(path)), meta
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, got no such file; check the path")
    if not _is_safetensors(path):
        return _network_in(path, *_torch_or_inert(path), key), {}
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    except (SafetensorError, ValueError) as error:
        raise unreadable(path, WANTED, error) from error
    if key:
        raise ValueError(f"expected no key for {path.name}, got {key!r}; a safetensors file holds one state dict, choose a part "
                         "of it by prefix")
    return state, meta


def load_torch(path: Path) -> object:
    """The content of a torch file, tensors and plain types only.

    Raises:
        ValueError: anything else, whatever is wrong with it.
    """
    data = io.BytesIO(path.read_bytes())  # what fails from here on is the content, not the disk
    try:
        return torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes of the reader is of any type
        raise unreadable(path, "a whole torch file", error) from error


def unreadable(path: Path, wanted: str, error: Exception) -> ValueError:
    """The error for a file that is not what it should be: what it is instead, and what to do."""
    with path.open("rb") as file:
        head = file.read(512)
    text, names = head.strip(), _zipped(path)
    got, then = f"a truncated or foreign one of {path.stat().st_size:,} bytes", "delete it and make or fetch it again"
    if head.startswith(b"version https://git-lfs"):
        got, then = "a Git LFS pointer in place of the file", "fetch the file itself with git lfs pull"
    elif text.startswith(b"<"):
        got = "a web page"
    elif text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text):
        got = f"a text that begins with {text.decode('ascii').splitlines()[0][:40]!r}"
    elif head.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"BZh")):
        got, then = "a compressed archive", "unpack it and take the file inside"
    elif head.startswith(b"\x89HDF"):
        got, then = "an HDF5 file, as Keras writes them", "take the weights for PyTorch"
    elif _is_program(names):
        got, then = "a TorchScript program, which would have to be run", ("take the state dict, or store it where you trust the "
                                                                         "file: torch.save(torch.jit.load(FILE).state_dict(), …)")
    elif names and not any(name.endswith("data.pkl") for name in names):
        got, then = f"a zip archive of {some(names)}", "unpack it and take the file inside"
    detail = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return ValueError(f"expected {wanted}, got {got} in {path.name} ({detail}); {then}")


def check_name(path: Path) -> None:
    """Refuse a file whose name ends in digits of a SHA-256, as torch.hub names files, where it is not that file's. Digits that
    can be a date, or a number of steps padded with zeros, are told from it by nothing but this, so they are only logged.

    Raises:
        ValueError: another file under that name.
    """
    named = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", path.name)
    if not named or not path.is_file():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found.startswith(named[1]):
        return
    if _is_date(named[1]) or re.fullmatch(r"00\d+", named[1]):
        log.info("%s: %s in the name is taken for a date or a count, since it does not begin the file's SHA-256", path.name, named[1])
        return
    raise ValueError(f"expected weights whose SHA-256 begins with {named[1]}, as the name {path.name} says, got {found}; take the "
                     "published file, or give another network a name of its own")


def published_network(file: str) -> dict | None:
    """What the publisher of a network says of it: dataset, clean_acc over so many images, source; None for one not listed."""
    with (resources.files(__package__) / "reference" / "networks.csv").open(encoding="utf-8") as lines:
        row = next((row for row in csv.DictReader(lines) if row["file"] == file), None)
    return row and {**row, "clean_acc": float(row["clean_acc"]), "images": int(row["images"])}


# -- normalisation ---------------------------------------------------------------------------------------------------
def split_constants(
    state: Mapping[str, torch.Tensor], *, channels: int = 3, own: Collection[str] = ()
) -> tuple[State, tuple[torch.Tensor, torch.Tensor] | None]:
    """(the other tensors, (mean, std) or None): the constants that a checkpoint normalises its images with, each of shape
    (channels,), for pixels in [0, 1].

    They are a pair of tensors called mean and std (or mu and sigma, new_mean and new_std, ...), in any module, of one number or
    one per channel. Constants for pixels in 0..255 are divided by 255.

    Args:
        own: names that belong to the network itself.
    Raises:
        ValueError: several pairs that differ, or a std of 0 or below.
    """
    pairs = {}
    for name in state:
        stem = MEAN.fullmatch(name)
        partner = next((p for p in (f"{stem[1] or ''}{std}" for std in STDS) if p in state), None) if stem else None
        fits = partner and {state[name].numel(), state[partner].numel()} <= {1, channels}
        if fits and not any(name.endswith(f".{other}") or name == other for other in own):
            pairs[name, partner] = [state[n].to_dense().double().flatten().expand(channels) for n in (name, partner)]
    if not pairs:
        return dict(state), None
    rest = {name: tensor for name, tensor in state.items() if not any(name in pair for pair in pairs)}
    (first, (mean, std)), *others = pairs.items()
    for names, values in others:
        if not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(values, (mean, std), strict=True)):
            raise ValueError(f"expected one normalisation, got {first[0]} {_numbers(mean)} and {names[0]} {_numbers(values[0])}; "
                             "take out all but that of the network")
    if not (std > 0).all() or not torch.isfinite(torch.cat((mean, std))).all():
        raise ValueError(f"expected a positive {first[1]} for normalisation, got {_numbers(std)}; use another checkpoint")
    if mean.max() > 1 or std.max() > 1 + 1e-6:
        log.info("normalisation %s %s, %s %s is of pixels in 0..255; divided by 255", first[0], _numbers(mean), first[1],
                 _numbers(std))
        mean, std = mean / 255, std / 255
    return rest, (mean.float(), std.float())


def check_constants(constants: tuple[torch.Tensor, torch.Tensor], ours: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Refuse constants of a file that are not those asked for.

    Raises:
        ValueError: a difference of more than 0.001, with both.
    """
    if any((a - b).abs().max() > 1e-3 for a, b in zip(constants, ours, strict=True)):
        (mean, std), (my_mean, my_std) = (map(_numbers, pair) for pair in (constants, ours))
        raise ValueError(f"expected normalisation with mean {my_mean} and std {my_std}, as the model says, got mean {mean} and std "
                         f"{std} in the file; leave mean and std out to take the file's")


def _numbers(values: torch.Tensor) -> list[float]:
    return [round(v, 4) for v in values.flatten().tolist()]


def _beside(*levels: Mapping) -> State:
    """Constants among plain values that stand beside a state dict."""
    loose = {}
    for level in levels:
        for name, value in level.items():
            numbers = value if isinstance(value, list | tuple) else [value]
            if isinstance(value, torch.Tensor):
                loose[str(name)] = value
            elif numbers and all(type(v) in (int, float) for v in numbers):
                loose[str(name)] = torch.tensor(numbers, dtype=torch.float64)
    try:
        constants = split_constants(loose)[1]
    except ValueError:  # statistics of something else: several pairs, or a std of 0
        return {}
    return {} if constants is None else dict(zip(("beside.mean", "beside.std"), constants, strict=True))


# -- what is in a file -------------------------------------------------------------------------------------------------
def _is_safetensors(path: Path) -> bool:
    """Eight bytes of length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _torch_or_inert(path: Path) -> tuple[object, list[str]]:
    """(content, names of pickled objects that were left out) of a torch file."""
    try:
        return load_torch(path), []
    except ValueError:
        if _is_program(_zipped(path)):
            raise
        try:
            content, left_out = read_inert(path)
        except ValueError:
            pass
        else:
            log.warning("%s holds pickled objects: %s; their code was not run, and only tensors and plain values are taken",
                        path.name, some(left_out))
            return content, left_out
        raise


def _network_in(path: Path, content: object, left_out: list[str], key: str) -> State:
    """The state dict of the one network in a torch file, or of that called `key`, with constants that stand beside it."""
    found = dict(_networks(content)) if isinstance(content, dict) else {}
    if not found:
        found = {() if key in ("", *WRAPPERS) else ("",): state} if (state := _small_network(content)) else {}
    if not found:
        keys = some([str(k) for k in content]) if isinstance(content, dict) else None
        got = ("pickled objects" if left_out else type(content).__name__) + (f" with {keys}" if keys else "")
        objects = f" (objects of {some(left_out)}, of which nothing was run)" if left_out else ""
        raise ValueError(f"expected a state dict, plain or under {', '.join(WRAPPERS)}, got {got} in {path.name}{objects}; "
                         "take the file that holds the weights")
    names = {".".join(map(str, where)): where for where in found}
    if key and () not in found or key in names:
        where = names[choose(key, names, f"key of {path.name}")]
    elif len(found) == 1 or all(same(state, next(iter(found.values()))) for state in found.values()):
        where = next(iter(found))
    else:
        listed = ", ".join(name or "the file itself" for name in names)
        raise ValueError(f"expected one network in {path.name}, got several: {listed}; choose one by key, under weights")
    levels = [content]
    for step in where:
        levels.append(levels[-1][step])
    return found[where] | _beside(*levels[:-1])


def _networks(content: Mapping, where: tuple = (), depth: int = 3) -> Iterator[tuple[tuple, State]]:
    """State dicts at most `depth` dicts deep, each with its keys from the top: known by names with a dot, of which at least one
    is a matrix or more; or a whole network."""
    if "_modules" in content and "_parameters" in content:
        yield where, module_state(content)
        return
    state = _tensors(content)
    if any("." in name and tensor.ndim >= 2 for name, tensor in state.items()):
        yield where, state
    for name, inner in content.items() if depth else ():
        if isinstance(inner, dict):
            yield from _networks(inner, (*where, name), depth - 1)


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
    return a is b or (a.keys() == b.keys() and all(a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a))


def _weights_in(folder: Path) -> Path:
    """The one file of weights in a folder, as the Hugging Face hub offers networks."""
    for kinds in (("safetensors",), ("bin", "pt", "pth", "th", "ckpt", "tar")):
        files = sorted(p for p in folder.iterdir() if p.suffix.lstrip(".") in kinds)
        if len(files) == 1:
            return files[0]
        if files:
            raise ValueError(f"expected one file of weights in the folder {folder.name}, got {some([p.name for p in files])}; put the "
                             "one you mean beside the folder, and give its name")
    raise ValueError(f"expected a file of weights in the folder {folder.name}, got none; put model.safetensors there")


def _configs(folder: Path) -> list[dict]:
    """What the JSON files of a folder from the hub say, those for training under timm included."""
    out = []
    for path in (folder / "config.json", folder / "preprocessor_config.json"):
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if isinstance(values, dict) and values.get("do_normalize", True):
            out += [values, values.get("pretrained_cfg") or {}]
    return out


def _zipped(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _is_program(names: list[str]) -> bool:
    return any(name.rpartition("/")[2] == "constants.pkl" for name in names)


def _is_date(digits: str) -> bool:
    """True for a day of 1990 to 2099, also with the day or month first, or with a time behind it."""
    for form, size in (("%Y%m%d", 8), ("%d%m%Y", 8), ("%m%d%Y", 8), ("%Y%m%d%H", 10), ("%Y%m%d%H%M", 12), ("%Y%m%d%H%M%S", 14)):
        try:
            if len(digits) == size and digits.isdecimal() and 1990 <= datetime.datetime.strptime(digits, form).year < 2100:
                return True
        except ValueError:
            continue
    return False
