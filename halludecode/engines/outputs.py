"""From a finished answer to what the user is told of it; the same on both engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from halludecode.core.plan import Plan
from halludecode.engines.inputs.rows import PreparedRequest


class Traces(Protocol):
    """What an engine noted while it wrote an answer."""

    @property
    def changed(self) -> bool:
        """An edit inside the model changed something."""
        ...

    @property
    def started(self) -> bool:
        """Rows beside main took part."""
        ...

    @property
    def differs(self) -> int | None:
        """Emitted tokens that are not the main row's own choice."""
        ...


IDLE = "edited nothing inside the model"  # of a warning that an answer carries


def effect_of(
    plan: Plan, answer: Traces, request: PreparedRequest
) -> tuple[int | None, tuple[str, ...]]:
    """Tokens that differ from the plain model's, where that is known without a second run."""
    attends = [
        part
        for part in plan.parts
        if part.steers
        or (part.phase is not None and (answer.started or "main" in part.attend_rows))
    ]
    warnings: list[str] = []
    if plan.parts and not request.prompt.pictures:
        warnings.append(
            f"{plan.canonical}: the request has no image, so there is nothing to ground in."
        )
    for part in plan.parts:
        scheme = part.strategy.trained
        if scheme and part.model_info.scheme != scheme:
            warnings.append(
                f"{part.strategy.name}: these weights were not trained with {scheme!r} (their "
                "config's `halludecode_scheme` does not say so), so the answer shows what it does "
                "to a model that never learned it, not the paper's method."
            )
    if attends and not answer.changed:
        names = "+".join(part.strategy.name for part in attends)
        warnings.append(f"{names} {IDLE} in this answer: nothing met the strategy's conditions.")
    on_main = any(part.steers or "main" in part.attend_rows for part in attends)
    if "main prompt" in plan.needs or (on_main and answer.changed):
        return None, tuple(warnings)  # the main row was not the plain model's
    return answer.differs, tuple(warnings)


def settled(text: str, stops: Sequence[str]) -> str:
    """Text that later tokens cannot change: no half character, no start of a stop string."""
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    for stop in stops:
        for size in range(len(stop) - 1, 0, -1):
            if text.endswith(stop[:size]):
                return text[:-size]
    return text


def shower(processor: Any, family: Any) -> Any:
    """Normalised pixels of one picture -> the PIL image the model sees."""

    def show(pixels: Mapping[str, Tensor]) -> Any:
        from PIL import Image

        images = processor.image_processor
        view = family.view(pixels, images)
        shown = view.float()
        if getattr(images, "do_normalize", True) is not False:
            mean, std = torch.tensor(images.image_mean), torch.tensor(images.image_std)
            shown = shown * std[:, None, None] + mean[:, None, None]
        shown = shown.clamp(0, 1) * 255
        return Image.fromarray(shown.round().byte().permute(1, 2, 0).numpy())

    return show
