"""``serve``: vLLM's OpenAI-compatible server with strategies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halludecode.cli import epilogs, options
from halludecode.core.errors import InvalidRequest


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    # What it does not know belongs to vLLM.
    passing = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=passing, epilog=epilogs.SERVE)(serve)


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Hub id, folder, or testbed.")],
    strategy: Annotated[str, typer.Option(help="Strategy of requests that name none.")] = "greedy",
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8000,
    alias: Annotated[
        list[str] | None,
        typer.Option(help="List MODEL:STRATEGY as a model of its own; repeat for several."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="Strategy clients may ask for: NAME with any parameters, NAME(k=v) with these "
            "alone; repeat. Without it: all."
        ),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of one request, times n.")] = 32,
    max_groups: Annotated[
        int, typer.Option(min=1, help="Answers under strategies at a time.")
    ] = 256,
    max_images: Annotated[int, typer.Option(min=1, help="Images of one request.")] = 8,
    max_image_mb: Annotated[float, typer.Option(min=0, help="MiB of one image as sent.")] = 20.0,
    max_image_pixels: Annotated[int, typer.Option(min=1, help="Pixels of one image.")] = 25_000_000,
    max_request_pixels: Annotated[
        int, typer.Option(min=1, help="Pixels of all images of one request.")
    ] = 50_000_000,
    image_fetch_seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a remote image may take.")
    ] = 10.0,
    image_domain: Annotated[
        list[str] | None,
        typer.Option(help="Host that images may be fetched from; repeat. Without it: none."),
    ] = None,
    allowed_local_media_path: Annotated[
        Path | None, typer.Option(help="Folder below which file:// images may be read.")
    ] = None,
    artifacts: Annotated[
        Path | None, typer.Option(help="Folder of what calibrate made; default the user's own.")
    ] = None,
    extra_rows: options.ExtraRows = None,
) -> None:
    """Serve a model as OpenAI does; other options are vLLM's, such as --api-key."""
    settings = dict(locals())  # the options alone: nothing else is a local yet
    from halludecode.api import check_load
    from halludecode.core.spec import parse
    from halludecode.engines.api import checked_extra_rows

    for text in (strategy, *(alias or ()), *(allow or ())):
        parse(text)  # a misspelt strategy should not cost the time of loading a model
    begin = checked_extra_rows(extra_rows or "on_demand")
    check_load(model, "vllm")
    folder = allowed_local_media_path
    if folder is not None and not folder.is_dir():
        raise InvalidRequest(f"--allowed-local-media-path {folder}: no such folder.")
    policy = _policy(settings)
    from halludecode.serve import app

    args = app.arguments(policy, ["--host", host, "--port", str(port), *context.args])
    app.run(model, app.named(policy, args), args, artifacts, begin)


def _policy(settings: dict[str, Any]) -> Any:
    from halludecode.serve.policy import Policy, allowed_of

    folder = settings["allowed_local_media_path"]
    policy = Policy(
        name=settings["model"],
        default=settings["strategy"],
        aliases=tuple(settings["alias"] or ()),
        allowed=allowed_of(settings["allow"] or ()),
        rows=settings["max_rows"],
        groups=settings["max_groups"],
        images=settings["max_images"],
        image_bytes=int(settings["max_image_mb"] * (1 << 20)),
        image_pixels=min(settings["max_image_pixels"], settings["max_request_pixels"]),
        request_pixels=settings["max_request_pixels"],
        fetch_seconds=settings["image_fetch_seconds"],
        domains=tuple(settings["image_domain"] or ()),
        folder=str(folder.resolve()) if folder else None,
    )
    for text in (policy.default, *policy.aliases):
        policy.check_allowed(text)
    return policy
