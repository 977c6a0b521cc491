"""``list`` and ``cite``: what strategies there are and where they come from."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halludecode.cli.options import Json
from halludecode.cli.output import json_document, plain, show
from halludecode.core.errors import HalluDecodeError
from halludecode.core.needs import in_words

if TYPE_CHECKING:
    from halludecode.catalog import Info

_CITATION = re.compile(r"\s*\([^()]*( et al\.[^()]*\)|$)")  # whole, or cut by the line end


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("list")(list_)
    app.command()(cite)


def list_(
    name: Annotated[str | None, typer.Argument(help="One strategy in full.")] = None,
    json: Json = False,
) -> None:
    """Show the strategies, or one of them in full."""
    from halludecode.catalog import info, strategies

    with json_document(json) as documents:
        found = strategies() if name is None else info(name)
        documents.append([as_json(i) for i in found] if name is None else as_json(found))
    if json:
        return
    if name is None:
        show(_table(found))
    else:
        show(*_details(found))


def cite(
    names: Annotated[list[str], typer.Argument(help="Strategy names.", metavar="NAME...")],
) -> None:
    """Print BibTeX of the papers behind strategies."""
    from halludecode.core.registry import STRATEGIES

    entries = []
    for name in dict.fromkeys(names):
        paper = STRATEGIES.get(name).paper
        if paper is None:
            raise HalluDecodeError(f"{name} has no paper to cite.")
        entries.append(paper.bibtex(name))
    sys.stdout.write("\n\n".join(entries) + "\n")


def as_json(info: Info) -> dict[str, Any]:
    """What ``list --json`` prints of a strategy; bounds in words beside each parameter."""
    described = plain(info)
    for entry, param in zip(described["params"], info.params, strict=True):
        entry["bounds"] = param.bounds
    return described


def summary(info: Info) -> str:
    """The first line of a strategy's docstring without its citation, which stands apart."""
    return _CITATION.sub("", info.summary).rstrip(".")


def origin(info: Info) -> str:
    """Venue, year and number, empty for a strategy without a paper."""
    paper = info.paper
    return f"{paper.venue} {paper.year}, {paper.number}" if paper else ""


def _table(found: list[Info]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("strategy", no_wrap=True)
    for column in ("paper", "what it does", "needs", "rows"):
        table.add_column(column, overflow="fold")
    for i in found:
        paper = i.paper.number if i.paper else ""
        table.add_row(i.name, paper, summary(i), ", ".join(in_words(i.needs)), " ".join(i.rows))
    return table


def _details(info: Info) -> list[Any]:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    off = ", ".join(f"{key}={value}" for key, value in info.off.items())
    entries = [
        ("paper", f"{info.paper.title} ({origin(info)})" if info.paper else ""),
        ("rows", " ".join(info.rows)),
        ("needs", ", ".join(in_words(info.needs))),
        ("cost", info.cost),
        ("engines", " ".join(info.engines)),
        ("equals greedy at", off),
    ]
    lines = [f"{label}: {text}" for label, text in entries if text]
    parts: list[Any] = [info.name, "", info.doc, "", *lines]
    if info.params:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in ("parameter", "default", "bounds", "what it is"):
            table.add_column(column, overflow="fold")
        for p in info.params:
            table.add_row(p.name, repr(p.default), p.bounds, p.help)
        parts += ["", table]
    return parts
