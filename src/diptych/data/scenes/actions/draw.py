"""Random scripts of every kind, and their twins: clips that differ in one thing alone."""

from __future__ import annotations

from random import Random

from diptych.core.errors import DiptychError, nearest
from diptych.data.scenes.actions.language import meaning
from diptych.data.scenes.actions.layout import SCREEN, SOLID, fits_rooms, solid
from diptych.data.scenes.actions.script import DIRECTIONS, RETURNING, SIDES, SPEEDS, Event, Script
from diptych.data.scenes.backgrounds import KINDS as GROUNDS
from diptych.data.scenes.graph import Graph, Things, draw_things, is_held_out, other
from diptych.data.scenes.world import World

# What one thing can do; kinds of clips with one acting thing.
SINGLE = {
    **{"move": ("move",), "come": ("enter", "leave"), "turn": ("turn",), "size": ("grow", "shrink"), "colour": ("recolour",)},
    **{"return": RETURNING},
}
PAIRED = {"overtake": ("overtake",), "collide": ("hit",), "cross": ("pass behind", "pass before"), "hide": ("hide",)}
KINDS = (*SINGLE, "order", "then", "while", *PAIRED, "count", "physics")
LAWS = ("continuity", "gravity", "permanence")
CONCEALED = ("still there", "nothing there", "gone", "there by itself")
# Skills that pairs of clips with the same frames in another order differ in, with the kind and the actions of such clips …
SAME_FRAMES: dict[str, tuple[str, tuple[str, ...]]] = {
    **{
        "direction": ("move", ()),
        "presence": ("come", ()),
        "turning": ("turn", ()),
        "size": ("size", ()),
        "colour": ("colour", ()),
    },
    **{"order": ("order", ()), "counting": ("count", ()), "collision": ("collide", ()), "hiding": ("hide", ())},
    **{"overtaking": ("overtake", ()), "continuity": ("physics", ("continuity",)), "gravity": ("physics", ("gravity",))},
}
# … and those of clips with other frames.
OTHERS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{"speed": ("move", ()), "action": ("return", ()), "who": ("return", ()), "while": ("order", ()), "depth": ("cross", ())},
    "permanence": ("physics", ("permanence",)),
}
SKILLS = (*SAME_FRAMES, *OTHERS)
_SKILL_OF = {
    **{"move": "direction", "enter": "presence", "leave": "presence", "turn": "turning", "spin": "turning", "recolour": "colour"},
    **{"grow": "size", "shrink": "size", "overtake": "overtaking", "hit": "collision", "hide": "hiding", "add": "counting"},
}


def kinds_of(text: str) -> tuple[str, ...]:
    """The kinds of a comma-separated list; ``all``: every one. DiptychError for an unknown one."""
    if text in ("", "all"):
        return KINDS
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in KINDS:
            raise DiptychError(f"scenes:clips: actions={text}: no kind '{name}'{nearest(name, KINDS)}")
    return names


def draw_script(
    world: World, seed: int, kind: str, frames: int, only: tuple[str, ...] = (), with_other: bool | None = None
) -> Script:
    """A random script that belongs to the world's split, played as it is. only: the laws of physics to draw from, or the actions.
    with_other: whether a second thing stands by, where it may; None: at random.
    """
    wanted = world.split == "heldout-combinations"
    random = Random(seed)
    while True:
        script = _draw(world, random, kind, frames, only, with_other)._replace(seed=seed)
        if any(_held_out(script, things, world) for things in script.things) == wanted:
            return script


def _held_out(script: Script, things: Things, world: World) -> bool:
    at = script.things.index(things)
    colours = {c for e in script.base if e.thing == at and e.action in ("recolour", "flash") for c in e.detail.split(">")}
    shown = [things, *(things._replace(colour=c) for c in colours)]
    return any(is_held_out(Graph((t,)), world) for t in shown)


def _draw(world: World, random: Random, kind: str, frames: int, only: tuple[str, ...], with_other: bool | None) -> Script:
    ground = GROUNDS[random.randrange(len(GROUNDS))]
    first = _coloured(world, random, draw_things(world, random, 1, world.focus))
    second = _coloured(world, random, draw_things(world, random, 1, taken=(first,)), first.colour)
    pair, half = (first, second), frames // 2
    if kind in SINGLE:
        event = draw_event(world, random, 0, SINGLE[kind], first, 0, frames)
        beside = random.random() < 0.3 if with_other is None else with_other
        return Script(pair if beside else (first,), (event,), "", ground, 0, frames)
    if kind in ("order", "while"):
        spans = ((0, half), (half, 2 * half)) if kind == "order" else ((0, frames), (0, frames))
        a = draw_event(world, random, 0, RETURNING, first, *spans[0])
        b = draw_event(world, random, 1, tuple(r for r in RETURNING if r != a.action), second, *spans[1])
        return Script(pair, (a, b), "", ground, 0, 2 * half)
    if kind == "then":
        while True:
            kinds = random.sample(sorted(SINGLE), 2)
            a = draw_event(world, random, 0, SINGLE[kinds[0]], first, 0, half)
            b = draw_event(world, random, 1, SINGLE[kinds[1]], second, half, frames)
            if fits_rooms((a, b)):
                return Script(pair, (a, b), "", ground, 0, frames)
    if kind in PAIRED:
        actions = PAIRED[kind]
        detail = ("left", "right", "up", "down")[random.randrange(4)] if kind != "hide" else ("left", "right")[random.randrange(2)]
        if kind == "hide" and solid(second.concept) < SOLID:
            pair = (first, Things(1, SCREEN, second.colour))
        event = Event(0, actions[random.randrange(len(actions))], detail, 1, "", 0, frames)
        return Script(pair, (event,), "", ground, 0, frames)
    if kind == "count":
        return Script((first,), (Event(0, "add", str(random.randint(2, 4)), -1, "", 0, frames),), "", ground, 0, frames)
    assert kind == "physics", kind
    law = (only or LAWS)[random.randrange(len(only or LAWS))]
    if law == "permanence":
        event = Event(0, "conceal", CONCEALED[random.randrange(2)], 1, "", 0, frames)
        return Script((first, Things(1, SCREEN, second.colour)), (event,), "", ground, 0, frames, law)
    event = Event(0, "fall", "down", -1, "", 0, frames)
    if law == "continuity":
        event = event._replace(action="move", detail=tuple(DIRECTIONS)[random.randrange(8)], speed="slowly")
    return Script((first,), (event,), "", ground, 0, frames, law)


def _coloured(world: World, random: Random, things: Things, taken: str = "") -> Things:
    """The things in a colour that is not taken."""
    return things if things.colour and things.colour != taken else things._replace(colour=other(world.palette, random, taken))


def draw_event(world: World, random: Random, thing: int, actions: tuple[str, ...], things: Things, start: int, end: int) -> Event:
    """A random event of one thing, of these actions."""
    action, detail, speed = actions[random.randrange(len(actions))], "", ""
    if action == "move":
        detail, speed = tuple(DIRECTIONS)[random.randrange(8)], tuple(SPEEDS)[random.randrange(3)]
    elif action in ("enter", "leave"):
        detail = SIDES[random.randrange(4)]
    elif action in ("turn", "spin"):
        detail = ("clockwise", "anticlockwise")[random.randrange(2)]
    elif action in ("recolour", "flash"):
        second = other(world.palette, random, things.colour)
        detail = f"{things.colour}>{second}" if action == "recolour" else second
    return Event(thing, action, detail, -1, speed, start, end)


def replayed(script: Script) -> Script | None:
    """The clip of the same frames in another order that differs in its meaning; None if there is none."""
    if script.physics == "permanence":
        return None
    if script.play:
        return script._replace(play="")
    if script.physics:
        return script._replace(play="leap" if script.physics == "continuity" else "backwards")
    returning, half = all(e.action in RETURNING for e in script.base), script.frames // 2
    halves = [(e.start, e.end) for e in script.base] == [(0, half), (half, script.frames)]
    twin = script._replace(play="swapped" if returning and halves else "backwards")
    return twin if meaning(twin) != meaning(script) else None


def twins(script: Script, world: World, random: Random) -> list[tuple[str, Script]]:
    """Clips that differ in one skill, with its name; those with the same frames first."""
    found = []
    replay = replayed(script)
    first = script.base[0]
    if replay is not None:
        name = script.physics or ("order" if len(script.base) > 1 else _SKILL_OF.get(first.action, ""))
        found.append((name, replay))
    if script.physics == "permanence":
        opposite = {"still there": "gone", "nothing there": "there by itself"}
        opposite |= {b: a for a, b in opposite.items()}
        return [("permanence", script._replace(base=(first._replace(detail=opposite[first.detail]),)))]
    if script.physics or script.play:
        return found
    if first.action == "move" and len(script.base) == 1 and first.speed:  # "moves left" is true at any speed
        speed = "slowly" if first.speed == "quickly" else "quickly"
        found.append(("speed", script._replace(base=(first._replace(speed=speed),))))
    if first.action in RETURNING and len(script.base) == 1:
        actions = tuple(a for a in RETURNING if a != first.action)
        event = draw_event(world, random, first.thing, actions, script.things[first.thing], first.start, first.end)
        found.append(("action", script._replace(base=(event,))))
    if first.action in ("pass behind", "pass before"):
        action = "pass before" if first.action == "pass behind" else "pass behind"
        found.append(("depth", script._replace(base=(first._replace(action=action),))))
    if len(script.things) == 2 and first.other < 0 and len(script.base) == 1:
        event = first._replace(thing=1 - first.thing)
        if first.action not in ("recolour", "flash"):
            found.append(("who", script._replace(base=(event,))))
    if len(script.base) == 2 and all(e.action in RETURNING for e in script.base):
        half, a, b = script.frames // 2, *script.base
        spans = ((0, script.frames), (0, script.frames)) if a.start != b.start else ((0, half), (half, 2 * half))
        timed = (e._replace(start=span[0], end=span[1]) for e, span in zip((a, b), spans, strict=True))
        found.append(("while", script._replace(base=tuple(timed))))
    return [(name, twin) for name, twin in found if not _gives_away(twin, world)]


def _gives_away(script: Script, world: World) -> bool:
    """Whether a twin shows what training must not show."""
    return world.split != "heldout-combinations" and any(_held_out(script, t, world) for t in script.things)


def pair_of(world: World, skill: str, seed: int, frames: int) -> tuple[Script, Script]:
    """Two clips that differ in one skill alone, in random order."""
    kind, only = {**SAME_FRAMES, **OTHERS}[skill]
    random = Random(seed)
    for attempt in range(1000):
        script = draw_script(world, seed + attempt, kind, frames, only, with_other=True if skill == "who" else None)
        twin = dict(reversed(twins(script, world, random))).get(skill)
        if twin is not None:
            return (script, twin) if random.random() < 0.5 else (twin, script)
    raise DiptychError(f"scenes:clips: no pairs for '{skill}' in this world")  # a world of very few concepts


def draw_long(world: World, seed: int, frames: int, events: int) -> Script:
    """A script of one or two things that act several times, one event after the other with pauses between them."""
    wanted = world.split == "heldout-combinations"
    random = Random(seed)
    while True:
        ground = GROUNDS[random.randrange(len(GROUNDS))]
        first = _coloured(world, random, draw_things(world, random, 1, world.focus))
        second = _coloured(world, random, draw_things(world, random, 1, taken=(first,)), first.colour)
        script = Script((first, second), _sequence(world, random, (first, second), frames, events), "", ground, seed, frames)
        if any(_held_out(script, t, world) for t in script.things) == wanted:
            return script


def _sequence(world: World, random: Random, pair: tuple[Things, Things], frames: int, events: int) -> tuple[Event, ...]:
    """Events in slots of random lengths. A thing that has moved along an axis moves back along it next; no event comes twice."""
    least = max(4, frames // (2 * events))
    spare = frames - least * events
    cuts = sorted(random.randint(0, spare) for _ in range(2 * events))
    made: list[Event] = []
    at: list[list[int]] = [[0, 0], [0, 0]]  # the last step of each thing along each axis
    for number in range(events):
        start = least * number + cuts[2 * number]
        end = min(start + least + (cuts[2 * number + 1] - cuts[2 * number]), frames)
        while True:
            thing = random.randrange(2)
            actions = ("move",) if random.random() < 0.5 else RETURNING
            event = draw_event(world, random, thing, actions, pair[thing], start, end)
            if any((e.thing, e.action, e.detail) == (event.thing, event.action, event.detail) for e in made):
                continue
            step = DIRECTIONS.get(event.detail, (0, 0)) if event.action == "move" else (0, 0)
            if all(not s or s != at[thing][axis] for axis, s in enumerate(step)):
                break
        for axis, s in enumerate(step):
            at[thing][axis] = s or at[thing][axis]
        made.append(event)
    return tuple(made)
