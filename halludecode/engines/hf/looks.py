"""Passes of the plain model before the answer: looks in batches, remembered by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from halludecode.core.errors import HookNeverFired
from halludecode.core.part import Part
from halludecode.core.plan import Cost, Plan
from halludecode.core.prompt import Look, Prompt, Seen
from halludecode.engines.base import Sampling
from halludecode.engines.hf.batch import Batch, Prefix
from halludecode.engines.hf.geometry import image_columns
from halludecode.engines.hf.loop import Answer, Loop
from halludecode.engines.hf.net import Net
from halludecode.engines.hf.run import Capture
from halludecode.engines.hf.vision import received
from halludecode.engines.inputs import LRU
from halludecode.engines.rows import Job, RowMaker, seen_spans

PLAIN = Plan((), "greedy", frozenset(), ("main",), Cost())


REMEMBERED = 512e6  # bytes of what looks saw; a description's logits alone are tens of megabytes


class Looker:
    """Runs looks for one model.

    Args:
        net: The model.
        maker: Where rows come from.
        prefixes: Image-prefix KV shared with decoding.
    """

    def __init__(self, net: Net, maker: RowMaker, prefixes: LRU[Prefix]) -> None:
        self.net, self.maker, self.prefixes = net, maker, prefixes
        self._seen: LRU[Seen] = LRU(REMEMBERED, _size)

    def states(
        self, prompts: Sequence[Prompt], parts: Sequence[Part], batch_size: int, *, reuse: bool
    ) -> list[list[Mapping[str, object]]]:
        """Per prompt and part, the state its `prepare` made of its looks."""
        asked = [[part.strategy.looks(p, part.facts) for part in parts] for p in prompts]
        every = {look.key: look for one in asked for looks in one for look in looks.values()}
        self.run(list(every.values()), batch_size, reuse=reuse)
        return [
            [
                part.strategy.prepare({n: self.see(look) for n, look in looks.items()}, part.facts)
                for part, looks in zip(parts, one, strict=True)
            ]
            for one in asked
        ]

    def run(self, looks: Sequence[Look], batch_size: int, *, reuse: bool) -> None:
        """Make sure every look has been taken, those of one kind in batches."""
        todo = [look for look in looks if self._seen.get(look.key) is None]
        kinds: dict[tuple[object, ...], list[Look]] = {}
        for look in todo:
            kinds.setdefault(look.kind, []).append(look)
        for same in kinds.values():
            for at in range(0, len(same), batch_size):
                self._take(same[at : at + batch_size], reuse=reuse)

    def see(self, look: Look) -> Seen:
        """What one look saw."""
        known = self._seen.get(look.key)
        if known is None:
            self.run([look], 1, reuse=False)
            return self.see(look)
        return known

    def _take(self, looks: Sequence[Look], *, reuse: bool) -> None:
        first = looks[0]
        capture = Capture(
            frozenset(first.hidden),
            frozenset(first.heads),
            frozenset(first.image),
            first.every_token,
        )
        jobs = [Job(look.prompt, {"main": self.maker.look(look)}, (), ()) for look in looks]
        seen = [self._vision(job, first) for job in jobs]
        if replace(first, vision=()).kind != Look(first.prompt).kind:
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

    def _vision(self, job: Job, look: Look) -> Seen:
        feeds = job.rows["main"].feeds
        counts = tuple(feed.count for feed in feeds)
        if not look.vision or not feeds:
            return Seen(image_counts=counts)
        wide = look.vision_heads == "fullwidth"
        vision = received(self.net, feeds, look.vision, fullwidth=wide)
        return Seen(vision=vision, image_counts=counts)

    def _write(self, batch: Batch, logits: torch.Tensor, look: Look) -> list[Answer]:
        sampling = Sampling(max_new_tokens=look.write)
        eos = self.net.eos(self.maker.feeder.tokenizer)
        loop = Loop(batch, sampling, eos, {}, self.net.context, keep_logits=look.logits)
        for _ in loop.run(logits):
            pass
        return loop.answers

    def _collect(self, batch: Batch, capture: Capture, look: Look, i: int, seen: Seen) -> Seen:
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


def _with_text(seen: Seen, answer: Answer) -> Seen:
    raw = torch.stack(answer.raw) if answer.raw else None
    return replace(seen, text=answer.text, token_ids=tuple(answer.ids), logits=raw)


def _size(seen: Seen) -> float:
    kept = (seen.hidden, seen.heads, seen.image, seen.vision, seen.logits)
    return 256 + sum(t.numel() * t.element_size() for t in kept if t is not None)
