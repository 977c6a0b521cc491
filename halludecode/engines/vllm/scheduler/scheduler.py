"""Groups in vLLM's scheduler: the rows of one request take every token in the same step.

In every step either all rows of a group take exactly one token and sample, or none samples. A row
may be prefilled up to its last known token and is then held until all its siblings are there. The
stock scheduler does the work; around its `schedule` only the order of `running`, the tail of
`waiting` and the last token of held rows are changed, and put back.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from halludecode.engines.vllm.row_metadata import metadata_of
from halludecode.engines.vllm.scheduler.row_group import (
    Limits,
    RowGroup,
    apart,
    left,
    never_fits,
)

logger = init_logger("vllm.halludecode.scheduler")
STAGE_SECONDS = 60.0  # rows of a group arrive as separate messages; later than this is an error
UNKNOWN = 1 << 60


class GroupMixin:
    """What both schedulers below add to vLLM's."""

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
        self._failed: dict[str, str] = {}  # group -> why, told in `update_from_output`
        self._admitted: dict[str, int] = {}  # request id -> place in the order of admission
        self._hidden: list[tuple[Request, list[int]]] = []

    # Arrival and departure ------------------------------------------------------------------------
    def add_request(self, request: Request) -> None:
        """Stage a group's rows until all have arrived, then queue them side by side."""
        tag = metadata_of(request.sampling_params)
        if tag is None or tag.size == 1:
            super().add_request(request)
            return
        group = self.groups.setdefault(tag.group, RowGroup(tag.size, tag.whole))
        group.members[tag.role] = request
        self._group_of[request.request_id] = tag.group
        if tag.life == "prefill":
            group.brief.add(tag.role)
        if len(group.members) == group.size:
            group.members = dict(sorted(group.members.items()))
            group.queued = True
            for row in group.rows:
                super().add_request(row)
            limits = Limits(
                self.max_num_active_reqs,
                self.max_model_len,
                self.kv_cache_config.num_blocks - 1,
                self.max_num_scheduled_tokens - self.max_num_running_reqs,
                min(self.max_num_encoder_input_tokens, self.encoder_cache_manager.cache_size),
            )
            reason = never_fits(group, limits, lambda row, n: self._blocks(row, n, fresh=True))
            if reason:
                self._failed[tag.group] = reason

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
            if group.queued:
                ids |= set(group.ids)
            else:  # not in the stock scheduler yet
                ids -= set(group.ids)
                for row in group.rows:
                    row.status = finished_status
                    if self.finished_req_ids_dict is not None:  # a front end counts what is open
                        self.finished_req_ids_dict[row.client_index].add(row.request_id)
            self._forget(name)
        for i in ids:
            self._admitted.pop(i, None)
        return super().finish_requests(ids, finished_status)

    def _forget(self, name: str) -> None:
        for i in self.groups.pop(name).ids:
            self._group_of.pop(i, None)
        self._ready.discard(name)
        self._broken.discard(name)
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

    # One step -------------------------------------------------------------------------------------
    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step of the stock scheduler that keeps every group together."""
        if not self.groups:
            made = super().schedule(*args, **kwargs)
            self._note_admissions()
            return made
        now = time.monotonic()
        preempted = self._preempt_broken(now)
        decoding, need, more = self._make_room(now)
        chosen = {id(row) for row in decoding}
        rest = [row for row in self.running if id(row) not in chosen]
        self.running = sorted(decoding, key=self._order) + sorted(rest, key=self._order)
        pause, tail = self._pause_state, deque[Request]()
        if (preempted or more) and pause == PauseState.UNPAUSED:
            self._pause_state = PauseState.PAUSED_NEW  # what was just taken is not given back
            starting = set[str]()
        else:
            tail, starting = self._cut_waiting(need, len(decoding))
        self._hide(starting)
        try:
            made = super().schedule(*args, **kwargs)
        finally:
            self._show()
            self._pause_state = pause
            self.waiting.extend(tail)
        self._note_admissions()
        self._check(made, starting)
        self.counts["steps"] += 1
        self.counts["started together"] += len(starting) > 1
        return made

    def _preempt_broken(self, now: float) -> bool:
        """Nobody stays behind when a sibling was preempted: half groups could block each other."""
        found = False
        for name in sorted(self._broken):
            group = self.groups.get(name)
            running = [r for r in group.rows if r.status == RequestStatus.RUNNING] if group else []
            if running:
                self._preempt_unit(running[0], now)
                found = True
        self._broken.clear()
        return found

    def _make_room(self, now: float) -> tuple[list[Request], int, bool]:
        """Rows that take one token, the blocks they need, and whether units were preempted."""
        preempted = False
        while True:
            self._ready = {
                name
                for name, group in self.groups.items()
                if group.queued
                and all(r.status == RequestStatus.RUNNING and left(r) == 1 for r in group.rows)
            }
            decoding = [r for r in self.running if left(r) == 1 and self._free(r)]
            limits = [min(r.num_computed_tokens + 1, self.max_model_len) for r in decoding]
            need = sum(self._blocks(r, n) for r, n in zip(decoding, limits, strict=True))
            if need <= self.kv_cache_manager.block_pool.get_num_free_blocks():
                return decoding, need, preempted
            self._preempt_unit(max(self.running, key=self._order), now)
            preempted = True

    def _free(self, row: Request) -> bool:
        name = self._group_of.get(row.request_id)
        return name is None or name in self._ready

    def _order(self, row: Request) -> int:
        return self._admitted.get(row.request_id, UNKNOWN)

    def _preempt_unit(self, row: Request, now: float) -> None:
        name = self._group_of.get(row.request_id)
        unit = [row]
        if name is not None:
            rows = self.groups[name].rows
            unit = [r for r in rows if r.status == RequestStatus.RUNNING]
            self.counts["preempted groups"] += 1
        for member in sorted(unit, key=self._order, reverse=True):
            self.running.remove(member)
            super()._preempt_request(member, now)
        self.counts["preempted rows"] += len(unit)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """The stock scheduler took a row: its siblings follow at the start of the next step."""
        super()._preempt_request(request, *args, **kwargs)
        name = self._group_of.get(request.request_id)
        if name is not None:
            self._broken.add(name)
        self.counts["preempted by vLLM"] += 1

    def _cut_waiting(self, need: int, decoding: int) -> tuple[deque[Request], set[str]]:
        """Take the tail of the queue off, from the first group that cannot be admitted whole.

        Returns:
            The tail, and the groups whose prompts start whole in this step, with nobody else.
        """
        slots = self.max_num_active_reqs - len(self.running)
        free = self.kv_cache_manager.block_pool.get_num_free_blocks() - need
        free -= self._inflight_prefill_reserved_blocks()
        seen, starting = set[str](), dict[str, RowGroup]()
        count, idle = 0, not self.running
        for row in self.waiting:
            name = self._group_of.get(row.request_id)
            if name is None:
                if slots <= 0 or starting:
                    break
                slots -= 1
                free -= self._blocks(row, row.num_tokens, fresh=True)
            elif name not in seen:
                group = self.groups[name]
                rest = [r for r in group.rows if r.status != RequestStatus.RUNNING]
                wanted = sum(self._blocks(r, r.num_tokens + 1, fresh=True) for r in rest)
                full = slots < len(rest) or (wanted > free and not idle)
                if full or name in self._failed or (starting and not group.fresh):
                    self.counts["waited"] += 1
                    break
                if group.fresh:
                    some = [*starting.values(), group]
                    if (count and not starting) or not self._has_room_for_whole(some, decoding):
                        break
                    starting[name] = group
                seen.add(name)
                slots, free = slots - len(rest), free - wanted
            idle = False
            count += 1
        return self._tail(count), set(starting)

    def _tail(self, count: int) -> deque[Request]:
        return deque([self.waiting.pop() for _ in range(len(self.waiting) - count)][::-1])

    def _has_room_for_whole(self, groups: list[RowGroup], decoding: int) -> bool:
        """Nobody else prefills, and the step's tokens and the cache hold all prompts."""
        if any(left(row) > 1 for row in self.running):
            return False
        rows, cache = [row for group in groups for row in group.rows], self.encoder_cache_manager
        wanted = {f.identifier: f.mm_position for row in rows for f in row.mm_features}
        new = [place.get_num_embeds() for i, place in wanted.items() if not cache.cached.get(i)]
        if sum(new) > min(cache.num_freeable_slots, self.max_num_encoder_input_tokens):
            return False  # steps in flight may still hold pictures
        prompts = sum(row.num_prompt_tokens for row in rows)
        return prompts + decoding <= self.max_num_scheduled_tokens

    def _hide(self, starting: set[str]) -> None:
        """Hide the last token of rows that must not sample; what a starting row wrote, too."""
        for name, group in self.groups.items():
            if not group.queued or name in self._ready:
                continue
            for row in group.rows:
                keep = row.num_tokens - 1
                if group.whole and name in starting:
                    keep = row.num_prompt_tokens
                hidden = row._all_token_ids[keep:]
                del row._all_token_ids[keep:]
                if hidden:
                    self._hidden.append((row, hidden))
                    self.counts["held"] += row.status == RequestStatus.RUNNING and left(row) == 0

    def _show(self) -> None:
        hidden, self._hidden = self._hidden, []
        for row, tokens in hidden:
            row._all_token_ids.extend(tokens)

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        """The stock counters must see the real lengths."""
        shown = self._hidden
        self._show()
        copies = getattr(scheduler_output.scheduled_cached_reqs, "all_token_ids", None) or {}
        for row, _ in shown:  # a resumed row's copy lacks what was hidden
            if row.request_id in copies:
                copies[row.request_id] = row.all_token_ids.copy()
        for i, count in scheduler_output.num_scheduled_tokens.items():
            row = self.requests[i]
            if i in self._group_of and row.num_computed_tokens + count < row.num_tokens:
                self._inflight_prefills.add(row)
        super()._update_after_schedule(scheduler_output)

    def _note_admissions(self) -> None:
        if len(self._admitted) > 4 * len(self.requests) + 64:
            self._admitted = {i: n for i, n in self._admitted.items() if i in self.requests}
        for row in self.running:
            if row.request_id not in self._admitted:
                self.counts["admitted"] += 1
                self._admitted[row.request_id] = self.counts["admitted"]

    def _check(self, made: Any, starting: set[str]) -> None:
        for name in self._ready | starting:
            group = self.groups[name]
            taken = [made.num_scheduled_tokens.get(i, 0) for i in group.ids]
            if name in starting:
                prompts = [row.num_prompt_tokens for row in group.rows]
                if taken != prompts and any(taken):
                    self._failed[name] = f"its prompts were cut: {taken} of {prompts} tokens"
                self.counts["whole"] += any(taken)
            elif any(taken) and not all(taken):
                self._failed[name] = f"its rows fell out of step: {taken} tokens taken"

    # Results --------------------------------------------------------------------------------------
    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """The stock update, then the ends of groups; only main rows are answered."""
        made = super().update_from_output(scheduler_output, model_runner_output)
        if not self.groups:
            return made
        mains = {group.main.request_id for group in self.groups.values() if 0 in group.members}
        for outputs in made.values():
            if outputs.outputs:
                outputs.outputs = [
                    o
                    for o in outputs.outputs
                    if o.request_id not in self._group_of or o.request_id in mains
                ]
        for name, group in list(self.groups.items()):
            self._settle(name, group, made)
        return made

    def _settle(self, name: str, group: RowGroup, made: dict[int, EngineCoreOutputs]) -> None:
        if not group.queued:
            if time.monotonic() - group.born > STAGE_SECONDS:
                self._fail(name, group, "not all of its rows arrived", made)
            return
        if group.main.is_finished():
            self.finish_requests(group.ids, RequestStatus.FINISHED_ABORTED)
            return
        reason = self._failed.pop(name, "") or apart(group)
        if reason:
            self._fail(name, group, reason, made)
        elif group.brief and group.main.num_output_tokens:
            self._drop_brief(group)

    def _drop_brief(self, group: RowGroup) -> None:
        """Rows that live until the first token make room."""
        gone = [group.members.pop(role).request_id for role in sorted(group.brief)]
        group.brief.clear()
        for i in gone:
            self._group_of.pop(i)
            self._admitted.pop(i, None)
        super().finish_requests(gone, RequestStatus.FINISHED_STOPPED)

    def _fail(
        self, name: str, group: RowGroup, reason: str, made: dict[int, EngineCoreOutputs]
    ) -> None:
        logger.error("request %s: %s", name, reason)
        self.counts["failed"] += 1
        told = group.members.get(0) or group.rows[0]
        self._failed[name] = reason  # ending the rows below is no second error
        self.finish_requests(group.ids, RequestStatus.FINISHED_ERROR)
        outputs = made.setdefault(told.client_index, EngineCoreOutputs())
        outputs.outputs = [
            *outputs.outputs,
            EngineCoreOutput(
                request_id=name,
                new_token_ids=[],
                finish_reason=told.get_finished_reason(),
                stop_reason=reason,
                events=told.take_events(),
            ),
        ]


class GroupScheduler(GroupMixin, Scheduler):
    """vLLM's scheduler with groups."""


class AsyncGroupScheduler(GroupMixin, AsyncScheduler):
    """vLLM's asynchronous scheduler with groups."""


def make(vllm_config: Any, **kwargs: Any) -> Scheduler:
    """``scheduler_cls``: the variant that fits the resolved ``async_scheduling``."""
    chosen: Callable[..., Scheduler] = (
        AsyncGroupScheduler if vllm_config.scheduler_config.async_scheduling else GroupScheduler
    )
    return chosen(vllm_config=vllm_config, **kwargs)
