"""What each strategy costs, relative to greedy in the same minute.

    .venv/bin/python benchmarks/overhead.py [--model testbed qwen-0.5b] [--streams 1 8 32]

Time per token and to the first token, forward calls per token, and the largest tensor a prefill
makes. Every strategy writes the same number of tokens about the same pictures. It takes turns with
greedy, token by token: each of its tokens is timed beside greedy's token at the same place, in the
wall clock's time and in the process's own processor time, which other programs hardly touch. The
medians of these pairs and the middle half of them are printed; by the processor's time where the
model runs on it. "two calls" is VCD as official codes
run it: one forward for each row, one after the other, here on the same code and cache. Models of
real sizes with random weights are in `shapes.py`; they need this repository's tests folder. What is
measured is kept in measured.jsonl of the output folder, and the same command goes on from there.
How to run this on a GPU is in README.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import halludecode as hd
from benchmarks import combining, shapes
from halludecode.core.errors import HalluDecodeError
from halludecode.core.registry import STRATEGIES
from halludecode.core.step import Step, combine
from halludecode.engines.hf.activations import PLAIN
from halludecode.engines.hf.batch import Batch
from halludecode.engines.hf.hooks import attention_set
from halludecode.engines.inputs.rows import PreparedRequest
from halludecode.testbed import dataset
from tests.support.specs import ACTIVE, supplied

COMPOSED = ("var+vcd", "vhr+m3id")
SERIAL = "vcd, two calls"
# A random or tiny model has no sinks, and `var` would cost only the looking; these make it edit.
BUSY = {
    "adhh": "adhh(heads=(0,0,1,1),tau=0.05)",
    "spin": "spin(r=0.5)",
    "var": "var(dims=(3,40),tau=2.0,min_mass=0.01,rho=0.1)",
    "vdgd": "vdgd(tokens=16)",
    "code": "code(tokens=16)",
    "act": "act(alpha=1.5)",
    "memvr": "memvr(ratio=1.0)",
    # Searches as long as on a picture of 1,000 pixels, and the smallest of models beside.
    "zoom": "zoom(cue=cup,smallest=24,upper=1)",
    "halc": ACTIVE["halc"],
    "marine": ACTIVE["marine"],
    "vicrop": ACTIVE["vicrop"],
}
PROMPTS = (128, 256, 512, 1024)  # tokens, for memory
EDITS = ("greedy", "vcd", "var", "vhr", "pai", "vista", "dola")


def requests(count: int) -> list[hd.Request]:
    """Captions of ``count`` held-out scenes."""
    folder = dataset("testbed-iid", 60) / "images"
    paths = sorted(folder.iterdir())[:count]
    return [hd.Request("Please describe this image in detail.", [path]) for path in paths]


def busy(name: str) -> str:
    """The spec under which a strategy really edits."""
    return "+".join(BUSY.get(part, part) for part in name.split("+"))


Spent = tuple[float, float]  # seconds by each of the clocks
CLOCKS = ("wall clock", "processor")


def told_clock(engine: Any) -> str:
    """The clock that matters: on a GPU the process only waits, on shared cores others are timed."""
    return "processor" if engine.hf_model.device.type == "cpu" else "wall clock"


def writing(engine: Any, asked: Sequence[hd.Request], spec: str, tokens: int) -> Iterator[Any]:
    """Writes the answers of one batch, yielding after each token; a search yields its outputs."""
    if spec == SERIAL:
        yield from two_calls(engine, asked, tokens)
        return
    sampling = hd.Sampling(max_new_tokens=tokens, min_new_tokens=tokens)
    prompts = [engine.prompt_of(request) for request in asked]
    yield from engine.write(prompts, engine.plan(spec), sampling)


@torch.no_grad()
def two_calls(engine: Any, asked: Sequence[hd.Request], tokens: int) -> Iterator[Any]:
    """VCD with a forward call for each of its two rows, greedy."""
    plan = engine.plan("vcd")
    prompts = [engine.prompt_of(request) for request in asked]
    requests = engine.prepare(prompts, plan)
    batches = [
        Batch(engine.hf_model, engine.row_builder, PLAIN, [_alone(each, name) for each in requests])
        for name in ("main", "noised")
    ]
    logits = [batch.prefill() for batch in batches]
    for _ in range(tokens):
        rows = dict(zip(("main", "noised"), logits, strict=True))
        step = Step(rows, torch.ones(len(requests), 1))
        chosen = combine([(plan.parts[0].strategy, step)], rows["main"]).scores.argmax(-1).cpu()
        yield None
        logits = [batch.step(chosen) for batch in batches]


def _alone(request: PreparedRequest, name: str) -> PreparedRequest:
    return PreparedRequest(request.prompt, {"main": request.rows[name]}, (), ())


class Writer:
    """One strategy at work, a token at a time.

    Args:
        engine: The model.
        asked: Requests of its batch.
        name: A strategy, or `SERIAL`.
        tokens: To be written.
    """

    def __init__(self, engine: Any, asked: Sequence[hd.Request], name: str, tokens: int) -> None:
        self.engine, self.tokens, self.calls = engine, tokens, 0
        spec = busy(name)
        self._plan = engine.plan("vcd" if spec == SERIAL else spec)
        self.rows = 1 if spec == SERIAL else len(self._plan.rows)
        self._steps = writing(engine, asked, spec, tokens)
        self._settled: Spent | None = None  # a token of a search, which writes them all at once

    def first(self) -> Spent:
        """Time to the first token, with nothing remembered of the pictures."""
        self.engine.clear_caches()
        return self.next()

    def next(self) -> Spent:
        """Time of one token."""
        if self._settled is not None:
            return self._settled
        before = self.engine.hf_model.calls
        with attention_set(self.engine.model, bool(self._plan.attending)):
            start, began = time.perf_counter(), time.process_time()
            state = next(self._steps)
            spent = time.perf_counter() - start, time.process_time() - began
        self.calls += self.engine.hf_model.calls - before
        return spent if self._plan.search is None else self._share(state, spent)

    def _share(self, outputs: Sequence[hd.Output], spent: Spent) -> Spent:
        """Splits the time of a whole answer as the engine did; gives what came before a token."""
        decode = sum(output.timings.decode_ms for output in outputs) / 1000 / spent[0]
        wall, cpu = (part * decode / (self.tokens - 1) for part in spent)
        self._settled = wall, cpu
        return spent[0] * (1 - decode), spent[1] * (1 - decode)


def paired(
    engine: Any, asked: Sequence[hd.Request], names: Sequence[str], tokens: int
) -> dict[str, dict[str, Any]]:
    """Times of strategies' tokens and of greedy's beside them, from one answer each."""
    writers = [Writer(engine, asked, name, tokens) for name in ("greedy", *names)]
    turns = [[writer.first() for writer in writers]]
    for turn in range(tokens - 1):
        # There and back, so that a machine that slows down or warms up favours nobody.
        spent = {writer: writer.next() for writer in writers[:: -1 if turn % 2 else 1]}
        turns.append([spent[writer] for writer in writers])
    made = {}
    for i, name in enumerate(names, start=1):
        pairs = [(turn[i], turn[0]) for turn in turns]
        calls = writers[i].calls / tokens
        made[name] = {
            "first": pairs[:1],
            "rest": pairs[1:],
            "calls": calls,
            "rows": writers[i].rows,
        }
    return made


def measure(
    engine: Any, model: str, names: Sequence[str], streams: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """One line per strategy: medians over all pairs of tokens; those in measured.jsonl are kept."""
    asked, clock = requests(streams), CLOCKS.index(told_clock(engine))
    setting = [model, str(engine.hf_model.device), torch.get_num_threads(), args.tokens]
    setting += [args.rounds, args.together, streams, torch.__version__, hd.__version__]
    file = args.output / "measured.jsonl"
    before = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()
    lines = {
        kept["line"]["name"]: kept["line"]
        for kept in before
        if kept["setting"] == setting
        and kept["line"]["strategy"] == plain(busy(kept["line"]["name"]))
    }
    new = [name for name in names if name not in lines]
    for at in range(0, len(new), args.together):
        group = [n for n in new[at : at + args.together] if attempt(engine, asked[:2], [n], 2)]
        runs = (
            [attempt(engine, asked, group, args.tokens) for _ in range(args.rounds)]
            if group
            else []
        )
        for name in runs[0] if runs else ():
            told = summary([run[name] for run in runs if name in run], clock)
            lines[name] = {"name": name, "strategy": plain(busy(name)), "streams": streams, **told}
            with file.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"setting": setting, "line": lines[name]}) + "\n")
    return [lines[name] for name in names if name in lines]


def plain(spec: str) -> str:
    """A spec without the folders of models that are made for a run."""
    return re.sub(r"/[^,)]*/", "", spec)


def attempt(
    engine: Any, asked: Sequence[hd.Request], names: Sequence[str], tokens: int
) -> dict[str, dict[str, Any]]:
    """`paired`, or nothing where a strategy cannot run or memory is too small, with the reason."""
    try:
        return paired(engine, asked, names, tokens)
    except HalluDecodeError as error:
        print(f"{', '.join(names)} with {len(asked)} stream(s): {error}", file=sys.stderr)
        return {}


def summary(runs: Sequence[Mapping[str, Any]], clock: int) -> dict[str, Any]:
    """Medians of times and of ratios to greedy, with the middle half of the ratios.

    Args:
        runs: What `paired` gives, a run each.
        clock: Place in `Spent` of the clock that is told; of the other only the ratio is.
    """
    line: dict[str, Any] = {"calls": runs[0]["calls"], "rows": runs[0]["rows"]}
    for key, named in (("rest", "token"), ("first", "first")):
        pairs = [pair for run in runs for pair in run[key]]
        line[f"{named}_ms"] = statistics.median(own[clock] for own, _ in pairs) * 1000
        for which, of in ((clock, "ratio"), (1 - clock, "other")):
            ratios = sorted(own[which] / max(base[which], 1e-9) for own, base in pairs)
            line[f"{named}_{of}"] = statistics.median(ratios)
            line[f"{named}_{of}_half"] = (ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4])
    return line


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {_memory_of(x) for x in args if isinstance(x, torch.Tensor)}
        for tensor in out if isinstance(out, tuple | list) else (out,):
            # Views of what was given, such as a turned weight, take no memory.
            if isinstance(tensor, torch.Tensor) and _memory_of(tensor) not in given:
                self.elements = max(self.elements, tensor.numel())
        return out


def _memory_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def memory(engine: Any) -> list[dict[str, Any]]:
    """Per strategy, the largest tensor of a prefill at growing prompt lengths."""
    picture = requests(1)[0].images
    lines = []
    for name in EDITS:
        sizes = []
        for length in PROMPTS:
            words = "a " * (length // 2)  # the tiny vocabularies are bytes
            with Largest() as seen:
                request = hd.Request(words, picture)
                engine.generate([request], busy(name), hd.Sampling(max_new_tokens=1))
            sizes.append(seen.elements)
        lines.append({"name": name, "elements": sizes})
    return lines


def table(lines: list[dict]) -> str:
    """Markdown."""
    names = ("strategy", "streams", "rows", "calls / token", "time / token", "x greedy")
    names += ("middle half", "by the other clock", "to first token", "x greedy")
    rows = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for line in lines:
        low, high = line["token_ratio_half"]
        rows.append(
            f"| {line['name']} | {line['streams']} | {line['rows']} | {line['calls']:.2f} "
            f"| {line['token_ms']:.1f} ms | {line['token_ratio']:.2f} | {low:.2f} to {high:.2f} "
            f"| {line['token_other']:.2f} "
            f"| {line['first_ms']:.0f} ms | {line['first_ratio']:.2f} |"
        )
    return "\n".join(rows)


def memory_table(lines: list[dict]) -> str:
    """Markdown."""
    rows = ["| strategy | " + " | ".join(f"about {n} tokens" for n in PROMPTS) + " |"]
    rows.append("|---" * (len(PROMPTS) + 1) + "|")
    for line in lines:
        cells = " | ".join(f"{n / 1e6:.2f} M" for n in line["elements"])
        rows.append(f"| {line['name']} | {cells} |")
    return "\n".join(rows)


def reading(lines: list[dict]) -> str:
    """What the table says, in a few sentences made from its numbers."""
    by = {(line["name"], line["streams"]): line for line in lines}
    told = []
    for streams in dict.fromkeys(line["streams"] for line in lines):
        extra, serial = by.get(("vcd", streams)), by.get((SERIAL, streams))
        if extra and serial:
            told.append(
                f"At {streams} stream(s) one extra row costs {extra['token_ratio']:.2f} times "
                f"greedy per token, the same rule in two calls {serial['token_ratio']:.2f}."
            )
        edits = [by[n, streams] for n in ("var", "vhr", "vista") if (n, streams) in by]
        if edits:
            each = ", ".join(f"{e['name']} {e['token_ratio']:.2f}" for e in edits)
            told.append(f"Edits inside the model: {each}.")
    return " ".join(told)


@torch.no_grad()
def rows_of_a_product(engine: Any, clock: Callable[[], float]) -> str:
    """How long the largest matrix product takes for more rows, whatever we do around it."""
    layer = max(
        (m for m in engine.model.modules() if isinstance(m, torch.nn.Linear)),
        key=lambda m: m.weight.numel(),
    )
    spent: dict[int, list[float]] = {1: [], 2: [], 8: []}
    for _ in range(15):
        for rows, times in spent.items():
            x = torch.ones(rows, 1, layer.in_features).to(layer.weight)
            start = clock()
            layer(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            times.append(clock() - start)
    best = {rows: statistics.median(times) for rows, times in spent.items()}
    two, eight = (best[n] / best[1] for n in (2, 8))
    return (
        f"The model's largest product alone takes {two:.2f} times as long for two rows as for one, "
        f"and {eight:.2f} times for eight: that much of an extra row's cost is the matrix kernel's."
    )


def run(model: str, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Everything about one model: results and their page."""
    folder = tempfile.TemporaryDirectory()  # what lacing and zerotuning need, made up
    engine = supplied(shapes.load(model, max(args.streams), args.device), Path(folder.name))
    names = args.strategy or [n for n in STRATEGIES.names() if n != "greedy"] + list(COMPOSED)
    names = ["greedy", *names, SERIAL]  # greedy beside itself shows what the machine does
    made = [measure(engine, model, names, streams, args) for streams in args.streams]
    lines = [line for own in made for line in own]
    about = engine.describe()
    recipe = {
        "model": model,
        **{key: about[key] for key in ("family", "dtype", "device", "versions")},
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "clock": told_clock(engine),
        "tokens": args.tokens,
        "rounds": args.rounds,
    }
    sizes = memory(engine) if args.memory else []
    where = f"{recipe['dtype']} on {recipe['device']}, {recipe['threads']} thread(s)"
    clocks = f"Times are the {recipe['clock']}'s."
    page = [f"## {model}", f"{where}, {args.tokens} tokens, {args.rounds} rounds. {clocks}"]
    page.append(table(lines))
    clock = time.process_time if recipe["clock"] == "processor" else time.perf_counter
    page.append(f"{reading(lines)} {rows_of_a_product(engine, clock)}")
    combined = combining.measure(engine, lines, clock)
    if combined:
        page += ["Combining the rows of one step, by vocabulary:", combining.table(combined)]
    if sizes:
        page += ["Largest tensor a prefill makes, in elements:", memory_table(sizes)]
    results = {"recipe": recipe, "lines": lines, "combine": combined, "memory": sizes}
    return results, "\n\n".join(page)


def main() -> None:
    """Measure, print the tables, keep them with their recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["testbed"])
    parser.add_argument("--strategy", nargs="+", help="default: all")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", type=int, default=1, help="strategies beside one greedy run")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        made = [run(model, args) for model in args.model]
    except HalluDecodeError as error:
        parser.error(str(error))
    results = json.dumps([results for results, _ in made], indent=1)
    (args.output / "overhead.json").write_text(results, encoding="utf-8")
    given = " ".join(sys.argv[1:]).partition(" --output")[0]
    text = f"<!-- Made by: python benchmarks/overhead.py {given} -->\n"
    text += "\n\n".join(page for _, page in made)
    (args.output / "overhead.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
