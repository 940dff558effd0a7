"""``diptych push``: the files of a listing into a repository of a hub; private unless asked, and resumed by what is there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError, counted
from diptych.core.extras import need
from diptych.inference.hub.errors import LOGIN, explained
from diptych.inference.hub.listing import Listed, Listing, git_oid

HUB = "https://huggingface.co"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
AT_ONCE, BYTES = 64, 2_000_000_000  # files and bytes of a commit: what a stopped upload loses at most
THEIRS = {".gitattributes"}  # a hub writes it into a new repository
Progress = Callable[[int, int, str], None]  # files done, files in all, the next file


@dataclass(frozen=True)
class Pushed:
    """What was done. sent, kept: names of files that were sent, and of those that were there already."""

    repo: str
    kind: str
    address: str
    private: bool
    sent: tuple[str, ...]
    kept: tuple[str, ...]
    stay: tuple[str, ...]  # files in the repository that are not in the listing


def endpoint() -> str:
    """Where the hub is: HF_ENDPOINT, or Hugging Face."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def checked(repo: str) -> str:
    """``owner/name``, without ``hf:``. DiptychError for anything else."""
    name = repo.removeprefix("hf:")
    if not NAME.fullmatch(name):
        raise DiptychError(f"'{repo}' is no name of a repository: expected OWNER/NAME, such as ada/clip-of-my-photos")
    return name


def push(files: Listing, repo: str, *, public: bool = False, replace: bool = False, progress: Progress | None = None) -> Pushed:
    """Send the files of a listing to ``owner/name``; the repository is made, private, if there is none.

    public: make it public, or write to one that is. replace: write over other content; files that are not in the listing stay.
    A stopped upload goes on where it was: files that are there with the same content are not sent again.

    Raises DiptychError without a token or a network, for a name that is taken, for a public repository without ``public``, and for
    a file that has changed since it was listed.
    """
    hub = need("huggingface_hub", extra=None, what="diptych push")
    repo, where, token = checked(repo), endpoint(), hub.get_token()
    if not token:
        raise DiptychError(f"{repo}: no token; {LOGIN.replace('ENDPOINT', where)}")
    if not files.files:
        raise DiptychError(f"{files.folder}: there is nothing to send")
    api = hub.HfApi(endpoint=where, token=token)
    with explained(repo, where, token):
        info = _info(api, hub, repo, files.kind)
        private = not public
        if info is None:
            api.create_repo(repo, repo_type=files.kind, private=private)
            there: dict[str, Any] = {}
        else:
            private = bool(info.private)
            if not private and not public:
                raise DiptychError(f"{repo} exists and is public; add --public if everybody may read what you send")
            there = _tree(api, repo, files.kind)
        todo = [f for f in files.files if not _same(f, there.get(f.name))]
        other = tuple(sorted(there.keys() - {f.name for f in files.files} - THEIRS))
        over = [f.name for f in todo if f.name in there]
        if (other or over) and not replace:
            raise DiptychError(_taken(repo, where, other, over))
        _send(api, repo, files, todo, progress or (lambda *_: None))
        after = _tree(api, repo, files.kind)
        lost = [f.name for f in files.files if not _same(f, after.get(f.name))]
        if lost:
            raise DiptychError(
                f"{repo}: {counted(len(lost), 'file')} did not arrive ({', '.join(lost[:3])}); run the command again"
            )
    sent = tuple(f.name for f in todo)
    kept = tuple(f.name for f in files.files if f.name not in sent)
    section = "datasets/" if files.kind == "dataset" else ""
    return Pushed(repo, files.kind, f"{where}/{section}{repo}", private, sent, kept, other)


def _taken(repo: str, where: str, other: Sequence[str], over: Sequence[str]) -> str:
    """The message for a repository with other content."""
    names = [*over, *other]
    listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    what = "other content than here" if over else "files that are not of this directory"
    return (
        f"{repo}: the name is taken at {where} by {what} ({listed}); choose another name, or add --replace to write over it "
        "(its history keeps the old files, and files that are not sent stay)"
    )


def _info(api: Any, hub: Any, repo: str, kind: str) -> Any:
    """What the hub says of a repository; None if there is none, or none that the token may see."""
    try:
        return api.repo_info(repo, repo_type=kind)
    except hub.errors.RepositoryNotFoundError as error:
        if getattr(error.response, "status_code", 404) == 401:  # a token that is not valid
            api.whoami()  # raises
        return None


def _tree(api: Any, repo: str, kind: str) -> dict[str, Any]:
    """The files of a repository by name."""
    return {f.path: f for f in api.list_repo_tree(repo, recursive=True, repo_type=kind) if hasattr(f, "blob_id")}


def _same(file: Listed, there: Any) -> bool:
    """Whether the repository holds this content under this name."""
    if there is None or there.size != file.size:
        return False
    known, ours = (there.lfs.sha256, file.sha256) if there.lfs is not None else (there.blob_id, git_oid(file.place))
    return bool(known == ours)


def _send(api: Any, repo: str, files: Listing, todo: Sequence[Listed], progress: Progress) -> None:
    """Commits the files in groups, the card last: a repository without one was not finished."""
    from huggingface_hub import CommitOperationAdd

    done = 0
    for group in _groups(sorted(todo, key=lambda f: (f.name == "README.md", f.name))):
        progress(done, len(todo), group[0].name)
        adds = [CommitOperationAdd(path_in_repo=f.name, path_or_fileobj=str(f.place)) for f in group]
        for f, add in zip(group, adds, strict=True):
            if add.upload_info.sha256.hex() != f.sha256:
                raise DiptychError(f"{f.place} has changed since it was listed; nothing more was sent. Run the command again")
        message = f"{files.folder.name}: {counted(len(group), 'file')} by diptych push"
        api.create_commit(repo, adds, commit_message=message, repo_type=files.kind)
        done += len(group)
    progress(done, len(todo), "")


def _groups(files: Sequence[Listed]) -> Iterator[list[Listed]]:
    """The files in groups of at most ``AT_ONCE`` and about ``BYTES``; the card alone, if there are several groups."""
    group: list[Listed] = []
    for file in files:
        if group and (len(group) >= AT_ONCE or sum(f.size for f in group) + file.size > BYTES):
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def folder_of(repo: str) -> Path:
    """Where ``diptych pull`` puts a repository by default."""
    return Path(checked(repo.partition("@")[0]).partition("/")[2])
