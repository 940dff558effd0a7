"""An estimate of the carbon of a computation, from measured processor time and stated assumptions.

    energy [kWh] = (CPU seconds × watts of a core + GPU seconds × watts of a GPU) × overhead / 3.6e6
    emissions [kg CO2e] = energy × intensity

Only the time is measured. The other numbers are assumptions, and all can be stated for a machine: arguments of ``Assumptions``, or
the environment variables of ``VARIABLES``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from diptych.core.errors import DiptychError

JOULES = 3.6e6  # of a kilowatt-hour
VARIABLES = {
    "watts": "DIPTYCH_WATTS",
    "gpu_watts": "DIPTYCH_GPU_WATTS",
    "overhead": "DIPTYCH_OVERHEAD",
    "intensity": "DIPTYCH_INTENSITY",
}


@dataclass(frozen=True)
class Assumptions:
    """What is not measured."""

    watts: float = 10.0  # of a busy core with its share of memory and board: 200 W for 20 cores
    gpu_watts: float = 400.0  # of a busy GPU
    overhead: float = 1.5  # cooling and supply, as a factor; 1 for a machine at home
    intensity: float = 0.48  # kg CO2e for a kWh: near the mean of the world's electricity in 2023; 0.05 to 0.8 by country

    @classmethod
    def stated(cls, **given: float | None) -> Assumptions:
        """The given values, else those of the environment, else the defaults. DiptychError for one that is no such number."""
        values: dict[str, float] = {}
        for name in (f.name for f in fields(cls)):
            value, source = given.get(name), f"--{name.replace('_', '-')}"
            if value is None and (text := os.environ.get(VARIABLES[name])):
                source = VARIABLES[name]
                try:
                    value = float(text)
                except ValueError:
                    raise DiptychError(f"{source}={text}: expected a number") from None
            if value is None:
                continue
            if not math.isfinite(value) or value < (1 if name == "overhead" else 0):
                raise DiptychError(f"{source} {value:g}: expected a finite number from {1 if name == 'overhead' else 0} on")
            values[name] = value
        return cls(**values)


@dataclass(frozen=True)
class Carbon:
    """An estimate, with what it is made of."""

    cpu_seconds: float
    gpu_seconds: float
    assumed: Assumptions
    measured: str  # how the seconds were measured, as a sentence

    @property
    def energy(self) -> float:
        """In kilowatt-hours."""
        work = self.cpu_seconds * self.assumed.watts + self.gpu_seconds * self.assumed.gpu_watts
        return work * self.assumed.overhead / JOULES

    @property
    def emitted(self) -> float:
        """In kilograms of CO2 equivalents."""
        return self.energy * self.assumed.intensity

    def markdown(self) -> str:
        """The estimate with its formula and its assumptions, as a paragraph."""
        a, terms, used = self.assumed, [f"{_short(self.cpu_seconds)} CPU-s × {self.assumed.watts:g} W"], []
        if self.gpu_seconds:
            terms.append(f"{_short(self.gpu_seconds)} GPU-s × {a.gpu_watts:g} W")
            used = [f"a GPU {a.gpu_watts:g} W"]
        work = f"({' + '.join(terms)})" if len(terms) > 1 else terms[0]
        assumed = ", ".join([f"a busy core takes {a.watts:g} W", *used, f"cooling and supply add a factor of {a.overhead:g}"])
        return (
            f"About **{_mass(self.emitted)} CO2e**: {work} × {a.overhead:g} / 3.6e6 = {_short(self.energy)} kWh, × {a.intensity:g} "
            f"kg CO2e per kWh. Measured: {self.measured} Assumed: {assumed}, and electricity emits {a.intensity:g} kg per kWh; "
            "`diptych card` takes other values. Making the machine, and the training of weights that were taken over, are not "
            "counted."
        )

    def plain(self) -> dict[str, Any]:
        """The same as plain data."""
        assumed = {f.name: getattr(self.assumed, f.name) for f in fields(self.assumed)}
        return {
            "cpu_seconds": self.cpu_seconds,
            "gpu_seconds": self.gpu_seconds,
            "kwh": self.energy,
            "kg_co2e": self.emitted,
            "assumed": assumed,
        }


def cpu_seconds() -> float:
    """Processor time of this process and its finished children so far."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def of_training(spent: Mapping[str, Any], environment: Mapping[str, Any], assumed: Assumptions) -> Carbon | None:
    """The estimate of a run, from its spent.json and environment.json; None if it did not record its time.

    A run of an older version recorded the time of its steps alone: each of its threads then counts as busy in all of it.
    """
    if "seconds" not in spent:
        return None
    processes = int(spent.get("processes") or 1)
    seconds = float(spent["seconds"])
    gpu = seconds * processes if str(environment.get("device", "")).startswith("cuda") else 0.0
    several = f", times {processes} processes" if processes > 1 else ""
    if "cpu_seconds" in spent:
        measured = f"processor time of the whole training, with start and checkpoints{several}."
        return Carbon(float(spent["cpu_seconds"]) * processes, gpu, assumed, measured)
    threads = int(environment.get("threads") or 1)
    measured = f"{seconds:.0f} s of training steps, in which all {threads} threads are counted as busy{several}."
    return Carbon(seconds * threads * processes, gpu, assumed, measured)


class Clock:
    """The processor time of a computation that may be done in several calls. before: that of earlier calls, in seconds."""

    def __init__(self, before: float = 0.0):
        self.before, self.began = before, cpu_seconds()

    def seconds(self) -> float:
        """Until now, in all calls."""
        return self.before + cpu_seconds() - self.began


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _mass(kilograms: float) -> str:
    return f"{kilograms:,.3g} kg" if kilograms >= 1 else f"{kilograms * 1000:.3g} g"
