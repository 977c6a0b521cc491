"""What training with CCA, EDVT or MMA does, beside the same training without them.

    .venv/bin/python benchmarks/schemes.py [--scheme NAME ...] [--seed 0 1] [--pictures 50]

`halludecode testbed train --warm --scheme NAME` makes a small checkpoint of each, from the shipped
weights on, and `--control` the one it is compared with: the same sentences, pictures, batches and
steps, without the scheme's attention. CCA and EDVT share a control; MMA has one of its own, since a
picture that has read its question can be asked but one. Every checkpoint answers the same questions
under its own plan, the schemes' also without it, and the shipped weights under plans that they were
not trained for. What the papers say of attention is read off captions (`explain`). Paired by
picture, McNemar or bootstrap, p-values by Holm over a table. Writes benchmarks/schemes.md in about
an hour of one core a seed; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np

import halludecode as hd
from benchmarks.paired import Row, clear, gap, mean, paired, table
from halludecode.evals.results.compare import compare_runs
from halludecode.evals.runner.run import run_eval
from halludecode.testbed import CAPTION, dataset, model_path
from halludecode.testbed.train.run import Size, train_seed

PAGE = Path(__file__).with_suffix(".md")
SPLITS = ("iid", "broken")
GREEDY, SHIPPED = "greedy", "shipped"
PATCHES = 100


@dataclass(frozen=True)
class Checkpoint:
    """One of the trainings.

    Args:
        scheme: What the sentences are laid out for.
        control: Without its attention.
    """

    scheme: str
    control: bool = False

    @property
    def name(self) -> str:
        """As the page calls it."""
        return self.against if self.control else self.scheme

    @property
    def against(self) -> str:
        """The name of its control."""
        return "mma-control" if self.scheme == "mma" else "control"

    def size(self, args: argparse.Namespace) -> Size:
        """How it is trained."""
        return Size(
            args.scenes,
            args.collages,
            judged=200,
            words=args.steps,
            scheme=self.scheme,
            control=self.control,
            warm=True,
        )


CHECKPOINTS = (
    Checkpoint("cca", control=True),
    Checkpoint("cca"),
    Checkpoint("mma", control=True),
    Checkpoint("mma"),
    Checkpoint("edvt"),
)
SCHEMES = tuple(each for each in CHECKPOINTS if not each.control)
# task, split, metric, what it is called, what it is multiplied by
METRICS = (
    ("pope", "random", "accuracy", "POPE random, accuracy", 100),
    ("pope", "adversarial", "accuracy", "POPE adversarial, accuracy", 100),
    ("chair", None, "chair_i", "CHAIR_i (less is better)", 100),
    ("chair", None, "recall", "CHAIR recall", 100),
    ("mme", None, "perception", "MME-style, of 1,000", 1),
)


# Trainings and answers ---------------------------------------------------------------------------


def trained(each: Checkpoint, args: argparse.Namespace) -> Path:
    """The folder of a checkpoint's weights; made once."""
    import torch

    out, pictures = args.out / each.name, args.out / "pictures"
    out.mkdir(parents=True, exist_ok=True)
    pictures.mkdir(exist_ok=True)
    if not (out / "pictures").exists():  # all learn from the same ones
        (out / "pictures").symlink_to(pictures.resolve())
    model = out / f"seed-{args.seed}" / "model"
    if not (model / "model.safetensors").exists():
        train_seed(out, args.seed, each.size(args), torch.device("cpu"))
    return model


def answered(model: str, specs: Sequence[str], out: Path, count: int) -> Path:
    """One resumable run over both splits; its folder."""
    out /= f"answers-{count}"
    run_eval(
        hd.load(model),
        tasks=["pope", "chair", "mme"],
        strategies=list(specs),
        data=[f"testbed-{split}" for split in SPLITS],
        pope_splits=["random", "adversarial"],
        limit=count,
        testbed_images=count,
        prompt_preset="testbed",
        batch_size=64,
        output=out,
    )
    return out


def looked(model: str, spec: str, out: Path, count: int) -> dict[str, dict[str, float]]:
    """By picture, slopes of the log of attention while it was described; kept in a file.

    ``raster``: over image tokens, from the first to the last. ``words``: of their sum, over the
    words of the description, for ten of them.
    """
    if out.exists():
        return json.loads(out.read_text("utf-8"))
    engine, found = hd.load(model), dict[str, dict[str, float]]()
    sampling = hd.Sampling(max_new_tokens=60)
    for split in SPLITS:
        files = sorted((dataset(f"testbed-{split}", count) / "images").iterdir())[:count]
        requests = [hd.Request(CAPTION, [file]) for file in files]
        outputs = engine.generate(requests, spec, sampling, explain="maps")
        for file, output in zip(files, outputs, strict=True):
            assert output.explanation is not None
            tokens = output.explanation.tokens
            maps = np.mean([token.maps[0].ravel() for token in tokens], 0)
            masses = np.array([token.mass for token in tokens])
            found[f"{split}/{file.name}"] = {
                "raster": slope(np.linspace(0, 1, maps.size), np.log(maps)),
                "words": slope(np.arange(masses.size) / 10, np.log(masses)),
            }
    out.write_text(json.dumps(found), encoding="utf-8")
    return found


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of the line of least squares."""
    away = x - x.mean()
    return float(away @ y / (away @ away)) if away.any() else 0.0


def halves(run: Path, strategy: str, count: int) -> dict[str, tuple[int, int, int, int]]:
    """By picture: questions about a thing in its upper half and those right, then in the lower.

    Present things that are asked for by POPE; the middle of the largest of its kind counts.
    """
    lower_half = places(count)
    found: dict[str, list[int]] = {}
    for line in lines(run):
        if line["task"] != "pope" or line["label"] != "yes" or line["strategy"] != strategy:
            continue
        if line["split"] != "random":  # the splits share these questions
            continue
        name = line["prompt"].split(" in the image")[0].partition("there ")[2].partition(" ")[2]
        key = f"{line['data'].removeprefix('testbed-')}/{line['image']}"
        if (lower := lower_half.get((key, name))) is not None:
            cell = found.setdefault(key, [0, 0, 0, 0])
            cell[2 * lower] += 1
            cell[2 * lower + 1] += line["parsed"] == "yes"
    return {key: (a, b, c, d) for key, (a, b, c, d) in found.items()}


def places(count: int) -> dict[tuple[str, str], bool]:
    """(picture, category) -> whether the largest one's middle is in the lower half."""
    found: dict[tuple[str, str], tuple[float, bool]] = {}
    for split in SPLITS:
        folder = dataset(f"testbed-{split}", count) / "annotations"
        about = json.loads((folder / "instances.json").read_text("utf-8"))
        names = {kind["id"]: kind["name"] for kind in about["categories"]}
        images = {image["id"]: image for image in about["images"]}
        for thing in about["annotations"]:
            image, (_, top, _, height) = images[thing["image_id"]], thing["bbox"]
            key = f"{split}/{image['file_name']}", names[thing["category_id"]]
            told = thing["area"], top + height / 2 > image["height"] / 2
            found[key] = max(found.get(key, told), told)
    return {key: lower for key, (_, lower) in found.items()}


def lines(run: Path) -> list[Mapping[str, Any]]:
    return [json.loads(text) for text in (run / "samples.jsonl").read_text("utf-8").splitlines()]


# The page ----------------------------------------------------------------------------------------


def compared(specs: Sequence[str]) -> list[Row]:
    """`METRICS` of both splits: their name, difference and scale."""
    found = {(g["task"], g["data"], g["split"]): g for g in compare_runs(specs).differences}
    return [
        (f"{title}, {split}", found[task, f"testbed-{split}", part]["metrics"][metric], by)
        for task, part, metric, title, by in METRICS
        for split in SPLITS
    ]


@dataclass
class Seed:
    """What one training seed came to, by checkpoint: answers, what `looked` found, its training."""

    args: argparse.Namespace
    runs: dict[str, Path]
    attention: dict[str, dict[str, dict[str, float]]]
    curves: dict[str, list[str]]


def seeded(args: argparse.Namespace, seed: int) -> Seed:
    """Trains and answers what is not there yet."""
    found = Seed(argparse.Namespace(**{**vars(args), "seed": seed}), {}, {}, {})
    chosen = [each for each in SCHEMES if each.scheme in args.scheme]
    needed = {name for each in chosen for name in (each.name, each.against)}
    for each in (each for each in CHECKPOINTS if each.name in needed):
        model = str(trained(each, found.args))
        own, folder = each.size(args).run_with, Path(model).parent
        specs = list(dict.fromkeys((own, GREEDY)))
        found.runs[each.name] = answered(model, specs, folder, args.pictures)
        if each.scheme != "mma":  # whose paper says nothing of it
            file = folder / f"attention-{args.pictures}.json"
            found.attention[each.name] = looked(model, own, file, args.pictures)
        found.curves[each.name] = (folder / "words.csv").read_text("utf-8").splitlines()
    plans = [each.size(args).run_with for each in SCHEMES]
    shipped = answered(str(model_path()), [GREEDY, *plans], args.out, args.pictures)
    found.runs[SHIPPED] = shipped
    return found


def page(args: argparse.Namespace) -> str:
    """All of it."""
    seeds = [seeded(args, seed) for seed in args.seed]
    words = f"{len(seeds)} training seed(s)"
    parts = [HEAD.format(seeds=words, **vars(args)), training(seeds)]
    schemes = [each for each in SCHEMES if each.scheme in args.scheme]
    told = [
        f"- {each.scheme}, seed {own.args.seed}: {clear(beside(each, own.args, own.runs))}"
        for each in schemes
        for own in seeds
    ]
    parts += ["In short, of answers beside the control's:", "\n".join(told)]
    for each in schemes:
        parts += section(each, seeds)
    return "\n\n".join(parts) + "\n"


HEAD = """# Trained schemes on the testbed

Written by `benchmarks/schemes.py`; do not edit.

CCA, EDVT and MMA are for weights that were trained with them. Here the shipped model of 5 million
weights learns each for {steps} steps (`halludecode testbed train --warm --scheme NAME`), and a
control learns the same sentences from the same batches without it; none is shipped. {seeds}, each
with its own control: an interval says what other pictures would change, the seeds what another
training would. {pictures} pictures a split. What holds of this model holds of no other: it has 100
image tokens, prompts of 130 and five layers, where CCA's has 576 tokens and 32 layers, and the
decay of rotary positions that CCA and EDVT are against is small over so few. It had learnt to see
without any of the schemes, and has a few minutes to get used to one."""


def training(seeds: Sequence[Seed]) -> str:
    """Loss on captions apart from training, and the processor's time, of each."""
    made = [
        "| seed | checkpoint | caption loss, other pictures | minutes of one core |",
        "|---|---|---|---|",
    ]
    for seed in seeds:
        for name, curve in seed.curves.items():
            last = dict(zip(curve[0].split(","), curve[-1].split(","), strict=True))
            loss, minutes = float(last["caption loss"]), float(last["seconds"]) / 60
            made.append(f"| {seed.args.seed} | {name} | {loss:.3f} | {minutes:.0f} |")
    return "\n".join(made)


def beside(each: Checkpoint, args: argparse.Namespace, runs: Mapping[str, Path]) -> list[Row]:
    """The answers of a scheme's weights under its plan less those of its control."""
    own = f"{runs[each.name]}:{each.size(args).run_with}"
    return compared([own, f"{runs[each.against]}:{GREEDY}"])


def section(each: Checkpoint, seeds: Sequence[Seed]) -> list[str]:
    """One scheme: what its paper says, beside its control, its own weights and the shipped ones."""
    parts = [f"## {each.name}", CLAIM[each.scheme]]
    for seed in seeds:
        args, runs = seed.args, seed.runs
        own = each.size(args).run_with
        without = compared([f"{runs[each.name]}:{own}", f"{runs[each.name]}:{GREEDY}"])
        parts.append(f"### {each.name}, seed {args.seed}")
        if told := claimed(each, own, args, runs, seed.attention):
            parts.append("\n".join(told))
        for title, rows, sides in (
            ("Beside its control", beside(each, args, runs), ("with", "control")),
            ("Its weights with and without its plan", without, ("with", "without")),
        ):
            parts += [f"**{title}.** {clear(rows)}", "\n".join(table(rows, sides))]
    shipped = seeds[0].runs[SHIPPED]
    untuned = compared([f"{shipped}:{own}", f"{shipped}:{GREEDY}"])
    parts += [
        f"**The plan on the shipped weights, not tuned for it.** {clear(untuned)}",
        "\n".join(table(untuned, ("with", "greedy"))),
        f"The shipped weights under `{own}` say: {warned(own)}",
    ]
    return parts


CLAIM = {
    "cca": "The paper: rotary positions favour image tokens late in the raster, whatever they "
    "show; rings from the border to the middle even that out, so that a thing far from the words "
    "is seen as well. *Rise*: of the log of attention on an image token, from the first to the "
    "last of the raster, while describing. *Gap*: things that POPE asks for and gets a yes to, of "
    "those in the lower half of a picture less of those in the upper, in points. Nearer to 0 is "
    "what is claimed.",
    "edvt": "The paper: image tokens at the same distance from every word are not looked at less "
    "the more has been written. *Fade*: of the log of attention on the picture, for ten words of a "
    "description. Nearer to 0 is what is claimed.",
    "mma": "The paper: image tokens that have read the question hold what it asks for, so that "
    "answers about the picture are right more often. Nothing is claimed of attention; what counts "
    "is the first table, and in the second whether its weights use what their picture has read.",
}


def claimed(
    each: Checkpoint,
    own: str,
    args: argparse.Namespace,
    runs: Mapping[str, Path],
    attention: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> list[str]:
    """The table of what the paper says of attention."""
    what = {"cca": "raster", "edvt": "words"}.get(each.scheme)
    if what is None:
        return []

    def slopes(name: str) -> dict[str, tuple[float, float]]:
        return {key: (own_slopes[what], 1.0) for key, own_slopes in attention[name].items()}

    title = {"raster": "rise over the raster", "words": "fade in ten words"}[what]
    rows = [(title, paired(slopes(each.name), slopes(each.against), mean), 1.0)]
    if each.scheme == "cca":
        with_it = halves(runs[each.name], canonical(runs[each.name], own), args.pictures)
        without = halves(runs[each.against], GREEDY, args.pictures)
        rows.append(("gap of things below and above", paired(with_it, without, gap), 1.0))
    return table(rows, ("with", "control"), digits=2)


def canonical(run: Path, spec: str) -> str:
    """A strategy as a run's lines name it."""
    known = {line["strategy"] for line in lines(run)} - {GREEDY}
    (found,) = [name for name in known if name.partition("(")[0] == spec.partition("(")[0]]
    return found


def warned(spec: str) -> str:
    """The sentence that an answer of weights not trained for a scheme carries."""
    picture = sorted((dataset("testbed-iid", 20) / "images").iterdir())[0]
    request = hd.Request("Is there a dog in the image?", [picture])
    output = hd.load("testbed").generate(request, spec, hd.Sampling(max_new_tokens=1))[0]
    return " ".join(f"*{warning}*" for warning in output.warnings)


def main() -> None:
    """Train, ask, compare, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--scenes", type=int, default=4_000)
    parser.add_argument("--collages", type=int, default=1_500)
    parser.add_argument("--pictures", type=int, default=50, help="a split")
    names = [each.scheme for each in SCHEMES]
    parser.add_argument("--scheme", nargs="+", choices=names, default=names)
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1], help="of training")
    parser.add_argument("--out", type=Path, default=Path("runs/schemes"))
    parser.add_argument("--output", type=Path, default=PAGE)
    args = parser.parse_args()
    args.output.write_text(page(args), encoding="utf-8")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
