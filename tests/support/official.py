"""Attention under an edit beside what an official forward gave on the same queries and keys.

`edited`, `farsight` and `whole_run` are also what benchmarks/parity.py calls.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import halludecode as hd
from halludecode.core.attention import Attention
from halludecode.core.attention_block import (
    GENERATED,
    IMAGE,
    SYSTEM,
    TEXT,
    AttentionBlock,
    turned,
)
from halludecode.core.attention_hooks import Hooks
from halludecode.core.plan import typical_model_info
from halludecode.core.residual import ResidualStream
from halludecode.core.spec import get
from halludecode.core.state import PerImageToken
from halludecode.core.step import Step
from halludecode.core.strategy import Strategy
from halludecode.views import patches
from halludecode.views.concentric import positions
from halludecode.views.crops import sharpest_box
from tests.core.test_attention import keys_of
from tests.support import families

OFFICIAL = json.loads(Path("tests/data/attention_official.json").read_text(encoding="utf-8"))
KINDS = [SYSTEM, SYSTEM, IMAGE, IMAGE, IMAGE, TEXT, GENERATED, GENERATED]
BASE, CASES = OFFICIAL["attention"]["base"], OFFICIAL["attention"]["cases"]


def official_block(queries: list[int]) -> AttentionBlock:
    """The block of some queries of the official example."""
    q, k, v = (torch.tensor([BASE[name]], dtype=torch.float64) for name in "qkv")
    scaling = q.shape[-1] ** -0.5
    visible = torch.ones(len(KINDS), len(KINDS)).tril().bool()[queries]
    scores = (q[:, :, queries] @ k.transpose(-1, -2) * scaling).masked_fill(~visible, -torch.inf)
    keys = keys_of(KINDS, queries, BASE["length"])
    base = scores.softmax(-1) @ v
    return AttentionBlock(keys, q[:, :, queries], k, v, visible, scaling, base, _scores=scores)


def outputs_of(
    strategy: Strategy,
    queries: list[int],
    state: dict[str, Any] | None = None,
    *,
    layer: int = 7,
    confidence: float = 1.0,
    **model: Any,
) -> torch.Tensor:
    """[queries, heads * d] after a strategy's edit in a layer of 32, by default the eighth."""
    block = official_block(queries)
    hooks = Hooks(
        lambda *a: None,  # type: ignore[arg-type, return-value]
        lambda name, fn: fn(),
        state or {},
        confidence=lambda: torch.full((1, len(queries)), confidence, dtype=torch.float64),
    )
    m = replace(typical_model_info(), num_heads=3, num_kv_heads=3, **model)
    strategy.attend(Attention(layer, m, {"main": block}, hooks, strategy.name))
    return block.output()[0].transpose(0, 1).flatten(1)


def close(got: torch.Tensor, name: str, queries: list[int]) -> None:
    """Equal to the official outputs of these queries, whose softmax was in float32."""
    expected = torch.tensor(CASES[name]["out"], dtype=torch.float64)[queries]
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=0)


def edited(name: str) -> torch.Tensor:
    """[queries, heads * d] of a method's official example, in its own strategy."""
    case = CASES[name]
    if name == "paint":
        state = {"gain": [PerImageToken(torch.tensor([0.7, 0.0, 0.3]))]}
        return outputs_of(get(name), [7], state)
    if name == "caac":
        state = {"even": [PerImageToken(torch.tensor(case["factors"], dtype=torch.float64)[None])]}
        sure = case["confidence"]
        return outputs_of(get(name, depth=1), [7], state, layer=0, confidence=sure)
    return outputs_of(get(name), [5, 6, 7] if name == "vaf" else [7])


def filled(pixels: torch.Tensor, chosen: torch.Tensor, patch: int) -> torch.Tensor:
    """VTI's masked picture, its patches chosen."""
    return patches.filled(pixels, chosen.long(), patch)


def adaiat(
    scores: torch.Tensor,
    prompt: int,
    real: torch.Tensor,
    hallucinated: torch.Tensor,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    """[H, N]: weights of the last written token's scores [H, N] after AdaIAT's edit."""
    heads, count = scores.shape
    kinds = [SYSTEM, IMAGE, IMAGE, *[TEXT] * (prompt - 3), *[GENERATED] * (count - prompt)]
    keys, one = keys_of(kinds, [count - 1], prompt), torch.zeros(1, heads, 1, 2)
    block = AttentionBlock(
        keys, one, one, one, torch.tensor(True), 1.0, one, _scores=scores[None, :, None]
    )
    hooks = Hooks(lambda *a: None, lambda name, fn: fn())  # type: ignore[arg-type, return-value]
    made = {"real": real.expand(32, heads), "hallucinated": hallucinated.expand(32, heads)}
    m = replace(typical_model_info(), num_heads=heads, num_kv_heads=heads, artifact=made)
    strategy = get("adaiat", alpha=alpha, beta=beta)
    strategy.attend(Attention(7, m, {"main": block}, hooks, "adaiat"))
    gains = torch.ones(1) if block.gains is None else block.gains
    return (block.weights() * gains)[0, :, 0]


def imccd(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, image: list[float], levelled: bool
) -> torch.Tensor:
    """[H, d]: head outputs of one written token under IMCCD's edit.

    Args:
        q: [H, d], turned to its place, the last.
        k: [H, N, d], likewise.
        v: [H, N, d].
        image: First image token, and the one after the last.
        levelled: The row that is contrasted with, else the main one.
    """
    heads, count, size = k.shape
    first, stop = int(image[0]), int(image[1])
    kinds = [SYSTEM] * first + [IMAGE] * (stop - first) + [TEXT] * (count - 1 - stop) + [GENERATED]
    keys = keys_of(kinds, [count - 1], count - 1)
    made = [each[None].double() for each in (q[:, None], k, v)]
    scores = made[0] @ made[1].mT * size**-0.5
    visible, base = torch.ones(1, 1, 1, count).bool(), scores.softmax(-1) @ made[2]
    blocks = {
        row: AttentionBlock(keys, *made, visible, size**-0.5, base, _scores=scores)
        for row in ("main", "levelled")
    }
    rope = tuple(10000.0 ** (-2 * i / size) for i in range(size // 2))
    m = replace(typical_model_info(), num_heads=heads, num_kv_heads=heads, rope=rope)
    hooks = Hooks(lambda *a: None, lambda name, fn: fn())  # type: ignore[arg-type, return-value]
    get("imccd").attend(Attention(0, m, blocks, hooks, "imccd"))
    return blocks["levelled" if levelled else "main"].output()[0, :, 0]


def ilvad(
    q: torch.Tensor, k: torch.Tensor, heat: torch.Tensor, beta: float, edited: float, written: float
) -> torch.Tensor:
    """[1 + written, L, H, N]: weights of the query that emits, in each forward and layer.

    Args:
        q: [L, H, N, d], of two system tokens, the image, the question and what is written.
        k: Likewise.
        heat: [N_img], logarithm of the map.
        beta: ILVAD's.
        edited: The first edited layer; the one before the last is the last.
        written: Tokens after the prompt, one a forward.
    """
    layers, heads, count, size = q.shape
    length, kept = count - int(written), dict[str, torch.Tensor]()
    given = {"heat": [PerImageToken(heat)]}
    m = replace(typical_model_info(), num_heads=heads, num_kv_heads=heads)
    strategy = get("ilvad", beta=beta, start=int(edited), stop=layers - 1)
    made = q.new_zeros(int(written) + 1, layers, heads, count)

    def tally(name: str, x: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
        before = kept.get(name, x[:, :0])
        kept[name] = torch.nn.functional.pad(before, (0, x.shape[1] - before.shape[1])) + x
        return kept[name]

    for stop in range(length, count + 1):
        rows = list(range(stop)) if stop == length else [stop - 1]
        kinds = [SYSTEM] * 2 + [IMAGE] * len(heat) + [TEXT] * (length - 2 - len(heat))
        keys = keys_of(kinds + [GENERATED] * (stop - length), rows, length)
        seen = torch.ones(stop, stop).tril().bool()[rows]
        hooks = Hooks(lambda *a: None, lambda name, fn: fn(), given, tally=tally)  # type: ignore[arg-type, return-value]
        for n in range(layers):
            own, to = q[n][None, :, rows], k[n][None, :, :stop]
            block = AttentionBlock(keys, own, to, to, seen, size**-0.5, own)
            strategy.attend(Attention(n, m, {"main": block}, hooks, "ilvad"))
            made[stop - length, n, :, :stop] = block.weights()[0, :, -1]
    return made


def revisit(
    logits: torch.Tensor, image: torch.Tensor, beta: float, divergence: str
) -> torch.Tensor:
    """[V]: log-probabilities after ReVisiT's rule; ``image`` [N, V] are what its tokens say."""

    def decode(x: torch.Tensor, norm: bool, tokens: torch.Tensor) -> torch.Tensor:
        return x[..., tokens]

    step = Step({"main": logits[None]}, torch.ones(1, 1), {"seen": image[None]}, decode)
    made = get("revisit", beta=beta, divergence=divergence).combine(step)[0]
    return made.masked_fill(made == -torch.inf, -1e4)


def farsight(slopes: bool) -> torch.Tensor:
    """[8, heads * d]: the prompt of FarSight's example."""
    given = OFFICIAL["farsight"]
    q, k, v = (torch.tensor([given[each]], dtype=torch.float64) for each in "qkv")
    visible = torch.ones(8, 8).tril().bool()
    scores = (q @ k.transpose(-1, -2) * 2**-0.5).masked_fill(~visible, -torch.inf)
    keys = keys_of([SYSTEM, IMAGE, IMAGE, *[TEXT] * 5], list(range(8)), 8)
    base = scores.softmax(-1) @ v
    block = AttentionBlock(keys, q, k, v, visible, 2**-0.5, base, _scores=scores)
    hooks = Hooks(lambda *a: None, lambda name, fn: fn())  # type: ignore[arg-type, return-value]
    m = replace(typical_model_info(), num_heads=4)
    attention = Attention(0, m, {"main": block}, hooks, "farsight")
    get("farsight", slopes=slopes).attend(attention)
    return block.output()[0].transpose(0, 1).flatten(1)


def memvr(start: int, end: int, tau: float, ratio: float) -> torch.Tensor:
    """[T, D]: last states of MemVR's example, a stack of FFNs without attention."""
    about = json.loads(Path("tests/data/official/memvr.json").read_text(encoding="utf-8"))
    stack = {name: torch.tensor(x, dtype=torch.float64) for name, x in about["stack"].items()}
    strategy, m = get("memvr", start=start, end=end, tau=tau, ratio=ratio), typical_model_info()
    carry: dict[str, Any] = {}

    def norm(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:])

    h = stack["embedded"][None]
    for n, (gate, up, down) in enumerate(
        zip(stack["gate"], stack["up"], stack["down"], strict=True)
    ):
        x = norm(h)
        out = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
        if n in strategy.layers(m):
            stream = ResidualStream(
                n, m, "main", out, x, lambda last: norm(last) @ stack["head"].T, carry=carry
            )
            stream.entering, stream.pictures = h, lambda: [stack["features"]]
            out = strategy.steer(stream)
        h = h + out
    return norm(h)[0]


def only(scores: torch.Tensor) -> torch.Tensor:
    """[H, N]: the weights that ONLY branches off with, of the last query's scores [H, N]."""
    heads, count = scores.shape
    kinds = [SYSTEM] * 3 + [IMAGE] * 4 + [TEXT] * (count - 7)
    keys, one = keys_of(kinds, [count - 1], count), torch.zeros(1, heads, 1, 2)
    block = AttentionBlock(
        keys, one, one, one, torch.tensor(True), 1.0, one, _scores=scores[None, :, None]
    )
    kept: list[torch.Tensor] = []
    block.under = kept.append  # type: ignore[method-assign, assignment]
    hooks = Hooks(
        lambda *a: None,  # type: ignore[arg-type, return-value]
        lambda name, fn: fn(),
        branch=lambda made: None,
    )
    m = replace(typical_model_info(), num_heads=heads, num_kv_heads=heads)
    get("only").attend(Attention(0, m, {"main": block}, hooks, "only"))
    return kept[0][0]


@cache
def _tiny_llava() -> Any:
    """The tests' tiny LLaVA, which official forwards ran on with the same weights."""
    folder = Path(tempfile.mkdtemp(prefix="halludecode-official-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    families.build("llava", folder / "llava")
    return hd.load(str(folder / "llava"), batch_size=1)


def whole_run(spec: str, question: str, picture: int, tokens: int) -> torch.Tensor:
    """[tokens, V]: log-probabilities of a greedy answer; -1e4 where a token is cut off."""
    engine = _tiny_llava()
    size = engine.model_info.vocab_size
    asked = hd.Request(question, [families.pictures()[picture]])
    sampling = hd.Sampling(max_new_tokens=tokens, logprobs=size)
    logprobs = engine.generate(asked, spec, sampling)[0].logprobs
    assert logprobs is not None
    table = torch.full((tokens, size), -1e4, dtype=torch.float64)
    for place, token in enumerate(logprobs):
        for i, value in token.top.items():
            table[place, i] = max(value, -1e4)
    return table


def concentric(first: float, behind: float) -> torch.Tensor:
    """[3, N]: places under CCA, keys that each token sees, and tokens that see it.

    Args:
        first: Tokens before the picture of 24 x 24.
        behind: Tokens after it.
    """
    kinds = [SYSTEM] * int(first) + [IMAGE] * 576 + [TEXT] * int(behind)
    a, visible = _read("cca", kinds, rope=(1.0,))
    places = positions(a.square(), a.tokens.of("main"))[0]
    return torch.stack([places, visible.sum(-1), visible.sum(-2)])


def mutual(first: float, image: float, question: float, tail: float) -> torch.Tensor:
    """[N, N]: 1 where a token sees another under MMA, by counts of tokens in the prompt's order."""
    kinds = [SYSTEM] * int(first) + [IMAGE] * int(image) + [TEXT] * int(question + tail)
    return _read("mma", kinds, tail=int(tail))[1]


def _read(name: str, kinds: list[int], **given: Any) -> tuple[Attention, torch.Tensor]:
    """A prompt's attention and what its tokens see after a strategy's edit, float [N, N]."""
    count, one = len(kinds), torch.zeros(1, 1, len(kinds), 2)
    keys = keys_of(kinds, list(range(count)), count)
    block = AttentionBlock(keys, one, one, one, torch.ones(count, count).tril().bool(), 1.0, one)
    hooks = Hooks(lambda *a: None, lambda name, fn: fn())  # type: ignore[arg-type, return-value]
    m = replace(typical_model_info(), num_heads=1, num_kv_heads=1, rope=given.pop("rope", None))
    a = Attention(0, m, {"main": block}, hooks, name)
    get(name, **given).attend(a)
    return a, (block.weights()[0, 0] > 0).float()


def sharpest(
    relevance: torch.Tensor, width: float, height: float, base: float, sizes: float
) -> torch.Tensor:
    """[4]: ViCrop's box on a map [h, w] of a picture of so many pixels."""
    return torch.tensor(sharpest_box(relevance, (int(width), int(height)), int(base), int(sizes)))


def edvt(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, image: list[float]) -> torch.Tensor:
    """[N, H * d]: a prompt's outputs under EDVT, of queries and keys not turned yet, [H, N, d].

    Args:
        q: Of every token.
        k: Likewise.
        v: Likewise.
        image: First image token, and the one after the last.
    """
    heads, count, size = k.shape
    first, stop = int(image[0]), int(image[1])
    kinds = [SYSTEM] * first + [IMAGE] * (stop - first) + [TEXT] * (count - stop)
    keys = keys_of(kinds, list(range(count)), count)
    rope = tuple(10000.0 ** (-2 * i / size) for i in range(size // 2))
    at, turns = torch.arange(count).double()[None], torch.tensor(rope).double()
    own, to = (turned(x[None].double(), at, turns) for x in (q, k))
    seen = torch.ones(count, count).tril().bool()
    scores, value = (own @ to.mT * size**-0.5).masked_fill(~seen, -torch.inf), v[None].double()
    block = AttentionBlock(keys, own, to, value, seen, size**-0.5, scores.softmax(-1) @ value)
    hooks = Hooks(lambda *a: None, lambda name, fn: fn())  # type: ignore[arg-type, return-value]
    m = replace(typical_model_info(), num_heads=heads, num_kv_heads=heads, rope=rope)
    get("edvt").attend(Attention(0, m, {"main": block}, hooks, "edvt"))
    return block.output()[0].transpose(0, 1).flatten(1)
