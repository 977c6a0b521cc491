"""The tables of README.md: ``python -m tests.support.readme_tables``.

The first is made from the registry, the second from what the contract tests found, which they write
to ``tests/contract/record.json`` (``make record``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.cli.list_cite import summary
from halludecode.core.errors import InvalidData
from halludecode.core.needs import in_words

MARK = "<!-- {name}:{edge} -->"
RECORD = "tests/contract/record.json"
SIGNS = {"pass": "yes", "refused": "no", "fail": "**fails**"}
COLUMNS = ("strategy", "paper", "what it does", "needs", "rows", "cost", "engines")


def strategy_table() -> str:
    """One line of Markdown per strategy, sorted by name."""
    from halludecode.catalog import strategies

    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for info in strategies():
        paper = info.paper
        cited = f"[{paper.venue} {paper.year}]({paper.url})" if paper else ""
        lines.append(
            (
                f"`{info.name}`",
                cited,
                summary(info).replace("|", "\\|"),
                ", ".join(in_words(info.needs)),
                ", ".join(info.rows),
                info.cost,
                ", ".join(info.engines),
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def family_table(record: Sequence[Mapping[str, Any]]) -> str:
    """One line of Markdown per strategy, a column per family, refusals explained below.

    Where engines agree a cell says so once; "hf (2)" is an engine that does what the others refuse
    for reason 2.

    Args:
        record: What the contract tests found: engine, family, strategy, outcome, reason.
    """
    families = list(dict.fromkeys(row["family"] for row in record))
    engines = list(dict.fromkeys(row["engine"] for row in record))
    made = {(row["strategy"], row["family"], row["engine"]): row for row in record}
    names = sorted({row["strategy"] for row in record}, key=lambda name: ("+" in name, name))
    reasons: dict[str, int] = {}
    lines = [["strategy", *families], ["---"] * (len(families) + 1)]
    for name in names:
        cells = [f"`{name}`"]
        for family in families:
            found = {engine: made.get((name, family, engine)) for engine in engines}
            cells.append(_cell(found, reasons))
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    named = f"yes: on {' and '.join(engines)}; an engine's name: on that one alone."
    return "\n\n".join(filter(None, [table, named if len(engines) > 1 else "", notes]))


def _cell(found: Mapping[str, Mapping[str, Any] | None], reasons: dict[str, int]) -> str:
    ran = {engine: row for engine, row in found.items() if row}
    if not ran:
        return "not run"
    outcomes = {row["outcome"] for row in ran.values()}
    why = {row["reason"]: None for row in ran.values() if row["outcome"] == "refused"}
    numbers = ", ".join(str(reasons.setdefault(one, len(reasons) + 1)) for one in why)
    explained = f" ({numbers})" if why else ""
    if len(ran) == len(found) and len(outcomes) == 1:
        return SIGNS[outcomes.pop()] + explained
    if "fail" in outcomes:
        return ", ".join(f"{engine} {SIGNS[row['outcome']]}" for engine, row in ran.items())
    able = [engine for engine, row in ran.items() if row["outcome"] == "pass"]
    return (", ".join(able) or SIGNS["refused"]) + explained


def updated(text: str, record: Sequence[Mapping[str, Any]] = ()) -> str:
    """The text with the tables between their markers made anew.

    Args:
        text: The README.
        record: See `family_table`; empty leaves that table as it is.

    Raises:
        InvalidData: Markers are not there.
    """
    text = _put(text, "strategies", strategy_table())
    return _put(text, "families", family_table(record)) if record else text


def _put(text: str, name: str, table: str) -> str:
    first, last = (MARK.format(name=name, edge=edge) for edge in ("begin", "end"))
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise InvalidData(f"README.md: expected a table between {first} and {last}.")
    return f"{before}{first}\n{table}\n{last}{after}"


def main() -> None:
    """Rewrite the tables of the README named on the command line, or of ./README.md."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    found = path.parent / RECORD
    record = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else []
    path.write_text(updated(path.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
