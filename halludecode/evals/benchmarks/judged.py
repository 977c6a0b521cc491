"""Benchmarks whose answers a language model judges: off unless a judge is named."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from halludecode.core.errors import InvalidParameter
from halludecode.core.params import param
from halludecode.evals.benchmarks.base import Benchmark, Metric
from halludecode.evals.data.judge import VARIABLE, Judge, named
from halludecode.evals.data.records import read_text
from halludecode.evals.data.samples import Sample

if TYPE_CHECKING:
    from halludecode.evals.presets import Preset

REFUSED, UNREAD = "refused", "other"  # what is read of a verdict that holds none
REFUSED_AND_UNREAD = (
    Metric("refused", "verdicts refused", scale=1.0, lower_is_better=None, digits=0),
    Metric("unread", "verdicts unread", scale=1.0, lower_is_better=None, digits=0),
)


@dataclass(frozen=True)
class JudgedBenchmark(Benchmark):
    """Base of them: `asked` fills the release's words in, `verdict` reads what the judge said.

    The words are the release's own and are not shipped: ``template`` is a text file of them, with
    ``{}`` where a part of the question goes. What was asked and answered is kept in every line.
    """

    judge_model: str | None = param(None, f"Name of the judge; without it ${VARIABLE}.")
    judge_url: str | None = param(None, "Address of its OpenAI-compatible server.")
    template: str | None = param(None, "Text file with the release's words for the judge.")

    text_kind = "choice"
    wording = "own"
    # What a judge says of a right answer and of a wrong one: what the contract suite lets it say.
    replies: ClassVar[tuple[str, str]]

    def settled(self, preset: Preset) -> Self:
        """Itself; without a judge or its words nothing is asked of the model."""
        self.ready()
        return self

    def ready(self) -> None:
        """Sees that a judge and the words for it are named.

        Raises:
            InvalidParameter: They are not.
        """
        self._named()
        if self.template is None:
            raise InvalidParameter(
                f"{self.title}: its words for the judge are not shipped; write them to a file as "
                f"the release has them and name it: {self.name}(template=FILE)."
            )

    def asked(self, sample: Sample, answer: str) -> Sequence[str]:
        """What fills the template's places, in order."""
        raise NotImplementedError

    def verdict(self, raw: str) -> Any:
        """What the judge's words say; `UNREAD` where they say nothing or too much."""
        raise NotImplementedError

    def right(self, verdict: Any, sample: Sample) -> bool:
        """Whether an answer with this verdict counts as right."""
        raise NotImplementedError

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """Asks the judge; the line keeps its name, the prompt and its words.

        Raises:
            InvalidParameter: No judge or no words for it are named.
            InvalidData: The judge cannot be asked.
        """
        prompt = self.prompt_for(sample, answer)
        told = Judge(self._named(), self.judge_url).ask(prompt)
        parsed = REFUSED if told.refused else self.verdict(told.raw)
        known = parsed not in (REFUSED, UNREAD)
        right = int(known and self.right(parsed, sample))
        return {"parsed": parsed, "score": right, "judged": told.record()}

    def prompt_for(self, sample: Sample, answer: str) -> str:
        """The template with the question and the answer filled in."""
        self.ready()
        filled = self.asked(sample, answer)
        parts = _words(str(self.template)).split("{}")
        if len(parts) != len(filled) + 1:
            raise InvalidParameter(
                f"{self.template} has {len(parts) - 1} places marked {{}}; {self.title} fills "
                f"{len(filled)}."
            )
        return parts[0] + "".join(a + b for a, b in zip(filled, parts[1:], strict=True))

    def _named(self) -> str:
        model = named(self.judge_model)
        if model is None:
            raise InvalidParameter(
                f"{self.title} is scored by a language model, and none is named; write "
                f"{self.name}(judge_model=NAME), or set ${VARIABLE}."
            )
        return model

    def recipe(self) -> dict[str, Any]:
        """Its parameters, the judge as it was named, and a hash of the words for it."""
        words = None if self.template is None else _words(self.template)
        digest = None if words is None else hashlib.sha256(words.encode()).hexdigest()[:16]
        return {**super().recipe(), "judge_model": named(self.judge_model), "words": digest}


@cache
def _words(path: str) -> str:
    return read_text(Path(path))
