"""``list`` and ``cite``: what strategies and benchmarks there are and where they come from."""

from __future__ import annotations

import difflib
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halludecode.cli import epilogs
from halludecode.cli.options import Json
from halludecode.cli.output import json_document, plain, show
from halludecode.core.errors import HalluDecodeError, InvalidParameter, UnknownStrategy
from halludecode.core.needs import KINDS, in_words
from halludecode.core.registry import did_you_mean

if TYPE_CHECKING:
    from halludecode.catalog import BenchmarkInfo, Info

RELEASED = 2026  # the year of this version, as CHANGELOG.md has it
_CITATION = re.compile(r"\s*\([^()]*( et al\.[^()]*\)|$)")  # whole, or cut by the line end


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("list", epilog=epilogs.LIST)(list_)
    app.command()(cite)


def list_(
    name: Annotated[str | None, typer.Argument(help="One strategy or benchmark in full.")] = None,
    tasks: Annotated[bool, typer.Option("--tasks", help="Show the benchmarks instead.")] = False,
    kind: Annotated[
        str | None, typer.Option("--kind", help=f"Strategies of one kind: {', '.join(KINDS)}.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the strategies, the benchmarks, or one of them in full."""
    with json_document(json) as documents:
        if kind is not None:
            _check_kind(kind, alone=name is None and not tasks)
        infos = _all_infos(tasks) if name is None else _info_of(name)
        if kind is not None:
            infos = [info for info in infos if kind in info.kinds]
        documents.append([as_json(i) for i in infos] if name is None else as_json(infos))
    if json:
        return
    if name is None:
        show(*([_task_table(infos)] if tasks else [_table(infos), _absent_table()]))
    else:
        show(*_details(infos))


def _check_kind(kind: str, *, alone: bool) -> None:
    if kind not in KINDS:
        close = difflib.get_close_matches(kind.lower(), KINDS, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InvalidParameter(f"No kind {kind!r} of strategies.{hint} Known: {', '.join(KINDS)}.")
    if not alone:
        raise InvalidParameter("--kind lists strategies: leave out the name and --tasks.")


def _all_infos(tasks: bool) -> list[Any]:
    from halludecode import catalog

    return catalog.benchmarks() if tasks else catalog.strategies()


def _info_of(name: str) -> Info | BenchmarkInfo:
    """A strategy or else a benchmark."""
    from halludecode import catalog
    from halludecode.core.registry import STRATEGIES

    return catalog.info(name) if _owner(name) is STRATEGIES else catalog.benchmark_info(name)


def _owner(name: str) -> Any:
    """The registry that has a name: that of the strategies, or else that of the benchmarks."""
    from halludecode.core.registry import STRATEGIES
    from halludecode.evals.benchmarks.registry import BENCHMARKS

    kinds = {"strategies": STRATEGIES, "benchmarks": BENCHMARKS}
    names = {kind: registry.names() for kind, registry in kinds.items()}
    for kind, registry in kinds.items():
        if name in names[kind]:
            return registry
    both = [*names["strategies"], *names["benchmarks"]]
    hint = did_you_mean(name, both)
    known = "; ".join(f"{kind}: {', '.join(own)}" for kind, own in names.items())
    raise UnknownStrategy(f"No strategy or benchmark {name!r}.{hint} Known {known}.")


def cite(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names of strategies or benchmarks.", metavar="[NAME...]"),
    ] = None,
) -> None:
    """Print BibTeX of the papers behind strategies and benchmarks; alone, of this package."""
    entries = [] if names else [_own_entry()]
    for name in dict.fromkeys(names or ()):
        paper = _owner(name).get(name).paper
        if paper is None:
            raise HalluDecodeError(f"{name} has no paper to cite.")
        entries.append(paper.bibtex(name))
    sys.stdout.write("\n\n".join(entries) + "\n")


def _own_entry() -> str:
    """This package, in the words of CITATION.cff."""
    from halludecode import __version__

    return (
        "@software{halludecode,\n"
        "  title   = {{halludecode: training-free decoding strategies against hallucination in "
        "vision-language models}},\n"
        "  author  = {{The halludecode authors}},\n"
        f"  year    = {{{RELEASED}}},\n"
        f"  version = {{{__version__}}},\n"
        "  license = {Apache-2.0}\n"
        "}"
    )


def as_json(info: Info | BenchmarkInfo) -> dict[str, Any]:
    """What ``list --json`` prints of one; bounds in words beside each parameter."""
    described = plain(info)
    for entry, param in zip(described["params"], info.params, strict=True):
        entry["bounds"] = param.bounds
    return described


def summary(info: Info | BenchmarkInfo) -> str:
    """The first line of a docstring without its citation, which stands apart."""
    return _CITATION.sub("", info.summary).rstrip(".")


def origin(info: Info | BenchmarkInfo) -> str:
    """Venue, year and number, empty without a paper."""
    paper = info.paper
    return f"{paper.venue} {paper.year}, {paper.number}" if paper else ""


def _table(infos: list[Info]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("strategy", no_wrap=True)
    for column in ("paper", "what it does", "needs", "rows"):
        table.add_column(column, overflow="fold")
    for i in infos:
        paper = i.paper.number if i.paper else ""
        table.add_row(i.name, paper, summary(i), ", ".join(in_words(i.needs)), " ".join(i.rows))
    return table


def _absent_table() -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from halludecode.catalog import ABSENT

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("not here", no_wrap=True)
    table.add_column("what it would need", overflow="fold")
    for name, need in ABSENT.items():
        table.add_row(name, need)
    return table


def _task_table(infos: list[BenchmarkInfo]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("benchmark", no_wrap=True)
    for column in ("paper", "what it asks", "metrics", "parameters"):
        table.add_column(column, overflow="fold")
    for i in infos:
        paper = i.paper.number if i.paper else ""
        params = " ".join(param.name for param in i.params)
        table.add_row(i.name, paper, summary(i), " ".join(i.metrics), params)
    return table


def _details(info: Info | BenchmarkInfo) -> list[Any]:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    paper = f"{info.paper.title} ({origin(info)})" if info.paper else ""
    entries = [("paper", paper), *_entries(info)]
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


def _entries(info: Info | BenchmarkInfo) -> list[tuple[str, str]]:
    from halludecode.catalog import BenchmarkInfo

    if isinstance(info, BenchmarkInfo):
        return [
            ("asks for", {"yes_no": "yes or no", "choice": "a choice"}.get(info.asks, info.asks)),
            ("metrics", " ".join(info.metrics)),
            ("splits", " ".join(info.splits)),
            ("data", info.needs),
            (
                "a row of a data set",
                ", ".join(f"{key}={value}" for key, value in info.example.items()),
            ),
        ]
    return [
        ("kind", ", ".join(info.kinds)),
        ("rows", " ".join(info.rows)),
        ("needs", ", ".join(in_words(info.needs))),
        ("cost", info.cost),
        ("engines", " ".join(info.engines)),
        (
            "the main row alone decides where",
            info.decided or ("" if len(info.rows) < 2 else "never: the other rows always run"),
        ),
        ("equals greedy at", ", ".join(f"{key}={value}" for key, value in info.off.items())),
    ]
