"""A chat request whose rows are ours: its messages, and what is kept of it until its answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from vllm.exceptions import GenerationError

from halludecode.core.errors import InvalidRequest
from halludecode.core.plan import Plan
from halludecode.core.prompt import Prompt, Turn
from halludecode.engines.inputs.images import VIDEO
from halludecode.engines.inputs.parts import VIDEOS
from halludecode.engines.vllm.engine import VLLMEngine
from halludecode.engines.vllm.frontend.requests import OpenRequest, RequestGroup
from halludecode.engines.vllm.protocol import GroupReport


@dataclass(eq=False)
class ChatRequest:
    """One request, ready for vLLM.

    Args:
        opened: Its rows as they were made.
        group: The same as vLLM gets them, per child.
        max_tokens: Most tokens written.
        stops: Strings that end an answer.
        started: Whether it was handed to vLLM; from then on `ChatHandler.answer` cleans up.
        joined: Rows that began later.
        ended: Whether it has; rows that are made for it then come too late.
        clock: Seconds at arrival, when handed over, at the first token, at the end.
        ids: Tokens written so far, per child.
        report: The workers' on the first child, once it is done.
        readings: Of every child, what `GroupReport` has of its tokens.
    """

    opened: OpenRequest
    group: RequestGroup
    max_tokens: int
    stops: tuple[str, ...] = ()
    started: bool = False
    joined: int = 0
    ended: bool = False
    clock: list[float] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    report: GroupReport | None = None
    readings: list[list[Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Our name of it."""
        return self.opened.name

    @property
    def plan(self) -> Plan:
        """What acts."""
        return self.opened.plan

    @property
    def mains(self) -> list[Any]:
        """The main row of every child."""
        return [rows[0] for rows in self.group.members]

    @property
    def rows(self) -> int:
        """Rows it occupies."""
        return sum(len(rows) for rows in self.group.members)

    def start(self) -> None:
        """It is handed to vLLM now."""
        self.started = True
        self.clock.append(time.perf_counter())
        self.ids = [[] for _ in self.group.members]

    def add_tokens(self, output: Any) -> int:
        """Keep an output's tokens; returns how many there are."""
        for choice in output.outputs:
            self.ids[choice.index] += choice.token_ids
        if len(self.clock) == 2:
            self.clock.append(_first_token(output, self.clock[1]))
        return sum(len(choice.token_ids) for choice in output.outputs)


def without_pictures(opened: OpenRequest) -> OpenRequest:
    """The same with pictures that have no pixels, once its rows are handed to vLLM's processor.

    As it is where rows may still have to be made of them.
    """
    prepared = opened.prepared
    if prepared.main_only:
        return opened
    pictures = [replace(picture, image=None) for picture in prepared.prompt.pictures]
    prompt = prepared.prompt.replace_pictures(pictures)
    rows = {name: replace(row, images=()) for name, row in prepared.rows.items()}
    return replace(opened, prepared=replace(prepared, prompt=prompt, rows=rows))


def split_pictures(messages: Sequence[Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Chat messages with bare image places, and the pictures' URLs in order.

    Raises:
        InvalidRequest: A part is neither text nor image_url.
    """
    bare: list[dict[str, Any]] = []
    urls: list[str] = []
    for i, message in enumerate(messages):
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            content = [_part(part, f"message {i + 1}", urls) for part in content]
        if content is None and not message.get("tool_calls"):
            content = []
        bare.append({**message, "content": content})
    return bare, urls


def has_pictures(messages: Sequence[Any]) -> bool:
    """Whether a chat holds anything but words; its lazy parts are made lists on the way."""
    pictured = False
    for message in messages:
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            message["content"] = content = list(content)
            pictured = pictured or any(
                not (isinstance(part, str) or (isinstance(part, Mapping) and "text" in part))
                for part in content
            )
    return pictured


def _part(part: Any, where: str, urls: list[str]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, str) or kind in ("text", "input_text"):
        text = part if isinstance(part, str) else part.get("text")
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}: a part of type {kind!r} needs its text.")
        return {"type": "text", "text": text}
    if kind in VIDEOS:
        raise InvalidRequest(f"{where}: a part {VIDEO}")
    url = part.get("image_url") if isinstance(part, Mapping) else None
    url = url.get("url") if isinstance(url, Mapping) else url
    if not isinstance(url, str):
        raise InvalidRequest(
            f"{where}: a part must be text, image_url or input_image, not {kind!r}."
        )
    urls.append(url)
    return {"type": "image"}


def _first_token(output: Any, sent: float) -> float:
    """When the first token was there; an answer that comes whole tells it in its statistics."""
    latency = getattr(output.metrics, "first_token_latency", 0.0) if output.finished else 0.0
    now = time.perf_counter()
    return min(sent + latency, now) if output.finished else now


def parent_of(chat: ChatRequest, request_id: str) -> Any:
    """VLLM's record of a request with several answers."""
    from vllm.v1.engine.parallel_sampling import ParentRequest

    params = chat.mains[0].sampling_params.clone()
    params.n = len(chat.mains)
    parent = ParentRequest(
        SimpleNamespace(request_id=chat.name, external_req_id=request_id, params=params)  # type: ignore[arg-type]
    )
    parent.child_requests = {main.request_id for main in chat.mains}
    return parent


def check_output(output: Any) -> None:
    """Raise GenerationError for an answer that vLLM gave up."""
    for choice in output.outputs:
        if choice.finish_reason == "error":
            why = choice.stop_reason or "no reason"
            raise GenerationError(f"vLLM gave the request up: {why}.")


def listed(stop: Any) -> tuple[str, ...]:
    """Stop strings, however many were given."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def begun_by_tokenizer(engine: VLLMEngine) -> bool:
    """Whether prompts begin with the tokenizer's own first token, not the template's."""
    bos = getattr(engine.tokenizer, "bos_token", None)
    return not (bos and engine.inputs.render(Prompt((Turn("user", ("?",)),))).startswith(bos))
