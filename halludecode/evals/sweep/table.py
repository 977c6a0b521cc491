"""A sweep in words: every setting, the chosen one on the test pictures, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results.sections import gap_text, value_text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

ALPHA = 0.05


def sweep_tables(found: Mapping[str, Any]) -> Group:
    """All of a sweep.

    Args:
        found: The content of ``sweep.json``.
    """
    from rich.console import Group
    from rich.text import Text

    metric = benchmark_named(found["task"]).metric(found["metric"])
    sentences = [_chosen(found), *_tested(found, metric), *_price(found)]
    tables = [_settings(found, metric, source) for source in found["greedy"]]
    return Group(*tables, *map(Text, sentences))


def _settings(found: Mapping[str, Any], metric: Metric, source: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{found['task'].upper()} on {source}, where settings are chosen",
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    table.add_column("setting", overflow="fold")
    for title in (f"{metric.title} [95 %]", "minus greedy", f"p x {found['tried']}"):
        table.add_column(title, no_wrap=True)
    table.add_row("greedy", value_text(found["greedy"][source], metric), "", "")
    for row in found["settings"]:
        value = row["dev"].get(source)
        chosen = " <- chosen" if row["strategy"] == found["best"]["strategy"] else ""
        cells = _cells(value, metric) if value else ("failed", "", "")
        table.add_row(row["spec"] + chosen, *cells)
    return table


def _cells(value: Mapping[str, Any], metric: Metric) -> tuple[str, str, str]:
    gap = value["difference"]
    shown = gap_text(gap, metric.scale, metric.digits)
    return value_text(value, metric), shown, f"{gap['p_bonferroni']:.2g}"


def _chosen(found: Mapping[str, Any]) -> str:
    sign = -1 if found["lower_is_better"] else 1
    gaps = [value["difference"] for value in found["best"]["dev"].values()]
    clear = all(g["p_bonferroni"] < ALPHA and sign * g["value"] > 0 for g in gaps)
    holds = "clearly better than greedy there" if clear else "not clearly better than greedy there"
    return (
        f"Chosen of {found['tried']} settings: {found['best']['spec']}, {holds} (p times "
        f"{found['tried']}, Bonferroni)."
    )


def _tested(found: Mapping[str, Any], metric: Metric) -> list[str]:
    """The one comparison on other pictures, which needs no correction, and the one that has it."""
    told: list[str] = []
    for source, values in found["test"].items():
        gap = values["difference"]
        best, greedy = (value_text(values[side], metric) for side in ("best", "greedy"))
        told.append(
            f"On {source}, where it was not chosen: {best} against greedy's {greedy}, difference "
            f"{gap_text(gap, metric.scale, metric.digits)}, p = {gap['p']:.2g} (one comparison; "
            f"times {found['tried']}: {gap['p_bonferroni']:.2g})."
        )
    return told


def _price(found: Mapping[str, Any]) -> list[str]:
    price = found.get("price")
    if not price or price["ratio"] is None:
        return []
    return [
        f"{price['settings']} settings cost {price['ratio']:.1f} times one: processor time "
        f"{price['seconds_of_all']:.2f} s against {price['seconds_of_one']:.2f} s, "
        f"{price['requests']} requests."
    ]
