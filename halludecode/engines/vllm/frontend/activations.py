"""In the front end: passes of the plain model before the answer, as requests of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from halludecode.core import spec as hd_spec
from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.plan import Plan
from halludecode.core.prompt import Prompt
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.api import Sampling
from halludecode.engines.inputs.rows import Row, RowBuilder, seen_spans
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

Taken = tuple[int, str]  # an activation request's replica and key
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

    def states(
        self, prompts: Sequence[Prompt], plan: Plan, jobs: Sequence[str]
    ) -> list[list[Mapping[str, Any]]]:
        """Per prompt and part, what rows need of the state; the rest stays in the workers."""
        parts = plan.parts
        by_prompt = [
            [dict(part.strategy.activations(p, part.model_info)) for part in parts] for p in prompts
        ]
        places = [replica_of(job) for job in jobs]
        every = {
            (at, request.key): request
            for at, one in zip(places, by_prompt, strict=True)
            for requests in one
            for request in requests.values()
        }
        if not every:
            made = [part.strategy.prepare({}, part.model_info) for part in parts]
            return [list(made) for _ in prompts]
        told, names = self._take(every)
        try:
            text = hd_spec.format([part.strategy for part in parts])
            return [
                self._prepare(job, text, parts, one, told, names)
                for job, one in zip(jobs, by_prompt, strict=True)
            ]
        finally:
            self._loaded.call_workers(DROP_ACTIVATIONS, list(names.values()))

    def collect(self, request: ActivationRequest) -> Activations:
        """What one pass kept, brought to this side; for calibration."""
        here = (0, request.key)
        told, names = self._take({here: request})
        try:
            return Activations(
                **unpack(
                    self._loaded.call_workers(READ_ACTIVATIONS, names[here], told[here], at=0)[0]
                )
            )
        finally:
            self._loaded.call_workers(DROP_ACTIVATIONS, list(names.values()))

    def _prepare(
        self,
        job: str,
        text: str,
        parts: Sequence[TracedStrategy],
        by_prompt: Sequence[Mapping[str, ActivationRequest]],
        told: Mapping[Taken, Mapping[str, Any]],
        names: Mapping[Taken, str],
    ) -> list[Mapping[str, Any]]:
        at = replica_of(job)
        wanted = [
            {n: [names[at, request.key], told[at, request.key]] for n, request in requests.items()}
            for requests in by_prompt
        ]
        fetch = [list(part.strategy.fetch) for part in parts]
        made = self._loaded.call_workers(PREPARE_STATE, job, text, wanted, fetch, at=at)[0]
        if isinstance(made, Mapping):
            raise error_class(made["kind"])(made["error"])
        return unpack(made)

    def _take(
        self, requests: Mapping[Taken, ActivationRequest]
    ) -> tuple[dict[Taken, Mapping[str, Any]], dict[Taken, str]]:
        """Run the passes; of each, what this side knows and the name it is kept under."""
        rows = {
            taken: self._row_builder.activation_row(request) for taken, request in requests.items()
        }
        names = {taken: self._name(taken[0]) for taken in requests}
        reader = OutputReader(self._loaded)
        try:
            for taken, request in requests.items():
                reader.add(self._request(request, rows[taken], names[taken]), Sampling())
            for _ in reader.steps():
                pass
            for error in (answer.error for answer in reader.answers):
                if error is not None:
                    raise error
            for report in reader.reports():
                if report["error"]:
                    raise error_class(report["kind"])(report["error"])
        except BaseException:
            reader.abort()  # first, or its rows would keep more
            self._loaded.call_workers(DROP_ACTIVATIONS, list(names.values()))
            raise
        told = {
            taken: self._told(request, rows[taken], answer)
            for (taken, request), answer in zip(requests.items(), reader.answers, strict=True)
        }
        return told, names

    def _request(self, request: ActivationRequest, row: Row, name: str) -> RequestGroup:
        sizes = [
            {
                key: value.tolist()
                for key, value in image.pixels.items()
                if isinstance(value, Tensor) and value.numel() <= SMALL
            }
            for image in row.images
        ]
        tag = RowMetadata(
            group=name,
            role=0,
            rows=["main"],
            lives=["answer"],
            request_name=name,
            pictured=bool(row.images),
            capture={**capture_of(request), "sizes": sizes if request.vision else []},
        )
        return self._request_builder.activation_group(tag, row, request.write)

    def _told(
        self, request: ActivationRequest, row: Row, answer: PartialAnswer
    ) -> Mapping[str, Any]:
        inputs = self._row_builder.inputs
        mask = (row.input_ids == inputs.image_token).tolist() if request.every_token else None
        return {
            "capture": capture_of(request),
            "counts": [image.count for image in row.images],
            "spans": [list(span) for span in seen_spans(row, inputs)],
            "mask": mask,
            "text": answer.text if request.write else "",
            "token_ids": list(answer.ids) if request.write else [],
        }


def capture_of(request: ActivationRequest) -> dict[str, Any]:
    """What a pass keeps, as plain values."""
    return {
        "hidden": list(request.hidden),
        "heads": list(request.heads),
        "image": list(request.image),
        "vision": list(request.vision),
        "full": request.vision_heads == "fullwidth",
        "every_token": request.every_token,
        "logits": request.logits,
        "write": request.write,
    }
