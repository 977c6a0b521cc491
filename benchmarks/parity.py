"""How far each strategy is from its authors' code, on what that code gave.

    .venv/bin/python benchmarks/parity.py [--output FILE] [--only NAME ...]

Reads tests/data/official/*.json and writes benchmarks/parity.md, in seconds; no network, and no
model but the tests' tiny LLaVA. The numbers in those files were made by running the official
functions outside this repository; our side is computed anew each time. One file a method, named
after the strategy:

    code, commit, licence   whose functions, at which commit, under which licence
    setting                 which functions, on what
    differs                 list of sentences: what is otherwise here on purpose, and by how much
    reported                optional: a whole run beside the official code, measured once
    cases                   list; each is one of
        {"spec", "rows": {name: [V]}, "early": {layer: [V]}, "t", "first": {name: [V]},
         "scores": [V]}
                            `combine` of the spec on these logits; null stands for -inf. ``early``
                            (residuals of a model whose head is the identity), ``t`` and ``first``
                            (token 1's logits) are optional
        {"function": "module:name", "given": {argument: number, text or list}, "gives": the same}
                            a function of ours on these tensors (float64)

Scores are compared as log-probabilities; where one side bans a token and the other does not, the
difference is infinite.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import torch
from torch import Tensor

from halludecode.core.spec import parse
from halludecode.core.step import Step, combine

DATA = ROOT / "tests" / "data" / "official"
PAGE = ROOT / "benchmarks" / "parity.md"
HEAD = """# Beside the official code

Made by `python benchmarks/parity.py` from `tests/data/official/`; do not edit.

*Largest difference*: between what the authors' functions gave and what ours give on the same
numbers, in log-probability where it is scores. *A whole run*: full-vocabulary log-probabilities of
16 steps of the tests' tiny random LLaVA, on the authors' side by their functions in a plain loop
with the same weights. *Measured once*: such a run beside the official code of which no numbers are
kept, not by this command.

| strategy | code | what was run | cases | largest difference | measured once |
|---|---|---|---|---|---|
"""

NOT_HERE = {  # strategies without a file, and why
    "act": "the code is for text models of one release of transformers; its rule is held to by "
    "loops and whole runs (tests/strategies/test_act.py)",
    "apc_only": "a control of ours: the cut-off that contrasts have, alone",
    "cmai": "no code could be found; a reconstruction",
    "eah": "the code acts in every layer and does nothing where head 0 is the densest, which the "
    "README does not mean; the rule is held to by loops and whole runs "
    "(tests/strategies/test_eah.py)",
    "greedy": "the plain model",
    "ibd": "no code could be read",
    "lol": "no code could be read, and the paper's second model is a tuned one",
    "rscd": "no code is public",
    "scaled": "a control of ours: a temperature",
    "vasparse": "the released code draws its masks at random and has neither the paper's penalty "
    "nor a variable that it uses; the paper's equations are followed",
    "vdgd": "the code divides by the vocabulary's size, which makes its choice all but uniform; "
    "the paper's rule is followed",
    "vhr": "the code could not be read",
    "zoom": "the code is a search with examples, questions and models of its own; what its "
    "views are chosen by is held to by the model's own answers (tests/strategies/test_zoom.py)",
}


def read(name: str) -> dict[str, Any]:
    """One method's file."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def names() -> list[str]:
    """Methods with a file."""
    return sorted(path.stem for path in DATA.glob("*.json"))


def difference(case: Mapping[str, Any]) -> float:
    """How far ours is from the official number of one case."""
    if "function" in case:
        module, _, function = case["function"].partition(":")
        ours = getattr(importlib.import_module(module), function)
        given = {key: _tensor(value) for key, value in case["given"].items()}
        return _apart(torch.as_tensor(ours(**given)).double(), torch.as_tensor(case["gives"]))
    rows = {name: _scores(values) for name, values in case["rows"].items()}
    early = {int(layer): _scores(values) for layer, values in case.get("early", {}).items()}
    t = torch.tensor([[case.get("t", 1)]])
    first = {name: _scores(values) for name, values in case.get("first", {}).items()} or None
    more = {"decode": lambda x, norm: x, "residuals": early, "first": first}
    parts = [(each, Step(rows, t, owner=each.name, **more)) for each in parse(case["spec"])]
    ours, official = combine(parts, rows["main"]).scores, _scores(case["scores"])
    return _apart(ours.double().log_softmax(-1), official.double().log_softmax(-1))


def largest(name: str) -> float:
    """The largest difference over a method's cases."""
    return max(difference(case) for case in read(name)["cases"])


def page(chosen: Sequence[str]) -> str:
    """The whole page in Markdown."""
    lines, purposes = list[str](), list[str]()
    for name in chosen:
        about = read(name)
        code = f"[{about['code']}](https://github.com/{about['code']}) `{about['commit'][:7]}`"
        cases = about["cases"]
        worst = f"{largest(name):.0e}" if cases else "no vectors yet"
        lines.append(
            f"| `{name}` | {code} ({about['licence']}) | {about['setting']} | {len(cases)} | "
            f"{worst} | {about.get('reported', '')} |"
        )
        purposes += [f"- `{name}`: {sentence}" for sentence in about["differs"]]
    parts = [HEAD + "\n".join(lines), "## What differs on purpose", "\n".join(purposes)]
    left = [f"- `{name}`: {why}" for name, why in NOT_HERE.items()]
    parts += ["## Not beside official code, and why", "\n".join(left)]
    return "\n\n".join(parts) + "\n"


def _tensor(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value


def _scores(values: Sequence[float | None]) -> Tensor:
    """float32 [1, V]."""
    return torch.tensor([[float("-inf") if v is None else v for v in values]])


def _apart(ours: Tensor, official: Tensor) -> float:
    if not torch.equal(ours.isfinite(), official.isfinite()):
        return float("inf")
    return float((ours - official)[ours.isfinite()].abs().max())


def main() -> None:
    """Write the page."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    words.add_argument("--output", type=Path, default=PAGE)
    words.add_argument("--only", nargs="+", choices=names(), default=names())
    chosen = words.parse_args()
    chosen.output.write_text(page(chosen.only), encoding="utf-8")


if __name__ == "__main__":
    main()
