"""A search over beams in the token loop's place: one forward a step for all requests' candidates.

Each request's search (`beam_search`) says what it needs of the next forward; the forward holds them
all (`token_tree`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from halludecode.core.beam_search import BeamSearch
from halludecode.core.errors import InvalidRequest
from halludecode.core.plan import Plan
from halludecode.engines.api import Sampling
from halludecode.engines.hf.batch import Batch
from halludecode.engines.hf.beam_search import Beam, BeamScorer, BeamSearchRun, Search
from halludecode.engines.hf.decode_loop import AnswerState
from halludecode.engines.hf.hooks import attention_set
from halludecode.engines.hf.token_tree import Chosen, TokenTree, TreeResult, TreeStep
from halludecode.engines.sampling import FREE
from halludecode.engines.token_rules import TokenRules

PLAIN = BeamSearch(1)  # greedy: without an image every strategy is the identity


def check_search(plan: Plan, sampling: Sampling) -> None:
    """Refuse drawn tokens where a search writes the answer.

    Raises:
        InvalidRequest: Tokens are to be drawn.
    """
    if plan.search is not None and sampling.temperature > 0:
        raise InvalidRequest(
            f"{plan.canonical} searches for the likeliest answer and draws nothing: "
            f"temperature={sampling.temperature:g} must be 0 (and n 1)."
        )


class BeamLoop:
    """Writes the answers of one batch.

    Args:
        batch: Prefilled main rows of a plan with a search.
        sampling: Lengths, stop strings and penalties.
        eos: End-of-sequence ids.
        words: Words whose first-step scores are wanted -> their token ids.
        limit: Most tokens a row may reach (the model's context).
        rules: Tokens that are banned, allowed or pushed.

    Raises:
        UnsupportedStrategy: The model does not keep every key of every layer.
    """

    def __init__(
        self,
        batch: Batch,
        sampling: Sampling,
        eos: Sequence[int],
        words: Mapping[str, list[int]],
        limit: int,
        *,
        rules: TokenRules = FREE,
    ) -> None:
        self.batch, self.rules = batch, batch.plan.search or PLAIN
        tokenizer = batch.row_builder.inputs.tokenizer
        self._scorer = BeamScorer(sampling, eos, tokenizer, words, limit, rules)
        self.answers = [
            AnswerState(r, request.rows["main"].input_ids)
            for r, request in enumerate(batch.requests)
        ]

    def run(self, logits: Tensor) -> Iterator[list[AnswerState]]:
        """From the prefill's logits to the end; nothing is settled, and yielded, before."""
        tree, searches = TokenTree(self.batch, self.rules.layer), self._searches(logits)
        with attention_set(self.batch.hf_model.model, True):
            held = list(range(len(searches)))
            first = {r: self._next(r, searches[r]) for r in held}
            steps = {r: step for r, step in first.items() if isinstance(step, TreeStep)}
            while steps:
                if len(steps) < len(held):
                    tree.select([i for i, r in enumerate(held) if r in steps])
                    held = list(steps)
                results = tree.feed(list(steps.values()))
                wants = [
                    self._next(r, searches[r], result)
                    for r, result in zip(held, results, strict=True)
                ]
                chosen = {i: want for i, want in enumerate(wants) if isinstance(want, Chosen)}
                logits = tree.logits(chosen) if chosen else {}
                for i, own in logits.items():
                    wants[i] = self._next(held[i], searches[held[i]], own)
                steps = {
                    r: want
                    for r, want in zip(held, wants, strict=True)
                    if isinstance(want, TreeStep)
                }
        yield from ()

    def _searches(self, logits: Tensor) -> list[Search]:
        searches = list[Search]()
        for r, answer in enumerate(self.answers):
            main = self.batch.requests[r].rows["main"]
            text_ids = len(main.input_ids) - sum(image.count - 1 for image in main.images)
            rules = self.rules if main.images else PLAIN
            search = BeamSearchRun(self._scorer, answer, rules, text_ids)
            searches.append(search.run(logits[r : r + 1]))
        return searches

    def _next(
        self,
        r: int,
        search: Search,
        result: TreeResult | Tensor | None = None,
    ) -> TreeStep | Chosen | None:
        """Drive one request's search to what it wants next; None once its answer is written."""
        try:
            return next(search) if result is None else search.send(result)
        except StopIteration as end:
            best: Beam = end.value
            answer = self.answers[r]
            answer.ids, answer.text, answer.finish = list(best.ids), best.text, best.finish
            answer.differs, answer.logprobs = best.differs, list(best.logprobs)
            return None
