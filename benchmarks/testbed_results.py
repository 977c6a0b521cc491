"""Every strategy on the testbed: at the paper's settings and tuned, with controls, over seeds.

    .venv/bin/python benchmarks/testbed_results.py [--model FOLDER ...] [--pictures N] [--dev N]

Settings are tuned on the splits `dev-iid` and `dev-broken` with the first model alone: the one with
the highest mean of POPE accuracy (adversarial) and the F1 of the objects captions name. Then every
strategy runs at its defaults and, where another one won, tuned, on `iid` and `broken`, with every
model (one per training seed; tuned ones with as many as `--tuned-models` says). Models and splits
run side by side, one thread each; an interrupted run resumes; the page is written at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from scipy.stats import norm

import halludecode as hd
from halludecode.analysis.calibration_samples import samples
from halludecode.core.needs import KINDS
from halludecode.core.registry import STRATEGIES
from halludecode.evals.results.verdict import STANDS, verdict
from halludecode.evals.runner.run import run_eval

PAGE = Path(__file__).with_suffix(".md")
SPLITS = ("iid", "broken")
POPE = ("adversarial",)
TITLES = {"accuracy": "POPE adversarial", "chair_i": "CHAIR_i", "recall": "recall"}
JUDGED = (("adversarial", "accuracy", 1), (None, "chair_i", -1), (None, "recall", 1))
# What is not run, and why.
LEFT_OUT = {
    "cca": "a scheme that weights are trained for: [schemes](schemes.md)",
    "edvt": "a scheme that weights are trained for: [schemes](schemes.md)",
    "mma": "a scheme that weights are trained for: [schemes](schemes.md)",
    "halc": "asks a detector that has not seen this world",
    "marine": "asks a detector that has not seen this world",
    "rscd": "hides one of several pictures, and these questions have one",
    "zoom": "cuts views of at least 384 pixels out of pictures of 120",
}
# What is tried on the dev splits beside the paper's setting.
GRID: dict[str, tuple[str, ...]] = {
    "act": ("act(beta=0.2)", "act(beta=0.1,alpha=2)"),
    "adaiat": ("adaiat(alpha=2)", "adaiat(alpha=2,beta=0.2)"),
    "adhh": ("adhh(top=4)", "adhh(top=8,tau=0.2)"),
    "agla": ("agla(alpha=0.5)", "agla(alpha=1.0,beta=0.1)"),
    "avisc": ("avisc(alpha=0.5)", "avisc(alpha=2.0)"),
    "caac": ("caac(lam=1.2)", "caac(beta=0.3)"),
    "causalmm": ("causalmm(gamma=0.2)", "causalmm(kind=reversed)"),
    "cicd": ("cicd(most=1.0)", "cicd(gate=0)"),
    "cmai": ("cmai(eta=0.1)", "cmai(layer=4)"),
    "code": ("code(strength=0.5)", "code(power=0.5)"),
    "damro": ("damro(alpha=0.5)", "damro(alpha=0.5,k=4)"),
    "deco": ("deco(alpha=0.2)", "deco(alpha=0.2,top_k=5)"),
    "dola": ("dola(strength=0.3)", "dola(bucket=low)"),
    "eah": ("eah(theta=0.01)", "eah(layer=2)"),
    "farsight": ("farsight(register=0.3)", "farsight(sigma=0.5)"),
    "flb": ("flb(gamma=0.1)", "flb(gamma=0.6)"),
    "hgai": ("hgai(alpha=0.2)", "hgai(alpha=1.0)"),
    "iat": ("iat(alpha=0.3)", "iat(alpha=1.5)"),
    "ibd": ("ibd(alpha=0.5)", "ibd(epsilon=1.0)"),
    "icd": ("icd(alpha=0.5)", "icd(role=general)"),
    "ilvad": ("ilvad(alpha=2.0)", "ilvad(beta=0.1)"),
    "imccd": ("imccd(alpha=0.5)", "imccd(closer=1.0)"),
    "lacing": ("lacing(scale=1.2)", "lacing(scale=2.0)"),
    "layercd": ("layercd(alpha=0.5)", "layercd(layer=2)"),
    "lcd": ("lcd(alpha=0.5)", "lcd(alpha=1.0)"),
    "lol": ("lol(strength=0.3)", "lol(omega=0.1)"),
    "m3id": ("m3id(gate=0.6)", "m3id(gate=1.0,lam=0.05)"),
    "memvr": ("memvr(ratio=0.3)", "memvr(tau=0.5)"),
    "mod": ("mod(plus=1.0)", "mod(keep=0.4)"),
    "only": ("only(plus=1.0)", "only(gate=0.3)"),
    "pai": ("pai(alpha=0.2)", "pai(alpha=0.5,gamma=1.5)"),
    "paint": ("paint(alpha=0.3)", "paint(top=0.5)"),
    "revisit": ("revisit(beta=0.001)", "revisit(divergence=js)"),
    "ritual": ("ritual(alpha=0.5)", "ritual(alpha=1.0)"),
    "sid": ("sid(alpha=0.5)", "sid(keep=0.4)"),
    "spin": ("spin(r=0.8)", "spin(alpha=0.5,r=0.8)"),
    "vaf": ("vaf(alpha=0.05)", "vaf(alpha=0.4)"),
    "valid": ("valid(alpha=0.2)", "valid(alpha=1.0)"),
    "vasparse": ("vasparse(alpha=0.3)", "vasparse(keep=0.5)"),
    "vcd": ("vcd(noise_step=999)", "vcd(alpha=0.5,noise_step=999)"),
    "vdd": ("vdd(alpha=0.3)", "vdd(mode=unk)"),
    "vdgd": ("vdgd(strength=0.3)",),
    "vhr": ("vhr(alpha=1.3)",),
    "vista": ("vista(lam=0.03)", "vista(gamma=0.1,lam=0.2)"),
    "vti": ("vti(image=0.3,text=0.3)", "vti(image=0.0)"),
}
MARK = "*"


# Running ------------------------------------------------------------------------------------------


def chosen_names() -> list[str]:
    """The strategies that are run, by kind."""
    infos = [i for i in hd.strategies() if i.name != "greedy" and i.name not in LEFT_OUT]
    return [i.name for i in sorted(infos, key=lambda i: (KINDS.index(i.kinds[0]), i.name))]


def prepare(model: str, out: Path) -> None:
    """Make the artifacts that strategies need, from the dev split, once."""
    import torch

    torch.set_num_threads(1)
    engine = hd.load(model, artifacts=out / "artifacts")
    greedy = out / "captions"
    dev = {"data": ["testbed-dev-iid"], "limit": 100, "testbed_images": 100}
    run_eval(engine, tasks=["chair"], strategies=["greedy"], output=greedy, **dev)
    for name in chosen_names():
        cls = STRATEGIES.get(name)
        if cls.artifact != "required" or any((out / "artifacts").glob(f"{name}-*")):
            continue
        if cls.samples == "labels":
            where = Path("testbed-dev-iid"), greedy / "samples.jsonl"
            pairs = samples("testbed", [], *where, limit=100, kind=cls.samples)
        else:
            pairs = samples("testbed", ["testbed-dev-iid"], limit=40, kind=cls.samples)
        engine.calibrate(name, pairs, source="testbed-dev-iid")


def answered(model: str, out: Path, run: str, specs: Sequence[str], source: str, n: int) -> Any:
    """One resumable run of POPE and CHAIR, in a process of its own.

    Args:
        model: Folder.
        out: Of the model's files.
        run: Name of the run.
        specs: Settings; where greedy is among them, the rest are compared with it.
        source: Split of the testbed.
        n: Pictures.
    """
    import torch

    torch.set_num_threads(1)
    engine = hd.load(model, artifacts=out / "artifacts")
    found = run_eval(
        engine,
        tasks=["pope", "chair"],
        strategies=specs,
        data=[f"testbed-{source}"],
        pope_splits=POPE,
        limit=n,
        testbed_images=n,
        prompt_preset="testbed",
        batch_size=64,
        output=out / run / source,
    ).results
    # Canonical names hold the artifacts of one model; pages compare several.
    given = {engine.plan(spec).canonical: spec for spec in specs}
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
    grids = {name: (name, *GRID.get(name, ())) for name in chosen_names()}
    specs = [spec for grid in grids.values() for spec in grid]
    jobs = [
        pool.submit(answered, model, out, "dev", specs, source, n)
        for source in ("dev-iid", "dev-broken")
    ]
    runs = joined([job.result() for job in jobs])["runs"]
    scores = {spec: objective(runs, spec) for spec in specs}
    return {name: max(grid, key=lambda spec: scores[spec]) for name, grid in grids.items()}


# The page ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What one metric of one setting came to on one source.

    Args:
        value: Mean difference to greedy over models.
        low: Least lower end of their widened intervals.
        high: Highest upper end.
        kind: One of `READINGS`; "" for no clear difference.
        why: What takes a gain away, or the models' own differences.
    """

    value: float
    low: float
    high: float
    kind: str
    why: str = ""


READINGS = {
    "helps": "better with every seed, and still so under all controls",
    "taken": "better with every seed, but a control takes it away",
    "harms": "worse with every seed",
    "one": "clear with one training seed alone (each seed's value), so not to be counted on",
}


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

    def finding(
        self, setting: str, source: str, split: str | None, metric: str, better: int = 1
    ) -> Finding:
        """What a metric came to; ``better`` is -1 where less is better."""
        which = setting, f"testbed-{source}", split
        gaps = [found[which] for found in self._gaps if which in found]
        each = [self._widened(gap["metrics"][metric]) for gap in gaps]
        values, lows, highs = zip(*each, strict=True)
        whole = statistics.fmean(values), min(lows), max(highs)
        if metric == "length" or not any(low > 0 or high < 0 for _, low, high in each):
            return Finding(*whole, "")
        if whole[1] <= 0 <= whole[2] or len(gaps) < len(self._gaps):
            told = ", ".join(f"{100 * value:+.1f}" for value in values)
            return Finding(*whole, "one", told if len(values) > 1 else "")
        if whole[0] * better < 0:
            return Finding(*whole, "harms")
        said = list(dict.fromkeys(verdict(gap, metric) for gap in gaps))
        taken = "; ".join(words for words in said if words != STANDS)
        return Finding(*whole, "taken" if taken else "helps", taken)

    def _widened(self, gap: Mapping[str, float]) -> tuple[float, float, float]:
        value = gap["value"]
        return (
            value,
            value - (value - gap["low"]) * self._wider,
            value + (gap["high"] - value) * self._wider,
        )

    def lines(self, source: str) -> list[str]:
        """The table of one source, by kind."""
        shown = [*JUDGED, (None, "length", 1)]
        titles = " | ".join(TITLES.get(metric, "tokens") for _, metric, _ in shown)
        lines = [f"| kind | setting | {titles} |", "|---" * (2 + len(shown)) + "|"]
        for setting, words in self.settings.items():
            cells = [self._cell(setting, source, *which) for which in shown]
            lines.append(f"| {kind_of(setting)} | {words} | " + " | ".join(cells) + " |")
        return lines

    def _cell(self, setting: str, source: str, split: str | None, metric: str, better: int) -> str:
        """``+1.2* [+0.3, +2.1]`` in points (tokens for the length)."""
        scale = 1 if metric == "length" else 100
        found = self.finding(setting, source, split, metric, better)
        value, low, high = (x * scale for x in (found.value, found.low, found.high))
        return f"{value:+.1f}{MARK if low > 0 or high < 0 else ''} [{low:+.1f}, {high:+.1f}]"

    def findings(self) -> Iterator[tuple[str, str, str, Finding]]:
        """Setting, source, metric and what it came to."""
        for setting in self.settings:
            for source in SPLITS:
                for split, metric, better in JUDGED:
                    found = self.finding(setting, source, split, metric, better)
                    yield setting, source, metric, found

    def reading(self) -> list[str]:
        """Who gains without harm, who has no clear difference, what each one is worth."""
        told: dict[str, dict[str, list[str]]] = {}
        for setting, source, metric, found in self.findings():
            if found.kind:
                mine = told.setdefault(setting, {kind: [] for kind in READINGS})
                why = f" ({found.why})" if found.why else ""
                value = f"{100 * found.value:+.1f}"
                mine[found.kind].append(f"{TITLES[metric]}, {source} {value}{why}")
        words = self.settings
        clean = [words[s] for s, mine in told.items() if mine["helps"] and not mine["harms"]]
        still = [told_as for setting, told_as in words.items() if setting not in told]
        lines = [
            f"**A gain that stands, and nothing worse with every seed**: {_listed(clean)}.",
            "",
            f"**No clear difference anywhere**: {_listed(still)}.",
            "",
            "| setting | " + " | ".join(READINGS.values()) + " |",
            "|---" * (1 + len(READINGS)) + "|",
        ]
        for setting, mine in told.items():
            cells = "; <br>".join, (mine[kind] for kind in READINGS)
            lines.append(f"| {words[setting]} | " + " | ".join(map(*cells)) + " |")
        return lines

    def kinds(self) -> list[str]:
        """How many settings of each kind did what."""
        lines = [
            "| kind | settings | better, stands | better, taken away | worse | one seed alone |",
            "|---" * 6 + "|",
        ]
        for kind in KINDS:
            mine = {setting for setting in self.settings if kind_of(setting) == kind}
            if not mine:
                continue
            did: dict[str, set[str]] = {name: set() for name in READINGS}
            for setting, _, _, found in self.findings():
                if setting in mine and found.kind:
                    did[found.kind].add(setting)
            counts = " | ".join(str(len(did[name])) for name in READINGS)
            lines.append(f"| {kind} | {len(mine)} | {counts} |")
        return lines


def _listed(words: Sequence[str]) -> str:
    return "; ".join(words) or "none"


def kind_of(setting: str) -> str:
    """The first kind of a setting's strategy."""
    return next(i.kinds[0] for i in hd.strategies() if i.name == setting.partition("(")[0])


def baseline(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Greedy's own figures, one row per model and source."""
    lines = ["| model | source | POPE adversarial | CHAIR_i | recall |", "|---" * 5 + "|"]
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
    same = [name for name, spec in chosen.items() if spec == name and name in GRID]
    ran = "every model" if args.tuned_models >= len(results) else "it alone"
    left_out = [f"`{name}` ({why})" for name, why in LEFT_OUT.items()]
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
        f"({args.dev} pictures each) with the first model alone, and ran with {ran}; where the "
        f"paper's setting won, it stands alone ({', '.join(same) or 'none'}). Not run: "
        f"{'; '.join(left_out)}.",
        "",
        "## In short",
        "",
        *table.reading(),
        "",
        "Controls are those of `compare`: POPE at greedy's yes-ratio and by d', CHAIR_i on "
        "captions cut to equal length and to as many named objects, and whether text is broken or "
        "repeats. They are asked at 95 %, without widening, so they take away more.",
        "",
        "By kind (a setting is counted once in a column, whatever it does elsewhere):",
        "",
        *table.kinds(),
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
    parser.add_argument(
        "--tuned-models", type=int, default=9, help="models that run the tuned settings, too"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/testbed_results"))
    args = parser.parse_args()
    models = args.model or ["testbed"]
    outs = [args.out / str(i) for i in range(len(models))]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(prepare, models, outs))
        chosen = tuned(pool, models[0], outs[0], args.dev)
        (args.out / "chosen.json").write_text(json.dumps(chosen, indent=2), encoding="utf-8")
        settings: dict[str, str] = {}
        for name, spec in chosen.items():
            settings[name] = f"`{name}`"
            settings.setdefault(spec, f"`{spec}`, tuned")
        jobs = []
        for number, (model, out) in enumerate(zip(models, outs, strict=True)):
            asked = ["greedy", *(settings if number < args.tuned_models else chosen)]
            each = [model, out, "test", asked]
            jobs.append([pool.submit(answered, *each, s, args.pictures) for s in SPLITS])
        results = [joined([job.result() for job in mine]) for mine in jobs]
    PAGE.write_text(page(args, Table(results, settings), results, chosen), encoding="utf-8")


if __name__ == "__main__":
    main()
