"""``doctor``, ``demo`` and ``testbed``: this machine, and the model that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halludecode.cli import options
from halludecode.cli.output import json_document, note, show


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(doctor)
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
) -> int:
    """Show what works here, what is missing, and its cure."""
    if family:
        return _family(family, json=json)
    from halludecode.cli.doctor import describe, report

    with json_document(json) as documents:
        checks = report()
        documents.append(checks)
    if not json:
        show(*describe(checks))
    return 0 if checks["engines"]["hf"]["usable"] else 1


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
