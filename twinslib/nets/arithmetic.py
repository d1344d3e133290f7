"""In which arithmetic a network runs: bfloat16 where it is asked for and the hardware has it, full float32 elsewhere.

A processor without bfloat16 emulates it, which takes about ten times as long as float32, so there "bfloat16" in a spec means
float32. What was used stands in the provenance, in votes and beside weights.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..base.errors import choose
from ..specs.choices import PRECISIONS

X86 = ("x86_64", "AMD64", "i386", "i686")
WITHOUT = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")  # caps of oneDNN, no bfloat16


def has_bfloat16(device: torch.device | str) -> bool:
    """True where `device` multiplies in bfloat16: CUDA from compute capability 8.0 on, x86 with AVX512-BF16 or AMX, Arm with its
    bf16 extension. False where an older instruction set is imposed (ONEDNN_MAX_CPU_ISA, ATEN_CPU_CAPABILITY)."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in X86:
        return True  # on x86 the question before is answered with yes by AVX-512 without bfloat16, too
    allowed = onednn_bound().upper() not in WITHOUT and torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
    return allowed and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def onednn_bound() -> str:
    """The newest instruction set that oneDNN may use, where one is imposed on it; else empty."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""


def has_avx() -> bool:
    """False where convolutions on the CPU must do without AVX: on an x86 without AVX2, or where oneDNN is kept to SSE4.1."""
    return platform.machine() not in X86 or (torch.cpu._is_avx2_supported() and onednn_bound().upper() != "SSE41")


def chosen(asked: str, device: torch.device | str) -> str:
    """The precision that is used on `device` where a spec asks for `asked`: "bfloat16" becomes "float32" without hardware for it.

    >>> chosen("float32", "cpu")
    'float32'
    """
    choose(asked, PRECISIONS, "precision")
    return "bfloat16" if asked == "bfloat16" and has_bfloat16(device) else "float32"


def dtype(precision: str) -> torch.dtype:
    """torch.bfloat16 or torch.float32."""
    return getattr(torch, choose(precision, PRECISIONS, "precision"))


def in_words(asked: set[str], device: torch.device | str) -> str:
    """One sentence on what "bfloat16" means on `device`, where any of `asked` is that; empty otherwise."""
    if "bfloat16" not in asked:
        return ""
    if has_bfloat16(device):
        return "bfloat16 is computed in bfloat16, which this device has; reported robust numbers are float32"
    return "bfloat16 is computed in float32, since this device does not have it"


def state() -> dict[str, str]:
    """What torch is allowed to do with float32 numbers, by backend: "ieee" and "none" are full precision.

    >>> sorted(state())[0]
    'cpu.conv'
    """
    return {name: level.fp32_precision for name, level in _levels()[2:]}


@contextmanager
def full_float32(device: torch.device | str) -> Iterator[None]:
    """No autocast on `device` and no TF32 or bfloat16 inside float32 products; afterwards, also after an error, torch's switches
    are as before, whichever of its two interfaces set them.

    >>> with full_float32("cpu"):
    ...     set(state().values())
    {'ieee'}
    """
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # the new interface was used in a way that the old one cannot express
        legacy = "highest"
    changed, before_all = [], state()
    try:
        if legacy != "highest":  # both interfaces must agree, or some products refuse to run
            torch.set_float32_matmul_precision("highest")
        for _, level in _levels():  # the general first: a switch that inherits from it is not touched
            before = level.fp32_precision
            if before != "ieee":
                level.fp32_precision = "ieee"
                changed.append((level, before))
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for level, before in reversed(changed):
            level.fp32_precision = before
        if legacy != "highest":
            torch.set_float32_matmul_precision(legacy)
            for name, level in _levels()[2:]:  # the old interface also sets what it did not set before
                if level.fp32_precision != before_all[name]:
                    level.fp32_precision = before_all[name]


def _levels() -> list[tuple[str, object]]:
    backends = torch.backends
    return [("all", backends), ("cuda", backends.cudnn), ("cuda.matmul", backends.cuda.matmul),
            ("cuda.conv", backends.cudnn.conv), ("cuda.rnn", backends.cudnn.rnn), ("cpu.matmul", backends.mkldnn.matmul),
            ("cpu.conv", backends.mkldnn.conv), ("cpu.rnn", backends.mkldnn.rnn)]
