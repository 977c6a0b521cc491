"""Every strategy on the testbed: at the paper's settings and tuned, with controls, over seeds.

    .venv/bin/python benchmarks/testbed_results.py [--model FOLDER ...] [--pictures N] [--dev N]

Settings are tuned on the splits `dev-iid` and `dev-broken` with the first model alone: the one with
the highest mean of POPE accuracy (random, adversarial) and the F1 of the objects captions name.
Then every strategy runs at its defaults and, where another one won, tuned, on `iid` and `broken`,
with every model (one per training seed). Models and splits run side by side, one thread each; an
interrupted run resumes; the page is written at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from scipy.stats import norm

import halludecode as hd
from halludecode.analysis.calibration_samples import samples
from halludecode.evals.runner.run import run_eval

PAGE = Path(__file__).with_suffix(".md")
SPLITS = ("iid", "broken")
POPE = ("random", "adversarial")
# What is tried on the dev splits beside the paper's setting (the first of each list).
GRID: dict[str, tuple[str, ...]] = {
    "adhh": ("adhh", "adhh(top=4)", "adhh(top=8,tau=0.2)"),
    "agla": ("agla", "agla(alpha=0.5)", "agla(alpha=1.0,beta=0.1)"),
    "apc_only": ("apc_only",),
    "damro": ("damro", "damro(alpha=0.5)", "damro(alpha=0.5,k=4)"),
    "dola": ("dola", "dola(strength=0.3)", "dola(bucket=low)"),
    "lacing": ("lacing", "lacing(scale=1.2)", "lacing(scale=2.0)"),
    "m3id": ("m3id", "m3id(gate=0.6)", "m3id(gate=1.0,lam=0.05)"),
    "opera": ("opera",),
    "pai": ("pai", "pai(alpha=0.2)", "pai(alpha=0.5,gamma=1.5)"),
    "ritual": ("ritual", "ritual(alpha=0.5)", "ritual(alpha=1.0)"),
    "scaled": ("scaled",),
    "sid": ("sid", "sid(alpha=0.5)", "sid(keep=0.4)"),
    "spin": ("spin", "spin(r=0.8)", "spin(alpha=0.5,r=0.8)"),
    "var": ("var",),
    "vcd": ("vcd", "vcd(noise_step=999)", "vcd(alpha=0.5,noise_step=999)"),
    "vdgd": ("vdgd", "vdgd(strength=0.3)"),
    "vhr": ("vhr", "vhr(alpha=1.3)"),
    "vista": ("vista", "vista(lam=0.03)", "vista(gamma=0.1,lam=0.2)"),
    "zerotuning": ("zerotuning",),
}
MARK = "*"


# Running ------------------------------------------------------------------------------------------


def prepare(model: str, out: Path) -> None:
    """Make the artifacts that strategies need, from the dev split, once."""
    engine = hd.load(model, artifacts=out / "artifacts")
    pairs = samples("testbed", ["testbed-dev-iid"], limit=40)
    for info in hd.strategies():
        try:
            engine.rows(pairs[0][0], info.name)
        except hd.UnsupportedStrategy as refusal:
            if "calibrate" not in str(refusal):
                raise
            engine.calibrate(info.name, pairs, source="testbed-dev-iid")


def answered(model: str, out: Path, run: str, specs: Sequence[str], source: str, n: int) -> Any:
    """One resumable run of POPE and CHAIR, in a process of its own.

    Args:
        model: Folder.
        out: Of the model's files.
        run: Name of the run.
        specs: Settings beside greedy.
        source: Split of the testbed.
        n: Pictures.
    """
    import torch

    torch.set_num_threads(1)
    engine = hd.load(model, artifacts=out / "artifacts")
    found = run_eval(
        engine,
        tasks=["pope", "chair"],
        strategies=list(dict.fromkeys(["greedy", *specs])),
        data=[f"testbed-{source}"],
        pope_splits=POPE,
        limit=n,
        prompt_preset="testbed",
        output=out / run / source,
    ).results
    # Canonical names hold the artifacts of one model; pages compare several.
    given = {engine.plan(spec).canonical: spec for spec in ("greedy", *specs)}
    return {
        part: [x | {"strategy": given[x["strategy"]]} for x in found[part]]
        for part in ("runs", "differences")
    }


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results of several sources as one."""
    return {name: [x for part in parts for x in part[name]] for name in ("runs", "differences")}


def objective(runs: Iterable[Mapping[str, Any]], strategy: str) -> float:
    """Mean of POPE accuracy and of the F1 of named objects, over sources."""
    found = []
    for run in runs:
        values = {name: x["value"] for name, x in run["metrics"].items()}
        if run["strategy"] == strategy and run["split"] in POPE:
            found.append(values["accuracy"] / 2)
        elif run["strategy"] == strategy and run["task"] == "chair":
            true, told = 1 - values["chair_i"], values["recall"]
            found.append(2 * true * told / (true + told) if true + told else 0.0)
    return statistics.fmean(found)


def tuned(pool: Any, model: str, out: Path, n: int) -> dict[str, str]:
    """The winning setting of every strategy on the dev splits."""
    known = {info.name for info in hd.strategies()}
    specs = [spec for name, grid in GRID.items() if name in known for spec in grid]
    jobs = [
        pool.submit(answered, model, out, "dev", specs, source, n)
        for source in ("dev-iid", "dev-broken")
    ]
    runs = joined([job.result() for job in jobs])["runs"]
    scores = {spec: objective(runs, spec) for spec in specs}
    return {
        name: max(grid, key=lambda spec: scores[spec])
        for name, grid in GRID.items()
        if name in known
    }


# The page ----------------------------------------------------------------------------------------


class Table:
    """Differences to greedy of every setting, over models.

    Args:
        results: One `results.json` content per model.
        settings: Strategy to the words shown for it.
    """

    def __init__(self, results: Sequence[Mapping[str, Any]], settings: Mapping[str, str]) -> None:
        self.settings = settings
        # Bonferroni over settings: intervals as wide as a normal at the stricter level would be.
        self._wider = norm.ppf(1 - 0.025 / len(settings)) / norm.ppf(0.975)
        self._gaps = [
            {(g["strategy"], g["data"], g["split"]): g for g in found["differences"]}
            for found in results
        ]

    def gap(self, setting: str, source: str, split: str | None, metric: str) -> list[float]:
        """Mean over models, and the envelope of their widened intervals."""
        each = self.each(setting, source, split, metric)
        values, lows, highs = zip(*each, strict=True)
        return [statistics.fmean(values), min(lows), max(highs)]

    def each(self, setting: str, source: str, split: str | None, metric: str) -> list[list[float]]:
        """Every model's difference with its widened interval."""
        rows = [x[setting, f"testbed-{source}", split]["metrics"][metric] for x in self._gaps]
        return [
            [
                g["value"],
                g["value"] - (g["value"] - g["low"]) * self._wider,
                g["value"] + (g["high"] - g["value"]) * self._wider,
            ]
            for g in rows
        ]

    def verdicts(self, setting: str, source: str, split: str | None) -> list[str]:
        """What the control says of every model's difference."""
        out = []
        for gaps in self._gaps:
            controls = gaps[setting, f"testbed-{source}", split]["controls"]
            if split:
                out.append(controls["yes_ratio"].get("verdict", ""))
            else:
                out.append(controls["length"]["matched"]["verdict"]["chair_i"])
        return out

    def cell(self, setting: str, source: str, split: str | None, metric: str) -> str:
        """``+1.2* [+0.3, +2.1]`` in points (tokens for the length)."""
        scale = 1 if metric == "length" else 100
        value, low, high = (x * scale for x in self.gap(setting, source, split, metric))
        return f"{value:+.1f}{MARK if low > 0 or high < 0 else ''} [{low:+.1f}, {high:+.1f}]"

    def lines(self, source: str) -> list[str]:
        """The table of one source."""
        head = "POPE random | POPE adversarial | CHAIR_i | recall | tokens"
        lines = [f"| setting | {head} |", "|---" * 6 + "|"]
        for setting, words in self.settings.items():
            cells = [self.cell(setting, source, split, "accuracy") for split in POPE]
            cells += [self.cell(setting, source, None, m) for m in ("chair_i", "recall", "length")]
            lines.append(f"| {words} | " + " | ".join(cells) + " |")
        return lines

    def reading(self) -> list[str]:
        """What each clear difference is worth, and who has none."""
        kinds: dict[str, list[str]] = {"helps": [], "shift": [], "harms": [], "one": []}
        clear = set()
        for setting, words in self.settings.items():
            for source in SPLITS:
                for split, metric, better in [
                    *((s, "accuracy", 1) for s in POPE),
                    (None, "chair_i", -1),
                    (None, "recall", 1),
                ]:
                    value, low, high = self.gap(setting, source, split, metric)
                    what = f"{words}: {_title(split, metric)}, {source}"
                    each = self.each(setting, source, split, metric)
                    if low <= 0 <= high:
                        if any(not a <= 0 <= b for _, a, b in each):
                            told = ", ".join(f"{100 * v:+.1f}" for v, _, _ in each)
                            kinds["one"].append(f"{what} ({told})")
                            clear.add(setting)
                        continue
                    clear.add(setting)
                    what += f" ({100 * value:+.1f})"
                    only = metric != "recall" and any(
                        "only" in v for v in self.verdicts(setting, source, split)
                    )
                    kind = "harms" if value * better < 0 else "shift" if only else "helps"
                    kinds[kind].append(what)
        still = [words for setting, words in self.settings.items() if setting not in clear]
        titles = {
            "helps": "Better, and still so under the control",
            "shift": "Better, but only by a shift of the yes-ratio or shorter captions",
            "harms": "Worse",
            "one": "Clear with one training seed and not with the other, so not to be counted on",
        }
        out = [f"- **{titles[k]}**: {'; '.join(found) or 'none'}." for k, found in kinds.items()]
        return [*out, f"- **No clear difference anywhere**: {', '.join(still) or 'none'}."]


def _title(split: str | None, metric: str) -> str:
    return f"POPE {split}" if split else {"chair_i": "CHAIR_i", "recall": "recall"}[metric]


def baseline(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Greedy's own figures, one row per model and source."""
    lines = ["| model | source | POPE random | adversarial | CHAIR_i | recall |", "|---" * 6 + "|"]
    for number, found in enumerate(results):
        for source in SPLITS:
            mine = [r for r in found["runs"] if r["strategy"] == "greedy"]
            mine = [r for r in mine if r["data"] == f"testbed-{source}"]
            pope = {
                r["split"]: r["metrics"]["accuracy"]["value"] for r in mine if r["task"] == "pope"
            }
            chair = next(r["metrics"] for r in mine if r["task"] == "chair")
            values = [pope[s] for s in POPE] + [chair[m]["value"] for m in ("chair_i", "recall")]
            cells = " | ".join(f"{100 * value:.1f}" for value in values)
            lines.append(f"| seed {number} | {source} | {cells} |")
    return lines


def page(args: argparse.Namespace, table: Table, results: Any, chosen: Mapping[str, str]) -> str:
    """The whole page."""
    count = len(table.settings)
    same = [name for name, spec in chosen.items() if spec == name and len(GRID[name]) > 1]
    parts = [
        "# Strategies on the testbed",
        "",
        "Written by `benchmarks/testbed_results.py`. The testbed tests mechanisms; it does not "
        "stand in for published numbers of real models.",
        "",
        f"{len(results)} model(s), one per training seed; {args.pictures} pictures a source, "
        f"greedy decoding, {platform.machine()}. Differences to greedy on the same pictures, in "
        "points. In brackets the 95 % interval, widened for "
        f"{count} settings (Bonferroni, by normal scaling of the bootstrap interval); over several "
        "models the mean difference and the envelope of their intervals. A star marks intervals "
        "without zero in every model alike. *tuned* settings were chosen on the dev splits "
        f"({args.dev} pictures each) with the first model alone; where the paper's setting won, it "
        f"stands alone ({', '.join(same) or 'none'}).",
        "",
        "## In short",
        "",
        *table.reading(),
        "",
        "Controls: POPE at greedy's yes-ratio, CHAIR_i on captions cut to equal length. Under "
        "greedy decoding a net temperature changes no token, so none is matched.",
        "",
        "## Greedy",
        "",
        *baseline(results),
    ]
    for source in SPLITS:
        parts += ["", f"## Difference to greedy, {source}", "", *table.lines(source)]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", action="append", help="one folder per training seed")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--dev", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/testbed_results"))
    args = parser.parse_args()
    models = args.model or ["testbed"]
    outs = [args.out / str(i) for i in range(len(models))]
    for model, out in zip(models, outs, strict=True):
        prepare(model, out)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        chosen = tuned(pool, models[0], outs[0], args.dev)
        (args.out / "chosen.json").write_text(json.dumps(chosen, indent=2), encoding="utf-8")
        settings: dict[str, str] = {}
        for name, spec in chosen.items():
            settings[name] = f"`{name}`"
            settings.setdefault(spec, f"`{spec}`, tuned")
        jobs = [
            [
                pool.submit(answered, model, out, "test", list(settings), source, args.pictures)
                for source in SPLITS
            ]
            for model, out in zip(models, outs, strict=True)
        ]
        results = [joined([job.result() for job in mine]) for mine in jobs]
    PAGE.write_text(page(args, Table(results, settings), results, chosen), encoding="utf-8")


if __name__ == "__main__":
    main()
