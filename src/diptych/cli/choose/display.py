"""Progress of a command that counts several things one after the other."""

from __future__ import annotations

from diptych.core.progress import CountDisplay

CELLS = ("choosing settings", "testing")  # steps that count cells of the table


class StepsDisplay:
    """``display(label, done, total)``: a line or bar for each label; ``with`` ends the last one."""

    def __init__(self) -> None:
        self.label = ""
        self.display: CountDisplay | None = None

    def __enter__(self) -> StepsDisplay:
        return self

    def __exit__(self, *details: object) -> None:
        if self.display is not None:
            self.display.__exit__(*details)
            self.display = None

    def __call__(self, label: str, done: int, total: int) -> None:
        if label != self.label:
            self.__exit__(None, None, None)
            self.label, self.display = label, CountDisplay(label, total, done=0, unit="cells" if label in CELLS else "pictures")
            self.display.__enter__()
        if self.display is not None:
            self.display(done)
