"""What OpenAI's client raises, as errors of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halludecode.core import errors
from halludecode.core.errors import HalluDecodeError, InvalidModel, InvalidRequest, MissingExtra

GONE = frozenset({502, 503, 504})
KEY = "HALLUDECODE_API_KEY"


class Unreachable(HalluDecodeError):
    """No server answers, or none that is `halludecode serve`."""


def openai_client() -> Any:
    """OpenAI's package.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingExtra(
            f"A server is asked with OpenAI's client ({error}): pip install openai."
        ) from None
    return openai


def error_of(error: Any, url: str) -> HalluDecodeError:
    """A client's error as one of ours, with the server's own sentence where it has one."""
    status = getattr(error, "status_code", None)
    if status is None:
        slow = isinstance(error, openai_client().APITimeoutError)
        what = "takes too long" if slow else "cannot be reached"
        kind = InvalidRequest if slow else Unreachable
        return kind(f"{url} {what} ({error.__cause__ or error}).")
    body = error.body if isinstance(error.body, Mapping) else {}
    said = str(body.get("message") or f"status {status}").strip()
    if status in GONE:
        return Unreachable(f"{url} is not serving ({said}).")
    if status in (401, 403):
        return InvalidModel(
            f"{url} refuses the key ({said}); give --api-key or set {KEY} to the server's."
        )
    kind = getattr(errors, str(body.get("type")), None)
    ours = isinstance(kind, type) and issubclass(kind, HalluDecodeError)
    return kind(said) if ours else (InvalidRequest if status < 429 else HalluDecodeError)(said)
