"""What a run records about its data, and what it says about it before training."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diptych.core.errors import counted
from diptych.data.source import Source
from diptych.data.text import normalise

CUT = 0.01  # a smaller share of captions that are cut is not worth a note, unless it makes captions equal
AT_ONCE = 256  # captions that are encoded together: they are padded to the longest
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


def caption_notes(captions: Sequence[str], tokenizer: Any, remedy: str = "") -> list[str]:
    """Notes on captions from which little can be learned: cut to the tokenizer's length, equal after the cut, equal as they are.

    captions: one or several of each sample. remedy: the setting that gives longer texts room; "": there is none.
    """
    total = len(captions)
    if total < 2:
        return []
    notes = []
    texts = Counter(map(normalise, captions))
    text, times = texts.most_common(1)[0]
    if times > total / 2:
        amount = f"all {total:,}" if times == total else f"{times:,} of {total:,}"
        notes.append(f"{amount} captions are the same, '{text[:60]}': the pictures that have it cannot be distinguished by it")
    room = getattr(tokenizer, "max_length", None)
    if room:
        cut, alike, longest = _cut(texts, tokenizer, room)
        if alike or cut > total * CUT:
            note = f"{cut:,} of {total:,} captions are longer than {room} tokens and are cut (the longest has {longest:,})"
            note += f"; {alike:,} of them are then equal to another one, and nothing distinguishes their pictures" if alike else ""
            notes.append(note + (f"; more room: --set {remedy}={longest}, or shorten them" if remedy else "; shorten them"))
    return notes


def _cut(texts: Mapping[str, int], tokenizer: Any, room: int) -> tuple[int, int, int]:
    """Of texts with how often each occurs: how many are cut, how many of these are then equal to another text, and the longest
    length in tokens.
    """
    wide = copy.copy(tokenizer)
    wide.max_length = 2**31
    cut, longest, beginnings = 0, 0, defaultdict(list)
    names = list(texts)
    for start in range(0, len(names), AT_ONCE):
        part = names[start : start + AT_ONCE]
        ids, mask = wide.encode_batch(part)
        for text, row, length in zip(part, ids, mask.sum(1), strict=True):
            longest = max(longest, int(length))
            if length > room:
                cut += texts[text]
                beginnings[row[: room - 1].tobytes()].append(text)
    alike = sum(texts[text] for same in beginnings.values() if len(same) > 1 for text in same)
    return cut, alike, longest
