"""Requests and comparisons shared by the vLLM tests."""

from __future__ import annotations

import random

import halludecode as hd
from tests import families
from tests.contract import specs

TOLERANCE = 1e-4  # top-two gap, or distance to a mask edge, below which tokens may differ
# Parameters under which a strategy acts on any model, for longer answers than the contract's.
ACTIVE = {
    **specs.ACTIVE,
    "m3id": "m3id(lam=0.05,gate=1)",
    "adhh": "adhh(heads=(0,0,1,1,2,0,3,3),tau=0.05)",
    "spin": "spin(r=0.5)",
}
WORDS = ("Describe the image.", "Is there a dog in the image?", "What color is the car?", "Why?")


def requests(count: int = 4, seed: int = 0) -> list[hd.Request]:
    rng, pictures = random.Random(seed), families.pictures()
    made = []
    for i in range(count):
        words = WORDS[i % len(WORDS)] + " Please." * rng.choice([0, 0, 1, 6])
        made.append(hd.Request(words, [pictures[i % len(pictures)]]))
    return made


def same(a: hd.Output, b: hd.Output) -> bool:
    """Equal tokens, or a first difference only where the top two nearly tie; needs logprobs=3.

    Once in an answer a token may lie so near the edge of a plausibility mask that one engine keeps
    it and the other does not; then all log-probabilities of that step move by one number.
    """
    shifted = 0
    for x, y in zip(a.logprobs, b.logprobs, strict=False):
        if x.token_id != y.token_id:
            first, second = sorted(x.top.values(), reverse=True)[:2]
            return first - second < TOLERANCE
        if abs(x.logprob - y.logprob) > 1e-3:
            moved = [x.top[token] - y.top[token] for token in x.top.keys() & y.top.keys()]
            shifted += 1
            if len(moved) < 2 or max(moved) - min(moved) > TOLERANCE or shifted > 1:
                return False
    return a.token_ids == b.token_ids and a.finish_reason == b.finish_reason and a.text == b.text
