"""What ``diptych doctor`` checks: each check gives findings, and costs nothing if it fails."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diptych.core import extras
from diptych.core.errors import DiptychError
from diptych.plan.memory import available_memory

GIB = 2**30
LITTLE_MEMORY, LITTLE_ROOM = 4 * GIB, 5 * GIB  # below these a default run may not fit, a cache may fill the disk
OLDEST = (3, 11)
MAIN = ("torch", "numpy", "transformers", "safetensors", "pillow", "pyarrow")  # packages that matter when something goes wrong

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the answer. remedy: a command or setting that helps, for a note or a problem."""

    what: str
    status: Status
    text: str
    remedy: str = ""


def versions() -> Iterator[Finding]:
    """Python, Diptych and the packages that most errors have to do with."""
    python = platform.python_version()
    if sys.version_info < OLDEST:
        yield Finding("Python", "problem", python, f"install Python {OLDEST[0]}.{OLDEST[1]} or newer")
    else:
        yield Finding("Python", "ok", f"{python}, {platform.system()} {platform.machine()}")
    held = []
    for name in ("diptych", *MAIN):
        try:
            held.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("package", "problem", f"{name} is not installed", "pip install diptych")
    yield Finding("packages", "ok", ", ".join(held))


def processors() -> Iterator[Finding]:
    """Processors that this process may use, and whether they multiply in bfloat16."""
    import torch

    from diptych.training.precision import multiplies_bf16

    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fast = multiplies_bf16(torch.device("cpu"))
    text = f"{count}, {'bf16 is fast' if fast else 'fp32 (no fast bf16)'}, torch uses {torch.get_num_threads()} threads"
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 1.5 * count:
        yield Finding("processors", "note", f"{text}; load {busy:.1f}", "other processes use them: budgets in seconds buy less now")
    else:
        yield Finding("processors", "ok", text)


def memory() -> Iterator[Finding]:
    """Memory that is free for a run, by the machine and by a container's limit."""
    free = available_memory()
    if free is None:
        yield Finding("memory", "note", "cannot be read on this system")
    elif free < LITTLE_MEMORY:
        yield Finding("memory", "note", f"{free / GIB:.1f} GiB free", "smaller batches: --set stages.0.micro_batch=32")
    else:
        yield Finding("memory", "ok", f"{free / GIB:.1f} GiB free")


def accelerators() -> Iterator[Finding]:
    """GPUs that torch can use."""
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(i)
            yield Finding("GPU", "ok", f"{about.name}, {about.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}")
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "note", "Apple GPU: not used; runs train on the processors")
    elif shutil.which("nvidia-smi"):
        yield Finding("GPU", "problem", "there is one, but torch cannot use it", "install a torch with CUDA: see pytorch.org")
    else:
        yield Finding("GPU", "ok", "none: everything runs on the processors")


def room() -> Iterator[Finding]:
    """Room on the disks of the working directory and of the cache, and whether they can be written."""
    from diptych.data.storage.cache import cache_directory

    for what, place, variable in (("disk", Path.cwd(), ""), ("cache", cache_directory(), "DIPTYCH_CACHE")):
        at = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(at).free
        if not os.access(at, os.W_OK):
            yield Finding(
                what, "problem", f"{place} cannot be written", f"set {variable}" if variable else "go to another directory"
            )
        elif free < LITTLE_ROOM:
            yield Finding(what, "note", f"{place}: {free / GIB:.1f} GiB free", "a run of the default size needs less than 1 GiB")
        else:
            yield Finding(what, "ok", f"{place}: {free / GIB:.0f} GiB free")


def weights() -> Iterator[Finding]:
    """Pretrained weights that come as packages, and the pictures of the built-in world."""
    from diptych.models.pretrained.packages import WEIGHTS, installed

    there = [name for name in WEIGHTS if installed(name)]
    yield Finding("weights", "ok", ", ".join(there) or "none")
    for name, about in WEIGHTS.items():
        if name not in there and about.extra:
            yield Finding("weights", "note", f"{name} is not installed ({about.what})", about.remedy)


def optional() -> Iterator[Finding]:
    """Extras of Diptych of which a package is missing."""
    wanted: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("diptych") or []:
        requirement, _, marker = line.partition(";")
        named = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if named and named[1] not in ("dev", "docs", "peers", "mutants"):  # the others are for developers
            wanted.setdefault(named[1], []).append(re.split(r"[\s<>=!~\[(@]", requirement.strip())[0])
    lacking = {extra: missing for extra, packages in wanted.items() if (missing := [n for n in packages if not _there(n)])}
    yield Finding("extras", "ok", ", ".join(extra for extra in wanted if extra not in lacking) or "none")
    for extra, missing in lacking.items():
        yield Finding("extra", "note", f"{extra}: without {', '.join(missing)}", extras.install(extra))


def _there(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def speed() -> Iterator[Finding]:
    """How fast a small model trains here, measured for two seconds."""
    from diptych.comparison.demo import BUDGET, measure
    from diptych.config.budget import human, parse_budget

    try:
        rate = measure(1, 1)
    except DiptychError as error:
        yield Finding("training", "problem", f"a small model does not train: {error}")
        return
    minutes = (parse_budget(BUDGET).flops or 0) / rate.flops / 60
    text = f"{rate.samples:.0f} samples and {human(rate.flops)}FLOP a second on one processor"
    yield Finding("training", "ok", f"{text}: a run of the demo ({BUDGET}) takes {minutes:.0f} min")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (versions, processors, memory, accelerators, room, weights, optional)


def findings(time_a_step: bool = True) -> Iterator[Finding]:
    """All findings, in order, each as soon as it is there. time_a_step: measure the speed too, which takes some seconds."""
    for check in (*CHECKS, *((speed,) if time_a_step else ())):
        try:
            yield from check()
        except Exception as error:  # one check that fails says so, and the others go on
            yield Finding(check.__name__, "problem", f"cannot be checked: {type(error).__name__}: {error}")
