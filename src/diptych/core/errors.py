"""The one exception that means "you, the user, can fix this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DiptychError(Exception):
    """A problem that the user can fix: the message names what is wrong, where, and the remedy.

    The command line prints it without a traceback and exits with status 1.
    """


class Interrupted(DiptychError):  # noqa: N818 - an outcome, not a failure
    """Ctrl-C or SIGTERM: finished work is kept, and the same command (``--resume`` for training) resumes. Exit status 130."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'vision'?`` or, if nothing is close, the list of valid names."""
    valid = sorted(set(valid))
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid: {', '.join(valid)}" if valid else ""


def counted(number: float, noun: str, plural: str = "") -> str:
    """A number with its noun, in the plural where the number is not 1: ``1 row``, ``2,000 rows``. ``plural``: an irregular one."""
    return f"{number:,.0f} {noun if number == 1 else plural or noun + 's'}"
