"""``halludecode testbed``: make the embedded world's data, show its model's card."""

from __future__ import annotations

import json as encoder
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
The package carries a 5-million-parameter LLaVA and a made-up world of pictures, so that
everything runs offline, on a laptop, in minutes. The model looks at its picture and also believes
in habit: where a car is, it likes to see a traffic light. On testbed-iid its habits are right as
often as in training, on testbed-broken they mislead.

It tests that mechanisms do what they claim. It does not stand in for published numbers, and a
strategy that helps here may do nothing for a real model, or the reverse: this model has no
attention sinks, for one. testbed-planted is the same model with sinks written into its weights at
load, so that var has something to move. What every strategy does on it, at the paper's settings
and tuned, is in benchmarks/testbed_results.md.

\b
  halludecode testbed info                              its card
  halludecode testbed data --out scenes --count 10      pictures with COCO-format annotations
  halludecode testbed data --pairs --out pairs          each with and without an object
  halludecode testbed train --out model                 the model, made again from nothing
"""

app = typer.Typer(
    help="The embedded world: scenes, annotations and a small model.",
    epilog=EPILOG,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """The embedded world: scenes, annotations and a small model."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def data(
    out: Annotated[Path, typer.Option(help="New folder for pictures and annotations.")],
    count: Annotated[int, typer.Option(help="Number of scenes.")] = 500,
    split: Annotated[
        str,
        typer.Option(help="iid, broken, dev-iid, dev-broken or train."),
    ] = "iid",
    seed: Annotated[int, typer.Option(help="0 gives the published scenes.")] = 0,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Every scene also without one object, twice.")
    ] = False,
) -> None:
    """Make scenes with COCO-format annotations, POPE questions and an MME-style set.

    With --pairs, every scene has two edits that lack one object, with the questions of popev2,
    beaf, naturalbench and phd: eval --tasks popev2,beaf,naturalbench,phd --data OUT.
    """
    from halludecode.testbed import write_dataset, write_pairs

    folder = (write_pairs if pairs else write_dataset)(out, split, count, seed)
    about = encoder.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    typer.echo(f"{count} scenes of {about['name']} in {folder}, digest {about['digest']}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the training; one there goes on.")],
    seed: Annotated[
        list[int] | None, typer.Option(help="One model each; the first ships. Default: 0 and 1.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    scenes: Annotated[int, typer.Option(help="Training scenes.", min=64)] = 40_000,
    collages: Annotated[int, typer.Option(help="Crowds for stage 1.", min=64)] = 30_000,
    vision: Annotated[int, typer.Option(help="Steps of stage 1.", min=1)] = 3_000,
    words: Annotated[int, typer.Option(help="Steps of stage 2.", min=1)] = 2_000,
    pictures: Annotated[int, typer.Option(help="Test pictures a split.", min=20)] = 500,
    scheme: Annotated[
        str, typer.Option(help="Attention the decoder is trained with: cca, edvt or mma.")
    ] = "",
    control: Annotated[
        bool, typer.Option("--control", help="The scheme's sentences without its attention.")
    ] = False,
    warm: Annotated[
        bool, typer.Option("--warm", help="Stage 2 alone, from the shipped weights; no card.")
    ] = False,
) -> None:
    """Train the embedded model from nothing: checkpoints, curves, figures and card."""
    from dataclasses import replace

    import torch

    from halludecode.core.errors import InvalidParameter
    from halludecode.testbed.train.run import Size, train
    from halludecode.testbed.train.schemes import SCHEMES

    if scheme and scheme not in SCHEMES:
        raise InvalidParameter(f"scheme is {scheme!r}; use {', '.join(SCHEMES)}, or leave it out.")
    if control and not scheme:
        raise InvalidParameter("--control is of a scheme; name it with --scheme, too.")
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidParameter(f"device is {device!r}; use auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidParameter("device is cuda, but there is no NVIDIA GPU here; use cpu.")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    size = Size(scenes, collages, vision=vision, words=words, pictures=pictures, scheme=scheme)
    size = replace(size, control=control, warm=warm)
    typer.echo(train(out, seed or [0, 1], size, torch.device(chosen)))


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="testbed or testbed-planted.")] = "testbed",
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show a model's card."""
    from halludecode.core.errors import InvalidParameter
    from halludecode.testbed import MODELS, card

    if model not in MODELS:
        raise InvalidParameter(f"No testbed model {model!r}; there are {', '.join(MODELS)}.")
    if json:
        typer.echo(encoder.dumps(_facts(model), indent=2))
    else:
        typer.echo(card(model))


def _facts(model: str) -> dict[str, object]:
    """Where the model is, what it is asked with, and what the splits are."""
    from dataclasses import asdict

    from halludecode.testbed import PLANTED, PROMPTS, card, model_path
    from halludecode.testbed.datasets import VERSION
    from halludecode.testbed.scenes import SPLITS

    folder = model_path(model)
    config = encoder.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = folder / "model.safetensors"
    return {
        "model": str(folder),
        "architecture": config["architectures"][0],
        "bytes": weights.stat().st_size,
        "stand_in": True,
        "planted": model == PLANTED,
        "prompts": dict(PROMPTS),
        "generator": VERSION,
        "splits": {name: asdict(rules) for name, rules in SPLITS.items()},
        "card": card(model),
    }
