"""In the front end: passes of the plain model before the answer, as requests of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from halludecode.core import spec as hd_spec
from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.passes import next_passes
from halludecode.core.plan import Plan
from halludecode.core.prompt import Prompt
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.api import Sampling
from halludecode.engines.inputs.rows import Row, RowBuilder, seen_spans
from halludecode.engines.vllm.frontend.kept_passes import KeptPasses, Pass, PassKey
from halludecode.engines.vllm.frontend.loading import Loaded
from halludecode.engines.vllm.frontend.output_reader import OutputReader, PartialAnswer
from halludecode.engines.vllm.frontend.requests import RequestBuilder, RequestGroup
from halludecode.engines.vllm.protocol import (
    DROP_ACTIVATIONS,
    PREPARE_STATE,
    READ_ACTIVATIONS,
    error_class,
    unpack,
)
from halludecode.engines.vllm.row_metadata import RowMetadata, replica_of

KEPT = 64  # looks into the vision tower; one is some hundred kilobytes at most
SMALL = 64  # numbers: what a processor tells of a picture beside its pixels


class ActivationPasses:
    """Runs the passes of requests, in one batch with whatever else runs.

    Args:
        loaded: The engine.
        row_builder: Where rows come from.
        request_builder: Where vLLM requests come from.
        name: Gives unused names at a replica.
    """

    def __init__(
        self,
        loaded: Loaded,
        row_builder: RowBuilder,
        request_builder: RequestBuilder,
        name: Callable[[int], str],
    ) -> None:
        self._loaded, self._row_builder = loaded, row_builder
        self._request_builder, self._name = request_builder, name
        self._kept = KeptPasses(KEPT)

    def states(
        self, prompts: Sequence[Prompt], plan: Plan, names: Sequence[str], *, run: bool = True
    ) -> list[list[Mapping[str, Any]]]:
        """Per prompt and part, what rows need of the state; the rest stays in the workers.

        Args:
            prompts: Of the requests.
            plan: What acts.
            names: Of the requests.
            run: Whether passes are; without them parts prepare as if they had asked for none.
        """
        parts = plan.parts
        by_prompt = [
            [dict(part.strategy.activations(p, part.model_info)) if run else {} for part in parts]
            for p in prompts
        ]
        if not any(requests for by_part in by_prompt for requests in by_part):
            states = [part.strategy.prepare({}, part.model_info) for part in parts]
            return [list(states) for _ in prompts]
        places = [replica_of(name) for name in names]
        with ExitStack() as running:
            passes = self._take_all(running, prompts, parts, places, by_prompt)
            text = hd_spec.format([part.strategy for part in parts])
            return [
                self._prepare(name, text, parts, by_part, passes)
                for name, by_part in zip(names, by_prompt, strict=True)
            ]

    def collect(self, request: ActivationRequest) -> Activations:
        """What one pass kept, brought to this side; for calibration."""
        with self._taken({(0, request.key): request}) as passes:
            (ran,) = passes.values()
            return self._read(ran, 0)

    def _read(self, ran: Pass, at: int) -> Activations:
        answers = self._loaded.call_workers(READ_ACTIVATIONS, ran.name, ran.facts, at=at)
        return Activations(**unpack(answers[0]))

    @contextmanager
    def _taken(
        self, requests: Mapping[PassKey, ActivationRequest]
    ) -> Iterator[Mapping[PassKey, Pass]]:
        """Passes that have been run, within this block.

        Looks at the tower's attention stay: they read pictures alone, and questions about one share
        them. Its states are megabytes and go.
        """
        shared = [key for key, r in requests.items() if r.tower_alone and not r.tower]
        kept, ran = self._kept.use(shared), dict[PassKey, Pass]()
        try:
            ran = self._take({key: r for key, r in requests.items() if key not in kept})
            yield kept | ran
        finally:
            dropped, stay = self._kept.done(kept, {k: v for k, v in ran.items() if k in shared})
            dropped += [each.name for key, each in ran.items() if key not in shared]
            self._drop(dropped, stay)

    def _drop(self, names: Iterable[str], stay: Sequence[str] = ()) -> None:
        if names or stay:
            self._loaded.call_workers(DROP_ACTIVATIONS, list(names), list(stay))

    def _prepare(
        self,
        name: str,
        text: str,
        parts: Sequence[TracedStrategy],
        by_part: Sequence[Mapping[str, ActivationRequest]],
        passes: Mapping[PassKey, Pass],
    ) -> list[Mapping[str, Any]]:
        """Have `prepare` run where the activations are; what rows need of its states."""
        at = replica_of(name)
        kept = [
            {
                local: [passes[at, request.key].name, passes[at, request.key].facts]
                for local, request in requests.items()
            }
            for requests in by_part
        ]
        fetch = [list(part.strategy.fetch) for part in parts]
        states = self._loaded.call_workers(PREPARE_STATE, name, text, kept, fetch, at=at)[0]
        if isinstance(states, Mapping):
            raise error_class(states["kind"])(states["error"])
        return unpack(states)

    def _take_all(
        self,
        running: ExitStack,
        prompts: Sequence[Prompt],
        parts: Sequence[TracedStrategy],
        places: Sequence[int],
        by_prompt: Sequence[Sequence[dict[str, ActivationRequest]]],
    ) -> dict[PassKey, Pass]:
        """Run the passes of requests, then those that depend on them, until there are no more.

        Args:
            running: Where they are dropped when it ends, also if a later one fails.
            prompts: Of the requests.
            parts: What acts.
            places: Replicas of the requests.
            by_prompt: Passes per request and part; those asked for in turn are put in.
        """
        passes, read = dict[PassKey, Pass](), dict[PassKey, Activations]()
        more = True
        while more:  # new names, though their passes may have been run under others
            new = {
                (at, each.key): each
                for at, own in zip(places, by_prompt, strict=True)
                for requests in own
                for each in requests.values()
                if (at, each.key) not in passes
            }
            if new:
                passes |= running.enter_context(self._taken(new))
            more = False
            for prompt, at, own in zip(prompts, places, by_prompt, strict=True):
                for part, requests in zip(parts, own, strict=True):
                    if not part.in_turn:
                        continue
                    for key in ((at, each.key) for each in requests.values()):
                        if key not in read:  # what it kept is needed on this side
                            read[key] = self._read(passes[key], at)
                    seen = {name: read[at, each.key] for name, each in requests.items()}
                    asked = next_passes(part.strategy, prompt, seen, part.model_info)
                    requests |= asked
                    more |= bool(asked)
        return passes

    def _take(self, requests: Mapping[PassKey, ActivationRequest]) -> dict[PassKey, Pass]:
        """Run the passes."""
        if not requests:
            return {}
        rows = {key: self._row_builder.activation_row(each) for key, each in requests.items()}
        names = {key: self._name(key[0]) for key in requests}
        reader = OutputReader(self._loaded)
        try:
            for key, request in requests.items():
                reader.add(self._request(request, rows[key], names[key]), Sampling())
            for _ in reader.steps():
                pass
            for error in (answer.error for answer in reader.answers):
                if error is not None:
                    raise error
            reports = reader.reports()
            for report in reports:
                if report["error"]:
                    raise error_class(report["kind"])(report["error"])
        except BaseException:
            reader.abort()  # first, or its rows would keep more
            self._drop(names.values())
            raise
        return {
            key: Pass(names[key], self._facts(request, rows[key], answer, report["scores"]))
            for (key, request), answer, report in zip(
                requests.items(), reader.answers, reports, strict=True
            )
        }

    def _request(self, request: ActivationRequest, row: Row, name: str) -> RequestGroup:
        sizes = [
            {
                key: value.tolist()
                for key, value in image.pixels.items()
                if isinstance(value, Tensor) and value.numel() <= SMALL
            }
            for image in row.images
        ]
        metadata = RowMetadata(
            group=name,
            role=0,
            rows=["main"],
            lives=["answer"],
            request_name=name,
            pictured=bool(row.images),
            score_words=self._row_builder.inputs.scored_words(request.words) or None,
            capture={**capture_of(request), "sizes": sizes if request.vision else []},
        )
        return self._request_builder.activation_group(metadata, row, request.write)

    def _facts(
        self,
        request: ActivationRequest,
        row: Row,
        answer: PartialAnswer,
        word_logits: Mapping[str, float],
    ) -> Mapping[str, Any]:
        """What the workers cannot know of a pass."""
        inputs = self._row_builder.inputs
        whole = (*request.answered, *answer.ids)
        mask = (row.input_ids == inputs.image_token).tolist() if request.every_token else None
        return {
            "capture": capture_of(request),
            "counts": [image.count for image in row.images],
            "spans": [] if request.tower_alone else [list(span) for span in seen_spans(row)],
            "mask": mask,
            "text": answer.text if request.write else "",
            "token_ids": list(answer.ids) if request.write else [],
            "pieces": list(inputs.pieces(whole)) if request.write else [],
            "word_logits": dict(word_logits),
        }


def capture_of(request: ActivationRequest) -> dict[str, Any]:
    """What a pass keeps, as plain values."""
    return {
        "hidden": list(request.hidden),
        "heads": list(request.heads),
        "image": list(request.image),
        "keys": list(request.keys),
        "vision": list(request.vision),
        "tower": list(request.tower),
        "full": request.vision_heads == "fullwidth",
        "every_token": request.every_token,
        "answered": request.each_answered,
        "logits": request.logits,
        "write": request.write,
    }
