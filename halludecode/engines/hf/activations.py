"""Passes of the plain model before the answer, in batches, remembered by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.errors import HookNeverFired
from halludecode.core.passes import next_passes
from halludecode.core.plan import Cost, Plan
from halludecode.core.prompt import Prompt
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.api import Sampling
from halludecode.engines.hf.attention_metadata import image_columns
from halludecode.engines.hf.batch import Batch
from halludecode.engines.hf.decode_loop import AnswerState, DecodeLoop
from halludecode.engines.hf.forward_context import Capture
from halludecode.engines.hf.kept_rows import Prefix
from halludecode.engines.hf.model import HFModel
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.inputs.rows import PreparedRequest, RowBuilder, seen_spans
from halludecode.models.info import end_tokens
from halludecode.models.tower_edit import states_of
from halludecode.models.vision_tower import received

PLAIN = Plan((), "greedy", frozenset(), ("main",), Cost())


REMEMBERED = 512e6  # bytes of activations; a description's logits alone are tens of megabytes


class ActivationCollector:
    """Runs the passes for one model.

    Args:
        hf_model: The model.
        row_builder: Where rows come from.
        prefixes: Image-prefix KV shared with decoding.
    """

    def __init__(self, hf_model: HFModel, row_builder: RowBuilder, prefixes: LRU[Prefix]) -> None:
        self.hf_model, self.row_builder, self.prefixes = hf_model, row_builder, prefixes
        self._kept: LRU[Activations] = LRU(REMEMBERED, _size)

    def states(
        self,
        prompts: Sequence[Prompt],
        parts: Sequence[TracedStrategy],
        batch_size: int,
        *,
        reuse: bool,
    ) -> list[list[Mapping[str, object]]]:
        """Per prompt and part, the state its `prepare` made of its activations."""
        by_prompt = [
            [dict(part.strategy.activations(p, part.model_info)) for part in parts] for p in prompts
        ]
        wanted = [each for own in by_prompt for by in own for each in by.values()]
        while wanted:
            every = {request.key: request for request in wanted}
            self.run(list(every.values()), batch_size, reuse=reuse)
            wanted.clear()
            for prompt, own in zip(prompts, by_prompt, strict=True):
                for part, asked in zip(parts, own, strict=True):
                    if part.in_turn:
                        seen = self._collected_all(asked)
                        new = next_passes(part.strategy, prompt, seen, part.model_info)
                        asked.update(new)
                        wanted += new.values()
        return [
            [
                part.strategy.prepare(self._collected_all(asked), part.model_info)
                for part, asked in zip(parts, own, strict=True)
            ]
            for own in by_prompt
        ]

    def _collected_all(self, asked: Mapping[str, ActivationRequest]) -> dict[str, Activations]:
        return {name: self.collect(request) for name, request in asked.items()}

    def run(self, requests: Sequence[ActivationRequest], batch_size: int, *, reuse: bool) -> None:
        """Make sure every pass has been run, those of one kind in batches."""
        todo = [request for request in requests if self._kept.get(request.key) is None]
        kinds: dict[tuple[object, ...], list[ActivationRequest]] = {}
        for request in todo:
            kinds.setdefault(request.kind, []).append(request)
        for same in kinds.values():
            for at in range(0, len(same), batch_size):
                chunk = same[at : at + batch_size]
                for request, kept in zip(chunk, self._take(chunk, reuse=reuse), strict=True):
                    self._kept.put(request.key, kept)

    def collect(self, request: ActivationRequest, *, remember: bool = True) -> Activations:
        """What one pass kept.

        Args:
            request: The pass.
            remember: Whether it may be one that was run before, and is kept for the next time.
        """
        if not remember:
            return self._take([request], reuse=False)[0]
        kept = self._kept.get(request.key)
        if kept is None:
            self.run([request], 1, reuse=False)
            return self.collect(request)
        return kept

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def _take(self, requests: Sequence[ActivationRequest], *, reuse: bool) -> list[Activations]:
        """Run the passes of one kind together."""
        first = requests[0]
        capture = Capture(
            frozenset(first.hidden),
            frozenset(first.heads),
            frozenset(first.image),
            frozenset(first.keys),
            first.every_token,
            first.each_answered,
        )
        prepared = [
            PreparedRequest(
                request.prompt, {"main": self.row_builder.activation_row(request)}, (), ()
            )
            for request in requests
        ]
        activations = [self._vision(each, first) for each in prepared]
        if first.tower_alone:
            return activations
        batch = Batch(self.hf_model, self.row_builder, PLAIN, prepared, capture)
        logits = batch.prefill(self.prefixes if reuse and not first.every_token else None)
        words = self.row_builder.inputs.scored_words(first.words)
        scored = {word: logits[:, ids].amax(-1).cpu() for word, ids in words.items()}
        activations = [
            replace(
                self._collected(batch, capture, request, i, activations[i]),
                word_logits={word: float(own[i]) for word, own in scored.items()},
            )
            for i, request in enumerate(requests)
        ]
        if first.write:
            batch.context.capture = None  # nothing is kept of what is written
            answers = self._write(batch, logits, first)
            activations = [
                replace(
                    _with_text(kept, answer),
                    pieces=self.row_builder.inputs.pieces((*request.answered, *answer.ids)),
                )
                for kept, answer, request in zip(activations, answers, requests, strict=True)
            ]
        return activations

    def _vision(self, prepared: PreparedRequest, request: ActivationRequest) -> Activations:
        images = prepared.rows["main"].images
        counts = tuple(image.count for image in images)
        model, encode = self.hf_model.model, self.hf_model.encode
        vision = tower = None
        if request.vision and images:
            vision = received(
                model,
                self.hf_model.family,
                images,
                lambda image: encode([image]),
                request.vision,
                fullwidth=request.vision_heads == "fullwidth",
            )
        if request.tower and images:
            each = [partial(encode, [image]) for image in images]
            tower = states_of(model, self.hf_model.info, request.tower, each)
        return Activations(vision=vision, tower=tower, image_counts=counts)

    def _write(
        self, batch: Batch, logits: torch.Tensor, request: ActivationRequest
    ) -> list[AnswerState]:
        sampling = Sampling(max_new_tokens=request.write)
        eos = end_tokens(self.hf_model.model.generation_config, self.row_builder.inputs.tokenizer)
        loop = DecodeLoop(
            batch, sampling, eos, {}, self.hf_model.context, keep_logits=request.logits
        )
        for _ in loop.run(logits):
            pass
        return loop.answers

    def _collected(
        self,
        batch: Batch,
        capture: Capture,
        request: ActivationRequest,
        i: int,
        activations: Activations,
    ) -> Activations:
        real = len(batch.tokens[i].ids)
        columns = image_columns(batch.kind, i)

        def stacked(kind: str, layers: tuple[int, ...]) -> torch.Tensor | None:
            silent = [layer for layer in layers if (kind, layer) not in capture.kept]
            if silent:
                raise HookNeverFired(
                    f"A pass before the answer kept nothing ({kind}) of layer {silent[0]}."
                )
            kept = [capture.kept[kind, layer][i] for layer in layers]
            if not kept:
                return None
            if kind == "image":
                return torch.stack([own[..., columns] for own in kept])
            if kind == "keys":
                return torch.stack([own[:, -real:] for own in kept])
            every = kind == "hidden" and request.every_token
            return torch.stack([own[-real:] if every else own for own in kept])

        return replace(
            activations,
            hidden=stacked("hidden", request.hidden),
            heads=stacked("heads", request.heads),
            image=stacked("image", request.image),
            keys=stacked("keys", request.keys),
            image_mask=(batch.tokens[i].ids == self.row_builder.inputs.image_token),
            image_spans=seen_spans(batch.requests[i].rows["main"]),
        )


def _with_text(activations: Activations, answer: AnswerState) -> Activations:
    raw = torch.stack(answer.raw) if answer.raw else None
    return replace(activations, text=answer.text, token_ids=tuple(answer.ids), logits=raw)


def _size(activations: Activations) -> float:
    kept = (
        activations.hidden,
        activations.heads,
        activations.image,
        activations.keys,
        activations.vision,
        activations.tower,
        activations.logits,
    )
    return 256 + sum(t.numel() * t.element_size() for t in kept if t is not None)
