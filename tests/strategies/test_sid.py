"""SID: selection and combination vectors, choice by loops, and whole runs written out slowly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import halludecode as hd
from halludecode.core.attention import Attention
from halludecode.core.attention_block import IMAGE, PAD, SYSTEM, TEXT, AttentionBlock, RowKeys
from halludecode.core.attention_hooks import Hooks
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from tests.core.test_attention import block_of
from tests.core.test_combine_vectors import CASES, check, combined, tensor
from tests.engines.hf.test_naive_parity import N
from tests.engines.hf.test_naive_parity import check as check_run
from tests.support import families, naive

MODEL_INFO = typical_model_info()


def test_combination_vector():
    case = CASES["sid_combine"]
    rows = {"unattended": tensor(case["inputs"]["z_neg"])}
    strategy = get("sid", **case["params"])
    check(combined([(strategy, rows)], tensor(case["inputs"]["z_v"])), case["expected"])


def test_greedy_respects_the_mask_where_the_official_code_does_not():
    case = CASES["sid_greedy_unmasked_bug"]
    main, rows = tensor(case["inputs"]["z_v"]), {"unattended": tensor(case["inputs"]["z_neg"])}
    strategy = get("sid", **case["params"])
    assert int(combined([(strategy, rows)], main).argmax()) == case["expected"]["masked_argmax"]
    unmasked = combined([(strategy, rows)], main, masking=False)
    assert int(unmasked.argmax()) == case["expected"]["unmasked_argmax"]


def follow(strategy, blocks: list[AttentionBlock]) -> None:
    """Ranking layer first, then layers that follow, as one forward runs them."""
    carry: dict = {}
    for i, block in enumerate(blocks):
        hooks = Hooks(lambda *_: None, lambda *_: None, carry=carry)
        layer = strategy.ranking(MODEL_INFO) + i
        strategy.attend(Attention(layer, MODEL_INFO, {"unattended": block}, hooks, "sid"))


def test_selection_vector():
    case = CASES["sid_select"]
    share = case["inputs"]["image_attention"]
    scores = [[[*torch.tensor([*share, 1 - sum(share)]).log().tolist()]]]
    kinds = [IMAGE] * 6 + [TEXT]
    ranking, later = (block_of(scores, [[[0.0]] * 7], kinds, [6], 7) for _ in range(2))
    follow(get("sid", keep=case["params"]["keep"] / 6), [ranking, later])
    assert not ranking.touched, "the ranking layer only reads"
    seen = later.weights()[0, 0, 0, :6].nonzero().flatten().tolist()
    assert seen == case["expected"]["keep_indices"]
    assert float(later.weights().sum()) == pytest.approx(1.0)


def test_the_choice_in_loops():
    """Requests of different lengths and image sizes, padded; every later row sees the choice."""
    rng = torch.Generator().manual_seed(1)
    kinds = [
        [SYSTEM, *[IMAGE] * 7, TEXT, TEXT],
        [PAD, PAD, SYSTEM, *[IMAGE] * 4, TEXT, TEXT, TEXT],
    ]
    kind = torch.tensor(kinds, dtype=torch.int8)
    n = kind.shape[1]
    real = kind != PAD
    length = real.sum(-1)
    position = (real.cumsum(-1) - 1).where(real, torch.tensor(-1))
    picture = torch.where(kind == IMAGE, 0, -1).to(torch.int16)
    visible = (torch.ones(n, n).tril().bool() & real[:, None])[:, None]

    def block() -> AttentionBlock:
        keys = RowKeys(kind, picture, position, kind, length)
        q, k, v, base = torch.randn(4, 2, 3, n, 5, generator=rng)
        return AttentionBlock(keys, q, k, v, visible, 0.5, base)

    blocks = [block() for _ in range(3)]
    ranks = blocks[0].weights().tolist()
    before = [b.weights().tolist() for b in blocks]
    follow(get("sid", keep=0.4), blocks)
    for r, row in enumerate(kinds):
        images = [j for j in range(n) if row[j] == IMAGE]
        looked = {j: sum(ranks[r][h][n - 1][j] for h in range(3)) / 3 for j in images}
        kept = sorted(images, key=looked.__getitem__)[: round(0.4 * len(images))]
        for old, made in zip(before[1:], (b.weights().tolist() for b in blocks[1:]), strict=True):
            for h in range(3):
                for i in range(n):
                    wanted = [
                        0.0 if j in images and j not in kept else w
                        for j, w in enumerate(old[r][h][i])
                    ]
                    total = sum(wanted)
                    wanted = [w / total if total else 0.0 for w in wanted]
                    assert made[r][h][i] == pytest.approx(wanted, abs=1e-6)


def test_pick_takes_a_count_per_request():
    keys = RowKeys(
        torch.full((2, 5), IMAGE, dtype=torch.int8),
        torch.zeros(2, 5, dtype=torch.int16),
        torch.arange(5).expand(2, 5),
        torch.full((2, 5), IMAGE, dtype=torch.int8),
        torch.tensor([5, 5]),
    )
    block = AttentionBlock(keys, None, None, None, None, 1.0, torch.zeros(2, 1, 5, 2))
    hooks = Hooks(lambda *_: None, lambda *_: None)
    a = Attention(0, MODEL_INFO, {"main": block}, hooks)
    value = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0], [0.0, 4.0, 1.0, 2.0, 3.0]])
    high = a.top_keys(a.image, value, torch.tensor([2, 4])).of("main")
    assert [row.nonzero().flatten().tolist() for row in high] == [[0, 2], [1, 2, 3, 4]]
    low = a.top_keys(a.image, value, torch.tensor([0, 9]), largest=False).of("main")
    assert low.sum(-1).tolist() == [0, 5]


def test_what_the_plan_says():
    plan = compile_plan("sid", MODEL_INFO)
    assert plan.rows == ("main", "unattended")
    assert {"weights", "mask", "rows", "whole"} <= plan.needs
    assert not plan.reusable and plan.main_reusable
    assert list(get("sid", layer=3).layers(MODEL_INFO)) == list(range(2, 32))
    assert sorted(get("sid", layer=90).layers(MODEL_INFO)) == [30, 31], (
        "a layer must follow the choice"
    )
    shallow, deep = replace(MODEL_INFO, num_layers=6), replace(MODEL_INFO, num_layers=64)
    assert [get("sid").ranking(m) for m in (shallow, MODEL_INFO, deep)] == [1, 2, 5]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize(("layer", "keep"), [(3, 0.1), (21, 0.5)])
def test_a_whole_run(family_engine, family, layer, keep):
    engine, first = family_engine(family), {3: 2, 21: 4}[layer]  # of six layers
    model, processor = engine.model, engine.processor
    text, picture = families.FAMILIES[family].prompt("What is this?"), families.pictures()[1]
    inputs = naive.inputs_of(processor, text, [picture])
    prompt = inputs["input_ids"][0].tolist()
    images = [i for i, token in enumerate(prompt) if token == model.config.image_token_id]
    count = max(1, round(keep * len(images)))
    kept: dict[int, set[int]] = {}

    def weights(at: int, w):
        heads = range(len(w))
        if at == first - 1:
            for q in range(len(prompt) - 1, len(w[0])):
                looked = {j: sum(w[h][q][j] for h in heads) for j in images}
                kept[q] = set(sorted(images, key=looked.__getitem__)[:count])
        if at < first:
            return w
        for head in w:
            for q, row in enumerate(head):
                seen = kept[max(q, len(prompt) - 1)]
                left = [0.0 if j in images and j not in seen else x for j, x in enumerate(row)]
                head[q] = [x / sum(left) for x in left] if sum(left) else left
        return w

    def step(ids, t):
        main = naive.next_logits(model, inputs, ids)
        with naive.edited(model, weights=weights):
            other = naive.next_logits(model, inputs, ids)
        return torch.tensor(naive.combine_vcd(main.tolist(), other.tolist(), 1.0, 0.1))

    expected = naive.write(step, N, ())
    assert len({frozenset(chosen) for chosen in kept.values()}) > 1, "chosen anew for every token"
    check_run(engine, f"sid(layer={layer},keep={keep})", expected, picture)


def test_its_main_row_shares_a_picture_between_questions(family_engine):
    engine, picture = family_engine("llava"), families.pictures()[0]
    questions = [hd.Request(w, [picture]) for w in ("What is this?", "Why?", "Is there a dog?")]

    def fed(spec: str) -> tuple[int, list[tuple[int, ...]]]:
        tokens: list[int] = []
        handle = engine.model.register_forward_pre_hook(
            lambda module, args, kwargs: tokens.append(kwargs["input_ids"].numel()),
            with_kwargs=True,
        )
        engine.prefixes.clear()
        try:
            made = engine.generate(questions, spec, hd.Sampling(max_new_tokens=2))
        finally:
            handle.remove()
        return sum(tokens), [output.token_ids for output in made]

    assert fed("sid(beta=1)") == fed("greedy"), "nothing else is read where its cut leaves one"


def test_prompts_longer_than_a_block_rank_by_their_last_token(family_engine):
    """The engine edits 64 queries at a time; the choice must come from the last of them all."""
    engine = family_engine("llava")
    picture = families.pictures()[0]
    model, words = engine.model, "What is this? " * 12
    text = families.FAMILIES["llava"].prompt(words.strip())
    inputs = naive.inputs_of(engine.processor, text, [picture])
    prompt = inputs["input_ids"][0]
    images = (prompt == model.config.image_token_id).nonzero().flatten()
    assert len(prompt) > 192
    shares: list[torch.Tensor] = []

    def weights(at, w):
        if at == 1:
            shares.append(torch.tensor(w)[:, -1].mean(0))
        return w

    with naive.edited(model, weights=weights):
        naive.next_logits(model, inputs, [])
    kept = images[shares[0][images].argsort()[: round(0.1 * len(images))]]
    picks: list[list[int]] = []
    attend = Attention.top_keys

    def watched(self, *args, **kwargs):
        segment = attend(self, *args, **kwargs)
        picks.append(segment.of("unattended")[0].nonzero().flatten().tolist())
        return segment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attention, "top_keys", watched)
        request = hd.Request(words.strip(), [picture])
        output = engine.generate(request, "sid", hd.Sampling(max_new_tokens=1))[0]
    assert picks[-1] == sorted(kept.tolist())
    assert output.rows == ("main", "unattended")
    assert output.effect is not None, "the main row stays the plain model's"
