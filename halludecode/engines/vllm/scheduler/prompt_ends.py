"""In the scheduler: groups whose rows can all end their prompts in the step that is being made.

Rows that end their prompts in different steps wait for each other before their last tokens, which
costs a group one step more than a request of one row. Where it is certain that no row of a step can
be cut short or turned away, none has to wait. What could do so is all in vLLM's `schedule`: the
step's tokens, its encoder, the cache's blocks, and options that hold prompts back; where any of it
might, every group waits as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from halludecode.engines.vllm.scheduler.row_group import RowGroup, tokens_left

QUEUED = (RequestStatus.WAITING, RequestStatus.PREEMPTED)


class PromptEnds:
    """Which groups need not wait for a last token, added to vLLM's scheduler."""

    if TYPE_CHECKING:
        groups: dict[str, RowGroup]
        running: list[Request]
        waiting: Any
        kv_cache_manager: Any
        encoder_cache_manager: Any
        scheduler_config: Any
        lora_config: Any
        max_model_len: int
        max_num_scheduled_tokens: int
        max_num_encoder_input_tokens: int
        _failed: dict[str, str]
        _pause_state: Any
        _ready: set[str]

        def _blocks(self, row: Request, tokens: int, *, fresh: bool = False) -> int: ...

    def _ending(self, decoding: Sequence[Request], need: int) -> set[str]:
        """Groups, all their rows running or admitted, that reach their last tokens together.

        Args:
            decoding: Rows that take one token in any case, the first of ``running``.
            need: Blocks that those still need.
        """
        found = {
            name: group
            for name, group in self.groups.items()
            if group.queued
            and not (group.whole or group.asked or group.alone)
            and name not in self._ready
            and name not in self._failed
            and all(row.num_tokens < self.max_model_len for row in group.rows)
        }
        if not found or self._may_hold_back():
            return set()
        served = self._certainly_served(len(decoding), need)
        return {name for name, group in found.items() if served.issuperset(group.ids)}

    def _may_hold_back(self) -> bool:
        """Whether vLLM could leave a prompt out of a step that has room for it."""
        return bool(
            self._pause_state != PauseState.UNPAUSED
            or self.scheduler_config.long_prefill_token_threshold
            or getattr(self, "local_prefill_interval", 0) > 1  # of vLLM 0.33
            or getattr(self, "kv_holding_waiting", ())
            or getattr(self, "need_mamba_block_aligned_split", False)
            or self.lora_config
            or any(row.status not in QUEUED for row in self.waiting)
            or any(getattr(row, "num_stale_output_tokens", 0) for row in self.waiting)
        )

    def _certainly_served(self, decoding: int, need: int) -> set[str]:
        """Rows whose last token this step reaches, whatever those before them take.

        vLLM serves them in this order, so a row is certain of what all rows up to it, at most,
        leave of tokens, blocks and room for pictures. What may be found in the prefix cache is not
        counted on: it may be overwritten before its row comes.
        """
        cache, seen, served = self.encoder_cache_manager, set[str](), set[str]()
        tokens = self.max_num_scheduled_tokens - decoding
        places = min(cache.num_freeable_slots, self.max_num_encoder_input_tokens)
        blocks = self.kv_cache_manager.block_pool.get_num_free_blocks() - need
        blocks -= getattr(self.kv_cache_manager, "watermark_blocks", 0)
        running = len(self.running) - decoding
        for number, row in enumerate((*self.running[decoding:], *self.waiting)):
            fresh = number >= running
            tokens -= row.num_tokens if fresh else tokens_left(row)
            blocks -= self._blocks(row, row.num_tokens + 1, fresh=fresh)
            for feature in row.mm_features:
                place, key = feature.mm_position, feature.identifier
                ahead = place.offset + place.length > row.num_computed_tokens
                if ahead and key not in seen and not cache.cached.get(key):
                    seen.add(key)
                    places -= place.get_num_embeds()
            if min(tokens, blocks, places) < 0:
                break
            served.add(row.request_id)
        return served
