"""Problems with a hub as messages that say what to do. A token never stands in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diptych.core.errors import DiptychError

LOGIN = "log in with `hf auth login`, or set HF_TOKEN; tokens are made at ENDPOINT/settings/tokens"
AGAIN = "run the same command again: what is there already is not sent again"


@contextmanager
def explained(repo: str, endpoint: str, token: str | None) -> Iterator[None]:
    """Turns errors of huggingface_hub and of the network into DiptychError."""
    try:
        yield
    except DiptychError:
        raise
    except Exception as error:  # huggingface_hub raises errors of its http library, of json, and OSError
        raise DiptychError(without(_message(error, repo, endpoint), token)) from None


def without(text: str, token: str | None) -> str:
    """The text without the token."""
    return text.replace(token, "***") if token else text


def _message(error: Exception, repo: str, endpoint: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    login = LOGIN.replace("ENDPOINT", endpoint)
    if "OfflineModeIsEnabled" in kinds:
        return f"{repo}: HF_HUB_OFFLINE is set; unset it to reach {endpoint}"
    if status == 401:
        return f"{repo}: {endpoint} does not accept the token, or there is none; {login}"
    if status == 403:
        owner = repo.partition("/")[0]
        return f"{repo}: the token may not write there; it needs the role 'write', and you the right to write to '{owner}'"
    if status == 404:
        return f"{repo}: not at {endpoint}, or the token may not see it"
    if status == 409:
        return f"{repo}: the name is taken at {endpoint}; choose another one"
    if status is not None:
        return f"{repo}: {endpoint} answered {status} ({reason}); {AGAIN}"
    if kinds & {"TransportError", "ConnectionError", "TimeoutException", "TimeoutError"}:
        return f"{repo}: no connection to {endpoint} ({type(error).__name__}); when there is one, {AGAIN}"
    return f"{repo}: {reason}"
