"""A run for a paper: tables, a Methods paragraph, citations and figures, and a page of them all.

A value is bold where the 95 % interval of its paired difference to greedy lies on the better side
of zero, never for being the largest number. A letter behind a difference points to the footnote
that says what its controls leave of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from halludecode.core.spec import parse
from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.registry import BENCHMARKS, benchmark_named
from halludecode.evals.data.run_files import read_json
from halludecode.evals.report.figures import verdict as way
from halludecode.evals.report.forest import draw_forests
from halludecode.evals.results.build import BASELINE, labels
from halludecode.evals.results.sections import MEAN, Section, groups, section
from halludecode.evals.results.verdict import CHANGED, NONE, STANDS, WORSE, verdict

_SPECIAL = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
}
PLAIN = (NONE, WORSE, CHANGED, STANDS)  # verdicts that the numbers show by themselves
PAGE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
%s
\bibliographystyle{plain}
\bibliography{references}
\end{document}
"""


def write_latex(folders: Mapping[str, Path], output: Path) -> Path:
    """Write ``tables.tex``, ``methods.tex``, ``references.bib``, figures and ``paper.tex``.

    Args:
        folders: Run folders by name.
        output: The folder to write; `paper.tex` in it shows all of it.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / "figures").mkdir(exist_ok=True)
    tables: list[str] = []
    methods: list[str] = []
    figures: list[str] = []
    entries: dict[str, str] = {}
    for name, folder in folders.items():
        run, results = read_json(folder / "run.json"), read_json(folder / "results.json")
        parts = [section(results, task, data) for task, data in groups(results)]
        stem = "" if len(folders) == 1 else _word(name) + "-"
        tables += [table(part, labels(run), stem) for part in parts]
        entries |= _papers(run, [part.task for part in parts])
        methods.append(method(run, entries))
        for part, path in draw_forests(output / "figures", parts, labels(run), stem).items():
            figures.append(_figure(parts[part], path.relative_to(output)))
    files = {
        "tables.tex": "\n".join(tables),
        "methods.tex": "\n\n".join(methods) + "\n",
        "figures.tex": "\n".join(figures),
        "references.bib": "\n\n".join(entries.values()) + "\n",
        "paper.tex": PAGE
        % "\n".join(f"\\input{{{name}}}" for name in ("methods", "tables", "figures")),
    }
    for name, text in files.items():
        (output / name).write_text(text, encoding="utf-8", newline="\n")
    return output


def escape(text: Any) -> str:
    """Text as LaTeX shows it; braces and backslashes too."""
    return "".join(_SPECIAL.get(char, char) for char in str(text))


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


# Tables -----------------------------------------------------------------------------------------


def table(part: Section, named: Mapping[str, str], stem: str = "") -> str:
    """One task on one source: values, paired differences to greedy, and what controls leave.

    Args:
        part: What it shows; of several splits the mean.
        named: Canonical strategy to a shorter name.
        stem: What its label begins with.
    """
    split = MEAN if MEAN in part.splits else part.splits[0]
    columns = part.columns
    notes: dict[str, str] = {}
    rows = [line for s in part.strategies for line in _row(part, s, split, columns, named, notes)]
    of = f", {split} of {len(part.splits) - 1} splits" if split == MEAN else ""
    n = next((e["n"] for (_, s), e in part.entries.items() if s == split), 0)
    heads = " & ".join(["strategy", *(_heading(column) for column in columns)])
    letters = "".join(
        f"\\\\[2pt] $^{{{mark}}}$ {escape(said[0].upper() + said[1:])}."
        for said, mark in notes.items()
    )
    about = (
        f"{escape(part.task.upper())} on {escape(part.data)}{of} ($n = {n}$), with 95\\,\\% "
        "intervals; below each value its paired difference to greedy. Bold: the interval of the "
        "difference lies on the better side of zero."
    )
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering\small",
            f"\\caption{{{about}}}",
            f"\\label{{tab:{stem}{_word(part.task)}-{_word(part.data)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            f"\\begin{{tabular}}{{l{'c' * len(columns)}}}",
            r"\toprule",
            f"{heads} \\\\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            f"\\par\\smallskip\\raggedright\\footnotesize Differences.{letters}" if notes else "",
            r"\end{table}",
            "",
        ]
    ).replace("Differences.\\\\[2pt] ", "")


def _heading(column: Metric) -> str:
    arrow = {True: r" $\downarrow$", False: r" $\uparrow$", None: ""}[column.lower_is_better]
    return escape(column.title) + arrow


def _row(
    part: Section,
    strategy: str,
    split: str | None,
    columns: Sequence[Metric],
    named: Mapping[str, str],
    notes: dict[str, str],
) -> list[str]:
    """The values of a strategy, and below them its differences."""
    entry, gap = part.entries.get((strategy, split)), part.gaps.get((strategy, split))
    values: list[str] = []
    below: list[str] = []
    for column in columns:
        interval = (entry or {}).get("metrics", {}).get(column.name)
        d = (gap or {}).get("metrics", {}).get(column.name)
        better = d is not None and way(d, column.lower_is_better) == "better"
        values.append(_value(interval, column, bold=better) if interval else "--")
        below.append(_difference(d, column, _note(gap, column, notes)) if d and gap else "")
    name = escape(named.get(strategy, strategy))
    lines = [f"{name} & {' & '.join(values)} \\\\"]
    return lines if strategy == BASELINE or not gap else [*lines, f" & {' & '.join(below)} \\\\"]


def _numbers(interval: Mapping[str, float], column: Metric, sign: str = "") -> list[str]:
    return [
        f"{interval[k] * column.scale:{sign}.{column.digits}f}" for k in ("value", "low", "high")
    ]


def _value(interval: Mapping[str, float], column: Metric, *, bold: bool) -> str:
    value, low, high = _numbers(interval, column)
    shown = f"\\textbf{{{value}}}" if bold else value
    return f"{shown} {{\\scriptsize [{low}, {high}]}}"


def _difference(gap: Mapping[str, float], column: Metric, mark: str) -> str:
    value, low, high = _numbers(gap, column, "+")
    raised = f"^{{{mark}}}" if mark else ""
    return f"{{\\scriptsize ${value}{raised}$ [${low}$, ${high}$]}}"


def _note(gap: Mapping[str, Any] | None, column: Metric, notes: dict[str, str]) -> str:
    """The letter of what controls say of a difference; "" where they leave it as it is."""
    if gap is None or column.lower_is_better is None:
        return ""
    said = verdict(gap, column.name)
    if said in PLAIN:
        return ""
    return notes.setdefault(said, ascii_lowercase[len(notes) % len(ascii_lowercase)])


def _figure(part: Section, path: Path) -> str:
    about = (
        f"{escape(part.task.upper())} on {escape(part.data)}: paired differences to greedy with "
        r"95\,\% intervals."
    )
    return "\n".join(
        [
            r"\begin{figure}[htbp]",
            r"\centering",
            f"\\includegraphics[width=\\linewidth]{{{path.as_posix()}}}",
            f"\\caption{{{about}}}",
            r"\end{figure}",
            "",
        ]
    )


# Methods ----------------------------------------------------------------------------------------


def _papers(run: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, str]:
    """BibTeX of the strategies and benchmarks of a run, by the names they are cited under."""
    found: dict[str, str] = {}
    for canonical in run.get("strategies", {}):
        for part in parse(canonical):
            if part.paper is not None:
                found[part.name] = part.paper.bibtex(part.name)
    for task in (task for task in tasks if task in BENCHMARKS.names()):
        paper = benchmark_named(task).paper
        if paper is not None:
            found[task] = paper.bibtex(task)
    return found


def method(run: Mapping[str, Any], cited: Mapping[str, str]) -> str:
    """How the numbers came about, as a paragraph: what ``run.json`` knows and a reader needs."""

    def named(name: str, shown: str) -> str:
        return f"{shown}~\\cite{{{name}}}" if name in cited else shown

    strategies: list[str] = []
    for canonical in run.get("strategies", {}):
        cites = "".join(named(part.name, "") for part in parse(canonical))
        breakable = escape(canonical).replace(",", r",\allowbreak ")
        strategies.append(f"\\texttt{{{breakable}}}{cites}")
    prompts = [
        f"{named(task, escape(task.upper()))} in the words of the preset "
        f"``{escape(prompt['preset'])}''"
        for task, prompt in run.get("prompts", {}).items()
    ]
    ways = {(s.get("temperature"), s.get("max_new_tokens")) for s in run["sampling"].values()}
    drawn = ", ".join(
        f"{'greedily' if not t else f'at temperature {t:g}'} (at most {most} tokens)"
        for t, most in sorted(ways, key=str)
    )
    data = "; ".join(
        f"{escape(name)}: {facts['samples']} samples, SHA-256 \\texttt{{{facts['digest'][:16]}}}"
        + (f", revision \\texttt{{{escape(facts['revision'])}}}" if facts.get("revision") else "")
        for name, facts in run.get("data", {}).items()
    )
    versions = ", ".join(f"{escape(k)} {escape(v)}" for k, v in run.get("versions", {}).items())
    hardware = run.get("hardware", {})
    return (
        "\\paragraph{Methods.} "
        f"We ran {escape(run['model'])} (weights \\texttt{{{str(run.get('model_digest'))[:16]}}}, "
        f"{escape(run.get('dtype'))}) on engine \\texttt{{{escape(run.get('engine'))}}} under "
        f"{', '.join(strategies)}. We asked {'; '.join(prompts)}. Tokens were chosen {drawn}, seed "
        f"{escape(run.get('seed'))}. Intervals are 95\\,\\% percentile bootstrap intervals over "
        "pictures (10,000 resamples); differences to greedy are paired by sample, their $p$ values "
        "corrected by Holm's method for several strategies, and each is read with its controls "
        "(accuracy at greedy's yes-ratio, captions at equal length). "
        f"Data: {data}. Software: {versions}; "
        f"{escape(hardware.get('gpu') or hardware.get('device'))}."
    )
