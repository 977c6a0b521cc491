"""An error of ours as the answer that OpenAI clients expect."""

from __future__ import annotations

from http import HTTPStatus

from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse

from halludecode.core.errors import HalluDecodeError, HookNeverFired
from halludecode.engines.vllm.frontend.async_bridge import EngineStopped
from halludecode.serve.policy import Busy


def refusal(error: HalluDecodeError) -> ErrorResponse:
    """Our sentence as OpenAI clients expect errors; what is no fault of theirs has status 500."""
    status = HTTPStatus.BAD_REQUEST
    if isinstance(error, Busy):
        status = HTTPStatus.TOO_MANY_REQUESTS
    elif isinstance(error, EngineStopped):
        status = HTTPStatus.SERVICE_UNAVAILABLE
    elif type(error) in (HalluDecodeError, HookNeverFired):
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    return ErrorResponse(
        error=ErrorInfo(message=str(error), type=type(error).__name__, code=status.value)
    )
