"""Our strategies inside VLMEvalKit, which has no plug-in point: `register` and its own `run.py`.

A file beside its ``run.py``, with that file's options::

    import run
    from halludecode.adapters.vlmevalkit import register

    register(run.supported_VLM, "llava-vcd", "llava-hf/llava-1.5-7b-hf", "vcd(alpha=0.5,beta=0.2)")
    run.main()
"""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import partial
from typing import Any

from halludecode.adapters.engine_options import open_engine
from halludecode.core.errors import InvalidRequest
from halludecode.core.request import Request, Sampling


def register(
    supported: MutableMapping[str, Any],
    name: str,
    model: str,
    strategy: str = "greedy",
    *,
    engine: str | None = None,
    max_new_tokens: int = 2048,
    **options: Any,
) -> None:
    """Put a model under a strategy among those of VLMEvalKit.

    Args:
        supported: ``run.supported_VLM``.
        name: How ``--model`` calls it, and its files are called.
        model: Hub id, folder, "testbed", or the URL of a running `halludecode serve`.
        strategy: What acts.
        engine: "hf", "vllm" or "server"; a URL is a server's, else "hf".
        max_new_tokens: Most tokens of an answer; 2048 as VLMEvalKit's own models have it.
        **options: What `halludecode.load` takes for the engine.

    Raises:
        HalluDecodeError: The strategy is none; before anything slow.
    """
    from halludecode.core import spec as hd_spec

    hd_spec.parse(strategy)
    given = {"engine": engine, "max_new_tokens": max_new_tokens, **options}
    supported[name] = partial(_make, model=model, strategy=strategy, **given)


def _make(**given: Any) -> Any:
    """The model, of a class that is VLMEvalKit's own kind; `run.py` calls it when it is needed."""
    from vlmeval.vlm.base import BaseModel

    class HalluDecode(BaseModel):
        """A model under a strategy, one question at a time."""

        INTERLEAVE = True
        allowed_types = ("text", "image")

        def __init__(
            self,
            model: str,
            strategy: str,
            engine: str | None,
            max_new_tokens: int,
            use_vllm: bool = False,
            **options: Any,
        ) -> None:
            super().__init__()
            engine = "vllm" if use_vllm and engine is None else engine  # run.py's --use-vllm
            self.engine = open_engine(model, engine, options)
            self.plan = self.engine.plan(strategy)
            self.sampling = Sampling(max_new_tokens=max_new_tokens)

        def generate_inner(self, message: list[dict[str, Any]], dataset: Any = None) -> str:
            """The answer to one question: parts of ``type`` and ``value`` in their order."""
            del dataset
            turn = {"role": "user", "content": [_part(part) for part in message]}
            return self.engine.generate([Request([turn])], self.plan, self.sampling)[0].text

    return HalluDecode(**given)


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind, value = part["type"], part["value"]
    if kind not in ("text", "image"):
        raise InvalidRequest(f"A question holds {kind}; text and images are served.")
    return {"type": "text", "text": value} if kind == "text" else {"type": "image", "path": value}
