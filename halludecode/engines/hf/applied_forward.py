"""The forward of a plain model within `hd.applied`: which answer it continues, edited and combined.

An answer is known by its KV cache, so several may be written at once. Every forward either begins
one (an empty cache, or none) or feeds it the one token just drawn; anything else is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Cache

from halludecode.core import step as hd_step
from halludecode.core.attention_block import GENERATED, IMAGE, PAD, SYSTEM, TEXT
from halludecode.core.errors import UnsupportedStrategy
from halludecode.core.plan import Plan
from halludecode.core.state import State, stack
from halludecode.core.step import Step
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.hf.attention_metadata import AttentionMetadata, RowPlacement
from halludecode.engines.hf.forward_context import ForwardContext
from halludecode.engines.hf.hooks import branch, decode, hooked, lock_of, running
from halludecode.engines.hf.release import last_kept
from halludecode.models.family import ModelFamily

ENGINE = "hd.load(model, processor=processor).generate(...)"


@dataclass(eq=False)
class AppliedAnswer:
    """A batch of answers that share a cache.

    Args:
        context: What acts inside its forwards.
        kind: int8 [B, N] of its keys so far, see `core.attention.RowKeys`.
        length: int64 [B], prompt lengths.
        states: Per strategy (by id of its part), what `prepare` returned.
        written: Tokens fed after the prompt.
        first: float32 [B, V], logits of token 1.
    """

    context: ForwardContext
    kind: Tensor
    length: Tensor
    states: Mapping[int, State]
    written: int = 0
    first: Tensor | None = None


class AppliedForward:
    """A model's `forward` within a block, called with whatever the model's own takes.

    Args:
        model: The model.
        family: What sets its family apart.
        plan: What acts.

    Attributes:
        begun: Prompts read, all declared hooks called.
        grown: Forwards of one token each.
        called: Forwards of any kind, those of engines included.
    """

    def __init__(self, model: Any, family: ModelFamily, plan: Plan) -> None:
        self.plan = plan
        self._model, self._family, self._forward = model, family, model.forward
        self._answers: WeakKeyDictionary[Cache, AppliedAnswer] = WeakKeyDictionary()
        self._uncached: Tensor | None = None  # ids of the last forward that left no cache
        self.begun = self.grown = self.called = 0
        functools.update_wrapper(self, self._forward)

    @property
    def attends(self) -> bool:
        """Whether attention must be ours."""
        return ForwardContext(self.plan.acting).needs_attention

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, its last position's logits combined.

        Raises:
            UnsupportedStrategy: It is neither a prompt nor the next token of a known answer.
            HookNeverFired: A declared hook was not called.
        """
        self.called += 1
        if running():  # an engine's forward
            return self._forward(*args, **kwargs)
        if torch.compiler.is_compiling():
            raise self._refusal("a model cannot be compiled within the block")
        given = {**dict(zip(("input_ids",), args, strict=False)), **kwargs}
        with lock_of(self._model):
            answer = self._answer(given)
            with hooked(self._model, self._family, answer.context):
                output = self._forward(*args, **self._whole(kwargs))
            self._finish(answer, given["input_ids"], output)
        return output

    def _whole(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keywords under which every layer computes all tokens, where something acts inside."""
        keep = kwargs.get("logits_to_keep", 0)
        if not self.plan.acting or not isinstance(keep, int) or keep < 1:
            return kwargs
        return {**kwargs, "logits_to_keep": last_kept(keep)}

    # Which answer ---------------------------------------------------------------------------------
    def _answer(self, given: Mapping[str, Any]) -> AppliedAnswer:
        ids, cache = given.get("input_ids"), self._cache(given)
        if ids is None:
            raise self._refusal("the forward needs input_ids, not inputs_embeds")
        filled = 0 if cache is None else int(cache.get_seq_length())
        if filled == 0:
            self._refuse_regrown(ids)
            answer = self._begin(ids, given.get("attention_mask"))
            position = (answer.kind != PAD).cumsum(-1) - 1
            position = position.where(answer.kind != PAD, torch.tensor(-1, device=ids.device))
        else:
            answer = self._known(ids, cache, filled)
            fresh = torch.full_like(ids, GENERATED, dtype=torch.int8)
            answer.kind = torch.cat([answer.kind, fresh], 1)
            position = (answer.length + answer.written)[:, None]
            answer.written += 1
        picture = (answer.kind == IMAGE).to(torch.int16) - 1
        metadata = AttentionMetadata(answer.kind, picture, position, answer.length)
        answer.context.begin(metadata, emitting=True)
        return answer

    def _cache(self, given: Mapping[str, Any]) -> Any:
        """The forward's cache, whatever the argument is called."""
        caches = [value for value in given.values() if isinstance(value, Cache)]
        if not caches and given.get("past_key_values") is not None:
            kind = type(given["past_key_values"]).__name__
            raise self._refusal(f"a cache of type {kind} cannot be followed")
        for layer in getattr(caches[0], "layers", ()) if caches else ():
            if getattr(layer, "is_sliding", False) and getattr(layer, "is_compileable", False):
                raise self._refusal("a static cache with sliding windows drops tokens it counts")
        return caches[0] if caches else None

    def _known(self, ids: Tensor, cache: Any, filled: int) -> AppliedAnswer:
        answer = self._answers.get(cache)
        if answer is None:
            raise self._refusal(
                "the KV cache was filled outside of the block, so what it holds is not known; "
                "give the whole chat without it"
            )
        if ids.shape[1] != 1:
            raise self._refusal(
                f"{ids.shape[1]} tokens at once on a filled KV cache (a second turn, assisted or "
                "speculative decoding); give the whole chat without past_key_values"
            )
        if filled != answer.kind.shape[1] or len(ids) != len(answer.kind):
            raise self._refusal("the KV cache was cut, repeated or filled by somebody else")
        return answer

    def _refuse_regrown(self, ids: Tensor) -> None:
        """A prompt that begins with the last one, which left no cache, is its answer so far."""
        before, self._uncached = self._uncached, None
        if before is None or before.shape[1] >= ids.shape[1] or len(before) != len(ids):
            return
        if bool((ids[:, : before.shape[1]] == before).all()):
            raise self._refusal("an answer without a KV cache cannot be told from its prompt")

    def _begin(self, ids: Tensor, mask: Any) -> AppliedAnswer:
        image = ids == self._model.config.image_token_id
        kind = torch.full_like(ids, SYSTEM, dtype=torch.int8)
        kind[image.cumsum(-1) > 0] = TEXT
        kind[image] = IMAGE
        kind[self._padding(mask, ids)] = PAD
        if bool((kind[:, -1] == PAD).any()):
            raise self._refusal("prompts must be padded on the left (padding_side='left')")
        states = {
            id(p): stack([p.strategy.prepare({}, p.model_info)] * len(ids)) for p in self.plan.parts
        }
        rows = {"main": RowPlacement.of(range(len(ids)))}
        context = ForwardContext(
            self.plan.acting,
            [rows for _ in self.plan.acting],
            [states[id(part)] for part in self.plan.acting],
            decode=self._decode,
        )
        return AppliedAnswer(context, kind, (kind != PAD).sum(-1), states)

    def _padding(self, mask: Any, ids: Tensor) -> Tensor:
        """Bool [B, T]; `generate` hands static caches a mask of every query, [B, 1, T, N]."""
        if isinstance(mask, Mapping):
            mask = mask.get("full_attention")
        if mask is None:
            return torch.zeros_like(ids, dtype=torch.bool)
        if mask.dim() == 4:  # the last query sees all but padding
            seen = mask[:, 0, -1, : ids.shape[1]]
            return (~seen if seen.dtype == torch.bool else seen < 0).expand_as(ids)
        if mask.dim() != 2:
            raise self._refusal(f"an attention mask of {mask.dim()} axes cannot be followed")
        return mask[:, -ids.shape[1] :] == 0

    # What it says ---------------------------------------------------------------------------------
    def _finish(self, answer: AppliedAnswer, ids: Tensor, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if logits is None:
            raise self._refusal("the forward must return its output by name (return_dict=True)")
        if logits.shape[1] != 1:
            raise self._refusal(
                f"the forward gives logits of {logits.shape[1]} positions, and a strategy speaks "
                "for the last; pass logits_to_keep=1"
            )
        if answer.written == 0:
            answer.context.check_fired()
            self.begun += 1
        else:
            self.grown += 1
        output.logits = self._combine(answer, logits)
        cache = self._cache(output)
        if cache is None:
            self._uncached = ids
        else:
            self._answers[cache] = answer

    def _combine(self, answer: AppliedAnswer, logits: Tensor) -> Tensor:
        """Logits [B, 1, V]."""
        combining = [part for part in self.plan.parts if part.combines]
        main = logits[:, -1].float()
        t = torch.full((len(main), 1), answer.written + 1, device=main.device)
        if answer.first is None and any(part.firsts for part in combining):
            answer.first = main
        parts: list[Any] = []
        for part in combining:
            early = {layer: answer.context.early[layer] for layer in part.early}
            step = Step(
                {"main": main},
                t,
                answer.states[id(part)],
                self._decode,
                early,
                branch=self._branch(answer, part),
                first=None if answer.first is None else {"main": answer.first},
                owner=part.strategy.name,
            )
            parts.append((part.strategy, step))
        pictured = (answer.kind == IMAGE).any(-1)
        acting = [part.strategy.name for part in self.plan.parts]
        combined = hd_step.combine(parts, main, pictured, acting).check()
        return combined[:, None].to(logits.dtype) if combining else logits

    def _branch(self, answer: AppliedAnswer, part: TracedStrategy) -> Any:
        if not part.branches_off:
            return None
        kept = answer.context.branch(self.plan.acting.index(part))
        return branch(self._model, self._family, kept)

    def _decode(self, x: Tensor, norm: bool) -> Tensor:
        return decode(self._model, self._family, x, norm=norm)

    def _refusal(self, why: str) -> UnsupportedStrategy:
        return UnsupportedStrategy(f"hd.applied({self.plan.canonical}): {why}, or use {ENGINE}.")
