"""``halludecode testbed``: make the embedded world's data, show its model's card."""

from __future__ import annotations

import json as encoder
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The embedded world: scenes, annotations and a small model.",
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
    split: Annotated[str, typer.Option(help="iid, broken, dev-iid, dev-broken or train.")] = "iid",
    seed: Annotated[int, typer.Option(help="0 gives the published scenes.")] = 0,
) -> None:
    """Make scenes with COCO-format annotations, POPE questions and an MME-style set."""
    from halludecode.testbed import write_dataset

    folder = write_dataset(out, split, count, seed)
    about = encoder.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    typer.echo(f"{count} scenes of {about['name']} in {folder}, digest {about['digest']}")


@app.command()
def info(
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show the model's card."""
    from halludecode.testbed import card

    if json:
        typer.echo(encoder.dumps(_facts(), indent=2))
    else:
        typer.echo(card())


def _facts() -> dict[str, object]:
    """Where the model is, what it is asked with, and what the splits are."""
    from dataclasses import asdict

    from halludecode.testbed import PROMPTS, card, model_path
    from halludecode.testbed.datasets import VERSION
    from halludecode.testbed.scenes import SPLITS

    folder = model_path()
    config = encoder.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = folder / "model.safetensors"
    return {
        "model": str(folder),
        "architecture": config["architectures"][0],
        "bytes": weights.stat().st_size,
        "stand_in": True,
        "prompts": dict(PROMPTS),
        "generator": VERSION,
        "splits": {name: asdict(rules) for name, rules in SPLITS.items()},
        "card": card(),
    }
