"""A changed source file in a process that has the file loaded: the functions that differ get their new code.

Loading torch, diptych and the tests takes longer than most tests do. A process that has them loaded forks, the fork changes the
code of the functions that differ, and every reference to them sees the change.
"""

from __future__ import annotations

import gc
from types import CodeType, FunctionType

FUNCTION = 0x3  # flags of code with local variables of its own: functions, not bodies of classes


def patch(path: str, before: str, after: str) -> bool:
    """Give the loaded functions of the file ``path`` the code that they have in ``after``, where it differs from that in
    ``before``. False if something else differs (a default value, a constant, a body of a class), or a function is not loaded:
    nothing is changed.
    """
    changed: list[tuple[CodeType, CodeType]] = []
    if not _compare(compile(before, path, "exec"), compile(after, path, "exec"), changed) or not changed:
        return False
    loaded = [f for f in gc.get_objects() if type(f) is FunctionType and f.__code__.co_filename == path]
    found = [(f, new) for old, new in changed for f in loaded if _place(f.__code__) == _place(old)]
    if {_place(f.__code__) for f, _ in found} != {_place(old) for old, _ in changed}:
        return False
    if any(f.__code__.co_freevars != new.co_freevars for f, new in found):
        return False
    for f, new in found:
        f.__code__ = new
    return True


def _place(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def _compare(old: CodeType, new: CodeType, changed: list[tuple[CodeType, CodeType]]) -> bool:
    """Whether two bodies of a module or a class differ in the code of functions alone, which are noted in ``changed``."""
    (mine, own), (theirs, other) = _parts(old), _parts(new)
    if (old.co_code, old.co_names, mine) != (new.co_code, new.co_names, theirs) or len(own) != len(other):
        return False
    for a, b in zip(own, other, strict=True):
        if a.co_flags & FUNCTION == FUNCTION:
            if _place(a) != _place(b):
                return False
            if a != b:
                changed.append((a, b))
        elif not _compare(a, b, changed):
            return False
    return True


def _parts(code: CodeType) -> tuple[list[str], list[CodeType]]:
    """The constants of a body, and the bodies in it."""
    inside = [c for c in code.co_consts if isinstance(c, CodeType)]
    return [repr(c) for c in code.co_consts if not isinstance(c, CodeType)], inside
