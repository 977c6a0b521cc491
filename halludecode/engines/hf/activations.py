"""Passes of the plain model before the answer: looks in batches, remembered by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.errors import HookNeverFired
from halludecode.core.plan import Cost, Plan
from halludecode.core.prompt import Prompt
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.api import Sampling
from halludecode.engines.hf.attention_metadata import image_columns
from halludecode.engines.hf.batch import Batch, Prefix
from halludecode.engines.hf.decode_loop import AnswerState, DecodeLoop
from halludecode.engines.hf.forward_context import Capture
from halludecode.engines.hf.model import HFModel
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.inputs.rows import PreparedRequest, RowBuilder, seen_spans
from halludecode.models.vision_tower import received

PLAIN = Plan((), "greedy", frozenset(), ("main",), Cost())


REMEMBERED = 512e6  # bytes of what looks saw; a description's logits alone are tens of megabytes


class ActivationCollector:
    """Runs looks for one model.

    Args:
        net: The model.
        maker: Where rows come from.
        prefixes: Image-prefix KV shared with decoding.
    """

    def __init__(self, net: HFModel, maker: RowBuilder, prefixes: LRU[Prefix]) -> None:
        self.net, self.maker, self.prefixes = net, maker, prefixes
        self._seen: LRU[Activations] = LRU(REMEMBERED, _size)

    def states(
        self,
        prompts: Sequence[Prompt],
        parts: Sequence[TracedStrategy],
        batch_size: int,
        *,
        reuse: bool,
    ) -> list[list[Mapping[str, object]]]:
        """Per prompt and part, the state its `prepare` made of its looks."""
        asked = [[part.strategy.looks(p, part.model_info) for part in parts] for p in prompts]
        every = {look.key: look for one in asked for looks in one for look in looks.values()}
        self.run(list(every.values()), batch_size, reuse=reuse)
        return [
            [
                part.strategy.prepare(
                    {n: self.see(look) for n, look in looks.items()}, part.model_info
                )
                for part, looks in zip(parts, one, strict=True)
            ]
            for one in asked
        ]

    def run(self, looks: Sequence[ActivationRequest], batch_size: int, *, reuse: bool) -> None:
        """Make sure every look has been taken, those of one kind in batches."""
        todo = [look for look in looks if self._seen.get(look.key) is None]
        kinds: dict[tuple[object, ...], list[ActivationRequest]] = {}
        for look in todo:
            kinds.setdefault(look.kind, []).append(look)
        for same in kinds.values():
            for at in range(0, len(same), batch_size):
                self._take(same[at : at + batch_size], reuse=reuse)

    def see(self, look: ActivationRequest) -> Activations:
        """What one look saw."""
        known = self._seen.get(look.key)
        if known is None:
            self.run([look], 1, reuse=False)
            return self.see(look)
        return known

    def _take(self, looks: Sequence[ActivationRequest], *, reuse: bool) -> None:
        first = looks[0]
        capture = Capture(
            frozenset(first.hidden),
            frozenset(first.heads),
            frozenset(first.image),
            first.every_token,
        )
        jobs = [
            PreparedRequest(look.prompt, {"main": self.maker.look(look)}, (), ()) for look in looks
        ]
        seen = [self._vision(job, first) for job in jobs]
        if replace(first, vision=()).kind != ActivationRequest(first.prompt).kind:
            batch = Batch(self.net, self.maker, PLAIN, jobs, capture)
            logits = batch.prefill(self.prefixes if reuse and not first.every_token else None)
            seen = [self._collect(batch, capture, look, i, seen[i]) for i, look in enumerate(looks)]
            if first.write:
                batch.run.capture = None  # what is written is not looked at
                answers = self._write(batch, logits, first)
                seen = [
                    _with_text(made, answer) for made, answer in zip(seen, answers, strict=True)
                ]
        for look, made in zip(looks, seen, strict=True):
            self._seen.put(look.key, made)

    def _vision(self, job: PreparedRequest, look: ActivationRequest) -> Activations:
        feeds = job.rows["main"].feeds
        counts = tuple(feed.count for feed in feeds)
        if not look.vision or not feeds:
            return Activations(image_counts=counts)
        wide = look.vision_heads == "fullwidth"
        vision = received(self.net, feeds, look.vision, fullwidth=wide)
        return Activations(vision=vision, image_counts=counts)

    def _write(
        self, batch: Batch, logits: torch.Tensor, look: ActivationRequest
    ) -> list[AnswerState]:
        sampling = Sampling(max_new_tokens=look.write)
        eos = self.net.eos(self.maker.feeder.tokenizer)
        loop = DecodeLoop(batch, sampling, eos, {}, self.net.context, keep_logits=look.logits)
        for _ in loop.run(logits):
            pass
        return loop.answers

    def _collect(
        self, batch: Batch, capture: Capture, look: ActivationRequest, i: int, seen: Activations
    ) -> Activations:
        real = len(batch.tokens[i].ids)
        columns = image_columns(batch.kind, i)

        def stacked(kind: str, layers: tuple[int, ...]) -> torch.Tensor | None:
            silent = [layer for layer in layers if (kind, layer) not in capture.kept]
            if silent:
                raise HookNeverFired(f"A look kept nothing ({kind}) of layer {silent[0]}.")
            made = [capture.kept[kind, layer][i] for layer in layers]
            if not made:
                return None
            if kind == "image":
                return torch.stack([m[:, columns] for m in made])
            every = kind == "hidden" and look.every_token
            return torch.stack([m[-real:] if every else m for m in made])

        return replace(
            seen,
            hidden=stacked("hidden", look.hidden),
            heads=stacked("heads", look.heads),
            image=stacked("image", look.image),
            image_mask=(batch.tokens[i].ids == self.maker.feeder.image_token),
            image_spans=seen_spans(batch.jobs[i].rows["main"], self.maker.feeder),
        )


def _with_text(seen: Activations, answer: AnswerState) -> Activations:
    raw = torch.stack(answer.raw) if answer.raw else None
    return replace(seen, text=answer.text, token_ids=tuple(answer.ids), logits=raw)


def _size(seen: Activations) -> float:
    kept = (seen.hidden, seen.heads, seen.image, seen.vision, seen.logits)
    return 256 + sum(t.numel() * t.element_size() for t in kept if t is not None)
