"""The Typer application and its edge: errors become one line and an exit code.

0 done; 1 ran but some samples failed, or an unexpected error; 2 wrong usage or bad input;
130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from halludecode import __version__
from halludecode.cli import (
    answers,
    calibrate,
    evaluation,
    generate,
    heads,
    list_cite,
    serve,
    sinks,
    sweep,
    system,
)
from halludecode.cli.output import fail, note
from halludecode.core.errors import HalluDecodeError

app = typer.Typer(
    name="halludecode",
    help="Decoding strategies against hallucination in vision-language models.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (
    list_cite,
    generate,
    evaluation,
    sweep,
    answers,
    calibrate,
    heads,
    sinks,
    serve,
    system,
):
    group.register(app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error; goes with every command."),
    ] = False,
) -> None:
    """Decoding strategies against hallucination in vision-language models."""
    if version:
        sys.stdout.write(f"halludecode {__version__}\n")
    elif context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after the program's name; those of this process by default.

    Returns:
        The exit code; see the module's first lines.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]  # so that it may stand anywhere
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # answers may hold what this terminal lacks
    try:
        command = typer.main.get_command(app)
        code = command.main(words, "halludecode", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        code = _explain(error)
        if debug:
            traceback.print_exc()
    if code == 130:
        note("interrupted; what is done is kept")
    return code if isinstance(code, int) else 0


def _explain(error: BaseException) -> int:
    """Print one line about an error that ended a command, and choose the exit code."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130
    # Typer turns a broken pipe into SystemExit.
    if any(isinstance(e, BrokenPipeError) for e in (error, error.__context__)):
        _silence()
        return 0
    if not isinstance(error, Exception):
        raise error
    if isinstance(error, HalluDecodeError):
        fail(str(error))
        return 2
    if hasattr(error, "format_message"):  # Typer's usage errors; their class moved between versions
        where = getattr(getattr(error, "ctx", None), "command_path", "halludecode")
        fail(f"{error.format_message().rstrip('.')}; see {where} --help")
        return 2
    if isinstance(error, OSError) and error.filename:
        fail(f"{error.filename}: {error.strerror}")
        return 2
    fail(f"unexpected {type(error).__name__}: {error} (run again with --debug for the traceback)")
    return 1


def _silence() -> None:
    """The reader went away (`halludecode list | head`): write the rest to nowhere."""
    with contextlib.suppress(OSError, ValueError):  # standard output may be no real file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
