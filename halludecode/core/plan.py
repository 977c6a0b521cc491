"""Compile a spec for one model and engine: rows, verbs, needs and cost, before any token.

Needs are traced, never typed (`core.tracing`); a verb met later that the trace missed raises.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from halludecode.core import artifact as hd_artifact
from halludecode.core import spec as hd_spec
from halludecode.core.branch import Branch
from halludecode.core.errors import IncompatibleStrategies, InvalidParameter, UnsupportedStrategy
from halludecode.core.model_info import ModelInfo, VisionInfo
from halludecode.core.needs import in_words, quoted
from halludecode.core.prompt import digest
from halludecode.core.strategy import Strategy
from halludecode.core.tracing import TracedStrategy, trace

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.beam_search import BeamSearch

OWN_NAMES = ("images", "pixels", "tower", "features")  # edits of a branch that are needs
EDITS = {**dict(zip(OWN_NAMES, OWN_NAMES, strict=True)), "mask": "masked rows", "words": "rewords"}
HOOKS = ("branches", "attend", "steer", "combine", "search")  # what makes a strategy act


@dataclass(frozen=True)
class Cost:
    """What a plan adds to plain decoding.

    Args:
        rows: Rows of every decoding step, main included.
        prefill_rows: Further rows that live only until the first token.
        passes: Forward passes of the plain model before the answer.
        in_turn: Whether more follow, depending on what those kept.
        written: Most tokens written in those passes.
        image_rows: Extra rows that hold pictures (each costs about one more prefill).
        attention: Whether attention is recomputed for edited rows.
        early: Early layers decoded for every token, each a product with the LM head.
        branches: Branches of one layer, each an FFN and an LM head for every token.
        steer: Layers whose stream is rewritten.
        beams: Beams of a search, 1 without one.
        peeks: Candidates tried per beam and token.
    """

    rows: int = 1
    prefill_rows: int = 0
    passes: int = 0
    in_turn: bool = False
    written: int = 0
    image_rows: int = 0
    attention: bool = False
    early: int = 0
    branches: int = 0
    steer: int = 0
    beams: int = 1
    peeks: int = 0

    def __str__(self) -> str:
        parts = [f"{self.rows} row{'s' if self.rows > 1 else ''}"]
        if self.prefill_rows:
            parts.append(f"+{self.prefill_rows} at prefill")
        if self.passes:
            parts.append(f"{self.passes} pass{'es' if self.passes > 1 else ''} before")
        if self.in_turn:
            parts[-1] += " and others in turn"
        if self.written:
            parts.append(f"up to {self.written} tokens written before")
        if self.attention:
            parts.append("attention edit")
        if self.steer:
            parts.append(f"{self.steer} layer{'s' if self.steer > 1 else ''} steered")
        if self.early:
            parts.append(f"{self.early} early layer{'s' if self.early > 1 else ''}")
        if self.branches:
            parts.append(f"{self.branches} branch{'es' if self.branches > 1 else ''} of one layer")
        if self.beams > 1:
            parts.append(f"{self.beams} beams x {self.peeks} candidates")
        return ", ".join(parts)


@dataclass(frozen=True)
class Plan:
    """A compiled spec; ``str(plan)`` is the canonical strategy string."""

    parts: tuple[TracedStrategy, ...]
    canonical: str
    needs: frozenset[str]
    rows: tuple[str, ...]
    cost: Cost

    def __str__(self) -> str:
        return self.canonical

    @property
    def whole(self) -> bool:
        """Whether any part forbids splitting the prompt."""
        return any(part.whole for part in self.parts)

    @property
    def reusable(self) -> bool:
        """Whether image-prefix KV may be reused.

        Edits must leave the prefix alone or depend on nothing but the main row itself.
        """
        steered = any(
            p.strategy.steer_at in ("all", "after_image", "prompt") for p in self.steering
        )
        return (
            not self.whole
            and not steered
            and all(
                not part.queries & {"all", "prompt"}
                and part.attend_rows in ((), ("main",))
                and not part.activations
                for part in self.parts
                if part.verbs
            )
        )

    @property
    def main_reusable(self) -> bool:
        """Whether the main row's image-prefix KV may be reused, whatever the other rows need."""
        edited = {name for part in self.attending for name in part.attend_rows}
        edited |= {name for part in self.steering for name in part.strategy.steer_rows}
        return self.reusable or "main" not in edited

    @property
    def can_wait(self) -> bool:
        """Whether rows beside main may begin to read at the first token that needs them.

        That is where some tokens need none: see `core.step.decided`.
        """
        extra = [part for part in self.parts if part.extra]
        may = any(part.cut is not None for part in self.parts) or all(p.decides for p in extra)
        return bool(extra) and may and all(p.can_wait for p in self.parts)

    @property
    def attending(self) -> tuple[TracedStrategy, ...]:
        """Parts with `attend`, score edits first, head outputs last; those of a kind by name."""
        used = [part for part in self.parts if part.phase is not None]
        return tuple(sorted(used, key=_attend_order))

    @property
    def acting(self) -> tuple[TracedStrategy, ...]:
        """Parts that act inside a forward: `attending`, then those that only steer or decode."""
        rest = [p for p in self.parts if p.phase is None and (p.steers or p.early)]
        return (*self.attending, *rest)

    @property
    def steering(self) -> tuple[TracedStrategy, ...]:
        """Parts with `steer`."""
        return tuple(part for part in self.parts if part.steers)

    @property
    def search(self) -> BeamSearch | None:
        """The search that takes the token loop's place, if there is one."""
        searches = [part.strategy.search(part.model_info) for part in self.parts]
        return next((search for search in searches if search is not None), None)

    def describe(self) -> dict[str, Any]:
        """Resolved parameters, rows, cost and artifacts, for run records."""
        artifacts = {p.strategy.name: p.model_info.artifact for p in self.parts}
        described = {
            n: a.describe() for n, a in artifacts.items() if isinstance(a, hd_artifact.Artifact)
        }
        return {
            "canonical": self.canonical,
            "parameters": hd_spec.to_config([part.strategy for part in self.parts]),
            "rows": list(self.rows),
            "needs": sorted(self.needs),
            "cost": str(self.cost),
            **({"artifacts": described} if described else {}),
        }


def compile_plan(
    spec: hd_spec.Spec,
    model_info: ModelInfo,
    provides: frozenset[str] | None = None,
    *,
    engine: str = "hf",
    skip_off: bool = True,
    artifacts: Mapping[str, Mapping[str, Tensor]] | None = None,
    model: str = "M",
) -> Plan:
    """Compile ``spec`` for a model.

    Args:
        spec: Spec string, strategy instance, or YAML form.
        model_info: The model's numbers.
        provides: Needs the engine can serve; None accepts all.
        engine: Its name, for messages.
        skip_off: Drop parts that stand at their off point: they equal greedy.
        artifacts: Canonical text of a part -> tensors made by its `calibrate` for this model.
        model: The model's name, for messages.

    Raises:
        UnknownStrategy, InvalidParameter: From parsing.
        UnsupportedStrategy: The engine lacks a need; the sentence names it and what to use instead.
        IncompatibleStrategies: Two parts cannot go together.
    """
    strategies = hd_spec.parse(spec)
    if not strategies:
        raise InvalidParameter("An empty strategy: use 'greedy' for plain decoding.")
    live = [s for s in strategies if not (skip_off and _is_off(s))]
    own = [(artifacts or {}).get(hd_spec.format([s]), model_info.artifact) for s in live]
    parts = tuple(trace(s, replace(model_info, artifact=a)) for s, a in zip(live, own, strict=True))
    for part in parts:
        _check(part, provides, engine, model)
    _check_composition(parts)
    needs = frozenset(need for part in parts for need in _needs(part))
    return Plan(
        parts, hd_spec.format(strategies), needs, ("main", *_extra_rows(parts)), _cost(parts)
    )


def alike(plan: Plan) -> str | None:
    """What plans must agree in for their rows to run in one batch; None where none may share.

    Edits inside the forward and edits of the main prompt act on the main row, which is shared. What
    a plan makes of its rows' logits, and which rows it has beside main, is its own affair.
    """
    return None if plan.search is not None else hd_spec.format(_shared_edits(plan))


def united(plans: Sequence[Plan]) -> tuple[Plan, list[list[int]]]:
    """One plan with the rows of several that are `alike`, equal ones once.

    Returns:
        The plan, and for each of the given ones the places of its parts in it.
    """
    parts, places = list[TracedStrategy](), list[list[int]]()
    shared: dict[str, int] = {}
    for plan in plans:
        edits = _shared_edits(plan)
        own: list[int] = []
        for part in plan.parts:
            name = hd_spec.format([part.strategy]) if part.strategy in edits else ""
            at = shared.get(name, len(parts))
            if name:
                shared[name] = at
            if at == len(parts):
                parts.append(part)
            own.append(at)
        places.append(own)
    needs = frozenset[str]().union(*(plan.needs for plan in plans))
    text = " | ".join(plan.canonical for plan in plans)
    rows = ("main", *_extra_rows(parts))
    return Plan(tuple(parts), text, needs, rows, _cost(parts)), places


def _shared_edits(plan: Plan) -> list[Strategy]:
    """Strategies of a plan that change what the main row computes."""
    acts = [p for p in plan.parts if p.phase is not None or p.steers or "main" in p.branches]
    return [part.strategy for part in acts]


def typical_model_info() -> ModelInfo:
    """A 7B-like model, for listings that have no model at hand."""
    return ModelInfo(
        num_layers=32,
        num_heads=4,
        num_kv_heads=4,
        hidden_size=64,
        vocab_size=16,
        head_dim=4,
        rope=(1.0, 0.01),
        vision=VisionInfo(24, 16, True, -2),
    )


def _check(part: TracedStrategy, provides: frozenset[str] | None, engine: str, model: str) -> None:
    """Raise unless the engine serves every need of a part and its artifact is there."""
    name = part.strategy.name
    missing = _needs(part) - provides if provides is not None else ()
    if missing:
        raise UnsupportedStrategy(
            f"{name} needs {quoted(missing)}; engine {engine!r} provides "
            f"{', '.join(in_words(provides or ()))}. Use another engine or strategy "
            "(`halludecode list` shows what each needs)."
        )
    if part.strategy.artifact == "required" and part.model_info.artifact is None:
        raise UnsupportedStrategy(
            f"{name} needs an artifact made for this model: "
            f"run `{hd_artifact.command(part.strategy, model)}`."
        )


def _check_composition(parts: Sequence[TracedStrategy]) -> None:
    """Raise where one part would silently undo another."""
    searching = [p for p in parts if p.strategy.search(p.model_info) is not None]
    if searching and len(parts) > 1:
        raise IncompatibleStrategies(
            f"{hd_spec.format([p.strategy for p in parts])}: a search over beams "
            f"({searching[0].strategy.name}) cannot be composed with another strategy; run it "
            "alone."
        )
    # Prompts of main branches build on one another; edits of its pictures would replace the others.
    edited = [p for p in parts if "main" in p.branches]
    if len(edited) > 1 and any(p.branches["main"].edits for p in edited):
        names = " and ".join(p.strategy.name for p in edited)
        raise IncompatibleStrategies(
            f"{names} edit the main row, and only one can where one edits its pictures; drop one."
        )
    # What a pass before the answer kept belongs to the pictures as they were asked about.
    adding = next((p for p in edited if p.other_pictures), None)
    other = next((p for p in parts if p is not adding and p.activations), None)
    if adding is not None and other is not None:
        raise IncompatibleStrategies(
            f"{adding.strategy.name} shows other pictures, and what {other.strategy.name} reads "
            "before the answer is of those that were there; drop one."
        )


def _is_off(strategy: Strategy) -> bool:
    at_off = all(getattr(strategy, key) == value for key, value in strategy.off.items())
    return at_off if strategy.off else not any(strategy.declares(hook) for hook in HOOKS)


def _attend_order(part: TracedStrategy) -> tuple[int, str, str]:
    """Edits of scores do not commute; by name they act alike in whichever order they are given."""
    own = part.strategy.name, str(sorted(part.strategy.resolved().items()))
    for place, verbs in enumerate(({"open", "reposition"}, {"add_scores", "scale_scores", "mask"})):
        if part.verbs & verbs:
            return (place, *own)
    return (2 if part.phase == "scores" else 3, *own)


def _needs(part: TracedStrategy) -> frozenset[str]:
    needs = set(part.verbs)
    for name, branch in part.branches.items():
        needs.add("main prompt" if name == "main" else "rows")
        needs |= {need for edit, need in EDITS.items() if getattr(branch, edit) is not None}
        if len(branch.prompt.pictures) > 1:  # strategies are traced with one
            needs.add("more pictures")
    asked = {"vision": "vision", "tower": "tower states", "image": "raster"}
    passes = part.activations.values()
    needs |= {need for kind, need in asked.items() if any(getattr(p, kind) for p in passes)}
    found = {
        "activations": part.activations,
        "in turn": part.in_turn,
        "steer": part.steers,
        "early": part.early,
        "decode": part.decodes,
        "search": part.strategy.declares("search"),
        "whole": part.whole,
    }
    needs |= part.stream_reads | {need for need, there in found.items() if there}
    return frozenset(needs)


def free_name(name: str, strategy: str, taken: Container[str]) -> str:
    """A row's name in the batch: its own, else with the strategy's before it, else numbered."""
    numbered = (f"{strategy}.{name}#{i}" for i in count(2))
    tries = chain((name, f"{strategy}.{name}"), numbered)
    return next(candidate for candidate in tries if candidate not in taken)


def row_hooks(parts: Sequence[TracedStrategy], owner: TracedStrategy | None, name: str) -> str:
    """Identity of the attention edits on a row: every part's on main, the owner's elsewhere.

    The row's own name is part of it: a strategy may edit two rows of one prompt differently.
    """
    acting = [p.strategy for p in (parts if owner is None else (owner,)) if name in p.attend_rows]
    return digest(name, *((s.name, sorted(s.resolved().items())) for s in acting)) if acting else ""


def _extra_rows(parts: Sequence[TracedStrategy]) -> dict[str, Branch]:
    """Rows beside main by their names in the batch, equal ones once."""
    rows: dict[str, Branch] = {}
    seen: set[str] = set()
    for part in parts:
        for name, branch in part.branches.items():
            key = digest(branch.key, row_hooks(parts, part, name))
            if name != "main" and key not in seen:
                seen.add(key)
                rows[free_name(name, part.strategy.name, {"main", *rows})] = branch
    return rows


def _cost(parts: Sequence[TracedStrategy]) -> Cost:
    search = next((s for p in parts if (s := p.strategy.search(p.model_info)) is not None), None)
    extra = list(_extra_rows(parts).values())
    decoded = [n for p in parts if "logits" in p.stream_reads for n in p.layers]
    return Cost(
        rows=1 + sum(b.life == "answer" for b in extra),
        prefill_rows=sum(b.life == "prefill" for b in extra),
        passes=sum(len(part.activations) for part in parts),
        in_turn=any(part.in_turn for part in parts),
        written=sum(request.write for part in parts for request in part.activations.values()),
        image_rows=sum(bool(b.prompt.pictures) for b in extra),
        attention=any(part.phase == "scores" for part in parts),
        early=len({n for p in parts for n in p.early}) + len(set(decoded)),
        branches=sum(part.branches_off for part in parts),
        steer=len({layer for part in parts if part.steers for layer in part.layers}),
        beams=search.width if search else 1,
        peeks=search.peek if search else 0,
    )
