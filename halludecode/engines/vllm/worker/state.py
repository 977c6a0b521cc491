"""What a worker keeps of our requests: compiled plans, jobs with their state, notes on groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.logger import init_logger

from halludecode.core.errors import HalluDecodeError
from halludecode.core.model_info import ModelInfo, VisionInfo
from halludecode.core.plan import Plan, compile_plan
from halludecode.core.state import State
from halludecode.engines.explain import parts_of
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.vllm.row_metadata import RowMetadata, metadata_of
from halludecode.engines.vllm.worker.capture import Captured, activations_of

logger = init_logger("vllm.halludecode.worker")
Entry = tuple[Tensor, int]  # a tensor and a place in it
PLAIN = ""
KEPT = 256  # compiled plans, and pictures whose edit failed


@dataclass
class GroupRecord:
    """What is kept of one group while it runs, and told to the front end at its end.

    What a step found out stays on its device until the answer is told: no step waits for it.

    Args:
        differs: Of each token, the number of tokens before, and whether it is not the plain model's
            own choice there, as an entry of a bool tensor; None where only vLLM could tell.
        changed: Of each forward, whether an edit inside the model made a difference.
        scores: First-step scores of the words asked for.
        read: By tokens written before: grounding, entropy and attention on the image of a token,
            where the answer is explained.
        error: Why the answer is void, in a sentence; ``kind`` is its class.
        token_masks: (row, part, layer, name) -> bool [tokens], judged so far.
        first_token: (part, layer, name) -> what `Attention.at_first_token` keeps.
        fired: (hook, part, layer) seen so far.
    """

    differs: list[tuple[int, Entry]] | None = field(default_factory=list)
    changed: list[Entry] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    read: dict[int, list[Any]] = field(default_factory=dict)
    error: str = ""
    kind: str = ""
    token_masks: dict[tuple[str, int, int, str], Tensor] = field(default_factory=dict)
    first_token: dict[tuple[int, int, str], Any] = field(default_factory=dict)
    fired: set[tuple[str, int, int]] = field(default_factory=set)

    def fail(self, error: Exception, where: str) -> None:
        """The answer is void; the first reason counts."""
        logger.error("%s failed", where, exc_info=error)
        if not self.error:
            ours = isinstance(error, HalluDecodeError)
            self.kind = type(error).__name__ if ours else ""
            self.error = str(error) if ours else f"{where} failed in vLLM's worker: {error!r}."

    def told(self) -> dict[str, Any]:
        """What the front end reads."""
        differs = None
        if self.differs is not None:
            found = _read([entry for _, entry in self.differs])
            differs = [at for (at, _), yes in zip(self.differs, found, strict=True) if yes]
        return {
            "differs": differs,
            "changed": any(_read(self.changed)),
            "scores": self.scores,
            "read": [self.read[written] for written in sorted(self.read)],
            "error": self.error,
            "kind": self.kind,
        }


def _read(entries: Sequence[Entry]) -> list[bool]:
    return torch.stack([found[i] for found, i in entries]).tolist() if entries else []


class WorkerState:
    """Plans, jobs and notes of one worker."""

    def __init__(self) -> None:
        self.model_info: ModelInfo | None = None
        self.jobs: dict[str, list[State]] = {}  # per part, what `prepare` made
        self.captured: dict[str, Captured] = {}
        self.spoilt: LRU[GroupRecord] = LRU(KEPT)  # pictures whose edit failed, by identifier
        self.notes: dict[str, GroupRecord] = {}
        self.laid: dict[str, tuple[Tensor, Tensor]] = {}  # by request id, see `rowview.lay_out`
        self.ended: set[str] = set()  # groups told or without main row, until their last row leaves
        self._artifacts: dict[str, Mapping[str, Tensor]] = {}
        self._plans: LRU[Plan] = LRU(KEPT)
        self._tags: dict[str, RowMetadata | None] = {}
        self._rows: dict[str, set[str]] = {}  # request ids here, by group

    def set_up(self, model_info: Mapping[str, Any]) -> None:
        """The model's numbers, as the front end read them from its config."""
        vision = model_info["vision"]
        self.model_info = ModelInfo(
            **{**model_info, "vision": VisionInfo(**vision) if vision else None}
        )

    def add_artifact(self, part: str, tensors: Mapping[str, Tensor] | None) -> None:
        """Tensors made by `calibrate`, for a part named by its canonical text; None for none."""
        self._artifacts.pop(part, None)
        if tensors is not None:
            self._artifacts[part] = tensors
        self._plans.clear()

    def plan(self, text: str) -> Plan | None:
        """The plan of a canonical text, every part of it acting; None for the plain model."""
        if text == PLAIN:
            return None
        made = self._plans.get(text)
        if made is None:
            if self.model_info is None:
                raise HalluDecodeError("vLLM worker: the front end never sent the model's numbers.")
            made = compile_plan(
                parts_of(text), self.model_info, skip_off=False, artifacts=self._artifacts
            )
            self._plans.put(text, made)
        return made

    def states(self, tag: RowMetadata) -> Sequence[State]:
        """Per part, the state of a row's request."""
        if tag.job not in self.jobs:
            plan = self.plan(tag.plan)
            parts = plan.parts if plan else ()
            self.jobs[tag.job] = [part.strategy.prepare({}, part.model_info) for part in parts]
        return self.jobs[tag.job]

    def prepare(
        self,
        job: str,
        text: str,
        wanted: Sequence[Mapping[str, tuple[str, Mapping[str, Any]]]],
        fetch: Sequence[Sequence[str]],
    ) -> list[dict[str, Any]]:
        """Make a request's state of what its passes kept.

        Args:
            job: The request.
            text: The plan's canonical text.
            wanted: Per part: a pass's name -> the name it is kept under, and what is told of it.
            fetch: Per part, state entries the front end needs beside strings.

        Returns:
            Those entries, per part.
        """
        plan = self.plan(text)
        parts = plan.parts if plan else ()
        states: list[State] = []
        for part, kept_by in zip(parts, wanted, strict=True):
            activations = {
                name: activations_of(self.captured.get(kept, Captured()), told["capture"], told)
                for name, (kept, told) in kept_by.items()
            }
            states.append(part.strategy.prepare(activations, part.model_info))
        self.jobs[job] = states
        return [
            {k: v for k, v in state.items() if isinstance(v, str) or k in names}
            for state, names in zip(states, fetch, strict=True)
        ]

    def check_pictures(self, group: str, identifiers: Sequence[str]) -> None:
        """Features that could not be made must not be taken from vLLM's cache either."""
        for identifier in identifiers:
            why = self.spoilt.get(identifier)
            if why is not None:
                note = self.note(group)
                note.error, note.kind = note.error or why.error, note.kind or why.kind

    def note(self, group: str) -> GroupRecord:
        """The note of a group."""
        return self.notes.setdefault(group, GroupRecord())

    def report(self, groups: Sequence[str]) -> list[dict[str, Any]]:
        """Notes of finished groups, which are then forgotten.

        With asynchronous scheduling a group's rows may run on for a step; nothing is kept of it.
        """
        self.ended.update(group for group in groups if group in self._rows)
        return [self.notes.pop(group, GroupRecord()).told() for group in groups]

    def forget(self, jobs: Sequence[str]) -> None:
        """Drop what was kept for finished requests."""
        for job in jobs:
            self.jobs.pop(job, None)

    def tag(self, request_id: str, params: Any) -> RowMetadata | None:
        """A request's tag, read once."""
        if request_id not in self._tags:
            tag = self._tags[request_id] = metadata_of(params)
            if tag is not None:
                self._rows.setdefault(tag.group, set()).add(request_id)
        return self._tags[request_id]

    def drop_tag(self, request_id: str) -> None:
        """A request has left the worker; without its main row a group does nothing any more."""
        tag = self._tags.pop(request_id, None)
        self.laid.pop(request_id, None)
        if tag is None:
            return
        left = self._rows[tag.group]
        left.discard(request_id)
        if not left:
            del self._rows[tag.group]
            self.ended.discard(tag.group)
        elif tag.role == 0:
            self.ended.add(tag.group)
