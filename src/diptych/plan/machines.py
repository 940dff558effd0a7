"""Other machines: what a run would take there, from what it took here and the other machine's figures.

What is not measured there is assumed, and said: the share of a device's peak that training reaches (``mfu``), the bandwidth of the
link, and that activations take as many bytes a sample as here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from diptych.core.errors import DiptychError, nearest
from diptych.plan.estimate import Estimate, StagePlan

GIB = 2**30
# Dense bf16 TFLOP/s (fp16 for V100 and T4), GiB of memory and watts of a device, from the makers' data sheets.
DEVICES = {
    "H200": (989.0, 141.0, 700.0),
    "H100": (989.0, 80.0, 700.0),
    "A100": (312.0, 80.0, 400.0),
    "B200": (2250.0, 180.0, 1000.0),
    "L40S": (362.0, 48.0, 350.0),
    "L4": (121.0, 24.0, 72.0),
    "A10": (125.0, 24.0, 150.0),
    "T4": (65.0, 16.0, 70.0),
    "V100": (125.0, 32.0, 300.0),
    "RTX4090": (165.0, 24.0, 450.0),
    "MI300X": (1307.0, 192.0, 750.0),
}
MFU = 0.35  # the share of the peak that training of encoders usually reaches; --mfu says otherwise
LINK = 100.0  # Gbit/s between devices, where the machine does not say


@dataclass(frozen=True)
class Machine:
    """Devices of one kind. tflops: of one device at its peak; memory: bytes of one; link: Gbit/s of one; watts: of one."""

    count: int
    device: str
    tflops: float
    memory: float
    link: float
    watts: float


def parse_machine(text: str) -> Machine:
    """``64x H100 80GB, 400 Gb/s``: a count, a device, its memory and its link; all but the device may be left out.

    Raises DiptychError for an unknown device or another form.
    """
    form = re.fullmatch(
        r"\s*(?:(\d+)\s*[x×]\s*)?([A-Za-z][\w ]*?)(?:\s+(\d+(?:\.\d+)?)\s*Gi?B)?(?:\s*,\s*(\d+(?:\.\d+)?)\s*Gb(?:it)?/s)?\s*", text
    )
    if not form:
        raise DiptychError(f"--machine {text!r}: expected a form such as '8x H100 80GB, 400 Gb/s'")
    name = form[2].replace(" ", "").upper()
    if name not in DEVICES:
        raise DiptychError(f"--machine: no figures for {form[2]!r}{nearest(name, DEVICES)}")
    tflops, memory, watts = DEVICES[name]
    count = int(form[1] or 1)
    if count < 1:
        raise DiptychError(f"--machine {text!r}: at least one device")
    return Machine(count, name, tflops, float(form[3] or memory) * GIB, float(form[4] or LINK), watts)


@dataclass(frozen=True)
class Term:
    """A part of a step's time, in seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Elsewhere:
    """A run on another machine. terms: of the stage that takes longest, compute and link one after the other. memory: bytes of one
    device, by what they are for. hours: of the whole run. kwh: at full power all the time. loader_cores: how many loaders like the
    one here must feed it.
    """

    machine: Machine
    terms: tuple[Term, ...]
    limit: str
    hours: float
    memory: dict[str, float]
    fits: bool
    largest: int
    loader_cores: float
    kwh: float
    cost: float | None
    mfu: float

    @property
    def needed(self) -> float:
        """Bytes of one device."""
        return sum(self.memory.values())


def elsewhere(
    estimate: Estimate,
    machine: Machine,
    *,
    mfu: float = MFU,
    price: float | None = None,
    sharded: bool = False,
    moments: float = 2.0,
) -> Elsewhere:
    """A run on another machine, from its estimate on this one.

    mfu: the share of the peak that is reached. price: of a device for an hour. sharded: weights, gradients and the optimizer's
    state are divided among the devices (FSDP). moments: numbers that the optimizer keeps for each weight, 2 for AdamW.
    """
    n = machine.count
    hours, worst, longest = 0.0, None, -1.0
    for stage, count in zip(estimate.stages, estimate.counts, strict=True):
        terms = _terms(stage, machine, mfu)
        taken = count * sum(t.seconds for t in terms) / 3600
        hours += taken
        if taken > longest:
            worst, longest = (stage, terms), taken
    assert worst is not None
    stage, found = worst
    state = stage.parameters * 4.0 + stage.trainable * 4.0 * (1 + moments)
    held = {"weights, gradients, optimizer": state / (n if sharded else 1), "CUDA and libraries": 1.0 * GIB}
    room = machine.memory * 0.9 - sum(held.values())
    memory = {**held, "activations": stage.per_sample * stage.batch / n}
    largest = int(room / stage.per_sample) * n if stage.per_sample > 0 and room > 0 else 0
    step = sum(t.seconds for t in found)
    kwh = hours * n * machine.watts / 1000
    return Elsewhere(
        machine=machine,
        terms=found,
        limit=max(found, key=lambda t: t.seconds).name,
        hours=hours,
        memory=memory,
        fits=sum(memory.values()) <= 0.9 * machine.memory,
        largest=largest,
        loader_cores=stage.batch / step / stage.loader,
        kwh=kwh,
        cost=None if price is None else hours * n * price,
        mfu=mfu,
    )


def _terms(stage: StagePlan, machine: Machine, mfu: float) -> tuple[Term, ...]:
    compute = stage.flops / (machine.count * machine.tflops * 1e12 * mfu)
    # a ring sends each gradient twice, but for the device's own part
    ring = 2 * (machine.count - 1) / machine.count * stage.trainable * 4
    return Term("compute", compute), Term("link", ring * 8 / (machine.link * 1e9))
