"""Compile a spec for one model and engine: rows, verbs, needs and cost, before any token.

Needs are traced, never typed: every hook runs once on small random tensors, and what it used is
written down. A verb met later that the trace missed raises.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Literal

from halludecode.core import spec as hd_spec
from halludecode.core.attention import SCORE_VERBS, Attention, Hooks, Trace
from halludecode.core.errors import InvalidParameter, UnsupportedStrategy
from halludecode.core.prompt import Branch, Look, Picture, Prompt, Seen, Turn, digest
from halludecode.core.rowblock import IMAGE, SYSTEM, TEXT, Queries, RowBlock, RowKeys
from halludecode.core.strategy import Facts, State, Strategy, stack

if TYPE_CHECKING:
    from torch import Tensor

_WHOLE_READS = frozenset({"once", "out", "scores", "weights"})


@dataclass(frozen=True)
class Cost:
    """What a plan adds to plain decoding.

    Args:
        rows: Rows of every decoding step, main included.
        prefill_rows: Further rows that live only until the first token.
        passes: Forward passes of the plain model before the answer.
        image_rows: Extra rows that hold pictures (each costs about one more prefill).
        attention: Whether attention is recomputed for edited rows.
    """

    rows: int = 1
    prefill_rows: int = 0
    passes: int = 0
    image_rows: int = 0
    attention: bool = False

    def __str__(self) -> str:
        parts = [f"{self.rows} row{'s' if self.rows > 1 else ''}"]
        if self.prefill_rows:
            parts.append(f"+{self.prefill_rows} at prefill")
        if self.passes:
            parts.append(f"{self.passes} pass{'es' if self.passes > 1 else ''} before")
        if self.attention:
            parts.append("attention edit")
        return ", ".join(parts)


@dataclass(frozen=True)
class Part:
    """One strategy of a plan with what tracing found."""

    strategy: Strategy
    facts: Facts
    verbs: frozenset[str] = frozenset()
    attend_rows: tuple[str, ...] = ()
    queries: frozenset[Queries] = frozenset()
    layers: frozenset[int] = frozenset()
    branches: Mapping[str, Branch] = field(default_factory=dict[str, Branch])
    looks: Mapping[str, Look] = field(default_factory=dict[str, Look])

    @property
    def phase(self) -> Literal["scores", "outputs"] | None:
        """Whether `attend` needs attention scores, only head outputs, or is not used."""
        if not self.verbs:
            return None
        return "scores" if self.verbs & SCORE_VERBS else "outputs"

    @property
    def whole(self) -> bool:
        """Whether all rows must prefill unchunked in one forward."""
        return bool(self.verbs & _WHOLE_READS and self.queries & {"all", "after_image"})

    @property
    def combines(self) -> bool:
        """Whether `combine` is overridden."""
        return self.strategy.declares("combine")


@dataclass(frozen=True)
class Plan:
    """A compiled spec; ``str(plan)`` is the canonical strategy string."""

    parts: tuple[Part, ...]
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
        return not self.whole and all(
            "all" not in part.queries and part.attend_rows in ((), ("main",)) and not part.looks
            for part in self.parts
            if part.verbs
        )

    @property
    def attending(self) -> tuple[Part, ...]:
        """Parts with `attend`, score edits first, head outputs last."""
        used = [part for part in self.parts if part.phase is not None]
        return tuple(sorted(used, key=_attend_order))

    def describe(self) -> dict[str, Any]:
        """Resolved parameters, rows and cost, for run records."""
        return {
            "canonical": self.canonical,
            "parameters": hd_spec.to_config([part.strategy for part in self.parts]),
            "rows": list(self.rows),
            "needs": sorted(self.needs),
            "cost": str(self.cost),
        }


def compile_plan(
    spec: hd_spec.Spec,
    facts: Facts,
    provides: frozenset[str] | None = None,
    *,
    engine: str = "hf",
    skip_off: bool = True,
    artifacts: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Plan:
    """Compile ``spec`` for a model.

    Args:
        spec: Spec string, strategy instance, or YAML form.
        facts: The model's numbers.
        provides: Needs the engine can serve; None accepts all.
        engine: Its name, for messages.
        skip_off: Drop parts that stand at their off point (they equal greedy); tests of the off
            point switch this off.
        artifacts: Strategy name -> tensors made by its `calibrate` for this model.

    Raises:
        UnknownStrategy, InvalidParameter: From parsing.
        UnsupportedStrategy: The engine lacks a need; the sentence names it and what to use instead.
    """
    strategies = hd_spec.parse(spec)
    if not strategies:
        raise InvalidParameter("An empty strategy: use 'greedy' for plain decoding.")
    live = [s for s in strategies if not (skip_off and _is_off(s))]
    made = artifacts or {}
    parts = tuple(_trace(s, replace(facts, artifact=made.get(s.name))) for s in live)
    for part in parts:
        _check(part, provides, engine)
    needs = frozenset(need for part in parts for need in _needs(part))
    return Plan(
        parts, hd_spec.format(strategies), needs, ("main", *_extra_rows(parts)), _cost(parts)
    )


def typical_facts() -> Facts:
    """A 7B-like model, for listings that have no model at hand."""
    return Facts(L=32, H=4, G=4, D=64, V=16, d=4)


def _check(part: Part, provides: frozenset[str] | None, engine: str) -> None:
    """Raise unless the engine serves every need of a part and its artifact is there."""
    name = part.strategy.name
    missing = sorted(_needs(part) - provides) if provides is not None else []
    if missing:
        raise UnsupportedStrategy(
            f"{name} needs {', '.join(map(repr, missing))}; engine {engine!r} provides "
            f"{', '.join(sorted(provides or ()))}. Use another engine or strategy "
            "(`halludecode list` shows what each needs)."
        )
    if part.strategy.artifact == "required" and part.facts.artifact is None:
        raise UnsupportedStrategy(
            f"{name} needs an artifact made for this model: "
            f"run `halludecode calibrate --model M {name}`."
        )


def _is_off(strategy: Strategy) -> bool:
    if not strategy.off:
        return not any(strategy.declares(hook) for hook in ("branches", "attend", "combine"))
    return all(getattr(strategy, key) == value for key, value in strategy.off.items())


def _attend_order(part: Part) -> int:
    if part.verbs & {"add", "scale", "hide"}:
        return 0
    return 1 if part.phase == "scores" else 2


def _needs(part: Part) -> frozenset[str]:
    needs = set(part.verbs)
    for name, branch in part.branches.items():
        needs.add("main prompt" if name == "main" else "rows")
        needs |= {
            e for e in ("images", "pixels", "features", "hide") if getattr(branch, e) is not None
        }
    if part.looks:
        needs.add("looks")
    if part.whole:
        needs.add("whole")
    return frozenset(needs)


def free_name(name: str, strategy: str, taken: Container[str]) -> str:
    """A row's name in the batch: its own, else with the strategy's before it, else numbered."""
    numbered = (f"{strategy}.{name}#{i}" for i in count(2))
    tries = chain((name, f"{strategy}.{name}"), numbered)
    return next(candidate for candidate in tries if candidate not in taken)


def row_hooks(parts: Sequence[Part], owner: Part | None, name: str) -> str:
    """Identity of the attention edits on a row: every part's on main, the owner's elsewhere."""
    acting = [p.strategy for p in (parts if owner is None else (owner,)) if name in p.attend_rows]
    return digest(*((s.name, sorted(s.resolved().items())) for s in acting)) if acting else ""


def _extra_rows(parts: Sequence[Part]) -> dict[str, Branch]:
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


def _cost(parts: Sequence[Part]) -> Cost:
    extra = list(_extra_rows(parts).values())
    return Cost(
        rows=1 + sum(b.life == "answer" for b in extra),
        prefill_rows=sum(b.life == "prefill" for b in extra),
        passes=sum(len(part.looks) for part in parts),
        image_rows=sum(bool(b.prompt.pictures) for b in extra),
        attention=any(part.phase == "scores" for part in parts),
    )


@cache
def _probe_prompt() -> Prompt:
    from PIL import Image

    picture = Picture.of(Image.new("RGB", (8, 8), (127, 127, 127)))
    return Prompt((Turn("user", (picture, "What is in the image?")),))


def _trace(strategy: Strategy, facts: Facts) -> Part:
    prompt = _probe_prompt()
    looks = strategy.looks(prompt, facts)
    state = strategy.prepare({name: _fake_seen(look, facts) for name, look in looks.items()}, facts)
    branches = strategy.branches(prompt, state, facts)
    if not strategy.declares("attend"):
        return Part(strategy, facts, branches=branches, looks=looks)
    layers = sorted(set(strategy.layers(facts)))
    if layers and not 0 <= layers[0] <= layers[-1] < facts.L:
        raise InvalidParameter(f"{strategy.name}: layers {layers} are not within 0..{facts.L - 1}.")
    trace = Trace()
    for layer in layers[:2]:
        _trace_attend(strategy, layer, branches, stack([state, state]), facts, trace)
    return Part(
        strategy,
        facts,
        frozenset(trace.verbs),
        tuple(sorted(trace.rows)),
        frozenset(trace.queries),
        frozenset(layers),
        branches,
        looks,
    )


def _trace_attend(
    strategy: Strategy,
    layer: int,
    branches: Mapping[str, Branch],
    state: State,
    facts: Facts,
    trace: Trace,
) -> None:
    import torch

    rng = torch.Generator().manual_seed(layer)

    def flag(name: str, fn: Any, row: str) -> Tensor:
        kind = blocks[row].keys.kind
        judged = fn(torch.randn(kind.numel(), facts.D, generator=rng))
        return judged.reshape(kind.shape).bool()

    blocks = {"main": _fake_block(facts, image=True, rng=rng)}
    for name, branch in branches.items():
        blocks[name] = _fake_block(facts, image=bool(branch.prompt.pictures), rng=rng)
    hooks = Hooks(flag=flag, once=lambda name, fn: fn(), state=state, trace=trace)
    strategy.attend(Attention(layer, facts, blocks, hooks, strategy.name))


def _fake_block(facts: Facts, *, image: bool, rng: Any) -> RowBlock:
    import torch

    kinds = [SYSTEM, *[IMAGE] * 4, TEXT, TEXT] if image else [SYSTEM] * 7
    kind = torch.tensor([kinds] * 2, dtype=torch.int8)
    n = kind.shape[1]
    keys = RowKeys(
        kind,
        torch.where(kind == IMAGE, 0, -1).to(torch.int16),
        torch.arange(n).expand(2, n),
        kind,
        torch.tensor([n, n]),
    )
    shape = (2, facts.H, n, 4)
    q, k, v, base = (torch.randn(shape, generator=rng) for _ in range(4))
    return RowBlock(keys, q, k, v, torch.ones(n, n, dtype=torch.bool).tril(), 0.5, base)


def _fake_seen(look: Look, facts: Facts) -> Seen:
    import torch

    def maybe(layers: tuple[int, ...], *shape: int) -> Tensor | None:
        return torch.rand(len(layers), *shape) if layers else None

    hidden = maybe(look.hidden, 5, facts.D) if look.every_token else maybe(look.hidden, facts.D)
    return Seen(
        hidden=hidden,
        heads=maybe(look.heads, facts.H, facts.d),
        image=maybe(look.image, facts.H, 4),
        image_spans=((0, 2, 2),),
        text="a" if look.write else "",
        token_ids=(0,) if look.write else (),
        logits=torch.randn(1, facts.V) if look.logits else None,
    )
