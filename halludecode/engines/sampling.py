"""From combined scores to a token: penalties, temperature, top-k, top-p, and counter-based noise.

Order as in the contrastive codes: bans and biases of every row -> combine -> repetition penalty,
minimum length -> temperature -> top-k -> top-p -> draw. The draw is Gumbel noise hashed in integers
from (seed, child, step, token id): the same on every engine, device and batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from halludecode.engines.api import Sampling
from halludecode.engines.token_rules import NEG_INF, TokenRules

_MASK = 0xFFFFFFFF
COOL = 0.01  # below this, scores / temperature could overflow
EXTREMES = 1e-30, 1e30  # temperatures beyond do what these do, and float32 holds these
FREE = TokenRules()


def _mix(x: Tensor) -> Tensor:
    """A 32-bit avalanche (murmur3's finaliser) in int64 arithmetic."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def gumbel(keys: Tensor, step: int | Tensor, vocabulary: int) -> Tensor:
    """float32 [B, V] Gumbel noise of the counter (key, step, token id); keys, steps int64 [B]."""
    token = torch.arange(vocabulary, device=keys.device)
    start = _mix(keys + 0x9E3779B9 * (step + 1))
    bits = _mix(_mix(start[:, None] + 0x632BE5AB * (token[None] + 1)) ^ start[:, None])
    uniform = (bits.double() + 0.5) / 2**32
    return -(-uniform.log()).log().float()


def tempered(scores: Tensor, temperature: float) -> Tensor:
    """Scores [.., V] over a temperature of any size > 0, the same on every engine.

    Near 0 the best score is taken off first, which changes no probability: what is not the best
    then goes to -inf, where scores themselves would all go to infinity.
    """
    low, high = EXTREMES
    if temperature < COOL:
        scores = scores - scores.amax(-1, keepdim=True)
    return scores / min(max(float(temperature), low), high)


class Sampler:
    """Chooses tokens for the children of a batch under one `Sampling`.

    Args:
        sampling: How to draw.
        children: Child's number (0..n-1) of every row.
        eos: End-of-sequence token ids.
        rules: Tokens that are banned, allowed or pushed.
    """

    def __init__(
        self,
        sampling: Sampling,
        children: Sequence[int],
        eos: Sequence[int],
        rules: TokenRules = FREE,
    ) -> None:
        self.sampling, self.rules = sampling, rules
        self._eos = list(eos)
        seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
        base = torch.tensor([seed & _MASK, seed >> 32 & _MASK])
        child = torch.tensor(list(children))
        self.keys = _mix(_mix(base[:1]) ^ base[1:] ^ (child * 0x27D4EB2F & _MASK))

    def select(self, at: Tensor) -> None:
        """Keep some children."""
        self.keys = self.keys[at]

    def ban(self, logits: Tensor, step: int, written: Sequence[Sequence[int]]) -> Tensor:
        """Logits of any rows under the rules, below the minimum length without end tokens.

        Before rows are combined: a plausibility mask must not leave banned tokens alone.

        Args:
            logits: float32 [R, V].
            step: Tokens already written.
            written: The tokens of each row's answer.
        """
        if self.rules:
            rows = written if self.rules.looks_back else written[:1]
            added = [self.rules.added(logits.shape[-1], ids) for ids in rows]
            logits = logits + torch.stack(added).to(logits.device)
        return self._below_minimum(logits, step)

    def _below_minimum(self, logits: Tensor, step: int) -> Tensor:
        """Logits [.., V] without the end tokens, below the minimum length."""
        if step >= self.sampling.min_new_tokens or not self._eos:
            return logits
        return logits.index_fill(-1, torch.tensor(self._eos, device=logits.device), NEG_INF)

    def penalise(self, scores: Tensor, history: Sequence[Tensor], step: int) -> Tensor:
        """Repetition penalty over each child's own tokens, and the minimum length.

        Args:
            scores: Combined scores, float32 [B, V].
            history: Per child, int64 ids of its prompt and answer so far.
            step: Tokens already written.
        """
        if self.sampling.repetition_penalty != 1:
            rule = RepetitionPenaltyLogitsProcessor(self.sampling.repetition_penalty)
            rows = [
                rule(ids[None].to(scores.device), row[None])
                for ids, row in zip(history, scores, strict=True)
            ]
            scores = torch.cat(rows)
        return self._below_minimum(scores, step)

    def draw(self, scores: Tensor, step: int | Tensor) -> Tensor:
        """int64 [B] tokens from penalised scores, at one step or at one each."""
        if self.sampling.temperature == 0:
            return scores.argmax(-1)
        dummy = torch.empty(0)
        scores = tempered(scores, self.sampling.temperature)
        if 0 < self.sampling.top_k < scores.shape[-1]:
            scores = TopKLogitsWarper(self.sampling.top_k)(dummy, scores)
        if self.sampling.top_p < 1:
            scores = TopPLogitsWarper(self.sampling.top_p)(dummy, scores)
        return (scores + gumbel(self.keys.to(scores.device), step, scores.shape[-1])).argmax(-1)
