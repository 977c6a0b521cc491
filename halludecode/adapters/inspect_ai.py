"""Our strategies inside Inspect (inspect_ai 0.3.285), over a running `halludecode serve`.

``inspect eval task.py --model halludecode/testbed -M strategy=vcd``: Inspect imports this module
through the entry-point group ``inspect_ai``, see README.md here.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    modelapi,
)

from halludecode.adapters.engine_options import unquoted
from halludecode.core.errors import InvalidParameter, InvalidRequest
from halludecode.core.request import Request, Sampling

DEFAULT_TOKENS = 1024
DEFAULT_URL = "http://127.0.0.1:8000"
# Of Inspect's configuration -> of `Sampling`.
DRAWN = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop_seqs": "stop",
    "seed": "seed",
    "num_choices": "n",
    "logit_bias": "logit_bias",
}
# What Inspect itself reads of its configuration, before or after an answer.
ITS_OWN = frozenset(
    {
        *("max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections"),
        *("adaptive_connections", "system_message", "cache", "logprobs", "top_logprobs"),
        *("max_tool_output", "parallel_tool_calls", "internal_tools", "batch", "modalities"),
    }
)


@modelapi(name="halludecode")
class HalluDecodeAPI(ModelAPI):
    """A served model under a strategy.

    Args:
        model_name: The model's name at the server.
        base_url: The server's address.
        api_key: What the server asks for; by default the environment's ``HALLUDECODE_API_KEY``.
        config: Inspect's.
        strategy: What acts (``-M "strategy=vcd(alpha=0.5,beta=0.2)"``, of which Inspect makes a
            list, cut at its commas).
        explain: Whether the output's metadata tell each token's grounding, which costs a row.
        options: What `ServerEngine` takes beside (``-M concurrency=8``).

    Raises:
        HalluDecodeError: The server is not there, or does not serve the model or strategy.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (Inspect's own signature)
        strategy: str | Sequence[str] = "greedy",
        explain: bool = True,
        **options: Any,
    ) -> None:
        from halludecode.engines.server.engine import ServerEngine

        super().__init__(model_name, base_url, api_key, ["HALLUDECODE_API_KEY"], config)
        url = base_url or DEFAULT_URL
        self.engine = ServerEngine(url, model_name=model_name, api_key=self.api_key, **options)
        whole = strategy if isinstance(strategy, str) else ",".join(map(str, strategy))
        self.plan = self.engine.plan(unquoted(whole))
        self.explain = bool(explain)

    async def generate(
        self, input: list[Any], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """One answer, or several where ``num_choices`` says so.

        Raises:
            HalluDecodeError: The request cannot be served; the sentence says why.
        """
        if tools:
            raise InvalidRequest(
                "Tools are not served under a strategy; use a solver without them."
            )
        request, sampling = Request([_message(each) for each in input]), _sampling(config)

        def answer() -> Any:
            return self.engine.generate([request], self.plan, sampling, explain=self.explain)[0]

        output = await anyio.to_thread.run_sync(answer)
        return ModelOutput(
            model=self.model_name,
            choices=[_choice(each, self.model_name) for each in output.choices],
            usage=_usage(output),
            metadata=_metadata(output),
        )

    def connection_key(self) -> str:
        """One pool of connections a server."""
        return self.engine.servers[0]


def _message(message: Any) -> dict[str, Any]:
    content = message.content
    parts: list[dict[str, Any]] = []
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str) or part.type == "text":
            parts.append({"type": "text", "text": part if isinstance(part, str) else part.text})
        elif part.type == "image":  # Inspect has made a data URL of it, unless it is on the web
            parts.append({"type": "image_url", "image_url": {"url": part.image}})
        else:
            raise InvalidRequest(
                f"A {message.role} message has {part.type}; text and images are served."
            )
    return {"role": message.role, "content": parts}


def _sampling(config: GenerateConfig) -> Sampling:
    """How answers are drawn; what nobody would read is refused."""
    given = {k: v for k, v in config.model_dump(exclude_none=True).items() if k not in ITS_OWN}
    unread = sorted(given.keys() - DRAWN.keys())
    if unread:
        raise InvalidParameter(
            f"{unread[0]} is not served under a strategy; leave it out, or set one of "
            f"{', '.join(DRAWN)}."
        )
    chosen = {DRAWN[name]: value for name, value in given.items()}
    if config.logprobs or config.top_logprobs:
        chosen["logprobs"] = config.top_logprobs or 0
    return Sampling(**{"max_new_tokens": DEFAULT_TOKENS, **chosen})


def _choice(choice: Any, model: str) -> ChatCompletionChoice:
    message = ChatMessageAssistant(content=choice.text, model=model, source="generate")
    return ChatCompletionChoice(
        message=message,
        stop_reason="stop" if choice.finish_reason == "stop" else "max_tokens",
        logprobs=None if choice.logprobs is None else _logprobs(choice.logprobs),
    )


def _logprobs(tokens: Any) -> Logprobs:
    def top(each: Any) -> list[TopLogprob]:
        return [TopLogprob(token=f"token_id:{k}", logprob=v) for k, v in each.top.items()]

    content = [Logprob(token=t.token, logprob=t.logprob, top_logprobs=top(t)) for t in tokens]
    return Logprobs(content=content)


def _usage(output: Any) -> ModelUsage:
    written = output.timings.tokens
    return ModelUsage(output_tokens=written, total_tokens=written)


def _metadata(output: Any) -> dict[str, Any]:
    """What a strategy did, for `inspect view` and for whoever reads the log."""
    told = {"strategy": output.strategy, "effect": output.effect, "rows": list(output.rows)}
    if output.warnings:
        told["warnings"] = list(output.warnings)
    if output.explanation is not None:
        tokens = output.explanation.tokens
        told["grounding"] = fmean(token.grounding for token in tokens)
        told["tokens"] = [
            {name: getattr(token, name) for name in ("text", "grounding", "entropy", "mass")}
            for token in tokens
        ]
    return told
