"""The tables of README.md: ``python -m tests.support.readme_tables``.

The first is made from the registry, the second from what the contract tests found, which they write
to ``tests/contract/record.json`` (``make record``).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.cli.list_cite import summary
from halludecode.core.errors import InvalidData
from halludecode.core.needs import KINDS, in_words

MARK = "<!-- {name}:{edge} -->"
RECORD = "tests/contract/record.json"
TURNED = "imccd"  # refused where positions turn in any other way, of which README's text tells
COLUMNS = ("kind", "strategy", "paper", "what it does", "needs", "cost")


def strategy_table() -> str:
    """One line of Markdown per strategy, under the first of its kinds and there by name."""
    from halludecode.catalog import strategies

    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for info in sorted(strategies(), key=lambda info: (KINDS.index(info.kinds[0]), info.name)):
        paper = info.paper
        cited = f"[{paper.venue} {paper.year}]({paper.url})" if paper else ""
        lines.append(
            (
                info.kinds[0],
                f"`{info.name}`",
                cited,
                summary(info).replace("|", "\\|"),
                ", ".join(in_words(info.needs)),
                info.cost,
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def family_table(record: Sequence[Mapping[str, Any]]) -> str:
    """One line of Markdown for families alike, a column per engine, reasons explained below.

    A cell counts the strategies and compositions that passed every law there; "not `damro` (2)" is
    one that the engine refuses on this family before any token, for reason 2. Those for weights
    that were trained with them are left out, and one that only plain rotary positions serve.

    Args:
        record: What the contract tests found: engine, family, strategy, outcome, reason.
    """
    record = [row for row in record if not left_out(row["strategy"])]
    families = sorted({row["family"] for row in record})
    engines = list(dict.fromkeys(row["engine"] for row in record))
    reasons: dict[str, int] = {}
    alike: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}
    for family in families:
        here = [row for row in record if row["family"] == family]
        cells = [_cell([r for r in here if r["engine"] == engine], reasons) for engine in engines]
        # Why an engine has none of a family names the family, so those for other reasons join it.
        kind = tuple("no" if cell.startswith("no ") else cell for cell in cells)
        alike.setdefault(kind, []).append((f"`{family}`", cells))
    lines = [["family", *engines], ["---"] * (len(engines) + 1)]
    lines += [
        [
            ", ".join(name for name, _ in own),
            *(_joined(c) for c in zip(*(c for _, c in own), strict=True)),
        ]
        for own in alike.values()
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = "; ".join(f"({number}) {reason}" for reason, number in reasons.items())
    return "\n\n".join(filter(None, [table, notes]))


def _joined(cells: Sequence[str]) -> str:
    """One cell for families alike: the same, or that there is none and every reason why."""
    if len(set(cells)) == 1:
        return cells[0]
    return f"no {' '.join(dict.fromkeys(re.findall(r'[(][0-9]+[)]', ' '.join(cells))))}"


def left_out(name: str) -> bool:
    """Whether the text beside the table tells where a strategy runs."""
    return trained(name) or name == TURNED


def trained(name: str) -> bool:
    """Whether a strategy is for weights that were trained with it."""
    from halludecode.core.registry import STRATEGIES

    return name in STRATEGIES.names() and bool(STRATEGIES.get(name).trained)


def _cell(found: Sequence[Mapping[str, Any]], reasons: dict[str, int]) -> str:
    names: dict[str, list[str]] = {"pass": [], "fail": []}
    refused: dict[str, list[str]] = {}
    for row in sorted(found, key=lambda row: row["strategy"]):
        named = f"`{row['strategy']}`"
        if row["outcome"] == "refused":
            refused.setdefault(_short(row["reason"]), []).append(named)
        else:
            names[row["outcome"]].append(named)
    if not found:
        return "not run"
    why = [
        (f"{', '.join(group)} " if names["pass"] else "")
        + f"({reasons.setdefault(reason, len(reasons) + 1)})"
        for reason, group in refused.items()
    ]
    failed = f"; **fails**: {', '.join(names['fail'])}" if names["fail"] else ""
    if not names["pass"] and not failed:
        return f"no {' '.join(why)}"
    count = len(names["pass"])
    told = f"all {count}" if count == len(found) else f"{count} of {len(found)}"
    return told + (f"; not {', '.join(why)}" if why else "") + failed


def _short(reason: str) -> str:
    """Without what differs from release to release, and from class to class."""
    return re.sub(
        r"^vLLM [\d.]+ has no \w+ of its own", "vLLM has no code of its own for it", reason
    )


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
