"""Options that several commands share, and the engine arguments made of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
EngineName = Annotated[str | None, typer.Option("--engine", help="hf (default) or vllm.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16 or auto."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")]
DeviceMap = Annotated[str | None, typer.Option(help="Spread the model over devices, such as auto.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
TrustRemoteCode = Annotated[
    bool | None,
    typer.Option("--trust-remote-code", help="Run code that comes with the model."),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Requests in one batch.")]

ENGINE_ARGUMENTS = ("dtype", "device", "device_map", "revision", "trust_remote_code", "batch_size")


def engine_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Those of ``given`` that `halludecode.load` takes and that the user set."""
    return {name: given[name] for name in ENGINE_ARGUMENTS if given.get(name) is not None}
