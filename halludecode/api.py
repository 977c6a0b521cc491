"""Top-level functions: load a model, answer one request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from os import PathLike, fspath
from typing import Any

from halludecode.core.errors import InvalidRequest
from halludecode.core.spec import Spec, get
from halludecode.engines import ENGINES
from halludecode.engines.api import Engine, Explain, Output, Request, Sampling, checked_extra_rows
from halludecode.models.checkpoints import check_type
from halludecode.models.sources import TESTBED, check_dtype, model_source

__all__ = ["check_load", "generate", "get", "load"]


def load(model: Any, engine: str = "hf", **engine_args: Any) -> Engine:
    """Load a model into an engine.

    Args:
        model: Hub id, local path, "testbed", or a transformers model (with ``processor=``); for
            "server" the URL of a running `halludecode serve`, or several.
        engine: "hf", "vllm" or "server".
        **engine_args: hf and vllm: artifacts (folder of `halludecode calibrate`), extra_rows
            ("on_demand" or "always", see `HFEngine`). hf: batch_size, dtype, device,
            device_map, revision, trust_remote_code, and whatever transformers' `from_pretrained`
            takes. vllm: whatever vLLM's `EngineArgs` take. server: api_key, concurrency, tries and
            whatever else `engines.server.engine.ServerEngine` takes.

    Raises:
        InvalidModel: It cannot be loaded.
        MissingExtra: vLLM, or for "server" OpenAI's client, is not installed.
        InvalidRequest: There is no engine of that name.
        InvalidParameter: An option of the engine is none of its values.
    """
    if isinstance(model, PathLike):
        model = fspath(model)
    check_load(model, engine, **engine_args)
    if engine == "vllm":
        from halludecode.engines.vllm.engine import VLLMEngine

        return VLLMEngine(model, **engine_args)
    if engine == "server":
        from halludecode.engines.server.engine import ServerEngine

        return ServerEngine(model, **engine_args)
    from halludecode.engines.hf.engine import HFEngine

    return HFEngine(model, **engine_args)


def check_load(model: Any, engine: str = "hf", **engine_args: Any) -> None:
    """Refuse what `load` would refuse, as far as that is known before torch is imported.

    Raises:
        HalluDecodeError: As `load`.
    """
    if engine not in ENGINES:
        raise InvalidRequest(f"Unknown engine {engine!r}; known: {', '.join(ENGINES)}.")
    if "extra_rows" in engine_args:
        checked_extra_rows(engine_args["extra_rows"])
    if engine == "hf":
        check_dtype(engine_args.get("dtype"))
    if engine != "server" and isinstance(model, str) and model not in TESTBED:
        check_type(model, model_source(model), engine_args.get("revision"))


def generate(
    model: Any,
    prompt: Any,
    images: Sequence[Any] = (),
    strategy: Spec = "greedy",
    engine: str = "hf",
    *,
    explain: Explain = False,
    **sampling: Any,
) -> Output:
    """Answer one request.

    Args:
        model: A loaded engine, or what `load` takes; the last model loaded by name stays in memory.
        prompt: Words, chat messages, or text in the model's own template.
        images: Paths, PIL images, bytes or data URLs.
        strategy: Spec string such as ``"var+vcd(alpha=0.5)"``.
        engine: Used when ``model`` is a name.
        explain: True also gives `Output.explanation`, "maps" with a map of attention per token.
        **sampling: Fields of `Sampling`.
    """
    if isinstance(model, str):
        loaded = _load_cached(model, engine)
    else:
        loaded = model if isinstance(model, Engine) else load(model, engine)
    try:
        chosen = Sampling(**sampling)
    except TypeError as error:
        known = ", ".join(Sampling.__dataclass_fields__)
        raise InvalidRequest(f"generate(): {error}; sampling options are {known}.") from None
    request = Request(prompt, tuple(images))
    return loaded.generate([request], strategy, chosen, explain=explain)[0]


@lru_cache(maxsize=1)
def _load_cached(model: str, engine: str) -> Engine:
    return load(model, engine)
