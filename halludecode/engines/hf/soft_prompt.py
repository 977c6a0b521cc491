"""Trains a soft visual prompt: vectors that stand where a picture's features would.

LACING (arXiv:2411.14279, "soft-image guidance") learns them while it fine-tunes the model,
replacing the features of every tenth sample, and changes the model's attention as well. Here the
model stays as it is, frozen, and only the vectors learn, to make the answers of the data likely
without a picture:

    min over s [n, D]   of   mean over (question, answer)   of   -log p(answer | s, question)

Stock checkpoints have no such prompt, and this one is not the paper's: the model never learnt to
read it as "no picture". Initial values are the official N(0, 1) / sqrt(D).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from halludecode.core.activations import ActivationRequest
from halludecode.core.attention_block import GENERATED, PAD
from halludecode.core.errors import InvalidParameter
from halludecode.core.prompt import Prompt
from halludecode.engines.hf.forward_context import ForwardContext
from halludecode.engines.hf.hooks import hooked
from halludecode.engines.hf.model import HFModel, Tokens, pad_left
from halludecode.engines.inputs.processor import InputProcessor
from halludecode.engines.inputs.rows import RowBuilder
from halludecode.views.soft import laid

EPOCHS = 4
BATCH = 16
MOST_STEPS = 150
RATE = 0.005  # of Adam, falling to 0 as a cosine


@dataclass(frozen=True)
class Example:
    """A question with its answer as one row of tokens.

    Args:
        tokens: Prompt with its image places, then the answer and the end token.
        answer: Tokens of the answer, the end token included.
        places: Image tokens of each picture.
    """

    tokens: Tokens
    answer: int
    places: tuple[int, ...]


def train(
    hf_model: HFModel,
    row_builder: RowBuilder,
    pairs: Sequence[tuple[Prompt, str]],
    *,
    seed: int = 0,
    at_once: int = BATCH,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Train on pictures' questions and their answers; the pictures themselves are never shown.

    Args:
        hf_model: The model; its weights are neither changed nor given gradients.
        row_builder: Renders prompts.
        pairs: Prompts with at least one picture, each with the text to make likely.
        seed: Of the initial values and of the order of the data.
        at_once: Most answers in one forward; a step always sees a whole batch.
        progress: Show a bar on standard error.

    Returns:
        "soft": float32 [n, D], n the most image tokens of a picture in the data; "loss": float32
        [steps], nats per token.

    Raises:
        InvalidParameter: No pair has a picture and an answer.
    """
    if not pairs:
        raise InvalidParameter(
            "A soft prompt is trained on captions or yes/no answers about pictures, and the "
            "samples have none: give --data a folder with annotations/captions*.json or "
            "pope/*.jsonl."
        )
    examples = [_example(hf_model, row_builder, prompt, answer) for prompt, answer in pairs]
    count = max(n for example in examples for n in example.places)
    rng = torch.Generator().manual_seed(seed)
    start = (
        torch.randn(count, hf_model.info.hidden_size, generator=rng)
        / hf_model.info.hidden_size**0.5
    )
    soft = nn.Parameter(start.to(hf_model.device))
    steps = min(EPOCHS * math.ceil(len(examples) / BATCH), MOST_STEPS)
    batches = itertools.islice(_batches(examples, rng), steps)
    with _frozen(hf_model.model), torch.enable_grad(), _bar(steps, progress) as bar:
        losses = _fit(hf_model, row_builder.inputs, soft, batches, steps, at_once, bar)
    return {"soft": soft.detach().float().cpu(), "loss": torch.tensor(losses)}


def _fit(
    hf_model: HFModel,
    inputs: InputProcessor,
    soft: nn.Parameter,
    batches: Iterable[list[Example]],
    steps: int,
    at_once: int,
    bar: Any,
) -> list[float]:
    """One Adam step a batch; the loss of each."""
    optimizer = torch.optim.Adam([soft], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: list[float] = []
    for batch in batches:
        optimizer.zero_grad()
        losses.append(_learn(hf_model, inputs, soft, batch, at_once))
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        bar.update()
    return losses


def _example(hf_model: HFModel, row_builder: RowBuilder, prompt: Prompt, answer: str) -> Example:
    row = row_builder.activation_row(ActivationRequest(prompt))
    question = hf_model.tokens(row)
    ids = torch.tensor(
        _answer_ids(row_builder.inputs, row_builder.inputs.closed(row.prompt), answer)
    )
    n, after = len(ids), int(question.position.max()) + 1
    tokens = Tokens(
        torch.cat([question.ids, ids]),
        torch.cat(
            [question.position, (after + torch.arange(n)).expand(len(question.position), n)], 1
        ),
        torch.cat([question.kind, torch.full((n,), GENERATED, dtype=torch.int8)]),
        torch.cat([question.picture, torch.full((n,), -1, dtype=torch.int16)]),
        torch.cat([question.hidden, torch.zeros(n, dtype=torch.bool)]),
    )
    return Example(tokens, n, tuple(image.count for image in row.images))


def _answer_ids(inputs: InputProcessor, prompt: str, answer: str) -> list[int]:
    """The tokens a model writes for ``answer`` after a rendered prompt, then its end token."""
    words = inputs.tokenizer
    gap = "" if prompt.endswith(("\n", " ")) else " "
    before = words(prompt)["input_ids"]
    whole = words(prompt + gap + answer)["input_ids"]
    same = whole[: len(before)] == before
    alone = words(answer, add_special_tokens=False)["input_ids"]
    return [*(whole[len(before) :] if same else alone), words.eos_token_id]


def _batches(examples: Sequence[Example], rng: torch.Generator) -> Iterator[list[Example]]:
    """Batches without end: the examples in a new order in every pass."""
    while True:
        order = torch.randperm(len(examples), generator=rng).tolist()
        for at in range(0, len(order), BATCH):
            yield [examples[i] for i in order[at : at + BATCH]]


def _learn(
    hf_model: HFModel, inputs: InputProcessor, soft: Tensor, batch: Sequence[Example], at_once: int
) -> float:
    """Add a batch's gradient to the soft prompt, some answers at a time; its loss."""
    total = 0.0
    for at in range(0, len(batch), at_once):
        part = batch[at : at + at_once]
        loss = _loss(hf_model, inputs, soft, part) * len(part) / len(batch)
        loss.backward()
        total += loss.item()
    return total


def _loss(
    hf_model: HFModel, inputs: InputProcessor, soft: Tensor, batch: Sequence[Example]
) -> Tensor:
    """Mean over answers of their mean nats per token: one word counts as much as a caption."""
    rows = [example.tokens for example in batch]
    ids, position, kind, _, _ = pad_left(rows, len(rows[0].position), inputs.pad_token)
    longest = max(example.answer for example in batch)
    features = [laid(soft, n).to(hf_model.model.dtype) for example in batch for n in example.places]
    with hooked(hf_model.model, hf_model.family, ForwardContext()):  # the plain model's
        output: Any = hf_model.model(
            position_ids=(position if hf_model.family.mrope else position[0]).to(hf_model.device),
            attention_mask=(kind != PAD).long().to(hf_model.device),
            use_cache=False,
            logits_to_keep=longest + 1,
            **hf_model.given(ids, features, kind),
        )
    logits = output.logits[:, :-1]
    answers = ids[:, -longest:].to(logits.device)
    nats = nn.functional.cross_entropy(logits.float().transpose(1, 2), answers, reduction="none")
    sizes = torch.tensor([example.answer for example in batch], device=logits.device)
    from_end = torch.arange(longest, 0, -1, device=logits.device)
    counted = from_end <= sizes[:, None]
    return ((nats * counted).sum(1) / sizes).mean()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within this block no weight asks for a gradient."""
    asking = [p for p in model.parameters() if p.requires_grad]
    for p in asking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


def _bar(steps: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=steps, desc="soft prompt", disable=not progress, dynamic_ncols=True)
