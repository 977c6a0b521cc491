"""Whether rows on demand change an answer, or a verdict: they must not.

    .venv/bin/python benchmarks/same_answers.py tokens [--engine hf vllm] [--requests 52]
    .venv/bin/python benchmarks/same_answers.py control [--questions 240]

``tokens`` writes answers of tiny models with random weights, rows on demand and always there, over
strategies, compositions, ways of drawing, rules and families, on both engines; on engine hf rows
wait until they are next asked, or run side by side. A difference where the two best tokens are
closer than float32 sums are (`TIE`) is counted as a tie.

``control`` asks POPE's questions of the embedded model under every strategy that can decide a token
alone, and prints `compare`'s accuracy at greedy's yes-ratio and its verdict three times: on demand,
with rows always there, and by the margins of the combined scores for all answers, decided or not.

Every finished cell is a line of ``--cells``, which a later call does not repeat. Both write their
part of benchmarks/same_answers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"})
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import halludecode as hd
from halludecode.core.registry import STRATEGIES
from halludecode.engines.hf import late_rows
from halludecode.evals.results.yes_ratio import yes_ratio
from halludecode.testbed import dataset
from tests.support.families import FAMILIES, build, pictures

PAGE = Path(__file__).with_suffix(".md")
TIE = 1e-4  # nats; float32 logits of these models differ by less where kernels sum otherwise
# At these cuts random weights decide some tokens and not others.
SPECS = (
    *(f"{name}(beta=0.93)" for name in ("vcd", "ritual", "agla", "damro", "sid", "pai", "icd")),
    "m3id(gate=0.0037)",
    "vcd(beta=0.93)+m3id",
    "pai(beta=0.93)+vcd(beta=0.9)",
    "m3id(gate=1)+apc_only(beta=0.93)",
    "sid(beta=0.93)+vcd(beta=0.8)",
)
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, penalty, least length": {"repetition_penalty": 1.3, "min_new_tokens": 4},
    "temperature 1.2": {"temperature": 1.2, "n": 4, "seed": 4},
    "temperature 0.8, top-p 0.7": {"temperature": 0.8, "top_p": 0.7, "n": 4, "seed": 5},
    "temperature 1, penalty": {"temperature": 1.0, "repetition_penalty": 1.2, "n": 4, "seed": 6},
    "words banned, tokens pushed": {"bad_words": ["a", "e"], "logit_bias": {107: 1.5, 111: -2.0}},
    "few tokens allowed": {
        "allowed_token_ids": [*range(60, 130)],
        "temperature": 0.7,
        "n": 4,
        "seed": 7,
    },
}
WORDS = ("Describe the image.", "Is there a dog in the image?", "Why?", "What colour is it?")


class Cells:
    """What was measured, by its key, in a file that grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.found: dict[str, dict[str, Any]] = {}
        for cell in map(json.loads, lines):
            self.found[cell["key"]] = cell

    def measure(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A cell of before, or one made now and written down, with how busy the machine was."""
        if key not in self.found:
            cell = {"key": key, **make(), "load": round(os.getloadavg()[0], 1)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell) + "\n")
            self.found[key] = cell
            print(json.dumps(cell), flush=True)
        return self.found[key]


# Tokens -------------------------------------------------------------------------------------------
def asked(count: int) -> list[hd.Request]:
    """Questions about few pictures, every tenth without one."""
    shown = pictures()
    return [
        hd.Request(f"{WORDS[i % len(WORDS)]} {i}", [] if i % 10 == 9 else [shown[i % len(shown)]])
        for i in range(count)
    ]


def differing(one: hd.Output, other: hd.Output) -> Iterator[float]:
    """Of every answer that differs: how much likelier the best token was where they part."""
    for a, b in zip(one.choices, other.choices, strict=True):
        at = next(
            (i for i, pair in enumerate(zip(a.token_ids, b.token_ids)) if pair[0] != pair[1]),  # noqa: B905
            None,
        )
        if at is None and a.token_ids != b.token_ids:
            yield float("inf")
        elif at is not None and a.logprobs is not None:
            best = sorted(a.logprobs[at].top.values(), reverse=True)
            yield best[0] - best[1] if len(best) > 1 else float("inf")


# Engine and how its late rows take their tokens -> whether they wait until they are next asked.
WAYS = {("hf", "waiting"): True, ("hf", "side by side"): False, ("vllm", "vllm"): None}


def tokens_cell(
    engine: Any, spec: str, how: str, count: int, *, waits: bool | None
) -> dict[str, Any]:
    """One strategy and way of drawing, both ways."""
    sampling = hd.Sampling(max_new_tokens=6, logprobs=2, **SAMPLINGS[how])
    if waits is not None:
        late_rows.pays_to_wait = lambda hf_model, answers: waits
    made = dict[str, list[hd.Output]]()
    for way in ("on_demand", "always"):
        engine.extra_rows = way
        made[way] = engine.generate(asked(count), spec, sampling)
    pairs = list(zip(made["on_demand"], made["always"], strict=True))
    gaps = [gap for one, other in pairs for gap in differing(one, other)]
    return {
        "answers": sum(len(one.choices) for one, _ in pairs),
        "never": sum(one.rows == ("main",) for one, _ in pairs),
        "ties": sum(gap < TIE for gap in gaps),
        "different": sum(gap >= TIE for gap in gaps),
    }


def tiny(family: str, engine: str, args: argparse.Namespace) -> Any:
    """A tiny model of random weights on one of the engines."""
    if engine == "hf":
        model, processor = FAMILIES[family].parts()
        return hd.load(model, processor=processor, batch_size=args.requests)
    folder = Path(tempfile.mkdtemp(prefix=family))
    size = {"max_num_seqs": 64, "block_size": 32, "kv_cache_memory_bytes": 64 << 20}
    return hd.load(str(build(family, folder)), engine="vllm", max_model_len=1024, **size)


def tokens(cells: Cells, args: argparse.Namespace) -> None:
    """All cells of one part."""
    part, parts = map(int, args.part.split("/"))
    ways = [way for way in WAYS if way[0] in args.engine]
    keys = list(product(args.family, SPECS, SAMPLINGS, ways))
    random.Random(0).shuffle(keys)  # what is measured first is of all kinds
    keys = keys[part - 1 :: parts]
    engines = dict[tuple[str, str], Any]()
    for family, spec, how, way in keys:
        key, own = f"tokens | {family} | {spec} | {how} | {way[1]}", (family, way[0])
        if key not in cells.found and own not in engines:
            engines[own] = tiny(*own, args)
        cells.measure(
            key,
            lambda e=own, s=spec, h=how, w=way: tokens_cell(
                engines[e], s, h, args.requests, waits=WAYS[w]
            ),
        )


# The control --------------------------------------------------------------------------------------
def questions(count: int) -> list[dict[str, Any]]:
    """POPE's adversarial questions about scenes of the testbed."""
    root = dataset("testbed-iid", 100)
    lines = (root / "pope" / "adversarial.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**json.loads(line), "root": root / "images"} for line in lines[:count]]


def with_a_cut(engine: Any) -> dict[str, str]:
    """Strategies that can decide a token alone -> the spec whose scores are always combined."""
    found = dict[str, str]()
    for name in STRATEGIES.names():
        try:
            plan = engine.plan(name)
        except hd.HalluDecodeError:
            continue  # needs an artifact, or what this family lacks
        if plan.can_wait and any(part.cut is not None for part in plan.parts):
            found[name] = (
                f"{name}({'cut' if 'cut' in plan.parts[0].strategy.resolved() else 'beta'}=0)"
            )
        elif plan.can_wait:
            found[name] = name  # its own rule's scores are the main row's where that decides
    return found


def answers(engine: Any, spec: str, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines as in ``samples.jsonl``."""
    requests = [hd.Request(each["text"], [each["root"] / each["image"]]) for each in asked]
    sampling, words = hd.Sampling(max_new_tokens=4), ("yes", "no")
    lines = list[dict[str, Any]]()
    for each, made in zip(
        asked, engine.generate(requests, spec, sampling, score_words=words), strict=True
    ):
        said = made.text.lower()
        lines.append(
            {
                "id": str(each["question_id"]),
                "task": "pope",
                "split": "adversarial",
                "image": each["image"],
                "label": each["label"],
                "parsed": "yes" if said.startswith("yes") else "no",
                "margin": made.scores["yes"] - made.scores["no"],
                "decided": made.decided,
                "tokens": made.token_ids,
            }
        )
    return lines


def told(lines: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`compare`'s block."""
    block = yes_ratio({None: list(zip(lines, plain, strict=True))}, resamples=2000)[None]
    return {
        "verdict": block["verdict"],
        "difference": 100 * block["difference"]["value"],
        "accuracy": 100 * block["accuracy"]["value"],
    }


def control(cells: Cells, args: argparse.Namespace) -> None:
    """One cell a strategy."""
    engine, asked = hd.load("testbed", batch_size=args.streams), questions(args.questions)
    plain: list[dict[str, Any]] = []

    def cell(spec: str, free: str) -> dict[str, Any]:
        plain.extend([] if plain else answers(engine, "greedy", asked))
        made = dict[str, list[dict[str, Any]]]()
        for way in ("on_demand", "always"):
            engine.extra_rows = way
            made[way] = answers(engine, spec, asked)
        engine.extra_rows = "always"
        combined = [line["margin"] for line in answers(engine, free, asked)]
        made["combined"] = [
            {**line, "margin": margin, "decided": False}
            for line, margin in zip(made["always"], combined, strict=True)
        ]
        late, at_once = made["on_demand"], made["always"]
        return {
            "answers": len(asked),
            "decided": sum(line["decided"] for line in late),
            "different": sum(
                a["tokens"] != b["tokens"] for a, b in zip(late, at_once, strict=True)
            ),
            **{way: told(lines, plain) for way, lines in made.items()},
        }

    for spec, free in with_a_cut(engine).items():
        if args.strategy and spec not in args.strategy:
            continue
        cells.measure(f"control | {spec} | {args.questions}", lambda s=spec, f=free: cell(s, f))


# The page -----------------------------------------------------------------------------------------
def page(cells: Cells) -> str:
    """Markdown."""
    made = [each for key, each in cells.found.items() if key.startswith("tokens")]
    total = {n: sum(each[n] for each in made) for n in ("answers", "never", "ties", "different")}
    busy = [each["load"] for each in cells.found.values()]
    on_vllm = sum(each["answers"] for each in made if each["key"].endswith(" | vllm"))
    told = f"{total['answers'] - on_vllm:,} of engine hf and {on_vllm:,} of vLLM,"
    text = [
        "# Rows on demand change no answer",
        "",
        "<!-- Made by: benchmarks/same_answers.py tokens; benchmarks/same_answers.py control -->",
        "",
        f"{total['answers']:,} answers in {len(made)} of "
        f"{2 * len(WAYS) * len(SPECS) * len(SAMPLINGS)} cells, {told} on demand against always: "
        f"{total['different']} different, {total['ties']} differ where the two best tokens are "
        f"within {TIE:g} nats; rows of {total['never']:,} requests never began. The load of the "
        f"machine was {min(busy, default=0):g} to {max(busy, default=0):g}; it cannot change this.",
        "",
        "| strategy | answers | rows never began | ties | different |",
        "|---|---|---|---|---|",
    ]
    for spec in SPECS:
        own = [each for each in made if each["key"].split(" | ")[2] == spec]
        sums = [sum(each[n] for each in own) for n in ("answers", "never", "ties", "different")]
        text.append(f"| {spec} | {' | '.join(map(str, sums))} |")
    text += [
        "",
        f"Over {', '.join(sorted({each['key'].split(' | ')[1] for each in made}))}; "
        f"{'; '.join(sorted({each['key'].split(' | ')[3] for each in made}))}; on engine hf "
        "rows waiting and side by side.",
        "",
        "## The control at greedy's yes-ratio",
        "",
        "POPE's adversarial questions, embedded model. Accuracy at greedy's yes-ratio and its "
        "difference from greedy's, in points, and the verdict. *Combined* takes the margin of the "
        "combined scores for every answer, as if the main row decided none.",
        "",
        "| strategy | answers | decided | different | on demand | always | combined | verdicts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, each in cells.found.items():
        if key.startswith("control"):
            blocks = [each[way] for way in ("on_demand", "always", "combined")]
            numbers = [f"{b['accuracy']:.2f} ({b['difference']:+.2f})" for b in blocks]
            verdicts = list(dict.fromkeys(b["verdict"] for b in blocks))
            text.append(
                f"| {key.split(' | ')[1]} | {each['answers']} | {each['decided']} "
                f"| {each['different']} | {' | '.join(numbers)} | {' / '.join(verdicts)} |"
            )
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("tokens", "control", "page"))
    parser.add_argument("--requests", type=int, default=52)
    parser.add_argument("--family", nargs="+", default=["llava", "qwen2_5_vl"])
    parser.add_argument("--engine", nargs="+", choices=("hf", "vllm"), default=["hf", "vllm"])
    parser.add_argument("--part", default="1/1", help="of the cells, to run several processes")
    parser.add_argument("--questions", type=int, default=240)
    parser.add_argument("--strategy", nargs="+", help="of the control; default: all with a cut")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--cells", type=Path, default=Path("runs/same_answers.jsonl"))
    args = parser.parse_args()
    cells = Cells(args.cells)
    if args.what != "page":
        {"tokens": tokens, "control": control}[args.what](cells, args)
    PAGE.write_text(page(cells), encoding="utf-8")


if __name__ == "__main__":
    main()
