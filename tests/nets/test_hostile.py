"""Files that would run code, or take all memory or time, when they are read: nothing runs, one line says no, and soon."""

import argparse
import contextlib
import copyreg
import io
import json
import os
import pickle
import resource
import signal
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.nets.made import equal, tiny
from twinslib.nets import pickles
from twinslib.nets.checkpoint import load_weights

SECONDS, MEGABYTES = 10, 300  # that a file of less than one megabyte may take


class Reduced:
    """Pickled as a call."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def op(value: object) -> bytes:
    """The opcodes that put a value on the stack."""
    if isinstance(value, bytes):
        return b"B" + len(value).to_bytes(4, "little") + value
    return pickle.dumps(value, 2)[2:-1]


def call(module: str, name: str, *args: object) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(op(arg) for arg in args) + b"tR"


def code(canary: str) -> dict[str, bytes]:
    """Pickles that make the folder `canary` as soon as an ordinary unpickler reads them, by the way they do it."""
    command, source, name = f"mkdir {canary}", f"__import__('os').mkdir({canary!r})", op(canary)
    evil = pickle.dumps(Reduced(os.mkdir, canary), 2)
    mkdir = b"cos\nmkdir\n"
    calls = {
        "eval": ("builtins", "eval", source), "Popen": ("subprocess", "Popen", ["mkdir", canary]),
        "loads": ("pickle", "loads", evil), "loads in torch": ("torch.serialization", "pickle.loads", evil),
        "Path": ("pathlib", "Path.mkdir", Path(canary)),
        "__import__": ("builtins", "__import__", "antigravity"), "torch.load": ("torch", "load", canary),
    }
    out = {f"system, protocol {p}": pickle.dumps(Reduced(os.system, command), p) for p in range(6)}
    out |= {way: call(*what) + b"." for way, what in calls.items()}
    out |= {f"in {kind}": pickle.dumps(make(Reduced(os.mkdir, canary)), 4) for kind, make in {
        "a dict": lambda x: {"state_dict": [x]}, "a key": lambda x: {x: 1}, "a call": lambda x: Reduced(str, x),
        "an ordered dict": lambda x: OrderedDict(a=x), "a set": lambda x: {x}}.items()}
    return out | {
        "inst": b"(" + name + b"ios\nmkdir\n.", "obj": b"(cos\nmkdir\n" + name + b"o.", "newobj": mkdir + name + b"\x85\x81.",
        "newobj_ex": mkdir + name + b"\x85}\x92.", "dotted": b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93" + name + b"\x85R.",
        "dotted name": b"\x80\x04\x8c\x02os\x8c\x0apath.os.mk\x8c\x08path.dir\x93" + name + b"\x85R.",
        "getattr": b"cbuiltins\ngetattr\n(cos\npath\nX\x02\x00\x00\x00osttR" + name + b"\x85R.",
        "partial": b"cfunctools\npartial\n(" + mkdir + name + b"tR)R.",
        "map": b"cbuiltins\nlist\ncbuiltins\nmap\n(" + mkdir + b"]" + name + b"atR\x85R.",
        "setstate": b"c__main__\nx\n)R}" + op("__setstate__") + mkdir + b"sb" + name + b"b.",
        "class changed": b"ccollections\nOrderedDict\nN}" + op("__setstate__") + mkdir + b"s\x86b.",
        "helper changed": b"ctorch._utils\n_rebuild_tensor_v2\nN}" + op("__defaults__") + b"Ns\x86b.",
        "class state": b"ccollections\nOrderedDict\n}" + op("__init__") + mkdir + b"sb.",
        "list items": mkdir + name + b"\x85R(" + op({"a.b": 1}) + b"e.", "appended": mkdir + name + b"a.",
        "extension 1": b"\x82\xf0" + name + b"\x85R.", "extension 2": b"\x83\xf0\x00" + name + b"\x85R.",
        "extension 4": b"\x84\xf0\x00\x00\x00" + name + b"\x85R.", "persistent": op(("module", "os", canary)) + b"Q.",
        "persistent, as text": b"Pos.mkdir\n.",
        "of type": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + mkdir + b"N" + name + b"\x85NtR.",
        "nested file": call("torch.storage", "_load_from_bytes", evil) + b".",
        "wrapped": b"ctorch._utils\n_rebuild_wrapper_subclass\n(" + mkdir + b"NNNNNNNtR.",
    }


def in_zip(content: bytes, **parts: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {"data.pkl": content, "byteorder": b"little", "version": b"3\n", **parts}.items():
            archive.writestr(f"a/{name}", data)
    return file.getvalue()


def in_older(content: bytes, keys: object = ()) -> bytes:
    head = [pickle.dumps(v, 2) for v in (pickles.MAGIC, pickles.PROTOCOL, {"little_endian": True})]
    return b"".join(head) + content + pickle.dumps(list(keys), 2)


@contextlib.contextmanager
def little() -> Iterator[None]:
    """Inside, neither much time nor much memory."""
    def over(*_: object) -> None:
        raise KeyboardInterrupt(f"more than {SECONDS} s")

    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, over)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**33, limits[1]))  # the machine stays usable
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.monotonic() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * MEGABYTES


def refused(path: Path, content: bytes) -> str:
    """What is said of a file, in one line that names it."""
    path.write_bytes(content)
    with little(), pytest.raises(ValueError, match=path.name) as caught:
        load_weights(path)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 1000 and "MemoryError" not in said
    return said


@pytest.mark.parametrize("way", code("x"))
def test_nothing_is_run(tmp_path: Path, way: str, monkeypatch) -> None:
    """A file that would run code does not, whatever opcodes it uses and whatever holds it."""
    canary = tmp_path / "canary"
    evil = code(str(canary))[way]
    monkeypatch.setitem(copyreg._inverted_registry, 0xF0, ("os", "mkdir"))
    monkeypatch.setitem(copyreg._extension_cache, 0xF0, os.mkdir)
    before = torch._utils._rebuild_tensor_v2.__defaults__, dict(vars(OrderedDict)), dict(vars(pickles.Inert))
    for content in (evil, in_zip(evil), in_older(evil), in_older(pickle.dumps({}))[:-4] + evil, in_older(b"")[:20] + evil):
        refused(tmp_path / "evil.pt", content)
    assert not canary.exists()
    assert before == (torch._utils._rebuild_tensor_v2.__defaults__, dict(vars(OrderedDict)), dict(vars(pickles.Inert)))


@pytest.mark.parametrize("way", ["system, protocol 2", "system, protocol 5", "eval", "in a call", "inst", "obj", "map",
                                 "partial", "extension 1", "dotted", "loads", "in a key"])
def test_they_are_what_they_look_like(tmp_path: Path, way: str, monkeypatch) -> None:
    """An ordinary unpickler runs them."""
    monkeypatch.setitem(copyreg._inverted_registry, 0xF0, ("os", "mkdir"))
    with contextlib.suppress(Exception):
        pickle.loads(code(str(tmp_path / "canary"))[way])
    assert (tmp_path / "canary").exists()


def test_what_would_run_is_named(tmp_path: Path, caplog) -> None:
    """Beside a network it is left out and named, as harmless objects are; in its place the file is refused with its name."""
    bomb = Reduced(os.mkdir, str(tmp_path / "canary"))
    for what, name in ((bomb, "mkdir"), (argparse.Namespace(lr=Path("x")), "Namespace"), (np.float64(0.5), "numpy")):
        torch.save({"model": tiny().state_dict(), "args": what}, tmp_path / "beside.pt")
        assert equal(load_weights(tmp_path / "beside.pt")[0], tiny())
        assert "beside.pt holds pickled objects" in caplog.text and name in caplog.text
    torch.save({"model": bomb}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="posix.mkdir|nt.mkdir"):
        load_weights(tmp_path / "evil.pt")
    assert not (tmp_path / "canary").exists()


def doubled(leaf: bytes, join: bytes, times: int = 60) -> bytes:
    """Opcodes of an object that holds the one before twice, and so on."""
    return leaf + b"".join(b"q\x00h\x00" + join for _ in range(times))


def tensor(*, numel: object = 4, size: tuple = (2, 2), stride: tuple = (2, 1), offset: int = 0, key: bytes = op("0")) -> bytes:
    storage = b"(" + op("storage") + b"ctorch\nFloatStorage\n" + key + op("cpu") + op(numel) + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + op(offset) + op(size) + op(stride) + op(False) + b"}tR"


def as_network(tensors: bytes) -> bytes:
    return b"\x80\x02}" + op("a.b") + tensors + b"s."


def module(children: bytes) -> bytes:
    """Opcodes of a dict with the attributes of a module around the opcodes of a dict of modules."""
    return b"}(" + op("_parameters") + b"}" + op("_modules") + children + b"u"


LAUGHS = doubled(b")", b"\x86")  # tuples
WIDE = b"}" + b"".join(b"q\x00}(" + b"".join(op(f"{i}") + b"h\x00" for i in range(1500)) + b"u" for _ in range(3)) + b"."
DEEP = 30_000
BOMBS: dict[str, bytes] = {
    "memo": b"\x80\x02Nr\xff\xff\xff\xff.", "bytes": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"x.",
    "byte array": b"\x80\x05\x96" + (2**36).to_bytes(8, "little") + b".",
    "integer": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", "digits": b"I" + b"9" * 10**6 + b"\n.",
    "frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.",
    "bytearray": call("builtins", "bytearray", 2**36) + b".",
    "laughs": LAUGHS + b".", "key": b"}" + LAUGHS + b"Ns.", "keys": b"}(" + LAUGHS + b"Nu.", "dict": b"(" + LAUGHS + b"Nd.",
    "set": b"\x80\x04\x8f(" + LAUGHS + b"\x90.", "frozen set": b"\x80\x04(" + LAUGHS + b"\x91.",
    "ordered": b"ccollections\nOrderedDict\n(](" + b"(" + LAUGHS + b"Nte" + b"tR.",
    "attribute": b"c__main__\nx\n)R" + b"}" + LAUGHS + b"Nsb.", "lists": doubled(b"]", b"\x86") + b".",
    "dicts": WIDE, "modules": module(b"}") + b"".join(
        b"q\x070" + module(b"}(" + op("a") + b"h\x07" + op("b") + b"h\x07u") for _ in range(40)) + b".",
    "module in itself": b"}q\x07(" + op("_parameters") + b"}" + op("_modules") + b"}" + op("a") + b"h\x07su.",
    "deep lists": b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep dicts": b"}" + (op("state_dict") + b"}") * DEEP + b"s" * DEEP + b".",
    "marks": b"(" * 10**5 + b".", "storage": as_network(tensor(numel=2**50)),
    "storage of less": as_network(tensor(numel=-4)),
    "storage of text": as_network(tensor(numel="9" * 99)), "storage by a key": as_network(tensor(key=LAUGHS)),
    "storages": as_network(b"0".join(tensor(numel=10_000, key=op(str(i))) for i in range(2000))),
    "expanded": as_network(tensor(size=(10**6, 10**6), stride=(0, 0))), "beyond": as_network(tensor(size=(10**9,), stride=(1,))),
    "overlapping": as_network(b"0".join([tensor(size=(2, 10**6), stride=(0, 0))] * 5)),
    "backwards": as_network(tensor(stride=(-2, -1))),
    "axes": as_network(tensor(size=(2,) * 10**5, stride=(1,) * 10**5)), "offset": as_network(tensor(offset=10**12)),
    "long size": as_network(tensor(size=(10**100_000, 1))), "sizes": as_network(tensor(size=(10**300,) * 9, stride=(0,) * 9)),
    "nothing": as_network(tensor(size=(0, 10**400), stride=(1, 1))),
    "files": b"(" + op(in_older(as_network(b"N")) + bytes(99_999)) + b"q\x010" + b"ctorch.storage\n_load_from_bytes\nq\x000"
    + b"h\x00h\x01\x85R0" * 2000 + b"t.",
    "meta": as_network(call("torch._utils", "_rebuild_meta_tensor_no_storage", None, (10**12, 10**12), (1, 1), False)),
    "sparse": as_network(call("torch._utils", "_rebuild_sparse_tensor", "torch.sparse_coo", (None, None, (10**12, 10**12)))),
    "dots": as_network(tensor()).replace(op("a.b"), op("." * 10**6)),
    "lines": as_network(tensor()).replace(op("a.b"), op("a.\nb")),
    "keys of lines": b"}" + op("\n\x1b[2J" * 9) + b"Ns.", "names of lines": b"\x80\x04" + op("a\nb") + op("c" * 9999) + b"\x93.",
    "long names": module(b"}") + b"".join(
        b"q\x070" + module(b"}(" + op("a" * 20_000) + b"h\x07" + op("b") + b"h\x07u") for _ in range(20)) + b".",
    "constants": b"}(" + op("state_dict") + b"}" + op("mean") + op(10**400) + op("std") + op([float("nan")]) + b"u.",
}


HARMLESS = ("storage", "storage of less", "storage of text")


@pytest.mark.parametrize("name", BOMBS)
def test_neither_memory_nor_time(tmp_path: Path, name: str) -> None:
    """A small file takes little of either, in every format; the newer one does not ask how long a storage should be."""
    path = tmp_path / "bomb.pt"
    for content in (BOMBS[name], in_older(BOMBS[name], ["0"]) + bytes(24)):
        refused(path, content)
    zipped = in_zip(BOMBS[name], **{"data/0": bytes(16)})
    if name not in HARMLESS:
        refused(path, zipped)
    else:
        path.write_bytes(zipped)
        with little():
            assert load_weights(path)[0]["a.b"].numel() == 4


def compressed(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", as_network(tensor()) if name != "a/data.pkl" else b"N" * 10**8)
        if name != "a/data.pkl":
            archive.writestr(name, bytes(10**8))
    return file.getvalue()


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
FILES = {
    "compressed numbers": compressed("a/data/0"), "compressed objects": compressed("a/data.pkl"),
    "compressed beside": compressed("a/more"), "two indices": in_zip(as_network(tensor()), **{"b/data.pkl": b"N."}),
    "no numbers": in_zip(as_network(tensor())), "half a number": in_zip(as_network(tensor()), **{"data/0": bytes(15)}),
    "other byte order": in_zip(as_network(tensor()), **{"data/0": bytes(16), "byteorder": b"big"}),
    "a path for a key": in_zip(as_network(tensor(key=op("../../../etc/passwd"))), **{"data/0": bytes(16)}),
    "storage without numbers": in_older(as_network(tensor())), "storage cut": in_older(as_network(tensor()), ["0"]) + bytes(20),
    "storage of another length": in_older(as_network(tensor()), ["0"]) + (9).to_bytes(8, "little") + bytes(36),
    "safetensors beyond its end": len(HEADER).to_bytes(8, "little") + HEADER,
    "safetensors with a long header": (2**62).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_containers(tmp_path: Path, name: str) -> None:
    """Archives that are larger inside than outside, numbers that are not there, of others, or behind a path."""
    refused(tmp_path / "file.pt", FILES[name])


def test_a_network_in_hand_made_files_is_read(tmp_path: Path) -> None:
    """What the tests above refuse is one change away from what is read."""
    for content in (in_zip(as_network(tensor()), **{"data/0": bytes(16)}),
                    in_older(as_network(tensor()), ["0"]) + (4).to_bytes(8, "little") + bytes(16)):
        (tmp_path / "fine.pt").write_bytes(content)
        assert load_weights(tmp_path / "fine.pt")[0]["a.b"].shape == (2, 2)
