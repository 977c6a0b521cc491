"""Edits inside the vision tower, around its layers' forwards; for any engine with the modules.

The tower of a family is the first list of layers outside the language model; transformers and vLLM
call it the same. vLLM builds only the layers up to the one that feeds the projector.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from halludecode.core.branch import TowerEdit
from halludecode.core.errors import HookNeverFired, UnsupportedStrategy

if TYPE_CHECKING:
    from halludecode.core.model_info import ModelInfo

LISTS = re.compile(r"(^|\.)(layers?|blocks|resblocks)$")
MLPS = ("mlp", "feed_forward", "ffn")
LANGUAGE = ("language_model", "text_model", "lm_head")


def tower_layers(model: nn.Module) -> nn.ModuleList:
    """The vision tower's layers of a loaded model.

    Raises:
        UnsupportedStrategy: There are none where they are looked for.
    """
    for name, module in model.named_modules():
        words = name.split(".")
        if (
            isinstance(module, nn.ModuleList)
            and LISTS.search(name)
            and not any(word in LANGUAGE for word in words)
        ):
            return module
    raise UnsupportedStrategy(
        f"{type(model).__name__} has no list of vision layers where halludecode looks for it, so "
        "its tower cannot be edited; use a strategy without 'edits the vision tower's layers'."
    )


@contextmanager
def hooked(model: nn.Module, m: ModelInfo, edit: TowerEdit | None) -> Iterator[set[int]]:
    """Within this block the tower obeys ``edit`` ("layer" or "mlp"); then it is as it was.

    Yields:
        Layers in which the edit was called; the caller adds those where its attention was.

    Raises:
        HookNeverFired: At the end, where some layer never was.
    """
    fired = set[int]()
    if edit is None:
        yield fired
        return
    layers = tower_layers(model)
    count = min(m.vision.read_layers if m.vision is not None else len(layers), len(layers))
    with ExitStack() as stack:
        for number, layer in enumerate(layers[:count]):
            known = {"layer": number, "layers": count}
            if edit.at == "layer":
                stack.enter_context(followed(layer, _on_layer(edit, known, fired)))
            elif edit.at == "mlp":
                stack.enter_context(followed(_mlp(layer), _on_mlp(edit, known, fired)))
        yield fired
    silent = sorted(set(range(count)) - fired)
    if silent:
        raise HookNeverFired(
            f"The vision tower never showed layer(s) {silent} to {edit.edit.fn.__qualname__}, so "
            "the strategy was off; report it with `halludecode doctor`."
        )


@contextmanager
def recorded(
    model: nn.Module, m: ModelInfo, layers: Sequence[int]
) -> Iterator[dict[int, list[Tensor]]]:
    """Within this block the tower's layers show what leaves them; of one picture at a time.

    Yields:
        By layer, float32 [places, D] of each call: see `ActivationRequest.tower`.

    Raises:
        HookNeverFired: At the end, where a layer showed nothing.
    """
    found, kept = tower_layers(model), dict[int, list[Tensor]]()
    places = m.vision.places if m.vision is not None else 0

    def note(number: int) -> Callable[[dict[str, Any], Any], Any]:
        def then(given: dict[str, Any], output: Any) -> Any:
            x = (output[0] if isinstance(output, tuple) else output).detach().float()
            views = x.reshape(-1, places, x.shape[-1]) if places else x.reshape(-1, 1, x.shape[-1])
            kept.setdefault(number, []).append(views.mean(0).cpu())
            return output

        return then

    with ExitStack() as stack:
        for number in layers:
            if number < len(found):
                stack.enter_context(followed(found[number], note(number)))
        yield kept
    silent = [number for number in layers if number not in kept]
    if silent:
        raise HookNeverFired(f"The vision tower kept nothing of layer(s) {silent}.")


def states_of(
    model: nn.Module, m: ModelInfo, layers: Sequence[int], encode: Sequence[Callable[[], object]]
) -> Tensor:
    """float32 [n, P, D]: what leaves layers of the tower, the mean over calls of ``encode``."""
    pictures: list[Tensor] = []
    for run in encode:
        with recorded(model, m, layers) as kept:
            run()
        pictures.append(torch.stack([torch.stack(kept[n]).mean(0) for n in layers]))
    return torch.stack(pictures).mean(0)


@contextmanager
def followed(
    module: nn.Module, then: Callable[[dict[str, Any], Any], Any], names: Sequence[str] = ()
) -> Iterator[None]:
    """Within this block ``then(arguments by name, output)`` stands for a module's output.

    Not a hook: vLLM's blocks that may be compiled call their forward past those, and transformers'
    own hooks, which keep hidden states, must see what is put in place. ``names`` are those of its
    arguments, where its forward does not say.
    """
    own = module.forward
    parameters = names or list(inspect.signature(own).parameters)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(parameters, args, strict=False)) | kwargs
        return then(given, own(*args, **kwargs))

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def call(edit: TowerEdit, x: Tensor, **known: Any) -> Tensor:
    """The edit of ``x``, in float32, at its own shape.

    Raises:
        UnsupportedStrategy: The shape changed.
    """
    new: Tensor = edit.edit.fn(x, **known, **dict(edit.edit.params))
    if new.shape != x.shape:
        raise UnsupportedStrategy(
            f"{edit.edit.fn.__qualname__} gave {list(new.shape)} for {list(x.shape)} inside the "
            "vision tower; the shape must be kept."
        )
    return new.to(x.dtype)


def _on_layer(edit: TowerEdit, known: Mapping[str, int], fired: set[int]) -> Callable[..., Any]:
    def then(given: dict[str, Any], output: Any) -> Any:
        entering = next(iter(given.values()))
        fired.add(known["layer"])
        whole = isinstance(output, tuple)
        new = call(edit, output[0] if whole else output, entering=entering, **known)
        return (new, *output[1:]) if whole else new

    return then


def _on_mlp(edit: TowerEdit, known: Mapping[str, int], fired: set[int]) -> Callable[..., Any]:
    def then(given: dict[str, Any], output: Tensor) -> Tensor:
        fired.add(known["layer"])
        return call(edit, output, **known)

    return then


def _mlp(layer: nn.Module) -> nn.Module:
    for name in MLPS:
        if hasattr(layer, name):
            return getattr(layer, name)
    raise UnsupportedStrategy(
        f"{type(layer).__name__} of the vision tower has no MLP under a name that halludecode "
        f"knows ({', '.join(MLPS)}), so its output cannot be edited."
    )
