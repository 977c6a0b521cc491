"""In the scheduler: the rows of one answer take every token in the same step.

In every step either all rows of a group sample, or none does. Where their prompts cannot all end in
one step (`prompt_ends`), a row is prefilled up to its last known token and then held until all its
siblings are there; after that each takes one token a step. The stock scheduler does the work;
around its `schedule` only the order of `running`, the tail of `waiting` and the last token of held
rows are changed, and put back.

Why around it: the loop inside `schedule` is one long function that changes with every version of
vLLM, while what it reads (a list of running rows, a queue, their tokens) has stayed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from halludecode.engines.vllm.compat.parent import end_with_parent
from halludecode.engines.vllm.scheduler.hidden_tokens import HiddenTokens, mend_copies
from halludecode.engines.vllm.scheduler.late_start import LAST
from halludecode.engines.vllm.scheduler.lifetimes import GroupLifetimes
from halludecode.engines.vllm.scheduler.prompt_ends import PromptEnds
from halludecode.engines.vllm.scheduler.row_group import RowGroup, tokens_left


class GroupMixin(PromptEnds, GroupLifetimes):
    """What both schedulers below add to vLLM's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hidden = HiddenTokens()

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step of the stock scheduler that keeps every group together."""
        self._queue_compiled()
        if not self.groups:
            step = super().schedule(*args, **kwargs)
            self._note_admissions()
            return step
        now = time.monotonic()
        self._sort_waiting()
        preempted = self._preempt_broken(now)
        decoding, need, preempted_more = self._make_room(now)
        preempted |= self._make_way(decoding, now)
        self._put_decoding_first(decoding)
        pause, tail, ending = self._pause_state, deque[Request](), set[str]()
        if (preempted or preempted_more) and pause == PauseState.UNPAUSED:
            self._pause_state = PauseState.PAUSED_NEW  # what was just taken is not given back
            starting = set[str]()
        else:
            tail, starting = self._cut_waiting(need, len(decoding))
            if not starting and not any((*args, *kwargs.values())):  # vLLM's throttle_prefills
                ending = self._ending(decoding, need)
        self._hide(starting, ending)
        try:
            step = super().schedule(*args, **kwargs)
        finally:
            self._hidden.show()
            self._pause_state = pause
            self.waiting.extend(tail)
        self._note_admissions()
        self._check(step, starting, ending)
        self.counts["steps"] += 1
        self.counts["started together"] += len(starting) > 1
        return step

    def _put_decoding_first(self, decoding: list[Request]) -> None:
        """The stock scheduler hands a step's tokens out in the order of ``running``.

        There are never more running rows than tokens, so rows that take one each always fit where
        they come first, and no prompt can cut a group in two.

        Where vLLM holds prefills back while somebody decodes (``prefill_schedule_interval``), a row
        of a group decodes if the group does: the last token of a sibling's prompt is not held back,
        and one that waits for siblings does not hold back what it waits for.
        """
        chosen = {id(row) for row in decoding}
        for row in self.running:
            if row.request_id in self._group_of:
                row.is_prefill_chunk = id(row) not in chosen
        rest = [row for row in self.running if id(row) not in chosen]
        self.running = sorted(decoding, key=self._order) + sorted(rest, key=self._order)

    def _preempt_broken(self, now: float) -> bool:
        """Nobody stays behind when a sibling was preempted: half groups could block each other."""
        preempted = False
        for name in sorted(self._broken):
            group = self.groups.get(name)
            running = [r for r in group.rows if r.status == RequestStatus.RUNNING] if group else []
            if running:
                self._preempt_with_siblings(running[0], now)
                preempted = True
        self._broken.clear()
        return preempted

    def _make_room(self, now: float) -> tuple[list[Request], int, bool]:
        """Rows that take one token, the blocks they need, and whether any were preempted for that.

        The stock loop would preempt the last row of ``running``, which may be half a group; so
        there is room for all of them before it begins.
        """
        preempted = False
        while True:
            self._ready = {
                name
                for name, group in self.groups.items()
                if group.queued
                and not group.asked
                and all(
                    r.status == RequestStatus.RUNNING and tokens_left(r) == 1 for r in group.rows
                )
            }
            decoding = [r for r in self.running if tokens_left(r) == 1 and self._may_sample(r)]
            lengths = [min(r.num_computed_tokens + 1, self.max_model_len) for r in decoding]
            need = sum(self._blocks(r, n) for r, n in zip(decoding, lengths, strict=True))
            if need <= self.kv_cache_manager.block_pool.get_num_free_blocks():
                return decoding, need, preempted
            self._preempt_with_siblings(max(self.running, key=self._order), now)
            preempted = True

    def _may_sample(self, row: Request) -> bool:
        name = self._group_of.get(row.request_id)
        return name is None or name in self._ready or self.groups[name].alone

    def _order(self, row: Request) -> int:
        return self._admitted.get(row.request_id, LAST)

    def _preempt_with_siblings(self, row: Request, now: float) -> None:
        name = self._group_of.get(row.request_id)
        rows = [row]
        if name is not None:
            group = self.groups[name]
            rows = [r for r in group.rows if r.status == RequestStatus.RUNNING]
            self.counts["preempted groups"] += 1
        for member in sorted(rows, key=self._order, reverse=True):
            self.running.remove(member)
            super()._preempt_request(member, now)
        self.counts["preempted rows"] += len(rows)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """The stock scheduler took a row: its siblings follow at the start of the next step."""
        super()._preempt_request(request, *args, **kwargs)
        name = self._group_of.get(request.request_id)
        if name is not None:
            self._broken.add(name)
        self.counts["preempted by vLLM"] += 1

    def _cut_waiting(self, need: int, decoding: int) -> tuple[deque[Request], set[str]]:
        """Take the tail of the queue off, from the first group that cannot be admitted whole.

        Nobody behind it is admitted either, or small requests could keep it waiting for ever. Where
        nothing runs it is admitted in any case: `why_never_fits` has checked that it can.

        Returns:
            The tail, and the groups whose prompts start whole in this step, with nobody else.
        """
        slots = self.max_num_active_reqs - len(self.running)
        free = self.kv_cache_manager.block_pool.get_num_free_blocks() - need
        free -= self._inflight_prefill_reserved_blocks()
        admitted, starting = set[str](), dict[str, RowGroup]()
        count, idle = 0, not self.running
        for row in self.waiting:
            name = self._group_of.get(row.request_id)
            if name is None:
                if slots <= 0 or starting:
                    break
                slots -= 1
                free -= self._blocks(row, row.num_tokens, fresh=True)
            elif name not in admitted:
                group = self.groups[name]
                rest = [r for r in group.rows if r.status != RequestStatus.RUNNING]
                blocks = sum(self._blocks(r, r.num_tokens + 1, fresh=True) for r in rest)
                full = slots < len(rest) or (blocks > free and not idle)
                if full or name in self._failed or (starting and not group.fresh):
                    self.counts["waited"] += 1
                    break
                if group.fresh:
                    together = [*starting.values(), group]
                    if (count and not starting) or not self._has_room_for_whole(together, decoding):
                        break
                    starting[name] = group
                admitted.add(name)
                slots, free = slots - len(rest), free - blocks
            idle = False
            count += 1
        return self._tail(count), set(starting)

    def _tail(self, count: int) -> deque[Request]:
        return deque([self.waiting.pop() for _ in range(len(self.waiting) - count)][::-1])

    def _has_room_for_whole(self, groups: list[RowGroup], decoding: int) -> bool:
        """Nobody else prefills, and the step's tokens and the cache hold all prompts."""
        if any(tokens_left(row) > 1 for row in self.running):
            return False
        rows, cache = [row for group in groups for row in group.rows], self.encoder_cache_manager
        pictures = {f.identifier: f.mm_position for row in rows for f in row.mm_features}
        new = [place.get_num_embeds() for i, place in pictures.items() if not cache.cached.get(i)]
        if sum(new) > min(cache.num_freeable_slots, self.max_num_encoder_input_tokens):
            return False  # steps in flight may still hold pictures
        prompts = sum(row.num_prompt_tokens for row in rows)
        return prompts + decoding <= self.max_num_scheduled_tokens

    def _hide(self, starting: set[str], ending: set[str]) -> None:
        """Hide the last token of rows that must not sample; what a starting row wrote, too.

        Args:
            starting: Groups whose prompts start whole in this step. One that was preempted has
                written tokens: its prompts are read whole first, as they were before.
            ending: Groups that reach their last tokens in this step.
        """
        for name, group in self.groups.items():
            if not group.queued or name in self._ready or name in ending or group.alone:
                continue
            for row in group.rows:
                keep = row.num_tokens - 1
                if group.whole and name in starting:
                    keep = row.num_prompt_tokens
                if self._hidden.hide(row, keep):
                    done = row.status == RequestStatus.RUNNING and tokens_left(row) == 0
                    self.counts["held"] += done

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        """The stock counters must see the real lengths, see `hidden_tokens`."""
        mend_copies(scheduler_output, self._hidden.show())
        for i, count in scheduler_output.num_scheduled_tokens.items():
            row = self.requests[i]
            if i in self._group_of and row.num_computed_tokens + count < row.num_tokens:
                # vLLM took a row whose last token was hidden for one that is done with its prompt,
                # and would not count what it still needs as reserved.
                self._inflight_prefills.add(row)
        super()._update_after_schedule(scheduler_output)

    def _note_admissions(self) -> None:
        if len(self._admitted) > 4 * len(self.requests) + 64:
            self._admitted = {i: n for i, n in self._admitted.items() if i in self.requests}
        for row in self.running:
            if row.request_id not in self._admitted:
                self.counts["admitted"] += 1
                self._admitted[row.request_id] = self.counts["admitted"]

    def _check(self, step: Any, starting: set[str], ending: set[str]) -> None:
        """What must hold of every step; a group it does not hold of ends with a sentence."""
        for name in ending:
            rows = self.groups[name].rows
            taken = [step.num_scheduled_tokens.get(row.request_id, 0) for row in rows]
            at_end = [bool(n) and not r.is_prefill_chunk for r, n in zip(rows, taken, strict=True)]
            if any(at_end) and not all(at_end):
                self._failed[name] = f"its rows fell out of step: {taken} tokens taken"
            self.counts["ended at once"] += any(at_end)
        for name in self._ready | starting:
            group = self.groups[name]
            taken = [step.num_scheduled_tokens.get(i, 0) for i in group.ids]
            if name in starting:
                prompts = [row.num_prompt_tokens for row in group.rows]
                if taken != prompts and any(taken):
                    self._failed[name] = f"its prompts were cut: {taken} of {prompts} tokens"
                self.counts["whole"] += any(taken)
            elif any(taken) and not all(taken):
                self._failed[name] = f"its rows fell out of step: {taken} tokens taken"


class GroupScheduler(GroupMixin, Scheduler):
    """vLLM's scheduler with groups."""


class AsyncGroupScheduler(GroupMixin, AsyncScheduler):
    """vLLM's asynchronous scheduler with groups."""


def make(vllm_config: Any, **kwargs: Any) -> Scheduler:
    """``scheduler_cls``: the variant that fits the resolved ``async_scheduling``.

    vLLM calls what it finds under that name and does not check that it is a class.
    """
    end_with_parent()  # it is made once, in the engine's own process
    variant: Callable[..., Scheduler] = (
        AsyncGroupScheduler if vllm_config.scheduler_config.async_scheduling else GroupScheduler
    )
    return variant(vllm_config=vllm_config, **kwargs)
