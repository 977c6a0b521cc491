"""``reproduce``: a run again from its run.json, and what differs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from halludecode.cli import epilogs, options
from halludecode.cli.output import fail, json_document, memory_advice, note, show
from halludecode.core.errors import InvalidParameter


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog=epilogs.REPRODUCE)(reproduce)


def reproduce(
    run: Annotated[Path, typer.Argument(help="run.json, or the run folder it is in.")],
    output: Annotated[Path, typer.Option(help="Folder of the second run; resumed if it exists.")],
    model: Annotated[
        str | None, typer.Option(help="Where the model is now; default the run's own name for it.")
    ] = None,
    device: options.Device = None,
    batch_size: options.BatchSize = None,
    server: options.Servers = None,
    json: options.Json = False,
) -> int:
    """Run a run.json again, and say which versions, data, answers and scores differ.

    Exit code 0 if all answers and scores are the same, else 1.
    """
    from halludecode.evals.runner.reproduce import read_card
    from halludecode.evals.runner.reproduce import reproduce as again

    _, card = read_card(run)
    if server:
        load = partial(options.load, server, engine="server")
    elif card["engine"] == "server":
        raise InvalidParameter(f"{run}: a server answered; give its URL with --server.")
    else:
        given = {**card.get("load", {}), "dtype": card.get("dtype")}
        given |= {
            k: v for k, v in (("device", device), ("batch_size", batch_size)) if v is not None
        }
        set_ = {name: value for name, value in given.items() if value is not None}
        load = options.loader(model or card["model"], card["engine"], set_)
    with json_document(json) as documents, memory_advice(batch_size):
        found = again(run, load, output)
        documents.append(found.to_dict())
    if not json:
        show(found.table())
    if not found.same:
        fail(f"the second run, in {output}, is not the first")
        return 1
    note(f"all answers and scores are the same; the second run is in {output}")
    return 0
