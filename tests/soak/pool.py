"""The requests that a soak draws from, and what is expected of each when it is asked alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.serving import ask, data_url
from tests.support.vllm import ACTIVE

SPECS = (
    *("greedy", "vcd", "vcd(alpha=0.5,noise_step=300)", "m3id", "ritual", "apc_only", "pai"),
    *("var", "vhr", "vista", "agla", "damro", "dola", "sid", "vdgd"),
    *("var+vcd", "vhr+m3id", "vcd+ritual"),
)
WORDS = (
    "Please describe this image in detail.",
    "Is there a dog in the image? Please answer yes or no.",
    "What color is the car?",
    "Why?" + " Please." * 30,
)
TIE = 1e-4  # logprobs of the two likeliest tokens this close may swap with the batch's company
SAMPLED = 0.4  # share of sampled requests
RULES = (
    *({} for _ in range(10)),
    {"bad_words": ["dog", "a red"]},
    {"logit_bias": {"30": 3.0, "31": -100.0}},
    {"allowed_token_ids": list(range(2, 90))},
    {"structured_outputs": {"choice": ["yes", "no"]}},
)


@dataclass
class Asked:
    """One distinct request.

    Args:
        body: Keyword arguments of the OpenAI client.
        alone: Per choice the token ids of its answer when nothing else runs.
        texts: The texts of these.
        gaps: Of a greedy answer, the gap between the two likeliest tokens at each step.
        pictured: Whether it has a picture, so that its strategy applies.
    """

    body: dict[str, Any]
    alone: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    pictured: bool = True

    @property
    def greedy(self) -> bool:
        return self.body["temperature"] == 0

    def tied(self, ids: list[int]) -> bool:
        """Whether a greedy answer first differs where two tokens nearly tie."""
        if not self.greedy:
            return False
        pairs = zip(ids, self.alone[0], self.gaps, strict=False)
        first = next((gap for have, want, gap in pairs if have != want), 1.0)
        return first < TIE


def pool(count: int, pictures: list[Path], seed: int = 0) -> list[Asked]:
    """That many distinct requests: strategies x sampling x words x lengths x pictures."""
    rng, urls = random.Random(seed), [data_url(path.read_bytes()) for path in pictures]
    return [_one(rng, SPECS[i % len(SPECS)], urls) for i in range(count)]


def _one(rng: random.Random, spec: str, urls: list[str]) -> Asked:
    spec = "+".join(ACTIVE.get(part, part) for part in spec.split("+"))
    shown = rng.sample(urls, rng.choices([0, 1, 2], [5, 85, 10])[0])
    sampled = rng.random() < SAMPLED
    more: dict[str, Any] = {"temperature": 0.0}
    if sampled:
        more = {"temperature": rng.choice([0.7, 1.3]), "seed": rng.randrange(1 << 30)}
        more |= {"top_p": rng.choice([1.0, 0.9]), "n": rng.choice([1, 1, 1, 2])}
    most = rng.choice([1, 4, 16, 48])
    extra = {"return_token_ids": True, "vllm_xargs": {"strategy": spec}}
    rules = dict(rng.choice(RULES))
    structured = "structured_outputs" in rules
    extra["min_tokens"] = 0 if structured else rng.choice([0, most])
    if "logit_bias" in rules:
        more["logit_bias"] = rules.pop("logit_bias")
    extra |= rules
    body = {
        "model": "testbed",
        "messages": ask(rng.choice(WORDS), *shown),
        "max_tokens": most,
        "extra_body": extra,
        **more,
    }
    return Asked(body, pictured=bool(shown))
