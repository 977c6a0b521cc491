"""OPERA: vectors, its rules alone, and a slow re-derivation with eager attention and no KV."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import halludecode as hd
from halludecode.core.beam_search import Peek
from halludecode.core.errors import InvalidParameter
from halludecode.core.plan import typical_model_info
from halludecode.core.spec import parse
from halludecode.strategies.opera import OPERA
from tests.support import families, naive

CASES = {
    case["id"]: case
    for case in json.loads(Path("tests/data/contrastive.json").read_text(encoding="utf-8"))[
        "vectors"
    ]
}
EARLY = 10
QUESTIONS = ["What is this?", "Describe it, please.", "Why?"]


def folded(strategy: OPERA, rows: list[list[float]]) -> torch.Tensor:
    """What a beam carries after its rows of attention, lower triangle only."""
    kept = torch.zeros(0, dtype=torch.float64)
    for i, row in enumerate(rows):
        kept = strategy.columns(kept, torch.tensor(row[: i + 1], dtype=torch.float64))
    return kept


def test_column_scores_match_the_vector():
    case = CASES["opera_column_score"]
    rules = OPERA(sigma=case["params"]["scale"])
    kept = folded(rules, case["inputs"]["local_attention"])
    assert kept.exp().tolist() == pytest.approx(case["expected"]["scores_x1e7"], abs=1e-4)
    past = Peek(12, kept[None, None], torch.ones(1, 1))
    penalty, pointed = rules.over_trust(past)
    assert float(penalty) * 1e7 == pytest.approx(case["expected"]["penalty_x1e7"])
    assert pointed.tolist() == [case["expected"]["argmax"]]


def test_early_bonus_matches_the_vector():
    case = CASES["opera_early_penalty"]
    image = torch.tensor([case["inputs"]["image_attention"]])
    rules = OPERA(penalty_weight=case["params"]["weight"])
    kept = torch.zeros(1, 3, EARLY)
    penalty, _ = rules.over_trust(Peek(EARLY - 1, kept, image))
    adjusted = torch.tensor(case["inputs"]["candidate_logits"]) - penalty[0]
    assert adjusted.tolist() == pytest.approx(case["expected"]["adjusted"])
    assert int(adjusted.argmax()) == case["expected"]["argmax"]
    late, _ = rules.over_trust(Peek(EARLY, torch.zeros(1, 3, EARLY + 1), image))
    assert late.tolist() == [pytest.approx([1e-7] * 3)], "from the eleventh position on"


def test_long_products_neither_vanish_nor_overflow():
    weak, strong = OPERA(sigma=0.01), OPERA(sigma=1e6)
    rows = [[0.5] * 400] * 400
    kept = folded(weak, rows)
    assert kept.argmax() == 399, "the newest column has the fewest factors below 1"
    assert bool(kept.isfinite().all())
    penalty, pointed = strong.over_trust(
        Peek(399, folded(strong, rows)[None, None], torch.ones(1, 1))
    )
    assert float(penalty) == pytest.approx(65504)
    assert pointed.tolist() == [0]
    kept = folded(weak, [[1.0], [0.0, 1.0]])
    assert kept.tolist() == [-math.inf, pytest.approx(math.log(0.01))]


def test_when_to_go_back():
    rules = OPERA(threshold=2, num_attn_candidates=2)
    thrice = torch.tensor([[0, 12, 12, 12], [12, 12, 3, 12]])
    assert rules.retrospect(thrice, {}) == 13, "every beam pointed there more than twice"
    assert rules.retrospect(thrice, {13: 2}) == 12, "that place was tried twice"
    assert rules.retrospect(thrice, {13: 2, 12: 2}) is None
    assert rules.retrospect(thrice[:, 1:], {}) is None, "the second beam only twice"
    assert OPERA(threshold=3).retrospect(thrice, {}) is None
    early = torch.tensor([[9, 9, 9, 9]])
    assert rules.retrospect(early, {}) is None
    assert rules.retrospect(early + 1, {}) == 11
    current = torch.tensor([[12, 12, 12, 11], [12, 12, 12, 11]])
    assert rules.retrospect(current, {}) is None, "only where they point now counts"


def test_weight_zero_is_plain_beam_search():
    assert OPERA(penalty_weight=0.0).search(typical_model_info()).peek == 0
    search = OPERA().search(typical_model_info())
    assert (search.width, search.peek, search.layer) == (5, 5, 31)


def test_the_efficient_preset():
    preset = parse("opera@efficient")[0]
    assert (preset.threshold, preset.num_attn_candidates, preset.num_beams) == (25, 1, 5)
    with pytest.raises(InvalidParameter, match="num_beams"):
        OPERA(num_beams=0)


# Slow and independent: every prefix is fed whole, maps are read with eager attention --------------
class Slow:
    """One prompt on a plain model; remembers what it was asked, for speed only."""

    def __init__(self, model, inputs):
        self.model, self.inputs = model, inputs
        self.start = inputs["input_ids"].shape[1]
        self.image = inputs["input_ids"][0] == model.config.image_token_id
        self.seen: dict[tuple[int, ...], tuple[list[float], list[list[float]], float]] = {}

    def feed(self, ids: tuple[int, ...]) -> tuple[list[float], list[list[float]], float]:
        """Logits, attention among the answer's tokens, and the last token's on the image."""
        if ids not in self.seen:
            with torch.no_grad():
                out = self.model(
                    **naive.extended(self.inputs, ids), use_cache=False, output_attentions=True
                )
            largest = out.attentions[-1][0].double().max(0).values
            rows = [row / sum(row.tolist()) for row in largest[self.start - 1 :]]
            inside = [row[self.start :].tolist() for row in rows[1:]]
            on_image = float(rows[-1][: self.start][self.image].sum())
            self.seen[ids] = (out.logits[0, -1].tolist(), inside, on_image)
        return self.seen[ids]


def trust(rows: list[list[float]], sigma: float) -> tuple[float, int]:
    """The largest column product of a map, and its column."""
    best, where = -1.0, 0
    for j in range(len(rows)):
        product = 1.0
        for i in range(j, len(rows)):
            product *= sigma * rows[i][j]
        if product > best:
            best, where = product, j
    return 1e-7 * best, where


def most_common(values: list[int]) -> int:
    return max(sorted(set(values)), key=values.count)


def slow_opera(
    slow, length, *, beams, sigma, r, n, w, eos=(), rule="released"
) -> tuple[list[int], list[int]]:
    """Tokens of the answer, and the places the search went back to."""
    released = rule == "released"
    before = len(slow.inputs["input_ids"][0]) - int(slow.image.sum()) + 1 if released else 0

    def rank(score, ids):
        return score / (before + len(ids) - int(released and ids[-1] in eos))

    live = [{"ids": (), "score": 0.0, "locs": []}]
    ended: list[tuple[float, tuple[int, ...]]] = []
    states, picked, barred, tries, returns, slots = {}, {}, {}, {}, [], []
    while True:
        t = len(live[0]["ids"])
        pool = []
        for b, beam in enumerate(live):
            logits, _, _ = slow.feed(beam["ids"])
            ranked = sorted(range(len(logits)), key=lambda i: -logits[i])[:n]
            adjusted, locs = {}, []
            for token in ranked:
                _, rows, on_image = slow.feed((*beam["ids"], token))
                phi, where = trust(rows, sigma)
                locs.append(where)
                adjusted[token] = logits[token] - w * (-on_image if t + 1 <= EARLY else phi)
            scores = naive.log_softmax(list(adjusted.values()))
            pool += [
                (beam["score"] + s, b, token) for token, s in zip(adjusted, scores, strict=True)
            ]
            beam["locs"] = [*beam["locs"], most_common(locs)]
        slots = [*slots[:t], [beam["locs"][-1] for beam in live]]
        states[t] = ([dict(beam) for beam in live], list(ended))
        now = most_common(slots[t])
        pasts = [beam["locs"] for beam in live]
        if released:  # the first step has one beam, which is in every place
            pasts = [[row[min(b, len(row) - 1)] for row in slots] for b in range(len(live))]
        if now >= EARLY and all(past.count(now) > r for past in pasts):
            place = next((p for p in (now + 1, now) if tries.get(p, 0) < n), None)
            at = t - 1 if released and place is not None and place >= t else place
            if at is not None and at < t:
                tries[place] = tries.get(place, 0) + 1
                returns.append(place)
                live, ended = [dict(beam) for beam in states[at][0]], list(states[at][1])
                for later in [p for p in barred if p > at]:
                    del barred[later]
                barred[at] = barred.get(at, set()) | picked[at]
                t, pool, slots = at, [], slots[: at + 1]
                for b, beam in enumerate(live):
                    logits, _, _ = slow.feed(beam["ids"])
                    free = [i for i in range(len(logits)) if (b, i) not in barred[at]]
                    scores = naive.log_softmax([logits[i] for i in free])
                    pool += [(beam["score"] + s, b, i) for i, s in zip(free, scores, strict=True)]
        pool.sort(key=lambda entry: -entry[0])
        following, picked[t] = [], set()
        for place, (score, b, token) in enumerate(pool):
            ids = (*live[b]["ids"], token)
            if token in eos:
                if place < beams:
                    ended.append((rank(score, ids), ids))
            elif len(following) < beams:
                following.append({"ids": ids, "score": score, "locs": live[b]["locs"]})
                picked[t].add((b, token))
        ended = sorted(ended, key=lambda entry: -entry[0])[:beams]
        live = following
        if not live or t + 1 == length:
            ended += [(rank(beam["score"], beam["ids"]), beam["ids"]) for beam in live]
            break
        best = pool[0][0] if released else live[0]["score"]
        if len(ended) == beams and ended[-1][0] >= best / (before + t + 1):
            break
    return list(max(ended, key=lambda entry: entry[0])[1]), returns


@pytest.fixture(
    scope="module", params=["llava", pytest.param("qwen2_5_vl", marks=pytest.mark.full)]
)
def world(request, family_engine, tmp_path_factory):
    """The engine, its family, the same model with eager attention, and the name."""
    name = request.param
    path = families.family_path(name, tmp_path_factory)
    eager, processor = families.load(path, attn_implementation="eager")
    return family_engine(name), families.FAMILIES[name], eager, processor, name


def both(world, place, length, **p):
    """The engine's output and the slow form's tokens and returns."""
    engine, family, eager, processor, _ = world
    question, image = QUESTIONS[place], families.pictures()[place]
    spec = (
        f"opera(num_beams={p['beams']},sigma={p['sigma']},threshold={p['r']},"
        f"num_attn_candidates={p['n']},penalty_weight={p['w']},rule={p.get('rule', 'released')})"
    )
    output = engine.generate(
        hd.Request(question, [image]), spec, hd.Sampling(max_new_tokens=length)
    )[0]
    inputs = naive.inputs_of(processor, family.prompt(question), [image])
    eos = engine.model.generation_config.eos_token_id
    return output, slow_opera(Slow(eager, inputs), length, eos=eos, **p)


@pytest.mark.parametrize("place", range(3))
def test_tokens_are_the_slow_forms(world, place):
    output, (ids, returns) = both(world, place, 13, beams=3, sigma=50.0, r=15, n=3, w=1.0)
    assert list(output.token_ids) == ids
    assert returns == []


def test_the_penalty_changes_answers_as_in_the_slow_form(world):
    output, (ids, _) = both(world, 0, 16, beams=2, sigma=150.0, r=15, n=3, w=1.0)
    assert list(output.token_ids) == ids
    plain, (kept, _) = both(world, 0, 16, beams=2, sigma=150.0, r=15, n=3, w=1e-9)
    assert list(plain.token_ids) == kept
    assert kept != ids, "the penalty must have turned something"


GOES_BACK = {"llava": (120.0, (0, 2)), "qwen2_5_vl": (60.0, (1,))}  # sigma, questions


def goes_back(world, **changes):
    """Outputs with the slow form's tokens where the search really goes back."""
    sigma, places = GOES_BACK[world[4]]
    values = {"beams": 2, "sigma": sigma, "r": 1, "n": 3, "w": 1.0, **changes}
    for place in places:
        calls = world[0].hf_model.calls
        output, (ids, returns) = both(world, place, 20, **values)
        assert returns, "the search must go back here"
        assert world[0].hf_model.calls - calls > 21, "tokens after a return are written anew"
        yield list(output.token_ids), ids


def test_going_back_as_in_the_slow_form(world):
    for ids, expected in goes_back(world):
        assert ids == expected


def test_one_candidate_is_one_beam_that_opens_up_when_it_goes_back(world):
    for ids, expected in goes_back(world, beams=3, n=1):
        assert ids == expected


def test_ends_as_in_the_slow_form(world, monkeypatch):
    """Two frequent tokens become end tokens, so beams end at many lengths."""
    engine = world[0]
    often = engine.generate(
        hd.Request(QUESTIONS[0], [families.pictures()[0]]), "opera", hd.Sampling(max_new_tokens=12)
    )[0].token_ids
    eos = [often[5], often[8]]
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", eos)
    for place in range(2):
        output, (ids, _) = both(world, place, 12, beams=3, sigma=50.0, r=15, n=3, w=1.0)
        assert list(output.token_ids) == ids
        assert output.finish_reason == ("stop" if ids[-1] in eos else "length")


OFFICIAL = json.loads(Path("tests/data/official/opera.json").read_text(encoding="utf-8"))["runs"]


@pytest.mark.parametrize("run", OFFICIAL, ids=lambda run: run["question"] + run["spec"])
def test_tokens_are_the_official_codes(run, family_engine):
    """Beams that end at several lengths, and searches that go back."""
    request = hd.Request(run["question"], [families.pictures()[run["picture"]]])
    sampling = hd.Sampling(max_new_tokens=run["max_new_tokens"])
    output = family_engine("llava").generate(request, run["spec"], sampling)[0]
    assert list(output.token_ids) == run["token_ids"]


def test_the_own_rule_ranks_by_the_answer_alone(world):
    values = {"beams": 2, "sigma": 30.0, "r": 15, "n": 3, "w": 1.0, "rule": "own"}
    output, (ids, _) = both(world, 0, 10, **values)
    assert list(output.token_ids) == ids
    search = OPERA(rule="own").search(typical_model_info())
    assert not search.prompt_counts and not search.by_slot
