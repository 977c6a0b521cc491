"""The strategy table of README.md, made from the registry: ``python -m halludecode._readme``."""

from __future__ import annotations

import sys
from pathlib import Path

from halludecode.cli.catalog import summary
from halludecode.core.errors import InvalidData

BEGIN, END = "<!-- strategies:begin -->", "<!-- strategies:end -->"
COLUMNS = ("strategy", "paper", "what it does", "needs", "rows", "cost", "engines")


def strategy_table() -> str:
    """One line of Markdown per strategy, sorted by name."""
    from halludecode.core.registry import strategies

    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for info in strategies():
        paper = info.paper
        cited = (
            f"[{paper.venue} {paper.year}](https://arxiv.org/abs/{paper.arxiv})" if paper else ""
        )
        lines.append(
            (
                f"`{info.name}`",
                cited,
                summary(info).replace("|", "\\|"),
                ", ".join(info.needs),
                ", ".join(info.rows),
                info.cost,
                ", ".join(info.engines),
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def updated(text: str) -> str:
    """The text with the table between its markers made anew.

    Raises:
        InvalidData: The markers are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InvalidData(f"README.md: expected a table between {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{strategy_table()}\n{END}{after}"


def main() -> None:
    """Rewrite the table of the README named on the command line, or of ./README.md."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
