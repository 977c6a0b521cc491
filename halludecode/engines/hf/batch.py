"""A batch of requests in flight: one forward per step for all rows, each row with its own KV.

Batch rows are ordered main rows first. Prompts are padded on the left; with image-prefix reuse the
KV up to the last image token is computed once per picture and row and put before the question,
padded on its own, so the same picture's questions cost only their words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from halludecode.core.attention_block import GENERATED, PAD
from halludecode.core.plan import Plan
from halludecode.core.state import State, stack
from halludecode.engines.explain import Glance, carried, explaining, glance, on_image, rasters
from halludecode.engines.hf.attention_metadata import AttentionMetadata, RowPlacement
from halludecode.engines.hf.forward_context import Capture, ForwardContext
from halludecode.engines.hf.hooks import attention_is_ours, branch, decode, hooked
from halludecode.engines.hf.kept_rows import Prefix, of_row, stacked
from halludecode.engines.hf.model import HFModel, pad_left
from halludecode.engines.hf.unpadded import Unpadded
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.inputs.rows import PreparedRequest, Row, RowBuilder
from halludecode.models.feed_forward import Branched

ANY_LENGTH = 1 << 40  # a prefix has no emitting query, whatever prompt it will serve


class Batch:
    """Rows of several requests, from prefill to the last token.

    `rows` says of every batch row which request it belongs to and its name there; the first R are
    the main rows, so what is by request and what is by batch row agree there, and only there.

    Args:
        hf_model: The model.
        row_builder: Where rows come from.
        plan: What runs.
        requests: R of them.
        capture: For activation requests, what to keep of the prefill.
    """

    def __init__(
        self,
        hf_model: HFModel,
        row_builder: RowBuilder,
        plan: Plan,
        requests: Sequence[PreparedRequest],
        capture: Capture | None = None,
    ) -> None:
        self.hf_model, self.row_builder, self.plan = hf_model, row_builder, plan
        self.requests = list(requests)
        names = dict.fromkeys(name for request in requests for name in request.rows)
        self.rows: list[tuple[int, str]] = [
            (r, name)
            for name in names
            for r, request in enumerate(requests)
            if name in request.rows
        ]
        self.tokens = [hf_model.tokens(self._row(place)) for place in self.rows]
        self.length = torch.tensor([len(t.ids) for t in self.tokens])
        self.order = [
            next(i for i, p in enumerate(plan.parts) if p is part) for part in plan.acting
        ]
        self.decode = partial(_decoded, hf_model)  # no method: contexts must not hold the batch
        self.index = self._make_index()
        self.states = self._stack_states()
        states = [self.states[i] for i in self.order]
        self.context = ForwardContext(
            plan.acting, self._context_index(), states, capture, decode=self.decode
        )
        self.cache = hf_model.cache()
        self.kind = self.picture = self.mask = torch.empty(0)

    def prefill(self, prefixes: LRU[Prefix] | None = None) -> Tensor:
        """Fill the KV of all rows; float32 logits [rows, V] of the first token.

        Args:
            prefixes: Where image prefixes are kept; None runs every prompt in one piece.
        """
        return self.resume([None] * len(self.rows), prefixes)

    def resume(self, kept: Sequence[Prefix | None], prefixes: LRU[Prefix] | None = None) -> Tensor:
        """Read what rows have not read yet; float32 logits [rows, V] of the token after it.

        Args:
            kept: Per row, the KV of what it has read; None if that is nothing.
            prefixes: Where image prefixes are kept for those; None reads them in one piece.
        """
        laid = list(kept)
        if prefixes is not None:
            laid = self._prefixes(prefixes, laid)
        cut = [prefix.length if prefix else 0 for prefix in laid]
        self._lay(laid, cut)
        uncut = [self._row(place) for place, n in zip(self.rows, cut, strict=True) if n == 0]
        images = [image for row in uncut for image in row.images]
        logits = self._read_on(cut, self.hf_model.features(images) if images else [])
        self.context.check_fired()
        self.position = torch.tensor([int(tokens.position.max()) + 1 for tokens in self.tokens])
        self.length_now = torch.tensor([len(tokens.ids) for tokens in self.tokens])
        return logits

    def read(self, written: Sequence[Sequence[int]]) -> Tensor:
        """Further tokens of every row, at least one each; float32 logits [rows, V] after them."""
        cut = [len(tokens.ids) for tokens in self.tokens]
        self.write(written)
        return self._read_on(cut, [])

    def write(self, written: Sequence[Sequence[int]]) -> None:
        """Let every row have further tokens of its answer, which are to be read."""
        self.tokens = [
            tokens.written(ids) for tokens, ids in zip(self.tokens, written, strict=True)
        ]

    def kept(self) -> list[Prefix]:
        """Per row, the KV of all it has read."""
        real = (self.kind != PAD).to(self.hf_model.device)
        return [self.cache.row(i, own) for i, own in enumerate(real)]

    def step(self, token: Tensor) -> Tensor:
        """Feed one token [B] per request to all its rows; float32 logits [rows, V] of the next."""
        fed = token[torch.tensor([r for r, _ in self.rows])][:, None]
        channels = self.tokens[0].position.shape[0]
        position = self.position[None, :, None].expand(channels, -1, -1)
        ones = torch.ones(len(self.rows), 1)
        self._extend((ones * GENERATED).to(torch.int8), (ones * -1).to(torch.int16), ones.bool())
        metadata = self._metadata(self.length_now[:, None], prompting=False)
        self.position, self.length_now = self.position + 1, self.length_now + 1
        return self._call(fed, position, metadata, [])

    def branch(self, i: int) -> Branched | None:
        """What `Step.branch` gives the i-th part, of all requests."""
        kept = self.context.branch(self.order.index(i)) if i in self.order else None
        return branch(self.hf_model.model, self.hf_model.family, kept)

    def glances(self) -> list[Glance]:
        """Per request, where the last forward's attention on the image lay; see `Probe`."""
        place = explaining(self.plan)
        if place is None:
            return []
        seen = carried(self.context.carry[self.order.index(place)])
        glances: list[Glance] = []
        for r, request in enumerate(self.requests):
            at, row = self.rows.index((r, "main")), request.rows["main"]
            spans = rasters(row, self.hf_model.family)
            glances.append(glance(on_image(seen[r], self.picture[at]), row, spans))
        return glances

    def select(self, requests: Sequence[int], *, drop_prefill_rows: bool = False) -> None:
        """Keep or repeat requests, in the order given."""
        old = {place: i for i, place in enumerate(self.rows)}
        names = dict.fromkeys(name for _, name in self.rows)
        kept = [
            (j, name, old[r, name])
            for name in names
            for j, r in enumerate(requests)
            if (r, name) in old
            and not (drop_prefill_rows and self._row((r, name)).life == "prefill")
        ]
        at = torch.tensor([row for _, _, row in kept])
        chosen = torch.tensor(list(requests))
        self.requests = [self.requests[r] for r in requests]
        self.rows = [(j, name) for j, name, _ in kept]
        self.tokens = [self.tokens[int(i)] for i in at]
        self.cache.batch_select_indices(at.to(self.hf_model.device))
        self.kind, self.picture, self.mask = self.kind[at], self.picture[at], self.mask[at]
        self.length, self.length_now, self.position = (
            self.length[at],
            self.length_now[at],
            self.position[at],
        )
        self.index = self._make_index()
        self.states = self._stack_states()
        self.context.select(at, chosen, self._context_index(), [self.states[i] for i in self.order])

    def admit(
        self, late: Mapping[int, PreparedRequest], kept: Mapping[tuple[int, str], Prefix]
    ) -> None:
        """Let further rows run in the forwards to come.

        Args:
            late: Numbers of requests -> the same requests with all their rows.
            kept: The further rows' KV; they have read as much as their main rows.
        """
        self.requests = [late.get(r, request) for r, request in enumerate(self.requests)]
        if kept:
            self._add_rows(kept)
        self.index = self._make_index()
        self.states = self._stack_states()
        self.context.index = self._context_index()
        self.context.states = [self.states[i] for i in self.order]

    def _add_rows(self, kept: Mapping[tuple[int, str], Prefix]) -> None:
        tokens = [self.hf_model.tokens(self._row(place)) for place in kept]
        written = [
            own.length - len(row.ids) for row, own in zip(tokens, kept.values(), strict=True)
        ]
        whole = [row.written([0] * n) for row, n in zip(tokens, written, strict=True)]
        self.rows += kept
        self.tokens += tokens
        self.length = torch.cat([self.length, torch.tensor([len(row.ids) for row in tokens])])
        self.length_now = torch.cat([self.length_now, torch.tensor([len(r.ids) for r in whole])])
        after = torch.tensor([int(row.position.max()) + 1 for row in whole])
        self.position = torch.cat([self.position, after])
        _, _, kind, picture, hidden = pad_left(whole, whole[0].position.shape[0], 0)
        before = self.kind.shape[1]
        self.kind = stacked(self.kind, kind, PAD)
        self.picture = stacked(self.picture, picture, -1)
        self.mask = stacked(self.mask, (kind != PAD) & ~hidden, 0)
        width = self.kind.shape[1]
        self.context.admit(width - before, len(kept))
        self.cache.add(list(kept.values()), width)

    def _row(self, place: tuple[int, str]) -> Row:
        return self.requests[place[0]].rows[place[1]]

    def _make_index(self) -> list[dict[str, RowPlacement]]:
        """Per part: local row name -> its batch row for every request.

        A request whose branches lack a row another one has (no picture, say) reads its main row
        there; a row that was dropped is left out. Where only some requests' rows have begun, the
        others are shown one of these: nothing of theirs depends on it until they begin.
        """
        place = {key: i for i, key in enumerate(self.rows)}
        index: list[dict[str, RowPlacement]] = []
        for i in range(len(self.plan.parts)):
            named: dict[str, RowPlacement] = {}
            for name in dict.fromkeys(
                name for request in self.requests for name in request.local[i]
            ):
                at = [
                    place.get((r, request.local[i].get(name, "main")))
                    for r, request in enumerate(self.requests)
                    if name == "main" or not request.main_only
                ]
                rows = [row for row in at if row is not None]
                if len(rows) < len(at):
                    continue
                begun = iter(rows)
                named[name] = RowPlacement.of(
                    [
                        rows[0] if request.main_only and name != "main" else next(begun)
                        for request in self.requests
                    ]
                )
            index.append(named)
        return index

    def _stack_states(self) -> list[State]:
        states: list[State] = []
        for i in range(len(self.plan.parts)):
            state = stack([request.state[i] for request in self.requests])
            states.append({k: _on(v, self.hf_model.device) for k, v in state.items()})
        return states

    def _context_index(self) -> list[dict[str, RowPlacement]]:
        return [self.index[i] for i in self.order]

    def _read_on(self, cut: Sequence[int], features: Sequence[Tensor]) -> Tensor:
        """A forward over what every row has beyond its first ``cut`` tokens, which were read."""
        rest = [tokens.cut(n) for tokens, n in zip(self.tokens, cut, strict=True)]
        pad = self.row_builder.inputs.pad_token
        ids, position, kind, picture, hidden = pad_left(rest, rest[0].position.shape[0], pad)
        self._extend(kind, picture, (kind != PAD) & ~hidden)
        inside = (kind != PAD).cumsum(-1) - 1 + torch.tensor(cut)[:, None]
        metadata = self._metadata(inside.where(kind != PAD, torch.tensor(-1)))
        if self.hf_model.reads_unpadded:
            metadata.unpadded = Unpadded.of(kind != PAD, self.hf_model.device)
        return self._call(ids, position, metadata, features)

    def _call(
        self, ids: Tensor, position: Tensor, metadata: AttentionMetadata, features: Sequence[Tensor]
    ) -> Tensor:
        self.context.begin(metadata, emitting=True)
        given = (ids, position, self.mask.long(), self.cache, features)
        with hooked(self.hf_model.model, self.hf_model.family, self.context):
            if not attention_is_ours(self.hf_model.model):
                metadata.unpadded = None  # a block is right under any; edits left out are noticed
            kind, whole = self.kind[:, -len(ids[0]) :], self.context.within
            return self.hf_model.forward(*given, metadata.unpadded, kind, whole)

    def _extend(self, kind: Tensor, picture: Tensor, mask: Tensor) -> None:
        self.kind = torch.cat([self.kind, kind], 1)
        self.picture = torch.cat([self.picture, picture], 1)
        self.mask = torch.cat([self.mask, mask], 1)

    def _metadata(self, position: Tensor, *, prompting: bool = True) -> AttentionMetadata:
        device = self.hf_model.device
        tensors = (self.kind, self.picture, position, self.length)
        return AttentionMetadata(*(x.to(device) for x in tensors), prompting)

    # Image prefixes -------------------------------------------------------------------------------
    def _prefixes(self, kept: LRU[Prefix], own: Sequence[Prefix | None]) -> list[Prefix | None]:
        """Each row's own KV or its image prefix (None without pictures), missing ones computed."""
        every = self.plan.reusable
        hooks = [self._prefix_hooks(name) for _, name in self.rows]
        keys = [
            self.row_builder.prefix_key(self._row(place), hook)
            if self._row(place).prefix and has is None and (place[1] == "main" or every)
            else None
            for place, hook, has in zip(self.rows, hooks, own, strict=True)
        ]
        by_key: dict[str, Prefix] = {}
        missing: dict[str, int] = {}
        for i, key in enumerate(keys):
            entry = kept.get(key) if key else None
            if entry is not None and key:
                by_key[key] = entry
            elif key and key not in by_key:
                missing.setdefault(key, i)
        if missing:
            by_key |= self._fill_prefixes(missing)
            for key in missing:
                kept.put(key, by_key[key])
        return [by_key[key] if key else has for key, has in zip(keys, own, strict=True)]

    def _prefix_hooks(self, name: str) -> str:
        if name != "main" or not self.context.parts:
            return ""
        return str(
            [(p.strategy.name, sorted(p.strategy.resolved().items())) for p in self.context.parts]
        )

    def _fill_prefixes(self, missing: Mapping[str, int]) -> dict[str, Prefix]:
        at = list(missing.values())
        tokens = [self.tokens[i].cut(0, self._row(self.rows[i]).prefix) for i in at]
        main = [n for n, i in enumerate(at) if self.rows[i][1] == "main"]
        parts = self.context.parts if main else ()
        places = [{"main": RowPlacement.of(main)} for _ in parts]
        context = ForwardContext(parts, places, [{} for _ in parts], decode=self.decode)
        ids, position, kind, picture, hidden = pad_left(
            tokens, tokens[0].position.shape[0], self.row_builder.inputs.pad_token
        )
        inside = ((kind != PAD).cumsum(-1) - 1).where(kind != PAD, torch.tensor(-1))
        length = torch.full((len(at),), ANY_LENGTH)
        device = self.hf_model.device
        context.begin(
            AttentionMetadata(*(x.to(device) for x in (kind, picture, inside, length))),
            emitting=False,
        )
        cache = self.hf_model.cache()
        features = self.hf_model.features([f for i in at for f in self._row(self.rows[i]).images])
        mask = ((kind != PAD) & ~hidden).long()
        with hooked(self.hf_model.model, self.hf_model.family, context):
            self.hf_model.forward(ids, position, mask, cache, features, whole=context.within)
        context.check_fired()
        width = ids.shape[1]
        prefixes: dict[str, Prefix] = {}
        for n, key in enumerate(missing):
            pad = width - len(tokens[n].ids)
            prefixes[key] = cache.row(n, kind[n].to(device) != PAD)
            if n in main:
                prefixes[key].token_masks.update(of_row(context.token_masks, n, pad))
        return prefixes

    def _lay(self, prefixes: Sequence[Prefix | None], cut: Sequence[int]) -> None:
        """Put prefixes into the cache, right-aligned, with their kinds and token masks."""
        heads = [self.tokens[i].cut(0, n) for i, n in enumerate(cut)]
        _, _, self.kind, self.picture, hidden = pad_left(heads, heads[0].position.shape[0], 0)
        self.mask = (self.kind != PAD) & ~hidden
        width = self.kind.shape[1]
        if not any(cut):
            return
        self.cache.lay(prefixes, width)
        names = {name for prefix in prefixes if prefix for name in prefix.token_masks}
        for name in names:
            mask = torch.zeros(len(prefixes), width, dtype=torch.bool, device=self.hf_model.device)
            for i, prefix in enumerate(prefixes):
                if prefix is not None and name in prefix.token_masks:
                    mask[i, width - len(prefix.token_masks[name]) :] = prefix.token_masks[name]
            self.context.token_masks[name] = mask


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _decoded(hf_model: HFModel, x: Tensor, norm: bool, tokens: Tensor | None = None) -> Tensor:
    """See `hooks.decode`."""
    return decode(hf_model.model, hf_model.family, x, norm=norm, tokens=tokens)
