"""State of one batch while it runs: where each row's keys are, and what each layer keeps of it.

A `ForwardContext` belongs to one batch of requests; nothing of it is stored on modules. Two things
are counted here and must not be mixed up: *requests* 0..R-1, which is what strategies see, and
*batch rows*, the first axis of every tensor of the model, where each request has one row for every
name (main, noised, ...). An ``index`` maps a strategy's row name to the batch rows of all requests;
masks and KV are by batch row, states, `changed` and what is kept of the first token by request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from halludecode.core.attention_block import IMAGE, RowKeys
from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.core.state import State
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.hf.attention_layer import HFAttentionLayer
from halludecode.engines.hf.attention_metadata import AttentionMetadata, RowPlacement
from halludecode.engines.hf.unpadded import Unpadded
from halludecode.engines.layer_edits import (
    EditedRows,
    Fired,
    check_fired,
    edit_attention,
    never_called,
    steer,
)
from halludecode.models.feed_forward import Branch

MODEL = "this model"  # what sentences call it


@dataclass
class Capture:
    """What to keep of a forward: by layer, for the last query of every batch row."""

    hidden: frozenset[int] = frozenset()
    heads: frozenset[int] = frozenset()
    image: frozenset[int] = frozenset()
    keys: frozenset[int] = frozenset()
    every_token: bool = False
    answered: int = 0  # last queries whose weights on image keys are kept one by one
    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)


@dataclass
class ForwardContext(EditedRows[RowPlacement]):
    """One batch under one plan.

    Args:
        parts: The plan's strategies that act inside a forward, in the order they act.
        index: Per strategy (by its place in ``parts``): local row name -> batch rows.
        states: Per strategy, what `prepare` returned, stacked over requests.
        capture: For passes of the plain model, what to keep.
        decode: ``([.., D], norm) -> float32 [.., V]``, the model's LM head.
        metadata: Where keys and queries lie in the current forward.
        emitting: False in a forward that only fills a prefix.
        token_masks: Bool [rows, N] by strategy, layer and name.
        first_token: What `at_first_token` gave, [R, ...] by strategy, layer and name.
        first_keys: What `keys_at_first_token` gave, [R, .., N] likewise.
        tallies: What `tally` was told of all tokens so far, [R, N], by strategy and name.
        early: [rows, D] of every batch row's last token, by layer; the number of layers is what
            leaves the last one.
        branched: By place in ``parts``, what `keep_branch` was told in this forward.
        sure: [R, T], what `note_confidence` was told of every written token.
        pictures: Per request, float32 [N_img, D], what `features` gives.

    What follows these is made once per forward: see `begin`.
    """

    parts: Sequence[TracedStrategy] = ()
    index: list[dict[str, RowPlacement]] = field(default_factory=list)
    states: Sequence[Mapping[str, Any]] = ()
    capture: Capture | None = None
    decode: Callable[[Tensor, bool], Tensor] | None = None
    metadata: AttentionMetadata | None = None
    emitting: bool = True
    token_masks: dict[tuple[int, int, str], Tensor] = field(default_factory=dict)
    first_token: dict[tuple[int, int, str], Any] = field(default_factory=dict)
    first_keys: dict[tuple[int, int, str], Tensor] = field(default_factory=dict)
    tallies: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    sure: Tensor | None = None
    pictures: list[Tensor] = field(default_factory=list)
    fired: set[Fired] = field(default_factory=set)
    early: dict[int, Tensor] = field(default_factory=dict)
    branched: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    changed: Tensor | None = None
    inputs: dict[int, Tensor] = field(default_factory=dict)  # [rows, Q, D] entering a layer
    carry: list[dict[str, Any]] = field(default_factory=list)
    columns: dict[tuple[int, ...], tuple[int, int]] = field(default_factory=dict)
    causal: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    _keys: dict[tuple[RowPlacement, int, int], RowKeys] = field(default_factory=dict)

    @property
    def within(self) -> bool:
        """Whether anything is read or edited inside the model."""
        return bool(self.parts) or self.capture is not None

    @property
    def needs_attention(self) -> bool:
        """Whether the attention function must be ours."""
        capture = self.capture
        edits = any(part.phase is not None for part in self.parts)
        kept = bool(capture and (capture.heads or capture.image or capture.keys))
        return edits or kept or self.unpadded is not None

    @property
    def unpadded(self) -> Unpadded | None:
        """How this forward's rows are laid end to end outside of attention."""
        return None if self.metadata is None else self.metadata.unpadded

    @property
    def _main(self) -> RowPlacement | None:
        """The main rows, where they are in this batch."""
        return next((index["main"] for index in self.index if "main" in index), None)

    @property
    def input_layers(self) -> list[int]:
        """Layers whose entering residual `token_mask` or `steer` needs, or to be decoded."""
        needed = {i for part in self.parts for i in part.early} | self._gated
        if self._shows_pictures:
            needed.add(0)
        if self._branches:
            needed.add(self._final)
        for part in self.parts:
            if "token_mask" in part.verbs or (part.steers and part.strategy.site == "residual"):
                needed |= part.layers
        return sorted(needed)

    @property
    def _gated(self) -> frozenset[int]:
        """Layers where `steer` decodes what enters them."""
        gated = [part.layers for part in self.parts if "logits" in part.stream_reads]
        return frozenset[int]().union(*gated)

    @property
    def _branches(self) -> bool:
        return any(part.branches_off for part in self.parts)

    @property
    def _final(self) -> int:
        """The last layer's number."""
        return self.parts[0].model_info.num_layers - 1

    @property
    def _shows_pictures(self) -> bool:
        return any("image_features" in part.stream_reads for part in self.parts)

    @property
    def output_layers(self) -> list[int]:
        """Layers whose leaving residual an activation request keeps or a strategy rewrites."""
        kept = self.capture.hidden if self.capture else frozenset[int]()
        last = frozenset([self._final]) if self._branches else frozenset[int]()
        return sorted(kept | self.steered("residual") | last)

    def steered(self, site: str) -> frozenset[int]:
        """Layers where the stream at ``site`` is rewritten."""
        here = [p.layers for p in self.parts if p.steers and p.strategy.site == site]
        return frozenset[int]().union(*here)

    def begin(self, metadata: AttentionMetadata, *, emitting: bool) -> None:
        """Call before every forward."""
        self.metadata, self.emitting = metadata, emitting
        self.inputs.clear()
        self.branched.clear()
        self.columns.clear()
        self.causal.clear()
        self._keys.clear()
        self.carry = [{} for _ in self.parts]

    def check_fired(self) -> None:
        """Raise if a declared hook was not called in the first forward pass."""
        check_fired(list(enumerate(self.parts)), self.fired, MODEL)
        decodes = self.emitting and self._main is not None
        for part in self.parts:
            unread = [n for n in part.early if decodes and n not in self.early]
            if unread:
                raise HookNeverFired(never_called(part.strategy.name, "early", unread, MODEL))

    def select(
        self,
        rows: Tensor,
        requests: Tensor,
        index: list[dict[str, RowPlacement]],
        states: Sequence[State],
    ) -> None:
        """Keep (or repeat) some batch rows and requests, under a new index and states."""
        self.token_masks = {k: v[rows] for k, v in self.token_masks.items()}
        self.first_token = {k: v[requests] for k, v in self.first_token.items()}
        self.first_keys = {k: v[requests] for k, v in self.first_keys.items()}
        self.tallies = {k: v[requests] for k, v in self.tallies.items()}
        self.sure = self.sure[requests] if self.sure is not None else None
        self.pictures = [self.pictures[r] for r in requests.tolist()] if self.pictures else []
        self.early = {k: v[rows] for k, v in self.early.items()}
        self.branched = {i: (n, x[requests]) for i, (n, x) in self.branched.items()}
        self.changed = self.changed[requests] if self.changed is not None else None
        self.index, self.states = index, states

    def admit(self, width: int, rows: int) -> None:
        """Make room for further batch rows, none of them marked, and for padding on the left."""
        self.early.clear()  # the next forward has the further rows
        self.token_masks = {
            k: functional.pad(v, (width, 0, 0, rows)) for k, v in self.token_masks.items()
        }
        self.first_keys = {k: functional.pad(v, (width, 0)) for k, v in self.first_keys.items()}
        self.tallies = {k: functional.pad(v, (width, 0)) for k, v in self.tallies.items()}

    # What `layer_edits` asks ----------------------------------------------------------------------
    def named_rows(self, i: int) -> Mapping[str, RowPlacement]:
        """The i-th strategy's rows."""
        return self.index[i]

    def row_keys(self, row: RowPlacement, start: int, stop: int) -> RowKeys:
        """Keys of a row for some queries: the same for every layer of a forward, so made once."""
        which = (row, start, stop)
        if which not in self._keys:
            self._keys[which] = self._here().keys(row, start, stop)
        return self._keys[which]

    def whole_keys(self, row: RowPlacement) -> RowKeys:
        """Keys of a row for all queries."""
        return self.row_keys(row, 0, self._here().width)

    def stream_keys(self, row: RowPlacement, like: Tensor) -> RowKeys:
        """The same."""
        return self.row_keys(row, 0, like.shape[1])

    def stream_places(self, row: RowPlacement, like: Tensor) -> slice | Tensor:
        """Batch rows."""
        return row.at

    def put_stream(self, x: Tensor, places: Any, new: Tensor) -> Tensor:
        """A new stream: what a strategy was shown may be a view of the old one."""
        out = x.clone()
        out[places] = new
        return out

    def note_confidence(self, main: Tensor) -> None:
        """Raw scores [R, V] of the main rows, from which a token is being drawn."""
        if any("confidence" in part.verbs for part in self.parts):
            new = main.float().softmax(-1).amax(-1, keepdim=True)
            self.sure = new if self.sure is None else torch.cat([self.sure, new], 1)

    def confidences(self) -> Tensor:
        """What was noted; a prompt's forward comes before."""
        if self.sure is None:
            kind = self._here().kind
            return torch.ones(len(kind), 1, device=kind.device)
        return self.sure

    def features(self) -> Sequence[Tensor]:
        """What was kept of the prompt."""
        if not self.pictures:
            raise HookNeverFired("The image tokens entering layer 0 were never seen.")
        return self.pictures

    def _keep_pictures(self, x: Tensor) -> None:
        """The main rows' image tokens, of the residual entering layer 0."""
        here, main = self._here(), self._main
        if main is not None and here.prompting and self.emitting:
            shown = self.stream_keys(main, x).query_kind == IMAGE
            self.pictures = [own[mask].float() for own, mask in zip(x[main.at], shown, strict=True)]

    def keep_branch(self, i: int, layer: int, heads: Tensor) -> None:
        """The last of the blocks of a layer is the one that emits."""
        self.branched[i] = layer, heads

    def branch(self, i: int) -> Branch | None:
        """The i-th strategy's branch of this forward, with both ends of the last layer [R, D]."""
        if i not in self.branched or self._main is None:
            return None
        ends = (self.early[self._final][self._main.at], self.early[self._final + 1][self._main.at])
        return (*self.branched[i], *ends)

    def note_fired(self, hook: str, i: int, layer: int) -> None:
        """The i-th strategy's hook was called in a layer."""
        self.fired.add((hook, i, layer))

    def _here(self) -> AttentionMetadata:
        if self.metadata is None:
            raise HookNeverFired("attention was asked about before the forward began")
        return self.metadata

    # Called from the model's forward --------------------------------------------------------------
    def layer_input(self, layer: int, x: Tensor) -> None:
        """The residual entering a layer; kept until the layer is done."""
        if layer == 0 and self._shows_pictures:
            self._keep_pictures(self._block(x))
        if any(layer in part.layers for part in self.parts if part.steers or part.verbs):
            self.inputs[layer] = self._block(x)
        decoded = any(layer in part.early for part in self.parts)
        if self._main and self.emitting and (decoded or (self._branches and layer == self._final)):
            self.early[layer] = self._last(x)

    def layer_output(self, layer: int, x: Tensor) -> Tensor:
        """The residual leaving a layer: kept for activation requests, rewritten by `steer`."""
        if self.capture is not None and layer in self.capture.hidden and self.emitting:
            kept = self._block(x) if self.capture.every_token else self._last(x)
            self.capture.kept["hidden", layer] = kept.detach().float().cpu()
        inp = self.inputs.pop(layer, None)
        x = x if inp is None else self.steer("residual", layer, x, inp)
        if self._branches and layer == self._final and self.emitting:
            self.early[layer + 1] = self._last(x)
        return x

    def mlp_output(self, layer: int, x: Tensor, inp: Tensor) -> Tensor:
        """What a layer's MLP made of ``inp``, rewritten by `steer`."""
        return self.steer("mlp", layer, x, self._block(inp))

    def steer(self, site: str, layer: int, x: Tensor, inp: Tensor) -> Tensor:
        """The stream with every strategy's `steer` put in its rows and positions.

        Args:
            site: Where it was taken.
            layer: Decoder layer.
            x: The stream as the model has it, [rows, Q, D] or laid end to end.
            inp: What entered, [rows, Q, D].
        """
        here = [
            (i, part)
            for i, part in enumerate(self.parts)
            if part.steers and part.strategy.site == site and layer in part.layers
        ]
        if self.metadata is None or not here:
            return x
        block = self._block(x)
        for i, part in here:
            entering = self.inputs.get(layer)
            block = steer(self, i, part, layer, block, inp, self._decode_last, entering)
        return block if self.unpadded is None else self.unpadded.joined(block)

    def _block(self, x: Tensor) -> Tensor:
        """The model's stream as [rows, Q, D]."""
        return x if self.unpadded is None else self.unpadded.block(x)

    def _last(self, x: Tensor) -> Tensor:
        """[rows, D] of the model's stream."""
        return x[:, -1] if self.unpadded is None else x[0, self.unpadded.last]

    def _decode_last(self, last: Tensor) -> Tensor:
        if self.decode is None:
            raise HookNeverFired("steer: no LM head to decode with.")
        return self.decode(last, True)

    def attention(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scaling: float,
        out: Tensor,
        cap: float | None = None,
    ) -> None:
        """Edit ``out`` [rows, Q, H, d] in place where strategies say so; keep what is captured."""
        if self.metadata is None:
            return
        k, v = self._counted(k), self._counted(v)
        shown = HFAttentionLayer(self, self.metadata, layer, q, k, v, mask, scaling, out, cap)
        attending = [(i, part) for i, part in enumerate(self.parts) if part.phase is not None]
        edit_attention(shown, attending)
        if layer not in self.steered("residual") | self._gated:
            self.inputs.pop(layer, None)
        if self.capture is not None and self.emitting:
            self._keep(self.capture, shown)

    def _counted(self, kv: Tensor) -> Tensor:
        """Keys or values [rows, G, N, d] of the tokens so far: a static cache has room for more.

        Raises:
            UnsupportedStrategy: The cache keeps fewer.
        """
        width = self._here().kind.shape[1]
        if kv.shape[2] < width:
            raise UnsupportedStrategy(
                f"The KV cache keeps {kv.shape[2]} of {width} tokens (a sliding window); edits of "
                "attention count them all. Use a shorter prompt, or another model or strategy."
            )
        return kv[:, :, :width]

    def _keep(self, capture: Capture, layer: HFAttentionLayer) -> None:
        if layer.number in capture.heads:
            capture.kept["heads", layer.number] = layer.out[:, -1].detach().float().cpu()
        asked = [k for k in ("image", "keys") if layer.number in getattr(capture, k)]
        if asked:
            rows, _, width, _ = layer.q.shape
            last = (width - max(capture.answered, 1), width)
            block = layer.block(RowPlacement.of(range(rows)), last, scores=True)
            weights = block.weights().detach().cpu()
            for kind in asked:
                each = kind == "image" and capture.answered
                capture.kept[kind, layer.number] = weights if each else weights[:, :, -1]
