"""Many continuations of a prompt in one forward: a request's tokens as a tree in a single row.

A request is one batch row. Its prompt is there once; every token fed is a column behind it that
sees the prompt, its own ancestors and itself, by a 4-D mask. So beams change places without moving
anything, tokens that were tried and not chosen give their columns back, nothing is computed twice,
and a beam of earlier is still there when a search goes back to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from halludecode.core.attention_block import GENERATED, IMAGE
from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.engines.hf.attention_layer import HFAttentionLayer
from halludecode.engines.hf.attention_metadata import AttentionMetadata, RowPlacement
from halludecode.engines.hf.batch import Batch
from halludecode.engines.hf.forward_context import ForwardContext
from halludecode.engines.hf.hooks import hooked
from halludecode.engines.hf.release import CACHE

FULL, SLIDING = {"full_attention"}, {"sliding_attention"}


@dataclass(frozen=True)
class TreeStep:
    """What one request wants of the next forward.

    Args:
        keep: Tokens of its last `TreeStep` that stay, by their number there; the others are
            forgotten.
        paths: Columns of the answers that are continued, all of one length.
        tokens: For every path the tokens tried after it.
    """

    keep: Sequence[int]
    paths: Sequence[tuple[int, ...]]
    tokens: Sequence[Sequence[int]]

    @property
    def size(self) -> int:
        """Tokens S."""
        return sum(map(len, self.tokens))


@dataclass(frozen=True)
class TreeResult:
    """What came of an `TreeStep` with S tokens after answers of A - 1 tokens.

    Args:
        first: Column of the first token that will be kept, the next one's follows.
        rows: float64 [S, A], each token's attention to its answer, its own position last.
        image: float64 [S], its attention to the image.
    """

    first: int
    rows: Tensor
    image: Tensor


@dataclass(frozen=True)
class Chosen:
    """Tokens of a `TreeStep`, by number, after which the logits are wanted."""

    slots: Sequence[int]


class LastForward:
    """The logits of one forward, of which most are never asked for.

    What enters the LM head is kept, and the head decodes the tokens that are asked for. Some models
    scale or bend what their head gives: the first forward decodes all tokens and shows whether the
    head alone gives the model's logits; if not, every forward decodes all.
    """

    def __init__(self) -> None:
        self._alone: bool | None = None
        self._entering = self._made = torch.empty(0)

    @contextmanager
    def of(self, model: Any) -> Iterator[None]:
        """A forward in which the head's input is kept, and decoded only where it must be."""

        def keep(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            self._entering = args[0]
            return (args[0][:, :0],) if self._alone else args

        handle = model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def made(self, logits: Tensor, decode: Callable[[Tensor, bool], Tensor]) -> None:
        """What the model gave for the forward."""
        if self._alone is None:
            self._alone = torch.equal(logits.float(), decode(self._entering, False))
        self._made = logits

    def logits(
        self, rows: Tensor, slots: Tensor, decode: Callable[[Tensor, bool], Tensor]
    ) -> Tensor:
        """float32 [k, V] at some places of the forward (both int64 [k])."""
        if self._alone:
            return decode(self._entering[rows, slots], False)
        return self._made[rows, slots].float()


class TreeContext(ForwardContext):
    """Reads one layer's attention: largest over heads, divided by its sum over all keys."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.seen: Tensor | None = None  # float32 [rows, Q, N]

    @property
    def needs_attention(self) -> bool:
        """Always: other kernels take no tree mask."""
        return True

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
        """Keep the rows of the watched layer; edits nothing."""
        if layer == self.layer:
            shown = HFAttentionLayer(self, self._here(), layer, q, k, v, mask, scaling, out, cap)
            every = RowPlacement.of(range(len(q)))
            block = shown.block(every, shown.all_queries(), scores=True)
            largest = block.weights().amax(1)
            self.seen = largest / largest.sum(-1, keepdim=True)

    def take(self) -> Tensor:
        """What the last forward left; raises if it never came by."""
        if self.seen is None:
            raise HookNeverFired(
                f"The attention of layer {self.layer} was not read, so the search would be blind; "
                "this model did not reach halludecode's hooks (report it with `halludecode "
                "doctor`)."
            )
        seen, self.seen = self.seen, None
        return seen


class TokenTree:
    """Requests of a prefilled batch and the trees of tokens behind their prompts.

    Args:
        batch: Main rows only, one per request; its cache becomes the tree's.
        layer: Decoder layer whose attention is read.

    Raises:
        UnsupportedStrategy: The model does not keep every key of every layer.
    """

    def __init__(self, batch: Batch, layer: int) -> None:
        self.batch, self.hf_model = batch, batch.hf_model
        self.window = self._window()
        self.context = TreeContext(layer)
        self.prompt = batch.mask.shape[1]  # columns of the prompts, padding included
        self.width = self.prompt  # columns that are kept
        self.line = torch.arange(self.prompt).repeat(len(batch.mask), 1)  # columns without a tree
        self.last = LastForward()

    def _window(self) -> int | None:
        """Keys a sliding layer sees; None where no layer slides."""
        text = self.hf_model.model.config.get_text_config()
        window = getattr(text, "sliding_window", None)
        plain = ("sliding_attention" if window else "full_attention",)
        kinds = set(getattr(text, "layer_types", None) or plain)
        whole = all(type(cached) is DynamicLayer for cached in self.batch.cache.layers)
        if not whole or kinds not in (FULL, FULL | SLIDING):
            name = type(self.hf_model.model).__name__
            raise UnsupportedStrategy(
                f"{self.batch.plan.canonical}: a search over beams needs the key of every token; "
                f"layers of {name} ({', '.join(sorted(kinds))}) drop some."
            )
        if kinds != FULL and self.hf_model.family.mutual == "prompt":
            raise UnsupportedStrategy(
                f"{self.batch.plan.canonical}: a search over beams has masks by kind of layer, and "
                f"{type(self.hf_model.model).__name__} with sliding windows takes one for all "
                "layers; use another model or strategy."
            )
        return window if kinds != FULL else None

    def select(self, requests: Sequence[int]) -> None:
        """Keep some requests."""
        self.batch.select(requests)
        self.line = self.line[list(requests)]

    def feed(self, steps: Sequence[TreeStep]) -> list[TreeResult]:
        """One forward for every request's `TreeStep`."""
        self._keep([step.keep for step in steps])
        size = max(step.size for step in steps)
        ids = torch.zeros(len(steps), size, dtype=torch.long)
        depth = torch.zeros(len(steps), size, dtype=torch.long)
        for r, step in enumerate(steps):
            ids[r, : step.size] = torch.tensor([t for tokens in step.tokens for t in tokens])
            depth[r, : step.size] = len(step.paths[0])
        self.line = torch.cat([self.line, self.prompt + depth], 1)
        seen = self._forward(ids, self.batch.position[:, None] + depth, self._visible(steps, size))
        image = (self.batch.kind == IMAGE).to(seen.device)
        on_image = (seen[:, :, : self.prompt] * image[:, None]).sum(-1).double().cpu()
        behind = seen[:, :, self.prompt :].double().cpu()
        return [
            TreeResult(
                self.width,
                self._rows(step, behind[r]),
                on_image[r, : step.size],
            )
            for r, step in enumerate(steps)
        ]

    def logits(self, chosen: Mapping[int, Chosen]) -> dict[int, Tensor]:
        """float32 [k, V] after tokens of the last forward, on the model's device.

        Args:
            chosen: Places of requests in that forward -> their tokens.
        """
        rows = torch.tensor([r for r, own in chosen.items() for _ in own.slots], dtype=torch.long)
        slots = [slot for own in chosen.values() for slot in own.slots]
        found = self.last.logits(rows, torch.tensor(slots, dtype=torch.long), self.batch.decode)
        return {r: found[rows == r] for r in chosen}

    def _rows(self, step: TreeStep, seen: Tensor) -> Tensor:
        """[S, A] of a request's attention [Q, columns behind the prompt]."""
        path = torch.tensor(
            [path for path, tokens in zip(step.paths, step.tokens, strict=True) for _ in tokens],
            dtype=torch.long,
        )
        own = torch.arange(step.size)[:, None] + self.width
        return seen[: step.size].gather(1, torch.cat([path, own], 1) - self.prompt)

    def _visible(self, steps: Sequence[TreeStep], size: int) -> Tensor:
        """Bool [R, Q, N]; a request with fewer tokens fills up with ones that see no answer."""
        visible = torch.zeros(len(steps), size, self.width + size, dtype=torch.bool)
        visible[:, :, : self.prompt] = self.batch.mask[:, None]
        visible[:, range(size), range(self.width, self.width + size)] = True
        for r, step in enumerate(steps):
            at = 0
            for path, tokens in zip(step.paths, step.tokens, strict=True):
                visible[r, at : at + len(tokens)][:, list(path)] = True
                at += len(tokens)
        return visible

    def _masks(self, visible: Tensor) -> Any:
        """4-D masks, by kind of layer where some layers slide."""
        full = visible[:, None].to(self.hf_model.device)
        if self.window is None:
            return full
        size = visible.shape[1]
        near = self.line[:, -size:, None] - self.line[:, None] < self.window
        sliding = (visible & near)[:, None].to(self.hf_model.device)
        return {"full_attention": full, "sliding_attention": sliding}

    def _forward(self, ids: Tensor, position: Tensor, visible: Tensor) -> Tensor:
        """Attention [R, Q, N]; of the logits see `logits`."""
        hf_model, device = self.hf_model, self.hf_model.device
        kind = torch.full((len(ids), visible.shape[-1]), GENERATED, dtype=torch.int8)
        tensors = (kind, kind.to(torch.int16), position, self.batch.length)
        metadata = AttentionMetadata(*(x.to(device) for x in tensors), prompting=False)
        self.context.begin(metadata, emitting=True)
        hf_model.calls += 1
        position = position.expand(3, -1, -1) if hf_model.family.mrope else position
        with hooked(hf_model.model, hf_model.family, self.context), self.last.of(hf_model.model):
            out: Any = hf_model.model(
                position_ids=position.to(device),
                attention_mask=self._masks(visible),
                **{CACHE: self.batch.cache},
                use_cache=True,
                **hf_model.given(ids, ()),
            )
        self.last.made(out.logits, self.batch.decode)
        return self.context.take()

    def _keep(self, chosen: Sequence[Sequence[int]]) -> None:
        """Move the tokens that stay to the front of the last forward's columns, drop the rest."""
        if self.line.shape[1] == self.width:
            return  # nothing was fed yet
        at = torch.zeros(len(chosen), max(map(len, chosen)), dtype=torch.long)
        for r, slots in enumerate(chosen):
            at[r, : len(slots)] = torch.tensor(slots, dtype=torch.long)
        stop = self.width + at.shape[1]
        for cached in self.batch.cache.layers:
            for name in ("keys", "values"):
                held: Tensor = getattr(cached, name)
                slots = at[:, None, :, None].to(held.device)
                held[:, :, self.width : stop] = held[:, :, self.width :].take_along_dim(slots, 2)
                setattr(cached, name, held[:, :, :stop])
        self.line[:, self.width : stop] = self.line[:, self.width :].take_along_dim(at, 1)
        self.line, self.width = self.line[:, :stop], stop
