"""``diptych pull``: an export or a curated set from a hub into a directory, checked against its own hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError, counted
from diptych.core.extras import need
from diptych.inference.hub.errors import explained
from diptych.inference.hub.listing import CURATED, MARK, listing
from diptych.inference.hub.push import checked, endpoint, folder_of
from diptych.inference.onnx.files import MANIFEST

DONE = Path(".cache") / "huggingface"  # what huggingface_hub notes of a directory that it filled


@dataclass(frozen=True)
class Pulled:
    """A directory that was filled. what: an export, a curated set, or "" for a repository of others; use: the command for it."""

    path: Path
    repo: str
    revision: str
    files: int
    what: str
    use: str


def pull(address: str, out: Path | None = None, kind: str = "", revision: str = "") -> Pulled:
    """Fetch ``hf:owner/name``, or ``hf:owner/name@revision``, into ``out`` (default: the name). kind: "model" or "dataset"; "":
    the one that exists, a model first.

    A stopped download goes on where it was. Files of an export or a curated set are checked against its list of hashes.

    Raises DiptychError for a repository that is not there, a directory with other content, and files that are not what they should
    be.
    """
    hub = need("huggingface_hub", extra=None, what="diptych pull")
    name, _, at = address.partition("@")
    repo, revision = checked(name), revision or at
    out = out or folder_of(name)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / DONE).is_dir())):
        raise DiptychError(f"{out} exists and was not made by `diptych pull`; choose another --out")
    where, token = endpoint(), hub.get_token()
    with explained(repo, where, token):
        api = hub.HfApi(endpoint=where, token=token or False)
        kinds = [kind] if kind else ["model", "dataset"]
        found, info = _first(api, hub, repo, kinds, revision)
        hub.snapshot_download(
            repo,
            repo_type=found,
            revision=info.sha,
            local_dir=out,
            endpoint=where,
            token=token or False,
            ignore_patterns=[".gitattributes"],
        )
    what, use = _described(out, repo)
    count = sum(p.is_file() and DONE.parts[0] not in p.relative_to(out).parts for p in out.rglob("*"))
    return Pulled(out, repo, str(info.sha), count, what, use)


def _first(api: Any, hub: Any, repo: str, kinds: Sequence[str], revision: str) -> tuple[str, Any]:
    """The first kind of which there is such a repository, and what the hub says of it."""
    for kind in kinds:
        try:
            return kind, api.repo_info(repo, repo_type=kind, revision=revision or None)
        except hub.errors.RevisionNotFoundError:
            raise DiptychError(f"{repo}: there is no revision '{revision}'") from None
        except hub.errors.RepositoryNotFoundError:
            continue
    raise DiptychError(f"{repo}: no {' or '.join(kinds)} of that name at {endpoint()}, or the token may not see it")


def _described(out: Path, repo: str) -> tuple[str, str]:
    """What the directory holds, after a check of its files, and the command that uses it."""
    if not any((out / mark).is_file() for mark in (MARK, MANIFEST, CURATED)):
        return "", f"diptych evaluate hf:{out} --data …"
    files = listing(out)
    if files.kind == "dataset":
        from diptych.core.files import read_json

        form = read_json(out / CURATED)["output"]
        place = (
            f"packed:{out}/packed"
            if form == "packed"
            else f"{'wds' if form == 'wds' else 'parquet'}:{out}/data/*.{'tar' if form == 'wds' else 'parquet'}"
        )
        return f"a curated set, {counted(len(files.files), 'file')} checked", f"diptych train clip --data '{place}'"
    onnx = (out / MANIFEST).is_file()
    return f"an export, {counted(len(files.files), 'file')} checked", f"diptych evaluate {'' if onnx else 'hf:'}{out} --data …"
