"""In the scheduler: tokens that are hidden from vLLM while it schedules one step.

vLLM samples a row's next token as soon as it computes its last known one. A row that must wait for
its siblings can be computed up to there and no further, and vLLM has no option for that: so its
last token is taken away for the length of one call of `schedule`, which then sees a row with
nothing left to do. The same call counts what it scheduled, and those counters must see the real
length; so tokens are put back as the first thing of `_update_after_schedule`, and once more after
the call should it end before that.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.request import Request


class HiddenTokens:
    """What is hidden at the moment."""

    def __init__(self) -> None:
        self._tails: list[tuple[Request, list[int]]] = []

    def __len__(self) -> int:
        return len(self._tails)

    def hide(self, row: Request, keep: int) -> bool:
        """Leave a row its first tokens; whether any were hidden.

        What is changed is vLLM's own list: the request hands out read-only views of it.
        """
        tail = row._all_token_ids[keep:]
        del row._all_token_ids[keep:]
        if tail:
            self._tails.append((row, tail))
        return bool(tail)

    def show(self) -> list[Request]:
        """Put all back; the rows they belong to."""
        tails, self._tails = self._tails, []
        for row, tail in tails:
            row._all_token_ids.extend(tail)
        return [row for row, _ in tails]


def mend_copies(scheduler_output: Any, rows: list[Request]) -> None:
    """What was made for the worker while tokens were hidden is made again.

    V1 is sent copies of what resumed rows hold. V2 is sent what all rows hold that come or come
    again, and takes the last of these for the one after which a row draws. vLLM sends its own list,
    to which the tokens have come back by now; nothing says that it will go on to.
    """
    copies = getattr(scheduler_output.scheduled_cached_reqs, "all_token_ids", None) or {}
    come = {new.req_id: new for new in scheduler_output.scheduled_new_reqs}
    for row in rows:
        if row.request_id in copies:
            copies[row.request_id] = row.all_token_ids.copy()
        new = come.get(row.request_id)
        if new is not None and new.prefill_token_ids is not None:
            new.prefill_token_ids = row.all_token_ids.copy()
