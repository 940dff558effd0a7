"""Makes a release: ``python tools/release.py 0.2.0``. Writes the version, closes the changelog's section, commits and tags.

Nothing is pushed. The version stands in one place, ``diptych.__version__``; the package and the citation follow it.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORM = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:(a|b|rc)(\d+))?")
OPEN = "## Unreleased"


class ReleaseError(Exception):
    """Why a release cannot be made."""


def order(version: str) -> tuple[int, ...]:
    """A key by which versions are in order. Raises ReleaseError if it is not a version."""
    found = FORM.fullmatch(version)
    if not found:
        raise ReleaseError(f"{version!r} is not a version: expected 1.2.3, or 1.2.3rc1")
    stage = {"a": 0, "b": 1, "rc": 2, None: 3}[found[4]]
    return int(found[1]), int(found[2]), int(found[3]), stage, int(found[5] or 0)


def current(root: Path) -> str:
    """The version in the source."""
    found = re.search(r'^__version__ = "(.+)"$', (root / "src/diptych/__init__.py").read_text(encoding="utf-8"), re.M)
    if not found:
        raise ReleaseError("src/diptych/__init__.py has no __version__")
    return found[1]


def edits(root: Path, version: str, day: datetime.date) -> dict[Path, str]:
    """The new text of every file that a release changes. Raises ReleaseError if there is nothing to release."""
    if order(version) < order(now := current(root)):  # the same version, if it has no section yet, was never released
        raise ReleaseError(f"{version} is before {now}")
    source, changelog, citation = root / "src/diptych/__init__.py", root / "CHANGELOG.md", root / "CITATION.cff"
    text = changelog.read_text(encoding="utf-8")
    if f"## {version} " in text:
        raise ReleaseError(f"CHANGELOG.md has a section {version} already")
    head, mark, rest = text.partition(f"{OPEN}\n")
    if not mark or not rest.partition("\n## ")[0].strip():
        raise ReleaseError(f"CHANGELOG.md: nothing under '{OPEN}'")
    return {
        source: re.sub(r'^__version__ = ".+"$', f'__version__ = "{version}"', source.read_text(encoding="utf-8"), flags=re.M),
        changelog: f"{head}{OPEN}\n\n## {version} ({day.isoformat()})\n{rest}",
        citation: re.sub(r"^version: .+$", f"version: {version}", citation.read_text(encoding="utf-8"), flags=re.M),
    }


def git(*words: str) -> str:
    """What a git command prints. Raises ReleaseError with its own words if it fails."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(done.stderr.strip())
    return done.stdout.strip()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    given = parser.parse_args()
    try:
        made = edits(ROOT, given.version, datetime.date.today())
        if given.dry_run:
            print("\n".join(f"would write {path.relative_to(ROOT)}" for path in made))
            return
        if git("status", "--porcelain"):
            raise ReleaseError("the working tree has changes; commit them first")
        if git("tag", "--list", f"v{given.version}"):
            raise ReleaseError(f"there is a tag v{given.version} already")
        for path, text in made.items():
            path.write_text(text, encoding="utf-8")
        git("add", *(str(path) for path in made))
        git("commit", "--quiet", "--message", f"Release {given.version}")
        git("tag", "--annotate", f"v{given.version}", "--message", f"Diptych {given.version}")
    except ReleaseError as reason:
        sys.exit(f"error: {reason}")
    print(f"v{given.version} is committed and tagged here. Try it with `make wheel`, then: git push --follow-tags")


if __name__ == "__main__":
    main()
