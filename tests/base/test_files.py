"""Files that know whether they are as they were written."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from twinslib.base.files import read_json, read_npz, write_json, write_npz


@pytest.mark.parametrize(("name", "write", "read", "step"), [
    ("a.json", lambda p: write_json(p, {"acc": 0.5, "of": "ab"}), read_json, 1),
    ("a.npz", lambda p: write_npz(p, {"array": np.arange(2), "x": np.zeros(0)}, {"run": "ab"}, compress=True),
     lambda p: read_npz(p, {"run": "ab"}), 3)])
def test_every_single_bit(name: str, write, read, step: int, tmp_path: Path) -> None:
    """Whichever bit is flipped (of a long file every third), in the digest's own name too: refused, or read as before."""
    path = tmp_path / name
    write(path)
    content, right, refused = path.read_bytes(), repr(read(path)), 0
    for bit in range(0, 8 * len(content), step):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with contextlib.suppress(ValueError):
            assert repr(read(path)) == right, bit
            continue
        refused += 1
    assert refused > len(content)


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Without a digest, whatever its values look like."""
    (tmp_path / "a.json").write_text('{"sha256": "' + 64 * "0" + '"}')
    assert read_json(tmp_path / "a.json") == {"sha256": 64 * "0"}
