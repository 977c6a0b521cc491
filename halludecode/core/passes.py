"""Passes before the answer, while a strategy is traced and while it runs: what comes after what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.errors import InvalidParameter
from halludecode.core.model_info import ModelInfo
from halludecode.core.prompt import Prompt
from halludecode.core.strategy import Strategy

if TYPE_CHECKING:
    from torch import Tensor

N = TypeVar("N")
TURNS = 64  # rounds of passes that depend on earlier ones, while tracing


def named(strategy: Strategy, hook: str, *given: Any, kind: type[N]) -> Mapping[str, N]:
    """What a hook gives by name, if that is what it gives."""
    found: Any = getattr(strategy, hook)(*given)
    things = (
        list(cast("Mapping[str, N]", found).values()) if isinstance(found, Mapping) else [found]
    )
    for thing in things:
        if not isinstance(thing, kind):
            raise InvalidParameter(
                f"{strategy.name}.{hook} gave {type(thing).__name__}; it must give names and "
                f"their {kind.__name__}, {{}} for none."
            )
    return cast("Mapping[str, N]", found)


def next_passes(
    strategy: Strategy,
    prompt: Prompt,
    activations: Mapping[str, Activations],
    model_info: ModelInfo,
) -> Mapping[str, ActivationRequest]:
    """Passes to run after those that kept ``activations``; {} where a strategy has all it wants."""
    if not activations or not strategy.declares("next_activations"):
        return {}
    given = (prompt, activations, model_info)
    requests = named(strategy, "next_activations", *given, kind=ActivationRequest)
    return {name: each for name, each in requests.items() if name not in activations}


def fake_passes(
    strategy: Strategy,
    prompt: Prompt,
    requests: Mapping[str, ActivationRequest],
    model_info: ModelInfo,
) -> dict[str, Activations]:
    """What passes keep where the first answer each with their last word and the rest with theirs.

    So a search goes on from where it begins, and finds something.
    """
    kept = dict[str, Activations]()
    for turn in range(TURNS):
        sign = 1 if turn > 1 else -1
        kept |= {name: _fake_activations(each, model_info, sign) for name, each in requests.items()}
        requests = next_passes(strategy, prompt, kept, model_info)
        if not requests:
            return kept
    raise InvalidParameter(
        f"{strategy.name}.next_activations gave new passes {TURNS} times in a row; it must come "
        "to an end."
    )


def _fake_activations(
    request: ActivationRequest, model_info: ModelInfo, sign: int = 1
) -> Activations:
    import torch

    rng = torch.Generator().manual_seed(0)

    def maybe(layers: tuple[int, ...], *shape: int) -> Tensor | None:
        return torch.rand(len(layers), *shape, generator=rng) if layers else None

    heads = model_info.vision.heads if model_info.vision else 1
    places = max(model_info.vision.places, 1) if model_info.vision else 1
    hidden = (
        maybe(request.hidden, 5, model_info.hidden_size)
        if request.every_token
        else maybe(request.hidden, model_info.hidden_size)
    )
    each = (request.each_answered,) if request.each_answered else ()
    return Activations(
        hidden=hidden,
        heads=maybe(request.heads, model_info.num_heads, model_info.head_dim),
        image=maybe(request.image, model_info.num_heads, *each, 4),
        keys=maybe(request.keys, model_info.num_heads, 5),
        vision=maybe(request.vision, 1 if request.vision_heads == "fullwidth" else heads, 4),
        tower=maybe(request.tower, places, model_info.hidden_size),
        image_counts=(4,),
        image_mask=torch.arange(5) > 0 if request.every_token else None,
        image_spans=((0, 2, 2),),
        text="a" if request.write else "",
        token_ids=(0,) if request.write else (),
        pieces=("",) if request.write else (),  # no word, so nobody loads a model to judge one
        logits=torch.randn(1, model_info.vocab_size, generator=rng) if request.logits else None,
        word_logits={word: -9.0 * sign * i for i, word in enumerate(request.words)},
    )
