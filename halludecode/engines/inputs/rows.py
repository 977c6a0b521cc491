"""From one request under a plan to the rows of the forward: render, edit, deduplicate, identify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from halludecode.core.activations import ActivationRequest
from halludecode.core.branch import Branch, Edit, TowerEdit
from halludecode.core.errors import InvalidRequest
from halludecode.core.plan import Plan
from halludecode.core.prompt import Picture, Prompt, digest
from halludecode.core.row_names import free_name, row_hooks
from halludecode.engines.inputs.processor import InputProcessor, ProcessedImage

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageInput:
    """One picture of one row: its (edited) pixels, and what is done to its features.

    Args:
        key: Digest of the picture and of every edit of pixels, features and visibility.
        pixel_key: Digest of the picture and the edits before the vision tower.
        picture: What was preprocessed, edited already if ``images`` was.
        processed: What came of it, before the edits that follow.
        pixels: The processor's output with ``pixel_values`` edited.
        tower: Edit within the vision tower.
        features: Edit of the projected features [N, D], with the digest and index it is seeded by.
        hidden: bool [n] tokens the row never sees.
    """

    key: str
    pixel_key: str
    picture: Picture
    processed: ProcessedImage
    pixels: Mapping[str, Tensor]
    count: int
    tower: TowerEdit | None = None
    features: tuple[Edit, str, int, Mapping[str, Any]] | None = None
    hidden: Tensor | None = None

    @property
    def unedited_key(self) -> str:
        """Digest of the pixels before any edit: other ones than alone where several are apart."""
        return _unedited_key(self.picture, self.processed)

    @property
    def tower_key(self) -> str:
        """Digest of everything before the projected features."""
        return self.pixel_key if self.tower is None else digest(self.pixel_key, self.tower.key)


@dataclass(frozen=True)
class Row:
    """What one row of the forward is fed; `engine.rows` returns these without generating.

    Args:
        name: Name in the batch, "main" first.
        prompt: Rendered text, one placeholder per picture.
        input_ids: int64 [T], placeholders expanded.
        pixel_values: Float32, all pictures along the first axis as the processor gives them; None
            without pictures.
        embeds: Edited features [n, D] of all pictures; None where features are not edited.
        hidden: bool [N_img], image tokens this row never sees; None if it sees all.
        life: "answer", or "prefill" for rows dropped after the first token.
        in_line: Its image tokens were chosen (`Branch.tokens`) and form no raster any more, however
            many they are: their positions stand in line, like words.
    """

    name: str
    prompt: str
    input_ids: Tensor
    pixel_values: Tensor | None
    embeds: Tensor | None
    hidden: Tensor | None
    life: str
    key: str
    images: tuple[ImageInput, ...] = field(repr=False)
    prefix: int = field(repr=False, default=0)  # tokens up to the last image token
    in_line: bool = False
    _view: Any = field(repr=False, default=None)

    def picture(self, index: int = 0) -> Image:
        """The picture as this row sees it, un-normalised, as a PIL image."""
        if not self.images:
            raise InvalidRequest(f"Row {self.name!r} has no picture.")
        return self._view(self.images[index].pixels)


@dataclass(frozen=True)
class PreparedRequest:
    """One request: its rows, each strategy's names for them, and each strategy's state.

    Args:
        prompt: As the main row reads it.
        rows: By their names in the batch, "main" first.
        local: Per strategy: its own name for a row -> the name in ``rows``.
        state: Per strategy, what `prepare` returned.
        main_only: The other rows have not begun, and are not among ``rows``.
    """

    prompt: Prompt
    rows: Mapping[str, Row]
    local: tuple[Mapping[str, str], ...]
    state: tuple[Mapping[str, Any], ...]
    main_only: bool = False


class RowBuilder:
    """Builds the rows of requests for one model."""

    def __init__(self, inputs: InputProcessor, show: Any) -> None:
        self.inputs = inputs
        self._show = show

    def prepare(
        self,
        prompt: Prompt,
        plan: Plan,
        state: Sequence[Mapping[str, Any]],
        *,
        main_only: bool = False,
    ) -> PreparedRequest:
        """Rows of every strategy's branches: main edits first, equal rows shared.

        Args:
            prompt: As it was asked.
            plan: What runs.
            state: Per strategy, what its `prepare` gave.
            main_only: Leave out all other rows, and ask nothing of what only they need.
        """
        main, owner = Branch(prompt), dict[str, Any]()
        extra: list[tuple[int, str, Branch]] = []
        for i, part in enumerate(plan.parts):
            if main_only and "main" not in part.branches:
                continue
            edited = part.strategy.branches(main.prompt, state[i], part.model_info).get("main")
            if edited is not None:
                main, owner = edited, state[i]
        for i, part in enumerate(() if main_only else plan.parts):
            if not part.extra:
                continue
            branches = part.strategy.branches(main.prompt, state[i], part.model_info)
            extra += [(i, name, b) for name, b in branches.items() if name != "main"]
        rows = {"main": self._row("main", main, row_hooks(plan.parts, None, "main"), owner)}
        local: list[dict[str, str]] = [{"main": "main"} for _ in plan.parts]
        made: dict[tuple[str, str], str] = {}  # branches that look at no state
        for i, name, branch in extra:
            part = plan.parts[i]
            hooks = row_hooks(plan.parts, part, name)
            same = None if state[i] else made.get((branch.key, hooks))
            if same is None:
                label = free_name(name, part.strategy.name, rows)
                row = self._row(label, branch, hooks, state[i])
                same = next((r.name for r in rows.values() if r.key == row.key), label)
                rows.setdefault(same, row)
            if not state[i]:
                made[branch.key, hooks] = same
            local[i][name] = same
        return PreparedRequest(main.prompt, rows, tuple(local), tuple(state), main_only)

    def activation_row(self, request: ActivationRequest) -> Row:
        """The single row of a pass of the plain model."""
        row = self._row("main", Branch(request.prompt, pixels=request.pixels), "", {})
        if not request.answered:
            return row
        answered = torch.tensor(request.answered)
        # A placeholder that a model writes stands for no picture, so it is read as padding is.
        answered[answered == self.inputs.image_token] = self.inputs.pad_token
        ids = torch.cat([row.input_ids, answered])
        return replace(row, input_ids=ids, key=digest(row.key, request.answered))

    def _row(self, name: str, branch: Branch, hooks: str, state: Mapping[str, Any]) -> Row:
        prompt = branch.read()
        if branch.images is not None:
            edited = [
                Picture.of(branch.images(p.image, edited=p.key, index=i, state=state))
                for i, p in enumerate(prompt.pictures)
            ]
            prompt = prompt.replace_pictures(edited)
        text, short = self.inputs.encode(prompt)
        several = len(prompt.pictures) > 1
        processed = [self.inputs.picture(p, several=several) for p in prompt.pictures]
        words = self.inputs.encoder_words(text) if processed else {}
        images = [
            _image_input(branch, picture, image, i, state, words)
            for i, (picture, image) in enumerate(zip(prompt.pictures, processed, strict=True))
        ]
        if branch.tokens is not None:
            processed = [_shrink(x, branch.tokens, self.inputs.image_token) for x in processed]
        ids = self.inputs.expand(short, processed)
        hidden = [image.hidden for image in images if image.hidden is not None]
        last = max((i + 1 for i, t in enumerate(ids) if t == self.inputs.image_token), default=0)
        return Row(
            name=name,
            prompt=text,
            input_ids=torch.tensor(ids),
            pixel_values=_pixels_of(images, self.inputs.strip),
            embeds=None,
            hidden=torch.cat(hidden) if hidden else None,
            life=branch.life,
            key=digest(text, *(image.key for image in images), hooks, branch.life),
            images=tuple(images),
            prefix=last if last < len(ids) else 0,  # a question must remain
            in_line=branch.tokens is not None,
            _view=self._show,
        )

    def prefix_key(self, row: Row, hooks: str) -> str:
        """Identity of a row's KV up to its last image token."""
        ids = row.input_ids[: row.prefix].tolist()
        return digest(ids, *(image.key for image in row.images), hooks)


def seen_spans(row: Row) -> tuple[tuple[int, int, int], ...]:
    """Per picture of a row: where its overview lies among all its image tokens."""
    spans, offset = list[tuple[int, int, int]](), 0
    for image in row.images:
        first, rows, columns = image.processed.span
        spans.append((offset + first, rows, columns))
        offset += image.processed.count
    return tuple(spans)


def with_embeds(row: Row, features: Sequence[Tensor]) -> Row:
    """The row with its edited features shown, if it edits any."""
    edited = any(image.features is not None for image in row.images)
    return replace(row, embeds=torch.cat(list(features))) if edited else row


def _unedited_key(picture: Picture, processed: ProcessedImage) -> str:
    return digest(picture.key, "several") if processed.several else picture.key


def _image_input(
    branch: Branch,
    picture: Picture,
    processed: ProcessedImage,
    index: int,
    state: Mapping[str, Any],
    words: Mapping[str, Tensor],
) -> ImageInput:
    key, pixels = _unedited_key(picture, processed), dict(processed.pixels)
    if branch.pixels is not None:
        edited = branch.pixels(pixels["pixel_values"], edited=key, index=index, state=state)
        if edited.shape != pixels["pixel_values"].shape:
            raise InvalidRequest(
                f"Edit {branch.pixels.fn.__qualname__}: pixels changed shape from "
                f"{list(pixels['pixel_values'].shape)} to {list(edited.shape)}; it must be kept."
            )
        pixels["pixel_values"] = edited.float()
        key = digest(key, "pixels", branch.pixels.key, index, edited.numpy().tobytes())
    if words:  # the features belong to these words
        pixels |= words
        key = digest(key, "asked", *(value.tolist() for value in words.values()))
    pixel_key, features = key, None
    if branch.tower is not None:
        key = digest(key, branch.tower.key)
    if branch.features is not None:
        features = (branch.features, key, index, state)
        used = [state[name][index].numpy().tobytes() for name in branch.features.use]
        key = digest(key, "features", branch.features.key, index, branch.tokens, *used)
    count = processed.count if branch.tokens is None else branch.tokens
    hidden = None
    if branch.mask is not None:
        hidden = branch.mask(
            torch.zeros(count, dtype=torch.bool), edited=key, index=index, state=state
        )
        key = digest(key, "hide", hidden.tolist())
    tower = branch.tower
    return ImageInput(key, pixel_key, picture, processed, pixels, count, tower, features, hidden)


def joined(parts: Sequence[Tensor], *, strip: bool = False) -> Tensor:
    """Along the first axis, the others padded with zeros at their ends; strips along the last."""
    if strip:
        return torch.cat(list(parts), -1)
    shape = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].dim())]
    missing = [[m - n for n, m in zip(part.shape[1:], shape, strict=True)] for part in parts]
    pads = [[pad for m in reversed(short) for pad in (0, m)] for short in missing]
    return torch.cat([functional.pad(p, pad) for p, pad in zip(parts, pads, strict=True)])


def _pixels_of(images: Sequence[ImageInput], strip: bool) -> Tensor | None:
    return (
        joined([image.pixels["pixel_values"] for image in images], strip=strip) if images else None
    )


def _shrink(image: ProcessedImage, count: int, image_token: int) -> ProcessedImage:
    first = image.expansion.index(image_token)
    kept = tuple(t for t in image.expansion if t != image_token)
    return replace(
        image, expansion=kept[:first] + (image_token,) * count + kept[first:], count=count
    )
