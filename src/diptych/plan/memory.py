"""How much memory a new process can use."""

from __future__ import annotations

import re
from pathlib import Path


def available_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that a new process can use: what the machine has available, or a control group leaves. None if unknown."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", proc.read_text()) if proc.is_file() else None
    free = int(found[1]) * 1024 if found else None
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    if not limit.isdigit():
        return free
    left = max(0, int(limit) - used)
    return left if free is None else min(free, left)
