"""What is said of a clip: captions in several wordings, false ones in the same words, questions with answers, times."""

from __future__ import annotations

from random import Random
from typing import Any

from diptych.data.scenes.actions.layout import SCREEN
from diptych.data.scenes.actions.script import FPS, OPPOSITE, RETURNING, UNSAID, Event, Script
from diptych.data.scenes.concepts import by_name
from diptych.data.scenes.graph import Things
from diptych.data.scenes.language import NUMBERS
from diptych.data.scenes.language import phrase as phrase_of_things

_SIDES = {
    "enter": {side: f"from the {side}" for side in ("left", "right", "top", "bottom")},
    "leave": {"left": "to the left", "right": "to the right", "top": "at the top", "bottom": "at the bottom"},
}
_STATES = {"left": "on the left", "right": "on the right", "up": "at the top", "down": "at the bottom"}
_ONE = ("{a} {v}", "a clip of {a} that {v}", "there is {a} that {v}")
_WITH = ("{a} {v} while {b} stays still", "{b} stays still while {a} {v}", "{a} {v}, {b} does not move")
_THEN = ("first {a} {v}, then {b} {w}", "{a} {v} before {b} {w}", "{b} {w} after {a} {v}")
_THEN_SAME = ("first {a} {v}, then it {w}", "{a} {v} before it {w}", "{a} {w} after it {v}")
_WHILE = ("{a} {v} while {b} {w}", "{b} {w} while {a} {v}", "at the same time {a} {v} and {b} {w}")
STYLES = 3  # wordings of every form; further ones name states


def phrase(things: Things) -> str:
    """ "a red fish", "a blue screen"."""
    return f"a {things.colour} {SCREEN}" if things.concept == SCREEN else phrase_of_things(things)


def noun(things: Things) -> str:
    """ "fish"."""
    return SCREEN if things.concept == SCREEN else by_name()[things.concept].name


def named(script: Script, thing: int) -> str:
    """A thing with its colour, unless that changes in the clip."""
    things = script.things[thing]
    changes = any(e.thing == thing and e.action == "recolour" for e in script.base)
    return phrase(things._replace(colour="")) if changes else phrase(things)


def verb(script: Script, event: Event, base: bool = False) -> str:
    """ "moves left quickly"; base: "move left quickly"."""
    s = "" if base else "s"
    action, detail = event.action, event.detail
    other = named(script, event.other) if event.other >= 0 else ""
    if action in ("move", "fall", "rise"):
        words = {"move": f"move{s} {detail}", "fall": f"fall{s} down", "rise": f"rise{s} by itself"}[action]
        return f"{words} {event.speed}".strip()
    if action in _SIDES:
        return f"{action}{s} {_SIDES[action][detail]}"
    if action in ("turn", "spin"):
        return f"{action}{s} {detail}"
    if action == "recolour":
        return f"change{s} from {' to '.join(detail.split('>'))}"
    if action == "flash":
        return f"flash{'' if base else 'es'} {detail}"
    if action == "blink":
        return f"vanish{'' if base else 'es'} for a moment"
    if action in ("overtake", "hit"):
        return f"{action}{s} {other}, moving {detail}" if action == "overtake" else f"{action}{s} {other}"
    if action in ("pass behind", "pass before"):
        return f"pass{'' if base else 'es'} {'behind' if action == 'pass behind' else 'in front of'} {other}"
    if action in ("hide", "emerge"):
        return f"hide{s} behind {other}" if action == "hide" else f"come{s} out from behind {other}"
    return f"{action}{s}"


def counting(script: Script, event: Event, style: int) -> str:
    """Things that come or go one by one."""
    total, things = int(event.detail), script.things[event.thing]
    many = [phrase(things._replace(count=n)) for n in range(1, total + 1)]
    many[0] = many[0].replace("an ", "one ", 1) if many[0].startswith("an ") else many[0].replace("a ", "one ", 1)
    numbers = [many[0], *NUMBERS[2 : total + 1]] if event.action == "add" else [many[-1], *NUMBERS[total - 1 : 0 : -1]]
    most = many[-1]
    return (
        ", then ".join(numbers),
        f"{most} {'appear' if event.action == 'add' else 'vanish'} one by one",
        f"there is {many[0]} at first and {NUMBERS[total]} at the end"
        if event.action == "add"
        else f"there are {most} at first and one at the end",
    )[style % STYLES]


def concealed(script: Script, event: Event, style: int) -> str:
    """A screen that rises, and what is seen then."""
    a, b = phrase(script.things[event.thing]), phrase(script.things[event.other])
    went = event.detail in ("still there", "gone")
    there = event.detail in ("still there", "there by itself")
    before = f"{a} goes behind {b}" if went else f"nothing goes behind {b}"
    after = f"{a} is there" if there else "nothing is there"
    return (f"{before}, and when it rises {after}", f"{before}, it rises, and {after}", f"{after} when it rises, after {before}")[
        style % STYLES
    ]


def states(script: Script, event: Event) -> tuple[str, str] | None:
    """How a thing is before an event and after it; None if that is not said."""
    a = named(script, event.thing)
    if event.action == "move":
        after, before = (" and ".join(_STATES[d] for d in way.split(" and ")) for way in (event.detail, OPPOSITE[event.detail]))
        return f"{a} is {before}", after
    if event.action == "recolour":
        first, second = event.detail.split(">")
        return f"{a} is {first}", second
    if event.action in ("grow", "shrink"):
        return (f"{a} is small", "big") if event.action == "grow" else (f"{a} is big", "small")
    return None


def styles(script: Script) -> int:
    """How many wordings ``describe`` has for a script."""
    return STYLES + (
        2 if len(script.events) == len(script.things) == 1 and not script.physics and states(script, script.events[0]) else 0
    )


def describe(script: Script, style: int) -> str:
    """All that a clip shows, in one of its wordings."""
    text = _described(script, style % styles(script))
    return f"{text}, which {'can' if script.possible else 'cannot'} happen" if script.physics else text


def _described(script: Script, style: int) -> str:
    events = script.events
    first = events[0]
    a = named(script, first.thing)
    if script.play == "leap":
        return _ONE[style].format(a=a, v=f"{verb(script, first)}, leaping back and forth")
    if first.action in ("add", "remove"):
        return counting(script, first, style)
    if first.action == "conceal":
        return concealed(script, first, style)
    if len(events) == 1:
        if first.other >= 0 or len(script.things) == 1:
            if style < STYLES:
                return _ONE[style].format(a=a, v=verb(script, first))
            known = states(script, first)
            assert known is not None
            before, after = known
            return f"{before} at first and {after} at the end" if style == STYLES else f"before, {before}; after, it is {after}"
        return _WITH[style].format(a=a, v=verb(script, first), b=phrase(script.things[1 - first.thing]))
    if len(events) > 2:
        told = ", then ".join(f"{named(script, e.thing)} {verb(script, e)}" for e in events)
        return ("{}", "first {}", "a clip in which {}")[style].format(told)
    second = events[1]
    v, w = verb(script, first), verb(script, second)
    if first.start == second.start:
        return _WHILE[style].format(a=a, v=v, b=named(script, second.thing), w=w)
    texts = _THEN_SAME if first.thing == second.thing else _THEN
    return texts[style].format(a=a, v=v, b=named(script, second.thing), w=w)


def meaning(script: Script, style: int = 0, speed: bool = True) -> str:
    """The facts that a wording states, in one canonical form. speed: whether with speeds, which wordings of states do not tell."""
    speed = speed and style % styles(script) < STYLES
    together = "&" if len(script.events) == 2 and script.events[0].start == script.events[1].start else ">"
    said = []
    for e in script.events:
        other = phrase(script.things[e.other]) if e.other >= 0 else ""
        detail = "" if e.action in UNSAID else e.detail
        said.append(" ".join(filter(None, (named(script, e.thing), e.action, detail, e.speed if speed else "", other))))
    if together == "&":
        said.sort()
    acting = {k for e in script.events for k in (e.thing, e.other)}
    still = [f"{phrase(t)} still" for k, t in enumerate(script.things) if k not in acting]
    law = f"{script.physics} {'kept' if script.possible else 'broken'}" if script.physics else ""
    return " | ".join(filter(None, (f" {together} ".join(said), *still, law)))


def timed(script: Script) -> list[dict[str, Any]]:
    """Each event in words with its interval: {text, start, end}, in seconds. The end is when the frame after its last is shown."""
    if script.physics:
        return [{"text": describe(script, 0), "start": 0.0, "end": script.frames / FPS}]
    rows = []
    for e in script.events:
        text = counting(script, e, 0) if e.action in ("add", "remove") else f"{named(script, e.thing)} {verb(script, e)}"
        rows.append({"text": text, "start": e.start / FPS, "end": e.end / FPS})
    return rows


def label(event: Event) -> str:
    """The action in words, without the things: a class."""
    names = {"enter": "enter", "leave": "leave", "recolour": "change colour", "flash": "flash", "add": "appear one by one"}
    names["blink"] = "vanish for a moment"
    names |= {"remove": "vanish one by one", "hide": "hide", "emerge": "come out", "overtake": "overtake", "hit": "hit"}
    names |= {"pass behind": "pass behind", "pass before": "pass in front"}
    return names.get(event.action) or f"{event.action} {event.detail}".strip()


def third_person(name: str) -> str:
    """ "move left" → "moves left"."""
    first, _, rest = name.partition(" ")
    return f"{first}{'es' if first.endswith(('s', 'sh')) else 's'} {rest}".strip()


def questions(script: Script) -> list[dict[str, str]]:
    """Questions about a clip with their answers; as many say yes as no."""
    events, random = script.events, Random(script.seed + 3)
    if script.physics:
        said = "yes" if script.possible else "no"
        return [{"question": "can this happen?", "answer": said, "kind": script.physics}]
    first = events[0]
    if first.action in ("add", "remove"):
        total, many = NUMBERS[int(first.detail)], by_name()[script.things[0].concept].plural
        counts = ("one", total) if first.action == "add" else (total, "one")
        asked = [
            ("count", f"how many {many} are there {when}?", n) for when, n in zip(("at first", "at the end"), counts, strict=True)
        ]
        asked += [("count", f"do the {many} {word} one by one?", answer) for word, answer in _yes_no(first.action == "add")]
        return [{"question": q, "answer": a, "kind": kind} for kind, q, a in asked]
    asked = []
    event = events[random.randrange(len(events))]
    who = f"the {noun(script.things[event.thing])}"
    wrong = event.backwards(script.frames)
    wrong = wrong._replace(action=event.action) if event.action == "hit" else wrong
    if event.action in RETURNING and event.action != "spin":
        wrong = event._replace(action=next(a for a in RETURNING[:3] if a != event.action), detail="")
    right_text, wrong_text = f"does {who} {verb(script, event, True)}?", ""
    wrong_text = f"does the {noun(script.things[wrong.thing])} {verb(script, wrong, True)}?"
    if right_text != wrong_text:
        asked += [("action", right_text, "yes"), ("action", wrong_text, "no")]
    asked.append(("what", f"what does {who} do?", f"it {verb(script, event)}") if len(events) == 1 else _which(script, random))
    if event.speed:
        asked.append(("speed", f"how does {who} move?", event.speed))
    if event.action == "move":
        asked.append(("direction", f"which way does {who} move?", event.detail))
    if event.action == "recolour":
        colours = event.detail.split(">")
        asked += [("state", f"what colour is {who} {w}?", c) for w, c in zip(("at first", "at the end"), colours, strict=True)]
    if len(events) == 2 and events[0].thing != events[1].thing and events[0].start != events[1].start:
        a, b = (f"the {noun(script.things[e.thing])} {verb(script, e, True)}" for e in events)
        c, d = (f"the {noun(script.things[e.thing])} {verb(script, e)}" for e in events)
        asked += [("order", f"does {a} before {d}?", "yes"), ("order", f"does {b} before {c}?", "no")]
    return [{"question": q, "answer": a, "kind": kind} for kind, q, a in asked]


def _yes_no(first: bool) -> list[tuple[str, str]]:
    return [("appear", "yes" if first else "no"), ("vanish", "no" if first else "yes")]


def _which(script: Script, random: Random) -> tuple[str, str, str]:
    """A question about one of two events: what happens first, last, or at the same time."""
    last = random.random() < 0.5
    event, other = script.events[-1 if last else 0], script.events[0 if last else -1]
    who = f"the {noun(script.things[event.thing])}"
    if event.start == other.start:
        what = f"what does the {noun(script.things[other.thing])} do while {who} {verb(script, event)}?"
        return "while", what, f"it {verb(script, other)}"
    return "order", f"what happens {'last' if last else 'first'}?", f"{who} {verb(script, event)}"
