"""In the scheduler: when groups come and go.

Rows arrive one by one, as requests of vLLM's, and are kept back until their group is there; from
then on a group ends as a whole, whatever happened to which of its rows.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from halludecode.engines.vllm.row_metadata import metadata_of
from halludecode.engines.vllm.scheduler.late_start import LateStart
from halludecode.engines.vllm.scheduler.row_group import (
    GroupLimits,
    RowGroup,
    why_apart,
    why_never_fits,
)

logger = init_logger("vllm.halludecode.scheduler")
STAGE_SECONDS = 60.0  # rows of a group arrive as separate messages; later than this is an error


class GroupLifetimes(LateStart):
    """Arrival and departure of groups, added to vLLM's scheduler."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.policy != SchedulingPolicy.FCFS:
            raise ValueError("halludecode: rows in groups need the scheduling policy fcfs.")
        if self.vllm_config.speculative_config is not None:
            raise ValueError("halludecode: rows in groups do not go with speculative decoding.")
        if self.connector is not None or self.ec_connector is not None:
            raise ValueError("halludecode: rows in groups do not go with KV or encoder connectors.")
        self.groups: dict[str, RowGroup] = {}
        self.counts: Counter[str] = Counter()  # what happened, for tests and logs
        self._group_of: dict[str, str] = {}  # request id -> group
        self._ready: set[str] = set()  # groups whose rows all take one token in this step
        self._broken: set[str] = set()  # groups that lost a row to preemption
        self._failed: dict[str, str] = {}  # group -> why, ended in `update_from_output`
        self._admitted: dict[str, int] = {}  # request id -> place in the order of admission
        self._compiling: set[str] = set()  # groups that are whole and wait for their grammar

    def add_request(self, request: Request) -> None:
        """Stage a group's rows until all have arrived, then queue them side by side."""
        metadata = metadata_of(request.sampling_params)
        if metadata is None or not (metadata.size > 1 or metadata.late or metadata.whole):
            self._first_if_needed(request, metadata)
            super().add_request(request)
            return
        name = metadata.group
        if metadata.late and metadata.role > 0:
            self._join(request, metadata)
            return
        new = RowGroup(metadata.size, metadata.whole, late=metadata.late)
        group = self.groups.setdefault(name, new)
        group.members[metadata.role] = request
        self._group_of[request.request_id] = name
        if metadata.life == "prefill":
            group.prefill_only.add(metadata.role)
        if len(group.members) == group.size:
            group.members = dict(sorted(group.members.items()))
            if group.main.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
                self._compiling.add(name)
            else:
                self._queue(name, group)

    def _queue(self, name: str, group: RowGroup) -> None:
        """Hand the rows of a group to the stock scheduler, side by side."""
        group.queued = True
        for row in group.rows:
            super().add_request(row)
        self._check_fits(name, group)

    def _check_fits(self, name: str, group: RowGroup) -> None:
        # An exception here would end the engine: the group fails at the end of a step.
        reason = why_never_fits(group, self._limits(), partial(self._blocks, fresh=True))
        if reason:
            self._failed[name] = reason

    def _queue_compiled(self) -> None:
        """Queue groups whose grammar is there; the stock scheduler would start the others first."""
        for name in sorted(self._compiling):
            group = self.groups[name]
            grammar = group.main.structured_output_request.grammar
            if grammar is None:
                continue
            self._compiling.discard(name)
            group.main.status = RequestStatus.WAITING
            self._queue(name, group)
            if isinstance(grammar, Exception):
                self._failed[name] = f"its structure cannot be compiled: {grammar}"

    def get_num_unfinished_requests(self) -> int:
        """With groups that wait for a grammar, or the engine would sleep on them."""
        waiting = sum(self.groups[name].size for name in self._compiling)
        return super().get_num_unfinished_requests() + waiting

    def _limits(self) -> GroupLimits:
        return GroupLimits(
            self.max_num_active_reqs,
            self.max_model_len,
            self.kv_cache_config.num_blocks - 1,
            self.max_num_scheduled_tokens - self.max_num_running_reqs,
            min(self.max_num_encoder_input_tokens, self.encoder_cache_manager.cache_size),
        )

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> list[Request]:
        """End whole groups; a row ended without its main row is an error of the group.

        A group goes by its main row's name: the second notice of an abort that overtook rows comes
        in order and still finds them.
        """
        if request_ids is None:
            ids = set(self.requests) | set(self._group_of)
        else:
            ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        for name in {self._group_of.get(i, i) for i in ids} & self.groups.keys():
            group = self.groups[name]
            if name not in self._failed and group.queued and group.lives_on(ids):
                self._failed[name] = "a row of its group was ended alone"
                ids -= set(group.ids)
                continue
            outside = list(group.staged.values())  # rows that the stock scheduler does not know
            if group.queued:
                ids |= set(group.ids)
            else:
                ids -= set(group.ids)
                outside += group.rows
            for row in outside:
                self._drop_unqueued(row, finished_status)
            self._forget(name)
        for i in ids:
            self._admitted.pop(i, None)
        return super().finish_requests(ids, finished_status)

    def _drop_unqueued(self, row: Request, status: RequestStatus) -> None:
        row.status = status
        if self.finished_req_ids_dict is not None:  # a front end counts what is open
            self.finished_req_ids_dict[row.client_index].add(row.request_id)

    def _forget(self, name: str) -> None:
        for i in self.groups.pop(name).ids:
            self._group_of.pop(i, None)
        self._ready.discard(name)
        self._broken.discard(name)
        self._compiling.discard(name)
        self._failed.pop(name, None)

    def _blocks(self, row: Request, tokens: int, *, fresh: bool = False) -> int:
        """Blocks a row still needs to hold that many tokens."""
        done = 0 if fresh else row.num_computed_tokens
        return self.kv_cache_manager.coordinator.get_num_blocks_to_allocate(
            request_id="?" if fresh else row.request_id,
            num_tokens=tokens,
            new_computed_blocks=self.kv_cache_manager.empty_kv_cache_blocks.blocks,
            num_encoder_tokens=0,
            total_computed_tokens=done,
            num_local_computed_tokens=done,
            num_tokens_main_model=tokens,
            prefill_end=tokens,
        )

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """The stock update, then the ends of groups; only main rows are answered."""
        by_client = super().update_from_output(scheduler_output, model_runner_output)
        if not self.groups:
            return by_client
        mains = {group.main.request_id for group in self.groups.values() if 0 in group.members}
        for outputs in by_client.values():
            if outputs.outputs:
                outputs.outputs = [
                    o
                    for o in outputs.outputs
                    if o.request_id not in self._group_of or o.request_id in mains
                ]
        for name, group in list(self.groups.items()):
            self._settle(name, group, by_client)
        self._ask(scheduler_output.num_scheduled_tokens, by_client)
        return by_client

    def _settle(self, name: str, group: RowGroup, by_client: dict[int, EngineCoreOutputs]) -> None:
        """End a group that is answered or has failed, and rows that are no longer needed."""
        if name in self._compiling:
            return
        if not group.queued:
            if time.monotonic() - group.created > STAGE_SECONDS:
                self._fail(name, group, "not all of its rows arrived", by_client)
            return
        if group.main.is_finished():
            self.finish_requests(group.ids, RequestStatus.FINISHED_ABORTED)
            return
        reason = self._failed.pop(name, "") or why_apart(group)
        if reason:
            self._fail(name, group, reason, by_client)
        elif group.prefill_only and group.main.num_output_tokens:
            self._drop_prefill_only(group)

    def _drop_prefill_only(self, group: RowGroup) -> None:
        """Rows that live until the first token make room."""
        ids = [group.members.pop(role).request_id for role in sorted(group.prefill_only)]
        group.prefill_only.clear()
        for i in ids:
            self._group_of.pop(i)
            self._admitted.pop(i, None)
        super().finish_requests(ids, RequestStatus.FINISHED_STOPPED)

    def _fail(
        self, name: str, group: RowGroup, reason: str, by_client: dict[int, EngineCoreOutputs]
    ) -> None:
        logger.error("request %s: %s", name, reason)
        self.counts["failed"] += 1
        row = group.members.get(0) or group.rows[0]
        self._failed[name] = reason  # ending the rows below is no second error
        self.finish_requests(group.ids, RequestStatus.FINISHED_ERROR)
        outputs = by_client.setdefault(row.client_index, EngineCoreOutputs())
        error = EngineCoreOutput(
            request_id=name,
            new_token_ids=[],
            finish_reason=row.get_finished_reason(),
            stop_reason=reason,
            events=row.take_events(),
        )
        outputs.outputs = [*outputs.outputs, error]
