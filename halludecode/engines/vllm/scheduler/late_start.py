"""In the scheduler: groups that begin as their main row, whose other rows join when asked for.

A main row alone runs like any request. Where its next token is not its to decide, its worker draws
none; it then waits, its last token still to be computed, until the others have read the prompt and
the answer so far, and from there on the group is like any other.

Nothing is reserved for rows that may never come. What guarantees that a group goes on is the order:
what has been admitted once comes before what has not, passes that rows wait for before everything,
and where nobody can go on for want of room, the youngest of those that wait give theirs up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from halludecode.engines.vllm.row_metadata import ASKS, RowMetadata
from halludecode.engines.vllm.scheduler.row_group import RowGroup, tokens_left

LAST = 1 << 60  # in the order of admission


class LateStart:
    """Rows that join a running group, added to vLLM's scheduler."""

    if TYPE_CHECKING:
        groups: dict[str, RowGroup]
        counts: Counter[str]
        running: list[Request]
        waiting: Any
        max_num_active_reqs: int
        kv_cache_manager: Any
        _group_of: dict[str, str]
        _admitted: dict[str, int]

        def _blocks(self, row: Request, tokens: int, *, fresh: bool = False) -> int: ...
        def _check_fits(self, name: str, group: RowGroup) -> None: ...
        def _drop_unqueued(self, row: Request, status: RequestStatus) -> None: ...
        def _may_sample(self, row: Request) -> bool: ...
        def _preempt_with_siblings(self, row: Request, now: float) -> None: ...

    def _ask(self, scheduled: Mapping[str, int], by_client: dict[int, EngineCoreOutputs]) -> None:
        """Ask for the rows of groups whose main row computed all it has and drew nothing.

        Its last token is computed once more, beside the other rows' last ones.
        """
        for group in self.groups.values():
            main = group.members.get(0)
            if main is None or not group.alone or main.request_id not in scheduled:
                continue
            if main.status != RequestStatus.RUNNING or tokens_left(main) != 0:
                continue
            main.num_computed_tokens -= 1
            group.asked = True
            self.counts["asked"] += 1
            outputs = by_client.setdefault(main.client_index, EngineCoreOutputs())
            written = list(main.output_token_ids)
            asking = EngineCoreOutput(main.request_id, written, stop_reason=ASKS)
            outputs.outputs = [*outputs.outputs, asking]

    def _join(self, request: Request, metadata: RowMetadata) -> None:
        """A row that was asked for; with the last of them the group goes on."""
        group = self.groups.get(metadata.group)
        if group is None or not group.asked:  # the group ended in the meantime
            self._drop_unqueued(request, RequestStatus.FINISHED_ABORTED)
            return
        group.staged[metadata.role] = request
        if len(group.staged) < metadata.size - 1:
            return
        main = group.main
        for role, row in sorted(group.staged.items()):
            group.members[role], group.answered[role] = row, metadata.answered
            self._group_of[row.request_id] = metadata.group
            self._admitted[row.request_id] = self._admitted[main.request_id]
            main.max_tokens = min(main.max_tokens, row.max_tokens + metadata.answered)
            super().add_request(row)  # type: ignore[misc]
        group.staged, group.size, group.asked = {}, metadata.size, False
        self.counts["joined"] += 1
        self._check_fits(metadata.group, group)

    def _first_if_needed(self, request: Request, metadata: RowMetadata | None) -> None:
        """A pass that rows of a running group wait for must not wait for room behind others."""
        if metadata is not None and metadata.capture and any(g.asked for g in self.groups.values()):
            self._admitted[request.request_id] = 0

    def _waiting_order(self, row: Request) -> int:
        name = self._group_of.get(row.request_id)
        if name is not None and self.groups[name].asked:
            return LAST + 1  # it could do nothing yet
        return self._admitted.get(row.request_id, LAST)

    def _sort_waiting(self) -> None:
        """What was admitted once goes first, in that order, the rows of a group side by side."""
        if not any(group.late for group in self.groups.values()):
            return
        rows = list(self.waiting)
        ordered = sorted(rows, key=self._waiting_order)
        if ordered != rows:
            self.waiting.clear()
            self.waiting.extend(ordered)

    def _make_way(self, decoding: list[Request], now: float) -> bool:
        """Whether rows that only wait gave their room up, so that somebody goes on.

        Every row that runs waits for others: the first of those needs the room. None of the running
        ones is older, but for groups that wait for rows which have not arrived.
        """
        if decoding or not self.waiting:
            return False
        if any(tokens_left(row) > 1 or self._may_sample(row) for row in self.running):
            return False
        head = self.waiting[0]
        if self._waiting_order(head) >= LAST:
            return False
        name = self._group_of.get(head.request_id)
        rows = [head] if name is None else self.groups[name].rows
        rest = [row for row in rows if row.status != RequestStatus.RUNNING]
        blocks = sum(self._blocks(row, row.num_tokens + 1, fresh=True) for row in rest)
        made = False
        while True:
            room = self.max_num_active_reqs - len(self.running) >= len(rest)
            room &= self.kv_cache_manager.block_pool.get_num_free_blocks() >= blocks
            others = [row for row in self.running if row not in rows]
            if room or not others:
                return made
            youngest = max(others, key=lambda row: self._admitted.get(row.request_id, LAST))
            self._preempt_with_siblings(youngest, now)
            self.counts["made way"] += 1
            made = True
