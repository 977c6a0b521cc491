"""Whether training gives the testbed's decoder attention sinks: what was tried, with curves.

    .venv/bin/python benchmarks/testbed_sinks.py [--steps 1000] [--every 250] [--out FOLDER]

Each trial trains a fresh decoder behind the shipped model's tower, projector and words, with stage
2's own pictures and sentences, and differs in what the literature names as a cause: AdamW in place
of Muon, weight decay, a high rate, constant tokens before the picture (registers). Every so often
it measures, on clean pictures: the largest phi = max |x_d| / rms(x) of first, image and text tokens
over layers (a sink has 5 or more in a rare dimension, see `core.sinks`), and the share of attention
that the last token of a prompt pays to the first one, mean and largest over heads. At the end: how
many image tokens have such a dimension, and whether these get more attention than others do. Trials
run side by side, one thread each; an interrupted one goes on. Writes benchmarks/testbed_sinks.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch

PAGE = Path(__file__).with_suffix(".md")
Curve: TypeAlias = list[dict[str, float]]
KINDS = ("first", "image", "text")
CONSTANT = "."  # a word that says nothing before a picture
SHOWN = 24  # clean pictures that are looked at
TAU = 5.0  # `core.sinks`' threshold at this width


@dataclass(frozen=True)
class Trial:
    """One way to train.

    Args:
        told: What is different, in words.
        adamw: AdamW for every matrix, too.
        rate: Its highest learning rate.
        decay: Its weight decay.
        registers: Constant tokens between the begin token and "USER:".
    """

    told: str
    adamw: bool = True
    rate: float = 3e-3
    decay: float = 0.0
    registers: int = 0


TRIALS = {
    "shipped": Trial("Muon for matrices, as the shipped model", adamw=False),
    "adamw": Trial("AdamW for everything"),
    "decay": Trial("AdamW with weight decay 0.1", decay=0.1),
    "registers": Trial("AdamW, four constant tokens before the picture", registers=4),
    "fast": Trial("AdamW at a rate of 0.01", rate=0.01),
}


def prompt(question: str, registers: int) -> str:
    """A prompt as it stands, constant tokens in front."""
    return f"{f'{CONSTANT} ' * registers}USER: <image>\n{question} ASSISTANT:"


def fresh(seed: int) -> Any:
    """The shipped tower, projector and words with a decoder that knows nothing."""
    from halludecode.testbed import model_path
    from halludecode.testbed.train.network import trained, untrained

    model, known = untrained(model_path(), seed), trained(model_path())
    for name in ("vision_tower", "multi_modal_projector"):
        getattr(model.model, name).load_state_dict(getattr(known.model, name).state_dict())
    model.get_input_embeddings().load_state_dict(known.get_input_embeddings().state_dict())
    return model


def stage(trial: Trial, pictures: Any, steps: int, seed: int) -> tuple[Any, Any]:
    """The model and its stage 2, changed as the trial says."""
    from transformers import AutoTokenizer

    from halludecode.testbed import model_path
    from halludecode.testbed.train.network import Trainer
    from halludecode.testbed.train.stage2 import Stage2

    model = fresh(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    second = Stage2(model, tokenizer, pictures, seed, steps)
    if trial.registers:
        words = second._writer.words
        words[1:1] = tokenizer(CONSTANT, add_special_tokens=False).input_ids * trial.registers
    if trial.adamw:
        trainer = Trainer(second.net.named_parameters(), trial.rate, 0.0, steps)
        optimiser = torch.optim.AdamW(
            trainer._all, lr=trial.rate, weight_decay=trial.decay, betas=(0.9, 0.97)
        )
        trainer._parts = [optimiser]
        second.trainer = trainer
    return model, second


def looked(model: Any, trial: Trial) -> dict[str, float]:
    """What sinks are measured by, on clean pictures."""
    import halludecode as hd
    from halludecode.testbed import CAPTION, dataset, model_path
    from halludecode.testbed.train.run import save

    paths = sorted((dataset("testbed-dev-iid", SHOWN) / "images").iterdir())
    asked = prompt(CAPTION, trial.registers)
    with tempfile.TemporaryDirectory() as folder:
        save(copy.deepcopy(model), Path(folder), model_path())
        engine = hd.load(folder)
        report = hd.sinks(engine, [hd.Request(asked, [path]) for path in paths])
        found = {}
        for kind in KINDS:
            tops = [row[f"{kind}_max"] for row in report.table()]
            found[f"phi {kind}"] = max((x for x in tops if x is not None), default=math.nan)
        found["sink dimensions"] = len(report.dims)
        return found | _first_share(folder, asked, paths)


@torch.no_grad()
def read(folder: str, asked: str, paths: list[Path]) -> tuple[Any, Any]:
    """What the model writes inside while it reads prompts, and which tokens are of the image."""
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    inputs = AutoProcessor.from_pretrained(folder)(
        images=[Image.open(path) for path in paths],
        text=[asked] * len(paths),
        return_tensors="pt",
    )
    out = model(**inputs, output_attentions=True, output_hidden_states=True)
    return out, inputs["input_ids"][0] == model.config.image_token_id


def _first_share(folder: str, asked: str, paths: list[Path]) -> dict[str, float]:
    """Attention on the first token, from a prompt's last one."""
    out, _ = read(folder, asked, paths)
    shares = torch.stack([layer[:, :, -1, 0] for layer in out.attentions]).mean(1)  # [L, H]
    return {"on first, mean": shares.mean().item(), "on first, most": shares.max().item()}


def ended(model: Any, trial: Trial) -> list[dict[str, float]]:
    """By layer: the share of image tokens with phi above `TAU`, and of attention that they get."""
    from halludecode.testbed import CAPTION, dataset, model_path
    from halludecode.testbed.train.run import save

    paths = sorted((dataset("testbed-dev-iid", SHOWN) / "images").iterdir())
    with tempfile.TemporaryDirectory() as folder:
        save(copy.deepcopy(model), Path(folder), model_path())
        out, image = read(folder, prompt(CAPTION, trial.registers), paths)
    rows = list[dict[str, float]]()
    for layer, (entering, weights) in enumerate(
        zip(out.hidden_states[:-1], out.attentions, strict=True)
    ):
        x = entering[:, image]
        high = x.abs().amax(-1) > TAU * x.square().mean(-1).sqrt()  # [B, N_img]
        paid = weights[:, :, -1, image].mean(1)  # [B, N_img], of the last token
        share = (paid * high).sum(-1) / paid.sum(-1)
        found = {"layer": layer, "tokens": high.float().mean(), "attention": share.mean()}
        rows.append({name: float(value) for name, value in found.items()})
    return rows


def run(name: str, out: Path, steps: int, every: int, seed: int) -> Curve:
    """One trial, in a process of its own: what was measured every so often."""
    from halludecode.testbed.train.run import Size, painted

    torch.set_num_threads(1)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    kept, saved = folder / "curve.json", folder / "state.pt"
    trial = TRIALS[name]
    model, second = stage(trial, painted(out / "pictures", Size()), steps, seed)
    curve: Curve = json.loads(kept.read_text()) if kept.exists() else []
    start = int(curve[-1]["step"]) if curve else 0
    if curve:
        state = torch.load(saved, weights_only=True)
        second.net.load_state_dict(state["net"])
        second.trainer.restore(state["trainer"])
    losses: list[float] = []
    for number in range(start, steps):
        losses.append(second.step(number)["loss"])
        if (number + 1) % every == 0 or number + 1 == steps:
            loss = sum(losses) / len(losses)
            curve.append({"step": number + 1, "loss": loss, **looked(model, trial)})
            state = {"net": second.net.state_dict(), "trainer": second.trainer.state()}
            torch.save(state, saved)
            kept.write_text(json.dumps(curve))
            losses = []
    (folder / "ended.json").write_text(json.dumps(ended(model, trial)))
    return curve


def page(curves: Mapping[str, Curve], ends: Mapping[str, Curve], steps: int) -> str:
    """The whole page."""
    parts = [
        "# Attention sinks by training",
        "Written by `benchmarks/testbed_sinks.py`; do not edit.",
        f"Decoders trained anew behind the shipped tower, {steps:,} steps of stage 2, one seed. "
        "phi is max |x_d| / rms(x), largest over layers; it cannot exceed 16 at width 256, and "
        "`var`'s threshold there is 5. *On first*: the share of attention that the last token of a "
        "caption's prompt pays to the begin token, over heads of all layers; evenly paid it would "
        "be below 0.01. Below each curve, by layer at the end: the share of image tokens with phi "
        "above 5, and of the picture's attention that they get from a prompt's last token. Sinks "
        "would be few tokens with much of it; a value that nearly all image tokens share is a "
        "constant of the projector. A head may pay most of its attention to the begin token (*on "
        "first, most*) without a large value there: it rests, and `var`, which finds sinks by "
        "their values, has nothing to act on.",
    ]
    names = [name for name in next(iter(curves.values()))[0] if name != "step"]
    for name, curve in curves.items():
        lines = ["| step | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
        for row in curve:
            cells = " | ".join(f"{row[n]:.3g}" for n in names)
            lines.append(f"| {int(row['step'])} | {cells} |")
        at_end = "; ".join(
            f"layer {row['layer']:.0f}: {row['tokens']:.0%} of tokens, {row['attention']:.0%} of it"
            for row in ends[name]
        )
        parts += [f"## {TRIALS[name].told}", "\n".join(lines), f"At the end: {at_end}."]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Train, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", action="append", choices=list(TRIALS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/testbed_sinks"))
    args = parser.parse_args()
    names = args.trial or list(TRIALS)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(run, n, args.out, args.steps, args.every, args.seed) for n in names]
        curves = {name: job.result() for name, job in zip(names, jobs, strict=True)}
    ends = {name: json.loads((args.out / name / "ended.json").read_text()) for name in names}
    PAGE.write_text(page(curves, ends, args.steps), encoding="utf-8")


if __name__ == "__main__":
    main()
