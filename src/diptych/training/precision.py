"""Which precision a device multiplies fast."""

from __future__ import annotations

import os
from pathlib import Path

import torch

FLAGS = (" avx512_bf16", " amx_bf16")  # of processors with instructions for bfloat16
WITHOUT = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")  # of ONEDNN_MAX_CPU_ISA, which forbids them


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 fast. On a CPU: by its flags, unless ``ONEDNN_MAX_CPU_ISA`` keeps oneDNN, which
    does it, from using them.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT:
        return False
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and any(f in flags.read_text() for f in FLAGS)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to multiply in bf16: if asked for or, under ``auto``, where the hardware does it fast."""
    return multiplies_bf16(device) if precision == "auto" else precision == "bf16"
