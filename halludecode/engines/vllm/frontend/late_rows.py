"""In the front end: which requests begin as their main row alone, and how it hears of the others.

The scheduler asks for a request's other rows at the first token that its main row does not decide;
they are made then, passes that only they need are run, and they read the answer so far as the end
of their prompts. See `scheduler.late_start` for how they catch up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from halludecode.core.errors import InvalidRequest
from halludecode.core.plan import Plan
from halludecode.engines.api import ExtraRows
from halludecode.engines.vllm.frontend.capacity import check_rows, edited_rows, together
from halludecode.engines.vllm.row_metadata import ASKS

logger = logging.getLogger(__name__)
SPARE = 64  # tokens by which a row beside main may be longer than it, before it is made


@dataclass(frozen=True)
class Asks:
    """A group needs the rows that it began without.

    Args:
        request_id: Of its main row.
        ids: The answer so far.
    """

    request_id: str
    ids: tuple[int, ...]


def why_from_start(plan: Plan, extra_rows: ExtraRows, config: Any) -> str:
    """Why all rows of a plan's requests begin with the prompt; "" where they wait to be needed.

    Args:
        plan: What acts.
        extra_rows: The engine's.
        config: vLLM's.
    """
    if extra_rows == "always":
        return "extra_rows is 'always'"
    if not plan.can_wait:
        return "every token needs them"
    if together(plan):
        return "its prompts are read whole, in one step"
    if any(edited_rows(part) - {"main"} for part in plan.parts):
        return "they are edited inside the model"
    return why_never(config)


def why_never(config: Any) -> str:
    """Why no plan's rows can wait in a vLLM so configured; "" where they can."""
    if config.use_v2_model_runner:
        return "model runner V2 draws a token of every row"
    if config.scheduler_config.async_scheduling:
        return "a step is scheduled before the tokens of the last one are known"
    return ""


def tell_if_never(extra_rows: ExtraRows, config: Any) -> None:
    """Log that on demand is off in a vLLM so configured, and what would let rows wait.

    vLLM schedules asynchronously on a GPU unless it is told not to.
    """
    why = why_never(config) if extra_rows == "on_demand" else ""
    cure = (
        "VLLM_USE_V2_MODEL_RUNNER=0"
        if config.use_v2_model_runner
        else "async_scheduling=False (--no-async-scheduling)"
    )
    if why:
        logger.warning(
            "extra_rows='on_demand' is off here, rows beside main begin with the prompt: %s. "
            "Tokens are the same; %s lets rows wait until a token needs them.",
            *(why, cure),
        )


def late_passes(plan: Plan) -> bool:
    """Whether the passes before the answer are needed by rows beside main alone."""
    return all(part.late_activations for part in plan.parts if part.activations)


def fits_whole(main: Any, plan: Plan, max_new_tokens: int, config: Any, replicas: int) -> bool:
    """Whether a request certainly fits with all its rows, of which only main has been made.

    Where it may not, they are made at once, so that what never fits is refused before its answer.
    """
    longest = SimpleNamespace(input_ids=range(len(main.input_ids) + SPARE))
    rows: list[Any] = [main, *[longest] * (len(plan.rows) - 1)]
    try:
        check_rows(rows, plan, max_new_tokens, config, replicas)
    except InvalidRequest:
        return False
    return True


def listen(output_processor: Any, tell: Callable[[Asks], None]) -> None:
    """Hear of groups that need rows, among the outputs of vLLM's core.

    The messages are taken out before vLLM's own processor sees them: it would count tokens that it
    has counted before.
    """
    stock = output_processor.process_outputs

    def process_outputs(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        asking = [each for each in outputs if each.stop_reason == ASKS]
        for each in asking:
            tell(Asks(each.request_id, tuple(each.new_token_ids)))
        if asking:
            outputs = [each for each in outputs if each.stop_reason != ASKS]
        return stock(outputs, *args, **kwargs)

    output_processor.process_outputs = process_outputs
