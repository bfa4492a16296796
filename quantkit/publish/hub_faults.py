"""What the Hub's faults mean, which of them are worth another try, and after how long.

A message may hold what the Hub said of a fault, on one line and with everything that looks like a token struck out; the
library's exceptions, whose requests carry the token, are not kept as causes.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from quantkit.errors import InputError, QuantkitError, UnresolvedError

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try, where the Hub names none
LONGEST_PAUSE = 600.0  # the Hub counts requests in windows of five minutes
NO_TOKEN = "no token was found: set HF_TOKEN to one with write access, or run `hf auth login`"
_MOVED = (409, 412)  # somebody else committed in between
_PASSING = (408, *_MOVED, 429)
_SAID = 240


def patiently(step: Callable[[], T], where: str) -> T:
    """The result of `step`, which is tried again after faults that pass: 5xx, 429, a moved branch, a lost connection.

    Raises InputError for what the user must mend (token, rights, terms, name), UnresolvedError for what did not pass in time.
    """
    for pause in (*PAUSES, None):
        try:
            return step()
        except _caught() as error:
            fault, wait = explain(error, where), _wait(error, pause)
        if wait is None:
            raise fault
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def explain(error: BaseException, where: str) -> QuantkitError:
    """The fault in quantkit's tree, with its remedy and without a token."""
    from huggingface_hub import errors

    status, owner, said = _status(error), where.removeprefix("hf://").partition("/")[0], _said(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UnresolvedError(f"{where}: HF_HUB_OFFLINE is set; unset it to publish there")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return InputError(f"{where}: {NO_TOKEN}")
    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{where} is gated: accept its terms on its page with the account of the token{said}")
    if status == 401 or type(error).__name__ == "OIDCError":
        return InputError(
            f"{where}: the Hub does not accept the token (401): it is expired, revoked or mistyped; make a new one with "
            f"write access, then set HF_TOKEN or run `hf auth login`{said}"
        )
    if status in (402, 403) or isinstance(error, PermissionError):
        return InputError(
            f"{where}: the Hub forbids it ({status or 403}): give a token with write access to it (a fine-grained one must "
            f"name {owner}), whose account may write for {owner} and has storage left, or use pull_request: true{said}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{where}: the repository has no such branch; it is made where the name is a branch's{said}")
    if status == 404:
        return InputError(f"{where}: the Hub has no user or organisation {owner} that the token may see; check `hub:`{said}")
    if status in _MOVED:
        return UnresolvedError(f"{where}: others committed there all the while ({status}); publish again{said}")
    if (status is not None and status not in _PASSING and status < 500) or _refused(error):
        return InputError(f"{where}: the Hub refused what was sent ({status or type(error).__name__}){said}")
    answer = f"answered {status}" if status else f"did not answer ({type(error).__name__})"
    return UnresolvedError(f"{where}: the Hub {answer}; publish again: files that arrived are not sent twice{said}")


def _caught() -> tuple[type[Exception], ...]:
    """Everything that huggingface_hub and its upload of large files raise for a request that went wrong."""
    from huggingface_hub import errors

    named = (
        errors.HTTPError,  # type: ignore[attr-defined]  # httpx's or httpx2's
        errors.LocalTokenNotFoundError,
        errors.LocalEntryNotFoundError,
        errors.FileMetadataError,
        getattr(errors, "OIDCError", RuntimeError),
    )
    return (*named, RuntimeError, ValueError, ConnectionError, TimeoutError, PermissionError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _response(error: BaseException) -> Any:
    """Of the fault or of what caused it: the upload of a file wraps its own."""
    return next((found for each in _chain(error) if (found := getattr(each, "response", None)) is not None), None)


def _status(error: BaseException) -> int | None:
    return getattr(_response(error), "status_code", None)


def _refused(error: BaseException) -> bool:
    """Whether a fault without an answer's status is a refusal all the same: a name or a model card that is not valid."""
    return isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)


def _wait(error: BaseException, pause: float | None) -> float | None:
    """Seconds before the next try; None where another would be in vain."""
    from huggingface_hub import errors

    status = _status(error)
    if pause is None or isinstance(error, errors.OfflineModeIsEnabled | errors.LocalTokenNotFoundError | PermissionError):
        return None
    if status is None:
        return None if _refused(error) or type(error).__name__ == "OIDCError" else pause
    if status not in _PASSING and status < 500:
        return None
    asked = _asked(_response(error).headers)
    if asked is None:
        return pause
    return asked if asked <= LONGEST_PAUSE else None


def _asked(headers: Any) -> float | None:
    """Seconds that the answer asks to wait: Retry-After (a number or a date), else the reset of an exhausted RateLimit."""
    after = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", after):
        return float(after)
    if after:
        try:
            return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
        except ValueError:
            return None
    left = re.search(r"r=0;\s*t=(\d+)", headers.get("RateLimit") or "")
    return float(left[1]) if left else None


def _said(error: BaseException) -> str:
    """What the Hub said of it, fit to print: `: its words`, or nothing."""
    told = (getattr(each, "server_message", None) for each in _chain(error))
    words = str(error) if _refused(error) else next(filter(None, told), "")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if secret := os.environ.get(name, "").strip():
            words = words.replace(secret, "***")
    words = re.sub(r"\b(hf_|api_|eyJ)[\w.-]{6,}", "***", " ".join(words.split()))
    return f": {words[:_SAID]}" if words else ""
