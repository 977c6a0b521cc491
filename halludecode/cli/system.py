"""``doctor``, ``demo`` and ``testbed``: this machine, and the model that comes with the package."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from halludecode.cli import epilogs, options
from halludecode.cli.output import json_document, memory_advice, note, show
from halludecode.core.errors import InvalidParameter


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog=epilogs.DOCTOR)(doctor)
    app.command()(demo)
    # Its options belong to another application, which is imported only when it is called.
    passing = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(context_settings=passing, add_help_option=False)(testbed)


def doctor(
    json: options.Json = False,
    family: Annotated[
        str | None,
        typer.Option(
            help="A model type, a folder or a hub id: what engines and strategies do on it."
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Load a model and run its strategies once each: does off equal greedy, do hooks "
            "fire, do both engines agree? Prints a report for an issue; exit code 1 if not.",
        ),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="With --verify: this one alone; repeat for several (default all)."),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="With --verify: hf or vllm alone (default both, where vLLM serves it)."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --verify: what an engine's strategies may take (default 600); the rest are "
            "told as not run.",
        ),
    ] = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = None,
    engine_arg: options.EngineArgs = None,
) -> int:
    """Show what works here, what is missing, and its cure."""
    settings = dict(locals())  # the options alone: nothing else is a local yet
    if verify:
        return _verify(verify, settings)
    only = ("strategy", "engine", "seconds", "dtype", "trust_remote_code", "engine_arg")
    for name in (name for name in only if settings[name] not in (None, [])):
        raise InvalidParameter(f"--{name.replace('_', '-')} goes with --verify MODEL.")
    if family:
        return _family(family, json=json)
    from halludecode.cli.doctor import describe, report

    with json_document(json) as documents:
        checks = report()
        documents.append(checks)
    if not json:
        show(*describe(checks))
    return 0 if checks["engines"]["hf"]["usable"] else 1


def _verify(model: str, settings: dict[str, Any]) -> int:
    from halludecode.cli import verify

    if settings["family"]:
        raise InvalidParameter("--verify and --family are two reports; ask for one.")
    engines, specs = settings["engine"] or (), settings["strategy"] or ()
    verify.check_asked(engines, specs)
    if settings["engine_arg"] and len(engines) != 1:
        raise InvalidParameter("--engine-arg is one engine's: name it with --engine.")
    arguments = options.engine_arguments(settings)
    for name in engines or verify.ENGINES[:1]:
        options.loader(model, name, arguments)
    seconds = verify.SECONDS if settings["seconds"] is None else settings["seconds"]
    note(f"each engine's strategies may take {seconds:g} s (--seconds) once a model is loaded")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # What libraries print is no part of what is pasted.
    quiet = contextlib.redirect_stdout(sys.stderr)
    with json_document(settings["json"]) as documents, quiet, memory_advice(1):
        load = partial(options.load, **arguments)
        found = verify.report(model, load, engines, specs, seconds, _bar)
        documents.append(found)
    if not settings["json"]:
        sys.stdout.write("\n".join(verify.describe(found)) + "\n")
    return 1 if found["broken"] else 0


def _bar(specs: Sequence[str], engine: str) -> Iterable[str]:
    from tqdm import tqdm

    return tqdm(specs, engine, unit="strategy", dynamic_ncols=True)


def _family(given: str, *, json: bool) -> int:
    from halludecode.cli.family import describe, report

    with json_document(json) as documents:
        found = report(given)
        documents.append(found)
    if not json:
        show(*describe(found))
    return 0


def demo(
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/demo"),
    image: Annotated[
        Path | None, typer.Option(help="Describe this picture instead, such as testbed:3.")
    ] = None,
) -> Any:
    """Run the main job on the embedded model."""
    from halludecode.evals.demo import run_demo

    result = run_demo(output, image)  # prints its table itself
    note(f"saved in {output}")
    return 1 if getattr(result, "failed", 0) else 0


def testbed(context: typer.Context) -> Any:
    """The embedded world: make data, train, show its card."""
    from halludecode.testbed.cli import app

    command = typer.main.get_command(app)
    return command.main(context.args or ["--help"], "halludecode testbed", standalone_mode=False)
