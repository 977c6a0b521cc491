"""The model as the engine uses it: picture features, positions, and one forward over many rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from halludecode.core.attention_block import GENERATED, IMAGE, PAD, SYSTEM, TEXT
from halludecode.core.errors import InvalidModel, InvalidRequest
from halludecode.engines.hf.hooks import last_token
from halludecode.engines.hf.release import CACHE, check_release, last_kept
from halludecode.engines.hf.row_cache import RowCache
from halludecode.engines.hf.unpadded import Unpadded
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.inputs.rows import ImageInput, Row, joined
from halludecode.models.family import ModelFamily, switch_to_try
from halludecode.models.info import model_info
from halludecode.models.vision_tower import edited

FULL = "full_attention"  # what transformers calls layers that see all keys
KINDS = {"picture": "token_type_ids", "near": "mm_token_type_ids"}  # what tells pictures' tokens
VISION_BATCH = 64  # views of pictures per call of the vision tower


@dataclass(frozen=True)
class Tokens:
    """A stretch of one row.

    Args:
        ids: int64 [T].
        position: int64 [C, T], C = 3 with mrope, else 1.
        kind: int8 [T], see `core.attention.RowKeys`.
        picture: int16 [T], index of the picture an image token belongs to, else -1.
        hidden: bool [T], never visible to the row.
    """

    ids: Tensor
    position: Tensor
    kind: Tensor
    picture: Tensor
    hidden: Tensor

    def cut(self, start: int, stop: int | None = None) -> Tokens:
        """Tokens start..stop."""
        at = slice(start, stop)
        return Tokens(
            self.ids[at], self.position[:, at], self.kind[at], self.picture[at], self.hidden[at]
        )

    def written(self, ids: Sequence[int]) -> Tokens:
        """The row with the answer's tokens after its prompt."""
        count = len(ids)
        after = int(self.position.max()) + 1 + torch.arange(count)
        fields = (
            torch.tensor(ids, dtype=self.ids.dtype),
            after.expand(len(self.position), -1),
            torch.full((count,), GENERATED, dtype=torch.int8),
            torch.full((count,), -1, dtype=torch.int16),
            torch.zeros(count, dtype=torch.bool),
        )
        own = (self.ids, self.position, self.kind, self.picture, self.hidden)
        return Tokens(*(torch.cat([a, b], -1) for a, b in zip(own, fields, strict=True)))


@dataclass
class EncodedImages(BaseModelOutputWithPooling):
    """Picture features as any family's forward takes them.

    Args:
        deepstack_features: Qwen3-VL: per early layer, a tensor [n, D] per picture.
        visual_indicator_features: Ovis 2: of the tokens around pictures, the same for all of them.
        vision_outputs: InstructBLIP hands it on, nobody reads it.
        qformer_outputs: As ``vision_outputs``.
    """

    deepstack_features: list[list[Tensor]] | None = None
    visual_indicator_features: Tensor | None = None
    vision_outputs: Any = None
    qformer_outputs: Any = None


class HFModel:
    """A loaded model as the engine runs it.

    Args:
        model: Any `transformers` image-text-to-text model of a known family.
        family: What sets its family apart.

    Attributes:
        info: The model's numbers.
        calls: Forward passes of the language model so far.
    """

    def __init__(self, model: Any, family: ModelFamily) -> None:
        check_release(type(model), model.config.model_type)
        self.model = model
        self.family = family
        self.info = model_info(model.config)
        self.calls = 0
        # Some outer models do not hand it on.
        whole = hasattr(model, "get_image_features")
        self._encoder = (model if whole else model.model).get_image_features
        self._around: Tensor | None = None  # features of marks around pictures, of no picture's own
        self._features: LRU[Tensor] = LRU(256e6, lambda f: f.numel() * f.element_size())

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def context(self) -> int:
        """Most tokens a row may have."""
        text = self.model.config.get_text_config()
        # Llama 4's layers without rotation count padding, which tells from floor_scale tokens on.
        scale = getattr(text, "floor_scale", None) or 1 << 30
        chunk = getattr(text, "attention_chunk_size", None) or scale
        return min(getattr(text, "max_position_embeddings", None) or 1 << 30, chunk, scale - 1)

    def clear_features(self) -> None:
        """Forget the features of all pictures."""
        self._features.clear()

    def cache(self) -> RowCache:
        """An empty KV cache; it keeps tokens that left a sliding window, as edits count them."""
        hybrid = bool(self.info.recurrent)
        return RowCache(self.model.config.get_text_config() if hybrid else None)

    @cached_property
    def reads_unpadded(self) -> bool:
        """Whether rows may be laid end to end: where a mask of our own says all that is seen."""
        text = self.model.config.get_text_config()
        plain = ("sliding_attention" if getattr(text, "sliding_window", None) else FULL,)
        kinds = set(getattr(text, "layer_types", None) or plain)
        return kinds == {FULL} and not self.family.mutual and not self.family.unused

    def tokens(self, row: Row) -> Tokens:
        """Everything the forward needs to know about a row's prompt."""
        ids = row.input_ids
        is_image = ids == self.model.config.image_token_id
        kind = torch.full(ids.shape, SYSTEM, dtype=torch.int8)
        number = torch.full(ids.shape, -1, dtype=torch.int16)
        hidden = torch.zeros(ids.shape, dtype=torch.bool)
        if row.images:
            first = int(is_image.nonzero()[0])
            kind[first:] = TEXT
            kind[is_image] = IMAGE
            counts = torch.tensor([image.count for image in row.images])
            number[is_image] = torch.arange(len(counts)).repeat_interleave(counts).to(torch.int16)
        if row.hidden is not None:
            hidden[is_image] = row.hidden
        return Tokens(ids, self._positions(row, is_image), kind, number, hidden)

    @torch.no_grad()
    def features(self, images: Sequence[ImageInput]) -> list[Tensor]:
        """Projected features [n, D] of pictures, each encoded once; edits applied in float32."""
        missing = {f.tower_key: f for f in images if self._features.get(f.tower_key) is None}
        fresh: dict[str, Tensor] = {}
        for chunk in _batches(list(missing.values())):
            fresh |= self.encode(chunk)
        out: list[Tensor] = []
        for image in images:
            base = fresh.get(image.tower_key)
            if base is None:
                base = _need(self._features.get(image.tower_key), image)
            if len(base) != image.processed.count:
                raise InvalidModel(
                    f"The processor writes {image.processed.count} tokens for a picture of which "
                    f"this model makes {len(base)}; the processor's config does not belong to the "
                    "model's."
                )
            if image.features is not None:
                edit, edited, index, state = image.features
                base = edit(base.float(), edited=edited, index=index, state=state).to(base.dtype)
            out.append(base)
        for key, value in fresh.items():
            self._features.put(key, value)
        return out

    @torch.no_grad()
    def forward(
        self,
        ids: Tensor,
        position: Tensor,
        mask: Tensor,
        cache: Any,
        features: Sequence[Tensor] = (),
        unpadded: Unpadded | None = None,
        kind: Tensor | None = None,
        whole: bool = False,
    ) -> Tensor:
        """One pass over all rows; float32 logits [rows, V] of the last token.

        Args:
            ids: int64 [rows, Q], left-padded.
            position: int64 [C, rows, Q].
            mask: int64 [rows, N] of visible keys, this forward's included.
            cache: The rows' KV, extended in place.
            features: Of every picture in ``ids``, row by row.
            unpadded: How to lay the rows end to end; None reads them as the block they are.
            kind: int8 [rows, Q], see `Tokens`; None is all of the prompt.
            whole: Whether every layer must compute all tokens, see `release.last_kept`.
        """
        self.calls += 1
        device, keep = self.device, last_kept(1) if whole else 1
        if unpadded is not None:
            mask, keep = unpadded.visible(mask), unpadded.last
            ids, position = unpadded.joined(ids), torch.stack([*map(unpadded.joined, position)])
            cache.unpadded = unpadded
        with self._told_by_switch(encoding=False), last_token(self.model):
            out = self.model(
                position_ids=(position if self.family.mrope else position[0]).to(device),
                attention_mask=mask.to(device),
                **{CACHE: cache},
                use_cache=True,
                logits_to_keep=keep,
                **self.given(ids, features, kind),
            )
        cache.unpadded = None
        return (out.logits[:, -1] if unpadded is None else out.logits[0]).float()

    def encode(self, images: Sequence[ImageInput]) -> dict[str, Tensor]:
        """One pass of the vision tower and projector: features [N, D] by the pictures' keys."""
        names = images[0].pixels.keys()
        strip = "pixel_values" if self.family.strip else ""
        parts = {name: [image.pixels[name] for image in images] for name in names}
        inputs = {n: joined(p, strip=n == strip).to(self.device) for n, p in parts.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        if self.family.nested:
            if not inputs["pixel_values"].flatten(1).any(1).all():
                raise InvalidRequest(
                    "A view of a picture has no pixel other than 0, which family "
                    f"{self.model.config.model_type!r} takes for padding; use an edit of pixels "
                    "that leaves something to see."
                )
            inputs = {name: value[None] for name, value in inputs.items()}
        with self._told_by_switch(encoding=True), edited(self.model, self.info, images[0].tower):
            encoded = self._encoder(**inputs, return_dict=True)
        self._around = getattr(encoded, "visual_indicator_features", None)
        deep = getattr(encoded, "deepstack_features", None) or ()
        levels = [self._projected(encoded), *deep]
        counted = "target_sizes" if self.family.strip else "pixel_values"
        views = [len(image.pixels[counted]) for image in images]
        own = zip(*(_by_picture(level, views) for level in levels), strict=True)
        return {image.tower_key: torch.cat(f, -1) for image, f in zip(images, own, strict=True)}

    def _projected(self, encoded: Any) -> Any:
        if not self.family.projector:
            return encoded.pooler_output
        return self.model.get_submodule(self.family.projector)(encoded.last_hidden_state)

    def given(
        self, ids: Tensor, features: Sequence[Tensor], kind: Tensor | None = None
    ) -> dict[str, Any]:
        """Tokens, and arguments that carry picture features, deepstack layers' side by side."""
        family = self.family
        extra = {"input_ids": ids.to(self.device), **dict[str, Any].fromkeys(family.unused)}
        if family.mutual == "prompt":  # 0 is of the prompt; read where the cache is empty
            written = torch.zeros_like(ids) if kind is None else (kind == GENERATED).long()
            extra["token_type_ids"] = written.to(self.device)
        if not features and not family.unused:
            return extra
        image = (ids == self.model.config.image_token_id).to(self.device)
        if family.projector:
            words = self.model.get_input_embeddings()(extra["input_ids"])
            at = image[..., None].expand_as(words)
            return {"inputs_embeds": words.masked_scatter(at, torch.cat(list(features)))}
        if family.mutual in ("picture", "near"):
            extra[KINDS[family.mutual]] = image.long()
        embed = self.model.get_input_embeddings()
        # A model that insists gets what image tokens are without pictures: words.
        given = list(features) or [embed(ids.to(self.device)[image])]
        width = self.model.config.get_text_config().hidden_size
        pooled, *deep = zip(*(levels.split(width, -1) for levels in given), strict=True)
        extra["mm_encoder_outputs"] = {
            "image": EncodedImages(
                pooler_output=torch.cat(pooled)[:, None] if family.packed else list(pooled),
                deepstack_features=[list(level) for level in deep],
                visual_indicator_features=self._around,
            )
        }
        return extra

    @contextmanager
    def _told_by_switch(self, *, encoding: bool) -> Iterator[None]:
        """A row of `FAMILIES` that does not fit its model ends in the switch to try."""
        try:
            yield
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            switch = switch_to_try(error, self.family, encoding=encoding)
            if not switch:
                raise
            raise InvalidModel(
                f"Family {self.model.config.model_type!r} does not take pictures as its row says "
                f"({type(error).__name__}: {error}); try {switch} in its row of "
                "halludecode/models/families.py."
            ) from error

    def _positions(self, row: Row, is_image: Tensor) -> Tensor:
        if not self.family.mrope:
            return torch.arange(len(row.input_ids))[None] + self.family.origin
        if not row.images or row.in_line:
            return torch.arange(len(row.input_ids)).expand(3, -1)
        grid = torch.cat([image.pixels["image_grid_thw"] for image in row.images])
        position, _ = self.model.model.get_rope_index(
            row.input_ids[None], mm_token_type_ids=is_image[None].int(), image_grid_thw=grid
        )
        return position[:, 0].cpu()


def _batches(images: Sequence[ImageInput]) -> Iterator[list[ImageInput]]:
    """Pictures in order, as many at a time as have `VISION_BATCH` views, or one with more."""
    chunk, views = list[ImageInput](), 0
    for image in images:
        pixels = image.pixels["pixel_values"]
        more = len(pixels) if pixels.dim() == 4 else 1  # else a picture is one list of patches
        # One picture beside others is one view, which the model tells by how many there are.
        alike = not chunk or (
            chunk[0].processed.several == image.processed.several and chunk[0].tower == image.tower
        )
        if chunk and (views + more > VISION_BATCH or not alike):
            yield chunk
            chunk, views = [], 0
        chunk.append(image)
        views += more
    if chunk:
        yield chunk


def _by_picture(features: Any, views: Sequence[int]) -> list[Tensor]:
    """[n, D] per picture, from a list of them or from [views, n, D] over all pictures."""
    if isinstance(features, list | tuple) and len(features) == 1 < len(views):
        # Idefics3's kind since transformers 5.20.1: all views of a sample in one list of tokens.
        features = features[0].unflatten(0, (sum(views), -1))
    if isinstance(features, list | tuple) and len(features) == sum(views) > len(views):
        rest = iter(features)  # LFM2-VL's: each view for itself, as large as it is
        features = [torch.cat([next(rest) for _ in range(n)]) for n in views]
    if isinstance(features, list | tuple):
        return [own.flatten(0, -2) for own in features]
    return [own.flatten(0, -2) for own in features.split(list(views))]


def _need(base: Tensor | None, image: ImageInput) -> Tensor:
    """Features must be there; a bound smaller than one batch would be a bug."""
    if base is None:
        raise RuntimeError(f"features of picture {image.tower_key} were dropped while in use")
    return base


def pad_left(
    rows: Sequence[Tokens], channels: int, pad: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `Tokens` over rows, left-padded to one width W; position is [C, rows, W]."""
    width, count = max(len(row.ids) for row in rows), len(rows)
    ids = torch.full((count, width), pad)
    position = torch.zeros(channels, count, width, dtype=torch.long)
    kind = torch.full((count, width), PAD, dtype=torch.int8)
    picture = torch.full((count, width), -1, dtype=torch.int16)
    hidden = torch.zeros(count, width, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = width - len(row.ids)
        ids[i, at:], position[:, i, at:] = row.ids, row.position
        kind[i, at:], picture[i, at:], hidden[i, at:] = row.kind, row.picture, row.hidden
    return ids, position, kind, picture, hidden
