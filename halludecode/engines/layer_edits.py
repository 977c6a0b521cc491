"""Strategies at work in one layer of one forward: the loops that every engine shares.

Each engine lays rows and tensors out in its own way, and shows them here as `EditedRows` (what is
edited together in one forward) and `AttentionLayer` (one layer of it). In what order strategies
act, what they are shown, and what is written back is decided here alone.

Requests are counted 0..R-1 in everything a strategy sees; `Row` is an engine's own name for the
tensors' places that hold one row of all these requests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any, Generic, TypeVar

from torch import Tensor

from halludecode.core.attention import Attention
from halludecode.core.attention_block import IMAGE, AttentionBlock, RowKeys
from halludecode.core.attention_hooks import Hooks
from halludecode.core.errors import HookNeverFired
from halludecode.core.residual import ResidualStream
from halludecode.core.state import State
from halludecode.core.tracing import TracedStrategy

Row = TypeVar("Row")
Queries = TypeVar("Queries")
Parts = Sequence[tuple[int, TracedStrategy]]  # strategies with their places in their list
Fired = tuple[str, int, int]  # hook, place of the strategy, layer

BLOCK = 64  # query rows recomputed at a time: memory grows with the prompt, not with its square


class EditedRows(ABC, Generic[Row]):
    """Rows of R requests under one plan that one forward computes and edits together.

    Attributes:
        states: Per strategy, what `prepare` returned, stacked over requests.
        carry: Per strategy, what it hands from layer to layer of this forward.
        changed: Bool [R], requests in which some edit made a difference; None before any edit.
    """

    states: Sequence[State | Mapping[str, Any]]
    carry: list[dict[str, Any]]
    changed: Tensor | None

    @abstractmethod
    def named_rows(self, i: int) -> Mapping[str, Row]:
        """The i-th strategy's own names for rows -> those that are in this forward."""

    @abstractmethod
    def whole_keys(self, row: Row) -> RowKeys:
        """Where a row's keys lie, for all its queries, wherever this is cheap to look at."""

    @abstractmethod
    def stream_keys(self, row: Row, like: Tensor) -> RowKeys:
        """The same on the device of ``like``."""

    @abstractmethod
    def stream_places(self, row: Row, like: Tensor) -> Any:
        """Index of a row's part [R, T, D] in the stream ``like``."""

    @abstractmethod
    def put_stream(self, x: Tensor, places: Any, new: Tensor) -> Tensor:
        """The stream with a row's part replaced."""

    @abstractmethod
    def confidences(self) -> Tensor:
        """float32 [R, T]: how sure each of the first T written tokens was, T one at least."""

    @abstractmethod
    def features(self) -> Sequence[Tensor]:
        """Per request, float32 [N_img, D], see `core.residual.ResidualStream.features`."""

    @abstractmethod
    def keep_branch(self, i: int, layer: int, heads: Tensor) -> None:
        """Head outputs [R, H, d] that the i-th strategy carries past a layer to the last one."""

    @abstractmethod
    def note_fired(self, hook: str, i: int, layer: int) -> None:
        """The i-th strategy's hook was called in a layer."""

    def note_change(self, differs: Tensor) -> None:
        """Requests (bool [R]) in which an edit made a difference."""
        self.changed = differs if self.changed is None else self.changed | differs


class AttentionLayer(ABC, Generic[Row, Queries]):
    """One layer's attention of `EditedRows`; ``Queries`` is an engine's name for a range of them.

    Attributes:
        number: Of the decoder layer.
        rows: What is edited.
    """

    number: int
    rows: EditedRows[Row]

    @abstractmethod
    def query_blocks(self, parts: Parts) -> Iterable[Queries]:
        """Ranges of at most `BLOCK` queries that cover what these may edit, the emitting one last.

        See `reached`.
        """

    @abstractmethod
    def all_queries(self) -> Queries:
        """Every query of this forward."""

    @abstractmethod
    def split(self, queries: Queries) -> Iterable[Queries]:
        """A range in ranges of at most `BLOCK` queries, the emitting one last."""

    @abstractmethod
    def block(self, row: Row, queries: Queries, *, scores: bool) -> AttentionBlock:
        """A row's tensors; without ``scores`` only the head outputs."""

    @abstractmethod
    def put_output(self, row: Row, queries: Queries, output: Tensor) -> None:
        """Write head outputs [R, H, Q, d] in the kernel's place."""

    @abstractmethod
    def token_mask(
        self,
        i: int,
        name: str,
        fn: Callable[[Tensor], Tensor],
        row: Row,
        block: AttentionBlock,
    ) -> Tensor:
        """Bool [R, N]: judged once per prompt token, False for generated ones, kept."""

    @abstractmethod
    def at_first_token(self, i: int, name: str, fn: Callable[[], Any]) -> Any:
        """``fn() -> [R, ...]``, evaluated in the forward that emits token 1 and kept."""

    @abstractmethod
    def keys_at_first_token(self, i: int, name: str, fn: Callable[[], Tensor]) -> Tensor:
        """``fn() -> [R, .., N]``, kept likewise; 0 for keys that came later."""

    @abstractmethod
    def tally(self, i: int, name: str, x: Tensor, mine: Tensor) -> Tensor:
        """float32 [R, N]: numbers [R, N] of this block's queries, which are at ``mine``, kept.

        See `core.attention.Attention.tally`.
        """

    def check_present(self, i: int, part: TracedStrategy, names: Collection[str]) -> None:
        """Raise HookNeverFired if a row that the i-th strategy needs beside these is missing."""


def edit_attention(layer: AttentionLayer[Row, Queries], parts: Parts) -> None:
    """Let strategies act on one layer's attention, those that edit scores block by block first.

    Args:
        layer: Its tensors, whose output is edited in place.
        parts: Those with `attend`, in the order they act.
    """
    here = [(i, part) for i, part in parts if layer.number in part.layers]
    scored = [(i, part) for i, part in here if part.phase == "scores"]
    plain = [(i, part) for i, part in here if part.phase == "outputs"]
    if scored:
        for queries in layer.query_blocks(scored):
            _attend(layer, scored, queries, scores=True)
    if plain:
        _attend(layer, plain, layer.all_queries(), scores=False)
    for i, _ in here:
        layer.rows.note_fired("attend", i, layer.number)


def _attend(
    layer: AttentionLayer[Row, Queries], parts: Parts, queries: Queries, *, scores: bool
) -> None:
    """One range of queries: all strategies in turn on shared blocks, then what they changed."""
    blocks: dict[Row, AttentionBlock] = {}
    for i, part in parts:
        present = layer.rows.named_rows(i)
        own = {name: present[name] for name in part.attend_rows if name in present}
        for row in own.values():
            if row not in blocks:
                blocks[row] = layer.block(row, queries, scores=scores)
        if not own:
            continue
        layer.check_present(i, part, own)
        shown = {name: blocks[row] for name, row in own.items()}
        hooks = _hooks(layer, i, part, own, shown)
        part.strategy.attend(
            Attention(layer.number, part.model_info, shown, hooks, part.strategy.name)
        )
    for row, block in blocks.items():
        if block.touched:
            edited = block.edited()
            layer.put_output(row, queries, block.output(edited))
            layer.rows.note_change(edited.any(dim=-1))


def _hooks(
    layer: AttentionLayer[Row, Queries],
    i: int,
    part: TracedStrategy,
    own: Mapping[str, Row],
    shown: Mapping[str, AttentionBlock],
) -> Hooks:
    def token_mask(name: str, fn: Callable[[Tensor], Tensor], row: str) -> Tensor:
        return layer.token_mask(i, name, fn, own[row], shown[row])

    def at_first_token(name: str, fn: Callable[[], Any]) -> Any:
        return layer.at_first_token(i, name, fn)

    def unedited() -> Iterator[AttentionBlock]:
        for each in layer.split(layer.all_queries()):
            yield layer.block(own["main"], each, scores=True)

    def received(own: bool, of: Tensor | None) -> Tensor:
        return sum_of(block.received(own=own, of=of) for block in unedited())

    def paid(seg: Tensor) -> Tensor:
        return sum_of(block.paid(seg) for block in unedited())

    def confidence() -> Tensor:
        keys = shown["main"].keys
        sure = layer.rows.confidences().to(keys.position.device)
        written = keys.position - keys.length[:, None]
        found = sure.gather(1, written.clamp(0, sure.shape[1] - 1))
        return found.where(written >= 0, 1.0)

    def keys_at_first_token(name: str, fn: Callable[[], Tensor]) -> Tensor:
        return layer.keys_at_first_token(i, name, fn)

    def branch(heads: Tensor) -> None:
        layer.rows.keep_branch(i, layer.number, heads)

    def tally(name: str, x: Tensor, mine: Tensor) -> Tensor:
        return layer.tally(i, name, x, mine)

    return Hooks(
        token_mask,
        at_first_token,
        layer.rows.states[i],
        layer.rows.carry[i],
        allowed=part.verbs,
        gone=frozenset(part.attend_rows) - own.keys(),
        received=received,
        paid=paid,
        confidence=confidence,
        keys_at_first_token=keys_at_first_token,
        branch=branch,
        tally=tally,
    )


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    return reduce(add, parts)


def reached(rows: EditedRows[Row], parts: Parts) -> Iterator[tuple[Row, Tensor]]:
    """Every row that strategies attend to, with the queries (bool [Q]) they may edit in it."""
    for i, part in parts:
        present = rows.named_rows(i)
        for name in part.attend_rows:
            if name in present:
                keys = rows.whole_keys(present[name])
                for which in part.queries:
                    yield present[name], keys.queries(which).any(0)


def judges_tokens(parts: Parts) -> bool:
    """Whether every prompt token must be seen, though no query of this forward be edited."""
    return any("token_mask" in part.verbs for _, part in parts)


def steer(
    rows: EditedRows[Row],
    i: int,
    part: TracedStrategy,
    layer: int,
    x: Tensor,
    inp: Tensor,
    decode: Callable[[Tensor], Tensor],
    entering: Tensor | None = None,
) -> Tensor:
    """Let one strategy rewrite the stream of one layer.

    Args:
        rows: What is edited.
        i: The strategy's place.
        part: The strategy.
        layer: Number of the decoder layer.
        x: The stream, [.., D] as the engine lays it out.
        inp: What entered the layer, or its MLP.
        decode: ``[R, D] -> float32 [R, V]``, the model's final norm and LM head.
        entering: What entered the layer, where ``inp`` is something else.

    Returns:
        The stream with the chosen positions of the strategy's rows replaced.
    """
    present = rows.named_rows(i)
    for name in part.strategy.steer_rows:
        if name not in present:
            continue
        row = present[name]
        places = rows.stream_places(row, x)
        old = x[places]
        stream = ResidualStream(
            layer, part.model_info, name, old, inp[places], decode, rows.states[i], rows.carry[i]
        )
        keys = rows.stream_keys(row, x)
        chosen = keys.queries(part.strategy.steer_at)
        stream.chosen, stream.pictures = chosen, rows.features
        stream.pictured = keys.cached("pictured", lambda own: (own.kind == IMAGE).any(-1))
        stream.entering = None if entering is None else entering[places]
        new = part.strategy.steer(stream).to(x.dtype).where(chosen[..., None], old)
        rows.note_change((new != old).flatten(1).any(-1))
        x = rows.put_stream(x, places, new)
    rows.note_fired("steer", i, layer)
    return x


def check_fired(parts: Parts, fired: Collection[Fired], model: str) -> None:
    """Raise if a declared hook was not called in the first forward pass.

    Args:
        parts: All that were to act.
        fired: What was called.
        model: What the sentence calls the model.
    """
    for i, part in parts:
        for hook, declared in (("attend", part.phase is not None), ("steer", part.steers)):
            silent = [n for n in sorted(part.layers) if (hook, i, n) not in fired]
            if declared and silent:
                raise HookNeverFired(never_called(part.strategy.name, hook, silent, model))


def never_called(name: str, hook: str, layers: Sequence[int], model: str) -> str:
    """The sentence for a hook that a model never reached."""
    return (
        f"{name}.{hook} was not called in layer(s) {list(layers)} during a forward pass, "
        f"so the strategy was off; {model} did not reach halludecode's hooks (report it with "
        "`halludecode doctor`)."
    )
