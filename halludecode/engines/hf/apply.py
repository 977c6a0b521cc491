"""A strategy on a plain transformers model, whose own `generate` then obeys it.

    with hd.applied(model, processor, "var"):
        model.generate(**inputs)

Only strategies without extra rows or earlier passes; everything else needs the engine. Rows are
read from the model's own inputs at every forward, so batches, padding and beams of one prompt work
as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from halludecode.core import step as hd_step
from halludecode.core.attention_block import GENERATED, IMAGE, PAD, SYSTEM, TEXT
from halludecode.core.errors import UnsupportedStrategy
from halludecode.core.needs import quoted
from halludecode.core.plan import Plan
from halludecode.core.spec import Spec
from halludecode.core.state import State, stack
from halludecode.core.step import Step
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.hf.attention_metadata import AttentionMetadata, RowPlacement
from halludecode.engines.hf.forward_context import ForwardContext
from halludecode.engines.hf.hooks import decode, hooked, lock_of
from halludecode.models.families import ModelFamily, check_family


@contextmanager
def applied(model: Any, processor: Any, strategy: Spec) -> Iterator[Plan]:
    """Within this block the model's own `generate` obeys a strategy; yields the compiled plan.

    Raises:
        UnsupportedStrategy: It needs extra rows or earlier passes, or the family's own `generate`
            cannot carry it.
        HookNeverFired: After the first forward, if a declared hook was not called.
    """
    from halludecode.engines.hf.engine import HFEngine

    engine = HFEngine(model, processor)
    plan = engine.plan(strategy)
    check_family(model.config, ("generate",), f"hd.applied({plan.canonical})")
    missing = plan.needs & {"rows", "main prompt", "activations", "search"}
    if missing:
        raise UnsupportedStrategy(
            f"{plan.canonical} needs {quoted(missing)}, which a plain model.generate() cannot "
            "give; use hd.load(...).generate(..., strategy=...) instead."
        )
    tracker = _Tracker(plan, model.config.image_token_id, _decoder(model, engine.hf_model.family))
    before = model.register_forward_pre_hook(tracker.before, with_kwargs=True)
    after = model.register_forward_hook(tracker.after)
    try:
        with lock_of(model), hooked(model, engine.hf_model.family, tracker.context):
            yield plan
    finally:
        before.remove()
        after.remove()


def _decoder(model: Any, family: ModelFamily) -> Callable[[Tensor, bool], Tensor]:
    return lambda x, norm: decode(model, family, x, norm=norm)


class _Tracker:
    """Follows a plain generate() forward by forward."""

    def __init__(
        self, plan: Plan, image_token: int, decode: Callable[[Tensor, bool], Tensor]
    ) -> None:
        self.plan, self.image_token, self.decode = plan, image_token, decode
        self.context = ForwardContext(plan.acting, decode=decode)
        self.kind = torch.empty(0)
        self.length = torch.empty(0)
        self.state: dict[int, State] = {}
        self.written = 0

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise UnsupportedStrategy(
                "hd.applied needs input_ids in every forward, not inputs_embeds."
            )
        cache = kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            self._begin(ids, kwargs.get("attention_mask"))
            position = (self.kind != PAD).cumsum(-1) - 1
            position = position.where(self.kind != PAD, torch.tensor(-1, device=ids.device))
        else:
            fresh = torch.full_like(ids, GENERATED, dtype=torch.int8)
            self.kind = torch.cat([self.kind, fresh], 1)
            at = torch.arange(ids.shape[1], device=ids.device)
            position = self.length[:, None] + self.written + at
            self.written += ids.shape[1]
        picture = (self.kind == IMAGE).to(torch.int16) - 1
        self.context.begin(
            AttentionMetadata(self.kind, picture, position, self.length), emitting=True
        )

    def after(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if self.written == 0:
            self.context.check_fired()
        combining = [part for part in self.plan.parts if part.combines]
        if combining:
            main: Tensor = output.logits[:, -1].float()
            t = torch.full((len(main), 1), self.written + 1, device=main.device)
            parts = [
                (
                    part.strategy,
                    Step(
                        {"main": main},
                        t,
                        self.state[id(part)],
                        self.decode,
                        self._early(part),
                        owner=part.strategy.name,
                    ),
                )
                for part in combining
            ]
            sees = (self.kind == IMAGE).any(-1, keepdim=True)  # no picture, no strategy
            combined = hd_step.combine(parts, main).where(sees, main)
            logits = output.logits.clone()
            logits[:, -1] = combined.to(logits.dtype)
            output.logits = logits
        return output

    def _early(self, part: TracedStrategy) -> dict[int, Tensor]:
        return {layer: self.context.early[layer] for layer in part.early}

    def _begin(self, ids: Tensor, mask: Tensor | None) -> None:
        image = ids == self.image_token
        after = image.cumsum(-1) > 0
        kind = torch.full_like(ids, SYSTEM, dtype=torch.int8)
        kind[after] = TEXT
        kind[image] = IMAGE
        if mask is not None:
            kind[mask[:, -ids.shape[1] :] == 0] = PAD
        self.kind, self.written = kind, 0
        self.length = (kind != PAD).sum(-1)
        self.context.index = [
            {"main": RowPlacement.of(range(len(ids)))} for _ in self.context.parts
        ]
        self.state = {
            id(p): stack([p.strategy.prepare({}, p.model_info)] * len(ids)) for p in self.plan.parts
        }
        self.context.states = [self.state[id(part)] for part in self.context.parts]
        self.context.forget()
