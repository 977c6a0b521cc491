"""State of one batch while it runs: where each row's keys are, and what each layer keeps of it.

A `ForwardContext` belongs to one batch of requests; nothing of it is stored on modules. Rows of the
batch are "batch rows"; a strategy's row name maps to one batch row per request (``index``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halludecode.core.attention import Attention, Hooks
from halludecode.core.attention_block import GENERATED, PAD, AttentionBlock, RowKeys
from halludecode.core.errors import HookNeverFired
from halludecode.core.residual import ResidualStream
from halludecode.core.state import State
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.hf.attention_metadata import AttentionMetadata, RowPlacement

AHEAD = 128  # generated tokens for which token masks are laid out at once
BLOCK = 64  # query rows recomputed at a time: memory grows with the prompt, not with its square


@dataclass
class Capture:
    """What to keep of a forward: by layer, for the last query of every batch row."""

    hidden: frozenset[int] = frozenset()
    heads: frozenset[int] = frozenset()
    image: frozenset[int] = frozenset()
    every_token: bool = False
    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)


@dataclass
class ForwardContext:
    """One batch under one plan.

    Args:
        parts: The plan's parts that act inside a forward, in the order they act.
        index: Per part (by its place in ``parts``): local row name -> batch rows [B].
        state: Per part, what `prepare` returned, stacked.
        capture: For passes of the plain model, what to keep.
        decode: ``([.., D], norm) -> float32 [.., V]``, the model's LM head.
    """

    parts: Sequence[TracedStrategy] = ()
    index: list[dict[str, RowPlacement]] = field(default_factory=list)
    state: Sequence[Mapping[str, Any]] = ()
    capture: Capture | None = None
    decode: Callable[[Tensor, bool], Tensor] | None = None
    geometry: AttentionMetadata | None = None
    emitting: bool = True  # False in a forward that only fills a prefix
    token_masks: dict[tuple[int, int, str], Tensor] = field(default_factory=dict)
    kept: dict[tuple[int, int, str], Any] = field(default_factory=dict)
    fired: set[tuple[str, int, int]] = field(default_factory=set)
    early: dict[int, Tensor] = field(default_factory=dict)  # [B, D] of the main rows' last token
    changed: Tensor | None = None  # bool [B]
    _inputs: dict[int, Tensor] = field(default_factory=dict)
    _carry: list[dict[str, Any]] = field(default_factory=list)
    _columns: dict[tuple[int, ...], tuple[int, int]] = field(default_factory=dict)
    _keys: dict[tuple[tuple[int, ...], int, int], RowKeys] = field(default_factory=dict)
    _causal: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    @property
    def needs_attention(self) -> bool:
        """Whether the attention function must be ours."""
        capture = self.capture
        edits = any(part.phase is not None for part in self.parts)
        return edits or bool(capture and (capture.heads or capture.image))

    @property
    def input_layers(self) -> list[int]:
        """Layers whose entering residual `token_mask` or `steer` needs, or to be decoded."""
        needed = {i for part in self.parts for i in part.early}
        for part in self.parts:
            if "token_mask" in part.verbs or (part.steers and part.strategy.site == "residual"):
                needed |= part.layers
        return sorted(needed)

    @property
    def output_layers(self) -> list[int]:
        """Layers whose leaving residual an activation request keeps or a strategy rewrites."""
        kept = self.capture.hidden if self.capture else frozenset[int]()
        return sorted(kept | self.steered("residual"))

    def steered(self, site: str) -> frozenset[int]:
        """Layers where the stream at ``site`` is rewritten."""
        here = [p.layers for p in self.parts if p.steers and p.strategy.site == site]
        return frozenset[int]().union(*here)

    def begin(self, geometry: AttentionMetadata, *, emitting: bool) -> None:
        """Call before every forward."""
        self.geometry, self.emitting = geometry, emitting
        self._inputs.clear()
        self._columns.clear()
        self._keys.clear()
        self._causal.clear()
        self._carry = [{} for _ in self.parts]

    def check_fired(self) -> None:
        """Raise if a declared hook was not called in the first forward pass."""
        for i, part in enumerate(self.parts):
            hooks = [("attend", part.phase is not None), ("steer", part.steers)]
            for hook, declared in hooks:
                silent = [n for n in sorted(part.layers) if (hook, i, n) not in self.fired]
                if declared and silent:
                    raise HookNeverFired(_silent(part.strategy.name, hook, silent))
            unread = [n for n in part.early if self.emitting and n not in self.early]
            if unread:
                raise HookNeverFired(_silent(part.strategy.name, "early", unread))

    def select(
        self,
        rows: Tensor,
        requests: Tensor,
        index: list[dict[str, RowPlacement]],
        state: Sequence[State],
    ) -> None:
        """Keep (or repeat) some batch rows and requests, under a new index and state."""
        self.token_masks = {k: v[rows] for k, v in self.token_masks.items()}
        self.kept = {k: v[requests] for k, v in self.kept.items()}
        self.early = {k: v[requests] for k, v in self.early.items()}
        self.changed = self.changed[requests] if self.changed is not None else None
        self.index, self.state = index, state

    def carried(self, place: int) -> dict[str, Any]:
        """What a part (by its place in ``parts``) left in the last forward."""
        return self._carry[place]

    # Called from the model's forward ------------------------------------------------------------
    def layer_input(self, layer: int, x: Tensor) -> None:
        """The residual entering a layer, [rows, Q, D]; kept until the layer is done."""
        if any(layer in part.layers for part in self.parts if part.steers or part.verbs):
            self._inputs[layer] = x
        if self.emitting and any(layer in part.early for part in self.parts):
            main = next(i["main"] for i in self.index if "main" in i)
            self.early[layer] = x[main.at, -1]

    def layer_output(self, layer: int, x: Tensor) -> Tensor:
        """The residual leaving a layer: kept for activation requests, rewritten by `steer`."""
        if self.capture is not None and layer in self.capture.hidden and self.emitting:
            kept = x if self.capture.every_token else x[:, -1]
            self.capture.kept["hidden", layer] = kept.detach().float().cpu()
        inp = self._inputs.pop(layer, None)
        return x if inp is None else self.steer("residual", layer, x, inp)

    def steer(self, site: str, layer: int, x: Tensor, inp: Tensor) -> Tensor:
        """The stream [rows, Q, D] with every part's `steer` put in its rows and positions."""
        if self.geometry is None:
            return x
        for i, part in enumerate(self.parts):
            if not part.steers or part.strategy.site != site or layer not in part.layers:
                continue
            for row in part.strategy.steer_rows:
                place = self.index[i].get(row)
                if place is not None:
                    x = self._steer_row(i, part, layer, row, place, x, inp)
            self.fired.add(("steer", i, layer))
        return x

    def _steer_row(
        self,
        i: int,
        part: TracedStrategy,
        layer: int,
        row: str,
        place: RowPlacement,
        x: Tensor,
        inp: Tensor,
    ) -> Tensor:
        def decode(last: Tensor) -> Tensor:
            if self.decode is None:
                raise HookNeverFired(f"{part.strategy.name}.steer: no LM head to decode with.")
            return self.decode(last, True)

        old = x[place.at]
        hidden = ResidualStream(
            layer, part.model_info, row, old, inp[place.at], decode, self.state[i], self._carry[i]
        )
        chosen = self._row_keys(place, 0, x.shape[1]).queries(part.strategy.steer_at)
        new = part.strategy.steer(hidden).to(x.dtype).where(chosen[..., None], old)
        differs = (new != old).flatten(1).any(-1)
        self.changed = differs if self.changed is None else self.changed | differs
        out = x.clone()
        out[place.at] = new
        return out

    def attention(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scaling: float,
        out: Tensor,
    ) -> None:
        """Edit ``out`` [rows, Q, H, d] in place where parts say so; keep what is captured."""
        if self.geometry is None:
            return
        acting = [(i, part) for i, part in enumerate(self.parts) if part.phase is not None]
        here = [(i, part) for i, part in acting if layer in part.layers]
        scored = [(i, part) for i, part in here if part.phase == "scores"]
        plain = [(i, part) for i, part in here if part.phase == "outputs"]
        tensors = (q, k, v, mask, scaling, out)
        if scored:
            start, stop = self._span(scored)
            for at in range(start, stop, BLOCK):
                self._block(layer, scored, at, min(at + BLOCK, stop), tensors)
        if plain:
            self._block(layer, plain, 0, q.shape[2], tensors)
        self.fired |= {("attend", i, layer) for i, _ in here}
        if layer not in self.steered("residual"):
            self._inputs.pop(layer, None)
        if self.capture is not None and self.emitting:
            self._capture(layer, tensors)

    def _block(
        self,
        layer: int,
        acting: list[tuple[int, TracedStrategy]],
        start: int,
        stop: int,
        tensors: Any,
    ) -> None:
        made: dict[tuple[int, ...], AttentionBlock] = {}
        places: dict[tuple[int, ...], RowPlacement] = {}
        for i, part in acting:
            blocks: dict[str, AttentionBlock] = {}
            for name in part.attend_rows:
                place = self.index[i].get(name)
                if place is not None:
                    where = place.rows
                    if where not in made:
                        made[where] = self._row_block(
                            place, start, stop, tensors, part.phase == "scores"
                        )
                    blocks[name], places[where] = made[where], place
            if not blocks:
                continue
            gone = frozenset(part.attend_rows) - blocks.keys()
            part.strategy.attend(
                Attention(
                    layer,
                    part.model_info,
                    blocks,
                    self._hooks(i, part, layer, gone),
                    part.strategy.name,
                )
            )
        out = tensors[-1]
        for where, block in made.items():
            if block.touched:
                edited = block.edited()
                out[places[where].at, start:stop] = block.output(edited).transpose(1, 2)
                changed = edited.any(dim=-1)
                self.changed = changed if self.changed is None else self.changed | changed

    def _row_block(
        self, place: RowPlacement, start: int, stop: int, tensors: Any, scores: bool
    ) -> AttentionBlock:
        q, k, v, mask, scaling, out = tensors
        keys = self._row_keys(place, start, stop)
        base = out[place.at, start:stop].transpose(1, 2)
        if not scores:
            return AttentionBlock(keys, None, None, None, None, scaling, base)
        return AttentionBlock(
            keys,
            q[place.at][:, :, start:stop],
            k[place.at],
            v[place.at],
            self._visible(mask, place, start, stop, k.shape[2]),
            scaling,
            base,
        )

    def _row_keys(self, place: RowPlacement, start: int, stop: int) -> RowKeys:
        """The same for every layer of a forward, so made once."""
        which = (place.rows, start, stop)
        if which not in self._keys:
            self._keys[which] = self.geometry.keys(place, start, stop)  # type: ignore[union-attr]
        return self._keys[which]

    def _visible(
        self, mask: Tensor | None, place: RowPlacement, start: int, stop: int, n: int
    ) -> Tensor:
        geometry: AttentionMetadata = self.geometry  # type: ignore[assignment]
        if mask is not None:
            return place.of_mask(mask)[:, :, start:stop, :n]
        if (start, stop, n) not in self._causal:
            at = torch.arange(n, device=geometry.kind.device)
            first = n - geometry.width + start
            self._causal[start, stop, n] = at <= at[first : first + stop - start, None]
        return self._causal[start, stop, n][None, None]

    def _span(self, scored: list[tuple[int, TracedStrategy]]) -> tuple[int, int]:
        """First and last query any part of a layer may edit, found once per forward."""
        ids = tuple(i for i, _ in scored)
        if ids not in self._columns:
            geometry: AttentionMetadata = self.geometry  # type: ignore[assignment]
            used = torch.zeros(geometry.width, dtype=torch.bool, device=geometry.kind.device)
            for i, part in scored:
                for name in part.attend_rows:
                    if name in self.index[i]:
                        keys = geometry.keys(self.index[i][name], 0, geometry.width)
                        for which in part.queries:
                            used |= keys.queries(which).any(0)
            where = used.nonzero().flatten().tolist()
            if not where and any("token_mask" in part.verbs for _, part in scored):
                # Nothing to edit, but every prompt token must be judged.
                where = [geometry.width - 1]
            self._columns[ids] = (where[0], where[-1] + 1) if where else (0, 0)
        return self._columns[ids]

    def _hooks(self, i: int, part: TracedStrategy, layer: int, gone: frozenset[str]) -> Hooks:
        def token_mask(name: str, fn: Callable[[Tensor], Tensor], row: str) -> Tensor:
            return self._token_mask(i, layer, name, fn)[self.index[i][row].at]

        def at_first_token(name: str, fn: Callable[[], Any]) -> Any:
            if (i, layer, name) not in self.kept:
                self.kept[i, layer, name] = fn()
            return self.kept[i, layer, name]

        return Hooks(
            token_mask, at_first_token, self.state[i], self._carry[i], allowed=part.verbs, gone=gone
        )

    def _token_mask(self, i: int, layer: int, name: str, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Bool [rows, N]: judged once per prompt token, False for generated ones, kept."""
        geometry: AttentionMetadata = self.geometry  # type: ignore[assignment]
        n = geometry.kind.shape[1]
        known = self.token_masks.get((i, layer, name))
        if known is None or known.shape[1] < n:
            have = 0 if known is None else known.shape[1]
            fresh = geometry.kind[:, have:]
            if geometry.prompting:
                x = self._inputs.get(layer)
                if x is None:
                    raise HookNeverFired(
                        f"The residual entering layer {layer} never reached token_mask {name!r}."
                    )
                judged = fn(x.reshape(-1, x.shape[-1])).reshape(x.shape[:2]).bool()
                judged = judged & (fresh != GENERATED) & (fresh != PAD)
            else:  # generated tokens are False, for some steps ahead
                judged = fresh.new_zeros(len(fresh), n - have + AHEAD, dtype=torch.bool)
            known = judged if known is None else torch.cat([known, judged], 1)
            self.token_masks[i, layer, name] = known
        return known[:, :n]

    def _capture(self, layer: int, tensors: Any) -> None:
        q, *_, out = tensors
        capture: Capture = self.capture  # type: ignore[assignment]
        if layer in capture.heads:
            capture.kept["heads", layer] = out[:, -1].detach().float().cpu()
        if layer in capture.image:
            every = RowPlacement.of(range(q.shape[0]))
            block = self._row_block(every, q.shape[2] - 1, q.shape[2], tensors, scores=True)
            capture.kept["image", layer] = block.weights()[:, :, 0].detach().cpu()


def _silent(name: str, hook: str, layers: list[int]) -> str:
    return (
        f"{name}.{hook} was not called in layer(s) {layers} during the first forward pass, so the "
        "strategy was off; this model did not reach halludecode's hooks (report it with "
        "`halludecode doctor`)."
    )
