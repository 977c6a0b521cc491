"""Ground truth for the engines: the strategies written out slowly, on plain transformers calls.

Batch 1, no KV cache: every step images prompt and answer again. Loops go over heads, rows and keys
one by one. Nothing here imports the package, and none of its helpers may move there: an error would
then agree with itself.

Every decoder returns the written token ids and, for each, the combined scores float32 [V]. The
prompt is the rendered text with its image placeholders. Writing ends after `n` tokens, or after a
token of `eos`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

INF = math.inf
ATTENTION = "halludecode_test_eager"

Inputs = dict[str, Tensor]
Vector = list[float]


class Answer(NamedTuple):
    ids: list[int]
    scores: list[Tensor]


# ---------------------------------------------------------------- feeding a model


def inputs_of(processor: Any, text: str, images: Sequence[Any] = ()) -> Inputs:
    """What the processor makes of a rendered prompt; no image keys where there are no images."""
    if "PaliGemma" in type(processor).__name__:
        return _closed(processor, text, images)
    made = processor(text=text, images=list(images) or None, return_tensors="pt")
    made = dict(made.to(torch.float32))  # Llama 4's gives pixels in bfloat16
    if not images:
        made.pop("token_type_ids", None)  # Gemma 3's say which tokens are of pictures
    return made


def _closed(processor: Any, text: str, images: Sequence[Any]) -> Inputs:
    """PaliGemma's: no labels; its processor takes no words alone, so these are written out."""
    if images:
        made = dict(processor(text=text, images=[list(images)], return_tensors="pt"))
        del made["labels"]
        return made
    made = dict(processor.tokenizer(f"<bos>{text}\n", return_tensors="pt"))
    return {**made, "token_type_ids": torch.zeros_like(made["input_ids"])}


def extended(inputs: Inputs, ids: Sequence[int]) -> Inputs:
    """The inputs with the tokens written so far behind the prompt."""
    made = dict(inputs)
    tail = torch.tensor([list(ids)], dtype=torch.long)
    made["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
    made["attention_mask"] = torch.ones_like(made["input_ids"])
    if "mm_token_type_ids" in inputs:
        kind = inputs["mm_token_type_ids"]
        made["mm_token_type_ids"] = torch.cat([kind, torch.zeros_like(tail).to(kind.dtype)], dim=1)
    if "token_type_ids" in inputs:  # Gemma 3: 1 is of a picture; PaliGemma: 1 is written
        kind = inputs["token_type_ids"]
        written = torch.full_like(tail, int(not kind.any())).to(kind.dtype)
        made["token_type_ids"] = torch.cat([kind, written], dim=1)
    return made


@torch.no_grad()
def next_logits(model: Any, inputs: Inputs, ids: Sequence[int]) -> Tensor:
    """Logits [V] of the token after prompt and `ids`, from one uncached forward."""
    return model(**extended(inputs, ids), use_cache=False).logits[0, -1].float()


def write(step: Callable[[list[int], int], Tensor], n: int, eos: Collection[int]) -> Answer:
    """Greedy: ask `step(ids, t)` for scores, t = 1, 2, ...; the first of equal maxima is taken."""
    answer = Answer([], [])
    for t in range(1, n + 1):
        scores = step(list(answer.ids), t)
        answer.ids.append(int(scores.argmax()))
        answer.scores.append(scores)
        if answer.ids[-1] in eos:
            break
    return answer


# ---------------------------------------------------------------- combining two rows


def greedy(model, processor, text, images, n, eos=()) -> Answer:
    inputs = inputs_of(processor, text, images)
    return write(lambda ids, t: next_logits(model, inputs, ids), n, eos)


def contrast(model, main, other, combine, n, eos=()) -> Answer:
    """Two rows that receive the same tokens; `combine(main, other, t)` makes the scores."""

    def step(ids: list[int], t: int) -> Tensor:
        a, b = next_logits(model, main, ids), next_logits(model, other, ids)
        return torch.tensor(combine(a.tolist(), b.tolist(), t), dtype=torch.float32)

    return write(step, n, eos)


def plausible(z: Vector, beta: float) -> list[bool]:
    """Which tokens have at least `beta` times the largest probability."""
    if beta == 0:
        return [True] * len(z)
    return [x >= math.log(beta) + max(z) for x in z]


def combine_vcd(z: Vector, noised: Vector, alpha: float, beta: float) -> Vector:
    keep = plausible(z, beta)
    return [
        (1 + alpha) * a - alpha * b if k else -INF for a, b, k in zip(z, noised, keep, strict=True)
    ]


def combine_agla(z: Vector, masked: Vector, alpha: float, beta: float) -> Vector:
    keep = plausible(z, beta)
    return [a + alpha * b if k else -INF for a, b, k in zip(z, masked, keep, strict=True)]


def log_softmax(z: Vector) -> Vector:
    top = max(z)
    total = sum(math.exp(x - top) for x in z)
    return [x - top - math.log(total) for x in z]


def combine_m3id(
    z: Vector, blind: Vector, t: int, lam: float, gate: float, cap: float | None = None
) -> Vector:
    with_image, without = log_softmax(z), log_softmax(blind)
    if max(with_image) >= math.log(gate):
        return with_image
    gamma = math.exp(-lam * t)
    weight = (1 - gamma) / gamma
    if cap is not None:
        weight = min(weight, cap)
    return [c + weight * (c - u) for c, u in zip(with_image, without, strict=True)]


def vcd(model, processor, text, images, n, *, noised, alpha=1.0, beta=0.1, eos=()) -> Answer:
    """`noised` stands in for the processor's `pixel_values`."""
    main = inputs_of(processor, text, images)
    if noised.shape != main["pixel_values"].shape:
        raise ValueError(f"noised {noised.shape}, pixel_values {main['pixel_values'].shape}")
    other = {**main, "pixel_values": noised}
    return contrast(model, main, other, lambda a, b, t: combine_vcd(a, b, alpha, beta), n, eos)


def m3id(
    model, processor, text, images, n, *, blind, lam=0.02, gate=0.3, cap=None, eos=()
) -> Answer:
    """`blind` is the rendered prompt without the image."""
    main, other = inputs_of(processor, text, images), inputs_of(processor, blind)
    return contrast(
        model, main, other, lambda a, b, t: combine_m3id(a, b, t, lam, gate, cap), n, eos
    )


def agla(model, processor, text, images, n, *, masked, alpha=2.0, beta=0.5, eos=()) -> Answer:
    """`masked` are the altered pictures, in the place of `images`."""
    main, other = inputs_of(processor, text, images), inputs_of(processor, text, masked)
    return contrast(model, main, other, lambda a, b, t: combine_agla(a, b, alpha, beta), n, eos)


# ---------------------------------------------------------------- editing attention


def decoder_layers(model: Any) -> list[Any]:
    """The language model's layers: of all transformer blocks beside a tower's these know their
    index."""
    blocks = [m for name, m in model.named_modules() if "vision" not in name]
    return [m for m in blocks if hasattr(getattr(m, "self_attn", None), "layer_idx")]


Weights = list[list[Vector]]  # [heads][rows][keys]
EditWeights = Callable[[int, Weights], Weights]
EditHeads = Callable[[int, Tensor], Tensor]  # layer, [H, T, d] -> [H, T, d]


def attend_by_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    edit: Any,
    before: Any = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention, head by head: q [H, T, d], k and v [G, T, d], mask [T, T] additive.

    Query head h reads key/value head floor(h G / H). `edit` changes the weights between softmax and
    values, `before` the masked scores before softmax.
    """
    group = [h * key.shape[0] // query.shape[0] for h in range(query.shape[0])]
    scores = torch.stack(
        [query[h] @ key[g].transpose(0, 1) * scaling + mask for h, g in enumerate(group)]
    )
    if before is not None:
        scores = torch.tensor(before(scores.tolist()), dtype=scores.dtype)
    weights = scores.softmax(-1)
    if edit is not None:
        weights = torch.tensor(edit(weights.tolist()), dtype=weights.dtype)
    return torch.stack([weights[h] @ value[g] for h, g in enumerate(group)]), weights


@contextmanager
def edited(
    model: Any,
    *,
    weights: EditWeights | None = None,
    scores: EditWeights | None = None,
    heads: EditHeads | None = None,
    entering: Callable[[int, Tensor], None] | None = None,
) -> Iterator[None]:
    """Run the decoder's attention as written here, with the edits given.

    `scores` sees one layer's masked scores, `weights` its weights after softmax, `heads` its head
    outputs before o_proj; `entering` is shown the residual [T, D] entering a layer before it runs.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        **kw: Any,
    ) -> tuple[Tensor, Tensor]:
        layer = module.layer_idx
        edit = None if weights is None else lambda w: weights(layer, w)
        before = None if scores is None else lambda s: scores(layer, s)
        out, w = attend_by_head(
            query[0], key[0], value[0], attention_mask[0, 0], kw["scaling"], edit, before
        )
        if heads is not None:
            out = heads(layer, out)
        return out.transpose(0, 1)[None].contiguous(), w[None]

    text = model.config.get_text_config()
    before = text._attn_implementation
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    with ExitStack() as stack:
        if entering is not None:
            for layer in decoder_layers(model):

                def watch(module: Any, args: Any, index: int = layer.self_attn.layer_idx) -> None:
                    x = args[0][0]  # of Gemma 3n's streams the first
                    entering(index, (x[0] if x.dim() == 3 else x).float())

                stack.callback(layer.register_forward_pre_hook(watch).remove)
        model.set_attn_implementation({"text_config": ATTENTION})
        try:
            yield
        finally:
            model.set_attn_implementation({"text_config": before})


# ---------------------------------------------------------------- VAR


def sink_score(x: Vector, dims: Sequence[int]) -> float:
    """phi: one token's largest sink dimension against the root mean square of its residual."""
    rms = math.sqrt(sum(v * v for v in x) / len(x) + 1e-6)
    return max(abs(x[j]) for j in dims) / rms


def redistribute(
    row: Vector,
    image: Collection[int],
    sinks: Collection[int],
    *,
    p: float,
    rho: float,
    mass: float,
) -> Vector:
    """VAR on the weights of one head and one row; keys are named by index."""
    visual_mass = sum(row[j] for j in image)
    rest = [j for j in image if j not in sinks]
    rest_mass = sum(row[j] for j in rest)
    if visual_mass < mass or rest_mass == 0 or rest_mass / visual_mass < rho:
        return list(row)
    moved = p * sum(row[j] for j in sinks)
    made = list(row)
    for j in sinks:
        made[j] = (1 - p) * row[j]
    for j in rest:
        made[j] = row[j] + moved * row[j] / rest_mass
    return made


def var(
    model, processor, text, images, n, *, dims, tau, p=0.6, rho=0.5, mass=0.2, eos=()
) -> Answer:
    """Attention moved from sinks to the other image tokens (paper form), layers 2..L-2.

    Edited rows are the prompt's text rows behind an image token and every written token. Sinks are
    prompt tokens with phi >= tau in the residual that enters the layer of this very run.
    """
    inputs = inputs_of(processor, text, images)
    prompt = inputs["input_ids"][0].tolist()
    image = {i for i, token in enumerate(prompt) if token == model.config.image_token_id}
    layers = range(2, len(decoder_layers(model)) - 1)
    sinks: dict[int, set[int]] = {}

    def entering(layer: int, x: Tensor) -> None:
        tokens = x.tolist()[: len(prompt)]
        sinks[layer] = {i for i, token in enumerate(tokens) if sink_score(token, dims) >= tau}

    def weights(layer: int, w: Weights) -> Weights:
        if layer not in layers or not sinks[layer] & image:
            return w
        for head in w:
            for q in range(len(head)):
                if q in image or not any(i < q for i in image):
                    continue
                if not any(head[q][j] > 0 for j in sinks[layer] & image):
                    continue  # a window, or causality, hides every visual sink from this row
                head[q] = redistribute(head[q], image, sinks[layer], p=p, rho=rho, mass=mass)
        return w

    with edited(model, weights=weights, entering=entering):
        return write(lambda ids, t: next_logits(model, inputs, ids), n, eos)


# ---------------------------------------------------------------- VHR


def deviation(values: Vector) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


def median(values: Vector) -> float:
    order, half = sorted(values), len(values) // 2
    return order[half] if len(values) % 2 else (order[half - 1] + order[half]) / 2


def vision_aware(with_image: Sequence[Vector], without: Sequence[Vector]) -> list[bool]:
    """Heads of one layer above the median divergence, outliers zeroed first; outputs [H][d]."""
    pairs = list(zip(with_image, without, strict=True))
    vhd = [math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for x, y in pairs]
    text = [sum(b * b for b in y) for _, y in pairs]
    high_vhd = sum(vhd) / len(vhd) + deviation(vhd)
    high_text = sum(text) / len(text) + deviation(text)
    for i in range(len(vhd)):
        if vhd[i] > high_vhd and text[i] > high_text:
            vhd[i] = 0.0
    middle = median(vhd)
    return [v > middle for v in vhd]


def vhr_layers(count: int) -> list[int]:
    """Layer index 1 and the last round(14 L / 32) layers."""
    tail = round(14 * count / 32)
    return sorted({1, *range(count - tail, count)})


def vhr_heads(model: Any, main: Inputs, blind: Inputs, alpha: float) -> dict[int, list[bool]]:
    """The heads to reinforce, layer by layer, each chosen with the lower layers already reinforced.

    Both streams are reinforced alike. One pair of forwards a layer: slow, and in no doubt about the
    order.
    """
    chosen: dict[int, list[bool]] = {}
    for layer in vhr_layers(len(decoder_layers(model))):
        seen = []
        for stream in (main, blind):
            last: list[list[Vector]] = []

            def heads(index: int, out: Tensor, last: Any = last, layer: int = layer) -> Tensor:
                if index == layer:
                    last.append([head[-1].tolist() for head in out])
                return reinforce(out, chosen.get(index), alpha)

            with edited(model, heads=heads):
                next_logits(model, stream, [])
            seen.append(last[0])
        chosen[layer] = vision_aware(*seen)
    return chosen


def reinforce(out: Tensor, chosen: list[bool] | None, alpha: float) -> Tensor:
    """Multiply the chosen heads' outputs [H, T, d] by alpha, every row."""
    made = out.clone()
    for h, yes in enumerate(chosen or []):
        if yes:
            made[h] = alpha * out[h]
    return made


def vhr(model, processor, text, images, n, *, blind, alpha=2.0, eos=()) -> Answer:
    """Vision-aware heads times alpha in every row; chosen once, from the prompt."""
    inputs = inputs_of(processor, text, images)
    chosen = vhr_heads(model, inputs, inputs_of(processor, blind), alpha)
    with edited(model, heads=lambda layer, out: reinforce(out, chosen.get(layer), alpha)):
        return write(lambda ids, t: next_logits(model, inputs, ids), n, eos)
