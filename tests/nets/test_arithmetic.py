"""Reduced precision where the hardware has it, and full float32 whatever torch's switches say."""

import subprocess
import sys

import pytest
import torch

from twinslib.nets import arithmetic

SWITCHES = (  # how others set them: the new interface, the old one, both
    "pass", "b.fp32_precision = 'tf32'", "b.mkldnn.matmul.fp32_precision = 'bf16'", "b.cuda.matmul.allow_tf32 = True",
    "torch.set_float32_matmul_precision('high'); b.mkldnn.conv.fp32_precision = 'tf32'",
)
PROGRAM = """
import os, sys, torch
from twinslib.attack import masks
from twinslib.base.sequential import certify_plan
from twinslib.certify import smoothing
from twinslib.compute import provenance
from twinslib.nets import arithmetic
b = torch.backends

def switches():
    out = [b.fp32_precision, b.cudnn.fp32_precision, *arithmetic.state().values()]
    for old in (torch.get_float32_matmul_precision, lambda: b.cudnn.allow_tf32, lambda: b.cuda.matmul.allow_tf32):
        try:
            out.append(old())
        except RuntimeError:
            out.append("mixed")
    return out

def case(code):
    seen = set()
    def forward(x):
        seen.update(arithmetic.state().values())
        return x.flatten(1)[:, :3] @ torch.eye(3)
    exec(code)
    before = switches()
    images, labels = torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    masks.clean_mask(forward, images, labels, batch_size=2)
    smoothing.collect_votes(forward, images, certify_plan(sigma=0.25, n=64, n0=16, alpha=0.1), model_hash="plane")
    try:
        with arithmetic.full_float32("cpu"):
            raise KeyError
    except KeyError:
        pass
    assert seen == {"ieee"}, seen
    assert switches() == before, (before, switches())
    assert set(provenance.record("now", 0.0, "cpu")["float32"]) == set(arithmetic.state())

torch.set_num_threads(1)
for code in sys.argv[1:]:  # each in a process of its own, since the switches belong to the process
    if (child := os.fork()) == 0:
        case(code)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, code
"""


def test_full_float32_whatever_the_switches() -> None:
    """Accuracy and votes are computed in full float32, and both interfaces say afterwards what they said before."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *SWITCHES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_bfloat16_on_a_gpu(capability: tuple[int, int], expected: str, monkeypatch) -> None:
    """From compute capability 8.0 on; float32 stays float32 everywhere."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert arithmetic.chosen("bfloat16", "cuda:0") == expected
    assert arithmetic.chosen("float32", "cuda:0") == "float32"


@pytest.mark.parametrize(("native", "amx", "avx2", "capability", "bound", "bfloat16", "avx"), [
    (True, False, True, "AVX512", "", True, True), (False, True, True, "AVX512", "ALL", True, True),
    (False, False, True, "AVX512", "", False, True), (True, True, True, "AVX2", "", False, True),
    (True, True, True, "AVX512", "AVX512_CORE", False, True), (True, True, True, "AVX512", "sse41", False, False),
    (False, False, False, "DEFAULT", "", False, False)])
def test_what_an_x86_has(native, amx, avx2, capability, bound, bfloat16, avx, monkeypatch) -> None:
    """AVX512-BF16 or AMX multiply in bfloat16, AVX-512 alone emulates it; an older set may be imposed."""
    monkeypatch.setattr(arithmetic.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: avx2)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", bound)
    assert (arithmetic.has_bfloat16("cpu"), arithmetic.has_avx()) == (bfloat16, avx)
    monkeypatch.setattr(arithmetic.platform, "machine", lambda: "aarch64")
    assert arithmetic.has_avx()
