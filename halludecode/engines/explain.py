"""What each written token owed to the picture, read in the forward that wrote it.

`Probe` is one more part of a plan: it adds the image-free row, which is shared with every strategy
that has the same one (m3id, pai), and reads the main row's attention without editing it. It has no
say in the scores, so the tokens are those of the plan without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halludecode.core import spec as hd_spec
from halludecode.core.branch import Branch
from halludecode.core.errors import InvalidParameter, UnsupportedStrategy
from halludecode.core.model_info import ModelInfo
from halludecode.core.params import param
from halludecode.core.plan import Plan
from halludecode.core.prompt import Prompt
from halludecode.core.state import State
from halludecode.core.strategy import Strategy
from halludecode.core.tracing import TracedStrategy, trace
from halludecode.engines.api import Explain, ExplainedToken, Explanation

if TYPE_CHECKING:
    from halludecode.core.attention import Attention
    from halludecode.engines.inputs.rows import Row
    from halludecode.models.family import ModelFamily
    from halludecode.models.image_layout import Span

BLIND = "blind"  # the name that strategies with this row give it
MODES = (False, True, "maps")


@dataclass(frozen=True)
class Probe(Strategy):
    """Reads, edits nothing; not registered, so no spec string names it."""

    name = "explain"
    maps: bool = param(False, "keep the attention of every image token, not only their sum")

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt without the image."""
        return {BLIND: Branch(prompt.without_images())} if prompt.pictures else {}

    def attend(self, a: Attention) -> None:
        """Leaves the layer's share of attention on the image, [R] or, with ``maps``, [R, N].

        Where another part edits many queries, blocks of them come in order: the last one holds the
        query that emits a token, and stays.
        """
        seen = a.weights(a.image) if self.maps else a.mass(a.image)
        a.carry[f"layer {a.layer}"] = seen[:, :, -1].mean(1)


@dataclass(frozen=True)
class Glance:
    """The attention on the image with which one token was predicted."""

    mass: float
    maps: tuple[Any, ...] = ()  # float32 [rows, columns] per picture


@dataclass(frozen=True)
class TokenReading:
    """One token's numbers, see `ExplainedToken`."""

    grounding: float
    entropy: float
    glance: Glance


def probed(plan: Plan, model_info: ModelInfo, explain: Explain) -> Plan:
    """The plan with the probe as its last part; its text and cost stay those of the plan itself.

    Raises:
        InvalidParameter: ``explain`` is none of its values.
        UnsupportedStrategy: The plan searches over beams.
    """
    if explain not in MODES:
        raise InvalidParameter(f'explain={explain!r}: it must be False, True or "maps".')
    if not explain:
        return plan
    if plan.search is not None:
        raise UnsupportedStrategy(
            f"{plan.canonical} settles on whole beams, so its tokens cannot be explained one by "
            "one; explain another strategy's answer."
        )
    part = _traced(explain == "maps", model_info)
    # "weights", whatever is read: the mean is over all heads, which a tensor-parallel rank lacks.
    needs = plan.needs | part.verbs | {"rows", "weights"}
    return replace(plan, parts=(*plan.parts, part), needs=needs)


def unprobed(plan: Plan) -> Plan:
    """The plan without its probe."""
    return plan if explaining(plan) is None else replace(plan, parts=plan.parts[:-1])


def parts_of(text: str) -> list[Any]:
    """The text of a plan's parts as `compile_plan` takes it, the probe among them."""
    head, _, last = text.rpartition("+")
    probes = {hd_spec.format((probe,)): probe for probe in (Probe(maps=False), Probe(maps=True))}
    if last not in probes:
        return [text]
    return [*([head] if head else []), probes[last]]


@cache
def _traced(maps: bool, model_info: ModelInfo) -> TracedStrategy:
    return trace(Probe(maps=maps), model_info)


def explaining(plan: Plan) -> int | None:
    """The probe's place among the parts of a plan; None where nothing is explained."""
    last = len(plan.parts) - 1
    return last if plan.parts and isinstance(plan.parts[last].strategy, Probe) else None


def carried(carry: Mapping[str, Tensor]) -> Tensor:
    """What the probe left in all layers of a forward, their mean: float32 [R] or [R, N]."""
    return torch.stack(list(carry.values())).mean(0).cpu()


def on_image(seen: Tensor, picture: Tensor) -> Tensor:
    """One request's share of `carried`, of image keys alone: float32 [] or [N_img].

    Args:
        seen: float32 [] or [N].
        picture: int16 [N or fewer], which picture a key belongs to, else -1.
    """
    return seen[: len(picture)][picture >= 0] if seen.dim() else seen


def glance(seen: Tensor, row: Row, spans: Sequence[Span]) -> Glance:
    """What `on_image` found, laid onto the pictures.

    Args:
        seen: float32 [] or [N_img].
        row: The main row.
        spans: Per picture, where its tokens form a raster; empty where none do.
    """
    if not seen.dim() or not spans:
        return Glance(float(seen.sum()))
    each = seen.split([image.count for image in row.images])
    maps = tuple(
        own[first : first + rows * columns].reshape(rows, columns).numpy()
        for own, (first, rows, columns) in zip(each, spans, strict=True)
    )
    return Glance(float(seen.sum()), maps)


def readings(
    main: Tensor, blind: Tensor, token: Tensor, glances: Sequence[Glance]
) -> list[TokenReading]:
    """Numbers of one step.

    Args:
        main: float32 [B, V] raw logits with the image.
        blind: The same without it.
        token: int64 [B], what was written.
        glances: Per request.
    """
    seen, unseen = main.log_softmax(-1), blind.log_softmax(-1)
    gap = (seen - unseen).gather(-1, token[:, None])[:, 0].tolist()
    entropy = torch.special.entr(seen.exp()).sum(-1).tolist()
    return [TokenReading(*values) for values in zip(gap, entropy, glances, strict=True)]


def explanation(
    text: str, ids: Sequence[int], ends: Sequence[int], read: Sequence[TokenReading]
) -> Explanation:
    """One answer's.

    Args:
        text: The answer.
        ids: Its tokens.
        ends: Per token, characters of the answer that stood once it was written.
        read: Per token.
    """
    tokens, start = list[ExplainedToken](), 0
    for token, end, reading in zip(ids, ends, read, strict=True):
        stop = max(start, min(end, len(text)))
        glance = reading.glance
        tokens.append(
            ExplainedToken(
                text[start:stop],
                token,
                reading.grounding,
                reading.entropy,
                glance.mass,
                glance.maps,
            )
        )
        start = stop
    return Explanation(tuple(tokens))


def rasters(row: Row, family: ModelFamily) -> tuple[Span, ...]:
    """Where the tokens of each picture of a main row form a raster; empty where none do."""
    whole = [image.processed for image in row.images]
    chosen = any(image.count != w.count for image, w in zip(row.images, whole, strict=True))
    return () if chosen or "raster" in family.lacks else tuple(w.span for w in whole)


def warnings(explain: Explain, family: ModelFamily, *, pictured: bool) -> tuple[str, ...]:
    """What the user should know about an explanation that is not whole."""
    if explain and not pictured:
        return ("The request has no image, so there is nothing to explain its tokens by.",)
    if explain == "maps" and "raster" in family.lacks:
        return (f"There are no attention maps: {family.lacks['raster']}.",)
    return ()
