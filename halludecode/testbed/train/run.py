"""`testbed train`: from nothing to checkpoints with their curves, figures and card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from halludecode.core.errors import InvalidData
from halludecode.testbed.assets import model_path
from halludecode.testbed.scenes import scenes
from halludecode.testbed.train import card, curves
from halludecode.testbed.train.corpus import Corpus, collages, corpus, training_scenes
from halludecode.testbed.train.fit import Stage, fit
from halludecode.testbed.train.judge import judge, sinks
from halludecode.testbed.train.network import trained, untrained
from halludecode.testbed.train.rows import TAIL


@dataclass(frozen=True)
class Size:
    """How much is painted and how long is trained.

    Args:
        scenes: Training scenes.
        collages: Crowds for the vision stage.
        judged: Clean pictures of the tuning split that the stages are measured on.
        vision: Steps of stage 1.
        words: Steps of stage 2.
        pictures: Test pictures per split for the card.
        scheme: What the decoder is trained with, of `schemes.SCHEMES`; "" for nothing.
        control: The scheme's sentences without its attention, as what it is to be compared with.
        warm: Stage 2 alone, from the shipped weights on and in their words.
    """

    scenes: int = 40_000
    collages: int = 30_000
    judged: int = 300
    vision: int = 3_000
    words: int = 2_000
    pictures: int = 500
    scheme: str = ""
    control: bool = False
    warm: bool = False

    @property
    def run_with(self) -> str:
        """The strategy that runs the weights as they were trained."""
        if self.control or not self.scheme:
            return "greedy"
        return f"mma(tail={TAIL})" if self.scheme == "mma" else self.scheme


def train(out: Path, seeds: Sequence[int], size: Size, device: torch.device) -> Path:
    """Trains a model per seed, measures each, and writes curves and card.

    Args:
        out: Folder of the training; an interrupted one goes on where it was.
        seeds: The first one's model is the one to ship.
        size: How much is painted and trained.
        device: CPU or GPU.

    Returns:
        `out/model`, the weights of the first seed; `MODEL_CARD.md` and `curves.png` lie beside it,
        unless stage 1, which they tell of, was left out.

    Raises:
        InvalidData: ``out`` holds a training of another size, or cannot be written.
    """
    try:
        _check_recipe(out, size)
        by_seed: dict[int, dict[str, Any]] = {}
        for seed in seeds:
            stages = train_seed(out, seed, size, device)
            folder = out / f"seed-{seed}"
            by_seed[seed] = stages | judge(
                folder / "model", folder / "eval", size.pictures, size.scenes, size.run_with
            )
            _write(folder / "figures.json", by_seed[seed])
        shutil.copytree(out / f"seed-{seeds[0]}" / "model", out / "model", dirs_exist_ok=True)
        if size.warm:
            return out / "model"
        curves.draw({seed: out / f"seed-{seed}" for seed in seeds}, out / "curves.png")
        facts = asdict(size) | {"time": _spent(out, seeds, device), "sinks": sinks(out / "model")}
        facts["curves"] = curves.table(out / f"seed-{seeds[0]}")
        text = card.write(facts, by_seed, seeds[0])
        (out / "MODEL_CARD.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidData(
            f"{out} cannot be written ({error.strerror or error}); choose another folder."
        ) from None
    return out / "model"


def train_seed(out: Path, seed: int, size: Size, device: torch.device) -> dict[str, Any]:
    """Trains one model: `out/seed-N/model` and the curves beside it.

    Args:
        out: Folder of the whole training; what is there already is not made again.
        seed: Of the weights, the batches and the sentences.
        size: How long.
        device: CPU or GPU.

    Returns:
        The figures of ``vision``, unless that was left out, and ``words`` at their ends.
    """
    from transformers import AutoTokenizer

    from halludecode.testbed.train.stage1 import Stage1
    from halludecode.testbed.train.stage2 import Stage2

    folder = out / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = painted(out / "pictures", size)
    words = model_path()
    tokenizer = AutoTokenizer.from_pretrained(words)
    model = (trained(words) if size.warm else untrained(words, seed)).to(device)
    figures = {}
    if not size.warm:
        first = Stage1(model, tokenizer, pictures, seed, size.vision)
        figures["vision"] = _fitted(first, folder, seed)
    how = size.scheme, size.control, size.warm
    second = Stage2(model, tokenizer, pictures, seed, size.words, *how)
    figures["words"] = _fitted(second, folder, seed)
    if not (folder / "model" / "model.safetensors").exists():
        if size.scheme and not size.control:
            model.config.halludecode_scheme = size.scheme
        save(model, folder / "model", words)
    return figures


def _fitted(stage: Stage, folder: Path, seed: int) -> dict[str, float]:
    with _bar(f"seed {seed}: {stage.name}", stage.steps) as report:
        return fit(stage, folder, report)


def painted(folder: Path, size: Size) -> dict[str, Corpus]:
    """All pictures the stages need, painted on first use.

    Args:
        folder: Keeps them, shared by all seeds.
        size: How many.
    """
    sources = {
        "scenes": (training_scenes(size.scenes), size.scenes),
        "collages": (collages(0), size.collages),
        "judged": (scenes("dev-iid", size.judged), size.judged),
    }
    pictures = {}
    for name, (source, count) in sources.items():
        with _bar(f"painting {name}", count) as report:
            pictures[name] = corpus(folder / f"{name}-{count}", source, count, report)
    return pictures


def save(model: Any, folder: Path, words: Path) -> None:
    """Writes the weights as bfloat16, with words and processor beside them.

    Args:
        model: What was trained.
        folder: Where to.
        words: Holds the model's tokenizer and processor.
    """
    model = model.to(device="cpu", dtype=torch.bfloat16)
    model.set_attn_implementation("sdpa")
    for name in ("bos", "eos", "pad"):
        number = getattr(model.config.text_config, f"{name}_token_id")
        setattr(model.generation_config, f"{name}_token_id", number)
    model.generation_config.max_new_tokens = 100
    model.save_pretrained(folder)
    for file in words.iterdir():
        if file.suffix in (".json", ".jinja") and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _check_recipe(out: Path, size: Size) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "recipe.json"
    if path.exists() and json.loads(path.read_text("utf-8")) != asdict(size):
        raise InvalidData(
            f"{out} holds a training of another size (see {path.name}); choose a new folder, or "
            "give the same numbers to go on with it."
        )
    _write(path, asdict(size))


def _spent(out: Path, seeds: Sequence[int], device: torch.device) -> str:
    times = [sum(curves.seconds(out / f"seed-{seed}")) for seed in seeds]
    hours = " and ".join(f"{spent / 3600:.1f}" for spent in times)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{hours} hours of processor time (one seed each) on {where}"


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    from tqdm import tqdm

    with tqdm(total=total, desc=title, mininterval=2.0) as bar:

        def report(count: int, words: str) -> None:
            bar.update(count)
            if words:
                bar.set_postfix_str(words)

        yield report
