"""``python -m bench.child module:function '{"argument": …}'``: run one piece of work and say what memory it took, as JSON."""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path


def resident(key: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Start the peak afresh at what is resident now, where the kernel lets us (Linux); else set-up counts towards it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main(target: str, arguments: str) -> None:
    module, _, function = target.partition(":")
    work = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    forget_peak()
    before = resident("VmRSS")
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    print(json.dumps({"before": before, "peak": resident("VmHWM"), "seconds": seconds, "result": result}))


if __name__ == "__main__":
    main(*sys.argv[1:3])
