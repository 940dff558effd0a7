"""What a run records about its data, and what it says about it before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from diptych.core.errors import counted
from diptych.data.source import Source

Held = dict[str, dict[str, Any]]  # {address: {"samples", "fingerprint"}}


def data_of(sources: Iterable[Source]) -> Held:
    """The number of samples and the fingerprint of each source, by address. It reads every file once, or takes its kept hash."""
    return {s.address: {"samples": len(s), "fingerprint": s.fingerprint()} for s in sources}


def recorded_data(environment: Mapping[str, Any]) -> Held:
    """What ``data_of`` gave when the run, of which this is environment.json, was last started. Of runs before ``sources`` was
    written, the data of the recipe alone.
    """
    entries = [entry for entry in environment.get("resumed") or () if "sources" in entry]
    last = entries[-1] if entries else environment
    if "sources" in last:
        return dict(last["sources"])
    address, fingerprint = environment.get("data"), environment.get("data_fingerprint")
    return {str(address): {"fingerprint": fingerprint}} if address and fingerprint else {}


def changed_data(before: Held, now: Held) -> list[str]:
    """What is different, one line for each address; empty if nothing is."""
    lines = []
    for address, held in now.items():
        known = before.get(address)
        if known is None:
            others = ", ".join(sorted(set(before) - set(now)))
            lines.append(f"{address} is new" + (f"; the run began with {others}" if others else ""))
        elif known["fingerprint"] != held["fingerprint"]:
            first, last = known.get("samples"), held["samples"]
            amount = (
                f"{counted(first, 'sample')} then, {counted(last, 'sample')} now" if first else counted(last, "sample") + " now"
            )
            lines.append(f"{address} has changed: {amount}" + ("; pictures or texts differ" if first == last else ""))
    return lines


def compare_data(environment: Mapping[str, Any], now: Held, step: int) -> list[str]:
    """Notes for the user of a run that resumes at this step; none if its data is what it was, or if the run did not record it."""
    before = recorded_data(environment)
    lines = changed_data(before, now) if before else []
    if not lines:
        return []
    remedy = (
        f"the run goes on from step {step} with its own tokenizer and weights, and draws from the data as it is now, in a new "
        "order. For weights that have seen only this data, start a new run in another --out; to go on with the data of the start, "
        "restore it"
    )
    return [*lines, remedy]
