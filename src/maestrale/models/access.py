"""Whether this account may have a model: tried on a real file of it, before anything large moves.

A gated model's listing is public, so only a file's own head tells. All of it takes less than
`LIMIT` seconds, whatever the network does; each refusal has its own message with the page to go
to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RevisionNotFoundError,
)

from maestrale.bounded import Oversized, Undecodable
from maestrale.config.hub import HubSettings
from maestrale.errors import AccessDenied, HubUnreachable, ModelError
from maestrale.models.catalog import closest_names, find_model
from maestrale.models.hub import Hub, Listing, RemoteFile, status_of
from maestrale.printable import brief

LIMIT = 4.0  # seconds for the listing and the head together

T = TypeVar("T")


def check_access(
    hub: Hub, repo: str, revision: str, choose: Callable[[Listing], str]
) -> tuple[Listing, RemoteFile]:
    """The model's listing, and the head of the file that `choose` picks from it.

    Raises: AccessDenied, HubUnreachable, ModelError with what to do and where; what `choose`
    raises.
    """
    ends = time.monotonic() + LIMIT

    def ask() -> tuple[Listing, RemoteFile]:
        listing = hub.list(repo, revision, timeout=LIMIT)
        return listing, hub.head(listing, choose(listing), timeout=ends - time.monotonic())

    try:
        return _within(LIMIT, ask)
    except ModelError:
        raise
    except Exception as error:
        raise explain(error, hub.settings, repo, revision) from error


def check_token(hub: Hub) -> str:
    """The account that the token is of. Takes `LIMIT` seconds at most.

    Raises: AccessDenied when the hub doesn't know the token; HubUnreachable when it can't be
    asked (mirrors don't tell).
    """
    try:
        return _within(LIMIT, hub.account)
    except Exception as error:
        if status_of(error) == 401:
            raise explain(error, hub.settings, "", "") from error
        raise _unreachable(error, hub.settings, 0) from error


def explain(error: Exception, hub: HubSettings, repo: str, revision: str) -> ModelError:
    """What an error of the hub means for a person."""
    page = f"{hub.endpoint}/{repo}"
    tokens = f"{hub.endpoint}/settings/tokens"
    status = status_of(error)
    code, told = _headers(error)
    if isinstance(error, HFValidationError):
        return ModelError(f"{repo!r} can't be a model's name on the hub: {error}")
    if isinstance(error, RevisionNotFoundError):
        return ModelError(
            f"{repo} has no revision {revision!r}. Its branches and tags: {page}/refs. Change "
            "--revision."
        )
    wrong_token = status == 401 and hub.token is not None and code != "RepoNotFound"
    if wrong_token or "invalid credentials" in told.lower():
        return AccessDenied(
            f"{hub.endpoint} refuses the token in {hub.token_source}: it is wrong, expired or "
            f"revoked. Make a new one (type 'Read') on {tokens} and set HF_TOKEN to it."
        )
    known = find_model(repo)
    gated = isinstance(error, GatedRepoError) or (known is not None and known.gated)
    if hub.token is None and (status == 403 or (gated and status in (401, 404))):
        return AccessDenied(
            f"{repo} is gated: its files are only for accounts that have accepted its terms, and "
            f"there is no token here. Accept them on {page}, make a token (type 'Read') on "
            f"{tokens}, and set HF_TOKEN to it."
        )
    if isinstance(error, GatedRepoError):
        return AccessDenied(
            f"The account of the token in {hub.token_source} has no access to {repo}, which is "
            f"gated. Accept its terms on {page} (some owners then grant access by hand, which "
            "takes a while), and run this again."
        )
    if status == 403:
        return AccessDenied(
            f"The token in {hub.token_source} may not read {repo}{': ' + told if told else ''}. "
            f"Has its account accepted the terms on {page}? A fine-grained token also needs 'Read "
            f"access to contents of all public gated repos you can access'; change it on {tokens}."
        )
    if status in (401, 404):
        return _not_found(repo, hub, page)
    if status == 429:
        return _too_many(error, hub, tokens)
    return _unreachable(error, hub, status)


def _not_found(repo: str, hub: HubSettings, page: str) -> ModelError:
    near = closest_names(repo)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    private = (
        f"or it is private and the token in {hub.token_source} has no access"
        if hub.token
        else f"or it is private or gated and needs a token (from {hub.endpoint}/settings/tokens) "
        "in HF_TOKEN"
    )
    search = f"{hub.endpoint}/models?search={repo.rpartition('/')[2]}"
    return ModelError(
        f"There is no model {repo} on {hub.endpoint}, {private}.{hint} Its page would be {page}; "
        f"search on {search}"
    )


def _too_many(error: Exception, hub: HubSettings, tokens: str) -> ModelError:
    assert isinstance(error, HfHubHTTPError)
    wait = error.response.headers.get("Retry-After", "")
    when = f"in {wait} seconds" if wait.isdecimal() else "in some minutes"
    advice = "" if hub.token else f" With a token (from {tokens}, in HF_TOKEN) it allows more."
    return HubUnreachable(
        f"{hub.endpoint} allows no more requests from here for now (429). Try again {when}.{advice}"
    )


def _unreachable(error: Exception, hub: HubSettings, status: int) -> ModelError:
    site = "https://status.huggingface.co" if "huggingface.co" in hub.endpoint else hub.endpoint
    if status >= 500:
        return HubUnreachable(
            f"{hub.endpoint} fails at the moment (status {status}). See {site}; then try again."
        )
    if status:
        return ModelError(
            f"{hub.endpoint} refuses the request (status {status}): {brief(str(error))}"
        )
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        what = f"{hub.endpoint} doesn't answer within {LIMIT:g} s"
    elif isinstance(error, httpx2.TransportError | OSError):
        what = f"{hub.endpoint} can't be reached ({error})"
    elif isinstance(error, Oversized | Undecodable):
        what = f"{hub.endpoint} doesn't answer like a model hub: {error}"
    else:
        what = f"{hub.endpoint} doesn't answer like a model hub ({type(error).__name__}: {error})"
    return HubUnreachable(
        f"{what}. Is there a network? Behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT; "
        f"the hub's state is on {site}. What was downloaded before is used with HF_HUB_OFFLINE=1."
    )


def _headers(error: Exception) -> tuple[str, str]:
    """The hub's own code of an error, and its sentence."""
    if not isinstance(error, HfHubHTTPError):
        return "", ""
    headers = error.response.headers
    return headers.get("X-Error-Code", ""), headers.get("X-Error-Message", "")


def _within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread: looking up a name can't be told when to end.

    Raises: TimeoutError; what `work` raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]
