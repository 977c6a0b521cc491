"""In a worker: what it keeps of our requests: plans, states of requests, records of groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from vllm.logger import init_logger

from halludecode.core.errors import HalluDecodeError
from halludecode.core.model_info import ModelInfo, VisionInfo
from halludecode.core.plan import Plan, compile_plan
from halludecode.core.state import State
from halludecode.core.step import Combined
from halludecode.engines.explain import parts_of
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.token_rules import TokenRules
from halludecode.engines.vllm.protocol import GroupReport
from halludecode.engines.vllm.row_metadata import RowMetadata, metadata_of
from halludecode.engines.vllm.worker.captured import Captured, activations_of

logger = init_logger("vllm.halludecode.worker")
BoolAt = tuple[Tensor, int]  # a bool tensor and a place in it
PLAIN = ""
KEPT = 256  # compiled plans, and pictures whose edit failed


@dataclass
class GroupRecord:
    """What is kept of one group while it runs, and reported to the front end at its end.

    What a step found out stays on its device until the report: no step waits for it.

    Args:
        differs: Of each token, the number of tokens before, and whether it is not the plain model's
            own choice there, as an entry of a bool tensor; None where only vLLM could tell.
        changed: Of each forward, whether an edit inside the model made a difference.
        scores: First-step scores of the words asked for.
        decided: Whether they are the main row's own, which decided the first token alone.
        readings: By tokens written before: grounding, entropy and attention on the image of a
            token, where the answer is explained.
        error: Why the answer is void, in a sentence; ``kind`` is its class.
        token_masks: (row, part, layer, name) -> bool [tokens], judged so far.
        first_token: (part, layer, name) -> what `Attention.at_first_token` keeps.
        first_keys: (part, layer, name) -> what `Attention.keys_at_first_token` keeps, [.., tokens].
        tallies: (part, name) -> what `Attention.tally` was told, float32 [layers, tokens or more].
        sure: Largest raw probability of each written token, where a strategy asks for it.
        first_logits: (part, row) -> float32 [V], see `Step.first`.
        pictures: float32 [N_img, D], image tokens as they entered layer 0, where they are read.
        branched: Part -> layer and head outputs [H, d] of the newest token's branch.
        fired: (hook, part, layer) seen so far.
        broken: Names, and whose scores were broken, bool [names, requests], and the request's place
            there; of each token whose scores are on a GPU.
        rules: The request's own, read once; ``added`` is what they add to logits at every step,
            where that never changes.
    """

    differs: list[tuple[int, BoolAt]] | None = field(default_factory=list)
    changed: list[BoolAt] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    decided: bool = False
    readings: dict[int, list[Any]] = field(default_factory=dict)
    error: str = ""
    kind: str = ""
    token_masks: dict[tuple[str, int, int, str], Tensor] = field(default_factory=dict)
    first_token: dict[tuple[int, int, str], Any] = field(default_factory=dict)
    first_keys: dict[tuple[int, int, str], Tensor] = field(default_factory=dict)
    tallies: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    sure: dict[int, Tensor] = field(default_factory=dict)
    first_logits: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    pictures: Tensor | None = None
    branched: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    fired: set[tuple[str, int, int]] = field(default_factory=set)
    broken: list[tuple[tuple[str, ...], Tensor, int]] = field(default_factory=list)
    rules: TokenRules | None = None
    added: Tensor | None = None

    def fail(self, error: Exception, where: str) -> None:
        """The answer is void; the first reason counts."""
        logger.error("%s failed", where, exc_info=error)
        if not self.error:
            ours = isinstance(error, HalluDecodeError)
            self.kind = type(error).__name__ if ours else ""
            self.error = str(error) if ours else f"{where} failed in vLLM's worker: {error!r}."

    def note_broken(self, combined: Combined, request: int) -> None:
        """Void the answer where its scores cannot be drawn from; on a GPU, at its end."""
        if combined.broken is None:
            return
        if combined.broken.device.type != "cpu":
            self.broken.append((combined.names, combined.broken, request))
        elif error := combined.error(request):
            self.fail(error, combined.names[0])

    def _read_broken(self) -> None:
        if not self.broken:
            return
        at = [flags[:, request].any() for _, flags, request in self.broken]
        found = torch.stack(at).tolist()
        for broken, (names, flags, request) in zip(found, self.broken, strict=True):
            if broken and (error := Combined(flags, flags, names).error(request)):
                self.fail(error, names[0])

    def added_by(
        self, metadata: RowMetadata, like: Tensor, written: Callable[[], Sequence[int]]
    ) -> Tensor:
        """What the request's rules add to a row's logits [V]; float32, on their device."""
        if self.rules is None:
            self.rules = TokenRules.of_plain(metadata.token_rules or {})
        if self.added is not None:
            return self.added
        known = written() if self.rules.looks_back else ()
        added = self.rules.added(like.shape[-1], known).to(like.device)
        if not self.rules.looks_back:
            self.added = added
        return added

    def report(self) -> GroupReport:
        """What the front end reads; waits for the device."""
        self._read_broken()
        differs = None
        if self.differs is not None:
            flags = _fetch([flag for _, flag in self.differs])
            differs = [at for (at, _), flag in zip(self.differs, flags, strict=True) if flag]
        return {
            "differs": differs,
            "changed": any(_fetch(self.changed)),
            "scores": self.scores,
            "decided": self.decided,
            "readings": [self.readings[written] for written in sorted(self.readings)],
            "error": self.error,
            "kind": self.kind,
        }


def _fetch(flags: Sequence[BoolAt]) -> list[bool]:
    return torch.stack([flag[i] for flag, i in flags]).tolist() if flags else []


class WorkerState:
    """Plans, states of requests and group records of one worker.

    Names are of three kinds: a user's request ("hd3@0"), its groups, one per child ("hd3@0.1"), and
    vLLM's requests, one per row ("hd3@0.1", "hd3@0.1#1"; the main row's is the group's).
    """

    def __init__(self) -> None:
        self.model_info: ModelInfo | None = None
        self.states: dict[str, list[State]] = {}  # per strategy, what `prepare` made; by request
        self.captured: dict[str, Captured] = {}  # by pass
        self.staying: dict[str, Captured] = {}  # by pass, for later requests, until told to drop
        self.failed_pictures: LRU[GroupRecord] = LRU(KEPT)  # whose edit failed, by identifier
        self.records: dict[str, GroupRecord] = {}  # by group
        self.prompt_layouts: dict[str, tuple[Tensor, Tensor]] = {}  # by row, see `step_batch`
        self.ended: set[str] = set()  # groups reported or without main row, until all rows left
        self._artifacts: dict[str, Mapping[str, Tensor]] = {}
        self._plans: LRU[Plan] = LRU(KEPT)
        self._metadata: dict[str, RowMetadata | None] = {}  # by vLLM request
        self._rows: dict[str, set[str]] = {}  # vLLM requests here, by group

    def set_model_info(self, numbers: Mapping[str, Any]) -> None:
        """The model's numbers, as the front end read them from its config."""
        vision = numbers["vision"]
        self.model_info = ModelInfo(
            **{**numbers, "vision": VisionInfo(**vision) if vision else None}
        )

    def set_artifact(self, text: str, tensors: Mapping[str, Tensor] | None) -> None:
        """Tensors made by `calibrate`, for a strategy's canonical text; None for none."""
        self._artifacts.pop(text, None)
        if tensors is not None:
            self._artifacts[text] = tensors
        self._plans.clear()

    def plan(self, text: str) -> Plan | None:
        """The plan of a canonical text, every part of it acting; None for the plain model."""
        if text == PLAIN:
            return None
        plan = self._plans.get(text)
        if plan is None:
            if self.model_info is None:
                raise HalluDecodeError("vLLM worker: the front end never sent the model's numbers.")
            plan = compile_plan(
                parts_of(text), self.model_info, skip_off=False, artifacts=self._artifacts
            )
            self._plans.put(text, plan)
        return plan

    def states_of(self, metadata: RowMetadata) -> Sequence[State]:
        """Per strategy, the state of a row's request."""
        name = metadata.request_name
        if name not in self.states:
            plan = self.plan(metadata.plan)
            parts = plan.parts if plan else ()
            self.states[name] = [part.strategy.prepare({}, part.model_info) for part in parts]
        return self.states[name]

    def prepare_state(
        self,
        request_name: str,
        text: str,
        passes: Sequence[Mapping[str, tuple[str, Mapping[str, Any]]]],
        fetch: Sequence[Sequence[str]],
    ) -> list[dict[str, Any]]:
        """Make a request's state of what its passes kept.

        Args:
            request_name: The request.
            text: The plan's canonical text.
            passes: Per strategy: its own name of a pass -> the name it is kept under, and what the
                front end knows of it.
            fetch: Per strategy, state entries the front end needs beside strings.

        Returns:
            Those entries, per strategy.
        """
        plan = self.plan(text)
        parts = plan.parts if plan else ()
        states: list[State] = []
        for part, own_passes in zip(parts, passes, strict=True):
            activations = {
                name: activations_of(self.captured_by(kept_as), about)
                for name, (kept_as, about) in own_passes.items()
            }
            states.append(part.strategy.prepare(activations, part.model_info))
        self.states[request_name] = states
        return [
            {k: v for k, v in state.items() if isinstance(v, str) or k in names}
            for state, names in zip(states, fetch, strict=True)
        ]

    def captured_by(self, name: str) -> Captured:
        """What a pass kept."""
        return self.staying.get(name) or self.captured.get(name, Captured())

    def drop_activations(self, names: Sequence[str], stay: Sequence[str]) -> None:
        """Drop what passes kept; what others kept stays for later requests."""
        for name in names:
            self.captured.pop(name, None)
            self.staying.pop(name, None)
        self.staying |= {name: self.captured.pop(name, Captured()) for name in stay}

    def check_pictures(self, group: str, identifiers: Sequence[str]) -> None:
        """Features that could not be made must not be taken from vLLM's cache either.

        vLLM keeps encoder outputs by picture, also the zeros put in the place of an edit that
        failed; a later request with the same edit of the same picture is given them without a call
        of ours, so it ends with the error of the first.
        """
        for identifier in identifiers:
            failed = self.failed_pictures.get(identifier)
            if failed is not None:
                record = self.record(group)
                record.error = record.error or failed.error
                record.kind = record.kind or failed.kind

    def record(self, group: str) -> GroupRecord:
        """The record of a group."""
        return self.records.setdefault(group, GroupRecord())

    def report(self, groups: Sequence[str]) -> list[GroupReport]:
        """Reports of finished groups, whose records are then forgotten.

        With asynchronous scheduling a group's rows may run on for a step; nothing is kept of it.
        """
        self.ended.update(group for group in groups if group in self._rows)
        return [self.records.pop(group, GroupRecord()).report() for group in groups]

    def drop_state(self, request_names: Sequence[str]) -> None:
        """Drop what was kept for finished requests."""
        for name in request_names:
            self.states.pop(name, None)

    def metadata(self, vllm_id: str, sampling_params: Any) -> RowMetadata | None:
        """What came with a row, read once; None for everybody else's requests."""
        if vllm_id not in self._metadata:
            metadata = self._metadata[vllm_id] = metadata_of(sampling_params)
            if metadata is not None:
                self._rows.setdefault(metadata.group, set()).add(vllm_id)
                main = self._metadata.get(metadata.group)
                if metadata.late and metadata.role > 0 and main is not None:  # it has joined
                    told = {name: getattr(metadata, name) for name in ("rows", "lives")}
                    main = replace(main, local_names=metadata.local_names, **told)
                    self._metadata[metadata.group] = main
        return self._metadata[vllm_id]

    def drop_row(self, vllm_id: str) -> None:
        """A row has left the worker; without its main row a group does nothing any more."""
        metadata = self._metadata.pop(vllm_id, None)
        self.prompt_layouts.pop(vllm_id, None)
        if metadata is None:
            return
        rows = self._rows[metadata.group]
        rows.discard(vllm_id)
        if not rows:
            del self._rows[metadata.group]
            self.ended.discard(metadata.group)
        elif metadata.role == 0:
            self.ended.add(metadata.group)
