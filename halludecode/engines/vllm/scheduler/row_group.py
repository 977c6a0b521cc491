"""In the scheduler: a group of rows, and what can be said of one without the scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vllm.v1.request import Request, RequestStatus


@dataclass
class RowGroup:
    """The rows of one answer, as vLLM's scheduler has them.

    The front end's `RequestGroup` holds those of all children of a request; the worker's
    `GroupRecord` holds what the edits of one answer found out.

    Args:
        size: Rows it was announced with.
        whole: Whether all rows must prefill unchunked in one forward.
        members: By role; 0 is the main row. Rows that live until the first token leave early.
        prefill_only: Roles of those.
        queued: Whether all have arrived.
        late: Whether it begins as its main row alone; its size is then 1 until the others join.
        asked: Whether it needs the others, and not all have arrived.
        staged: Those that have, while it waits for more.
        answered: By role, tokens of the answer that are part of a row's prompt.
        created: When the first arrived.
    """

    size: int
    whole: bool
    members: dict[int, Request] = field(default_factory=dict)
    prefill_only: set[int] = field(default_factory=set)
    queued: bool = False
    late: bool = False
    asked: bool = False
    staged: dict[int, Request] = field(default_factory=dict)
    answered: dict[int, int] = field(default_factory=dict)
    created: float = field(default_factory=time.monotonic)

    @property
    def main(self) -> Request:
        """The row that is answered."""
        return self.members[0]

    @property
    def rows(self) -> list[Request]:
        """All rows, main first."""
        return list(self.members.values())

    @property
    def ids(self) -> list[str]:
        """Their request ids."""
        return [row.request_id for row in self.rows]

    def lives_on(self, ended: set[str]) -> bool:
        """Whether the main row is not among those that end."""
        return not self.main.is_finished() and self.main.request_id not in ended

    @property
    def alone(self) -> bool:
        """Whether its main row goes its way like any request."""
        return self.late and self.size == 1 and not self.asked

    @property
    def fresh(self) -> bool:
        """Whether it must be admitted in one step, prompts whole."""
        return self.whole and all(row.status != RequestStatus.RUNNING for row in self.rows)


@dataclass(frozen=True)
class GroupLimits:
    """What no group may exceed.

    Args:
        rows: At once.
        length: Of a row.
        blocks: Of KV cache.
        prompts: Tokens of prompts that must start in one step.
        pictures: Tokens encoded in one step and kept at a time.
    """

    rows: int
    length: int
    blocks: int
    prompts: int
    pictures: int


def why_never_fits(
    group: RowGroup, limits: GroupLimits, blocks: Callable[[Request, int], int]
) -> str:
    """Why a group can never run, in words; "" if it can.

    Args:
        group: All its rows have arrived.
        limits: See `GroupLimits`.
        blocks: ``(row, tokens) -> blocks of KV cache``.
    """
    if group.size > limits.rows:
        return f"{group.size} rows exceed max_num_seqs={limits.rows}"
    longest = [min(r.num_prompt_tokens + r.max_tokens, limits.length) for r in group.rows]
    need = sum(blocks(r, n) for r, n in zip(group.rows, longest, strict=True))
    if need > limits.blocks:
        return f"its rows may need {need} blocks of KV cache, there are {limits.blocks}"
    if not group.whole:
        return ""
    prompts = sum(row.num_prompt_tokens for row in group.rows)
    if prompts > limits.prompts:
        return f"its {prompts} prompt tokens must fit one step, which holds {limits.prompts}"
    pictures = {f.identifier: f.mm_position for r in group.rows for f in r.mm_features}
    embeds = sum(position.get_num_embeds() for position in pictures.values())
    if embeds > limits.pictures:
        return f"its {embeds} picture tokens must fit one step, which encodes {limits.pictures}"
    return ""


def tokens_left(row: Request) -> int:
    """Tokens of a row that no step has been asked for yet.

    Where steps are scheduled before the one before them is done, a token that is being drawn has no
    value yet: vLLM counts a placeholder for it, and so do we.
    """
    return row.num_tokens_with_spec + row.num_output_placeholders - row.num_computed_tokens


def why_apart(group: RowGroup) -> str:
    """Why a group is no longer one, in words; "" while it is."""
    if any(row.is_finished() for row in group.rows):
        return "one of its rows ended before the main row"
    written = [r.num_output_tokens + group.answered.get(i, 0) for i, r in group.members.items()]
    last = {row.output_token_ids[-1] for row in group.rows if row.num_output_tokens}
    if len(set(written)) != 1 or len(last) > 1:
        return f"its rows diverged: lengths {written}, last tokens {sorted(last)}"
    return ""
