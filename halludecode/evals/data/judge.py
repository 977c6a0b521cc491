"""A language model that judges answers, asked over OpenAI's interface; off unless it is named."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from halludecode.core.errors import InvalidData, MissingExtra

VARIABLE = "HALLUDECODE_JUDGE"  # names the judge where no parameter does


@dataclass(frozen=True)
class Verdict:
    """What a judge said of one answer.

    Args:
        model: The judge, as it calls itself.
        prompt: What it was asked.
        raw: Its words, untouched.
        refused: Whether it declined: it says so itself, was filtered, or said nothing.
    """

    model: str
    prompt: str
    raw: str
    refused: bool

    def record(self) -> dict[str, Any]:
        """What a line of ``samples.jsonl`` keeps of it."""
        told = {"model": self.model, "prompt": self.prompt, "raw": self.raw}
        return {**told, "refused": True} if self.refused else told


@dataclass(frozen=True)
class Judge:
    """One judge.

    Args:
        model: Its name, as the server knows it.
        url: Of the server, such as ``http://127.0.0.1:8000/v1``; None is OpenAI's own. The key is
            ``$OPENAI_API_KEY``.
    """

    model: str
    url: str | None = None

    def ask(self, prompt: str) -> Verdict:
        """Asks once, at temperature 0.

        Raises:
            InvalidData: The judge cannot be reached, or does not take the question.
            MissingExtra: ``openai`` is not installed.
        """
        try:
            import openai
        except ImportError:
            raise MissingExtra(
                'A judge needs the openai package: pip install "halludecode[eval]".'
            ) from None
        key = os.environ.get("OPENAI_API_KEY") or ("none" if self.url else None)
        try:
            answer = _client(self.url, key).chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0.0,
            )
        except openai.OpenAIError as error:
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise InvalidData(
                f"judge {self.model} at {self.url or 'api.openai.com'} cannot be asked ({reason}); "
                "what is judged is kept, and the same command goes on."
            ) from None
        choice = answer.choices[0]
        raw = choice.message.content or getattr(choice.message, "refusal", None) or ""
        declined = bool(getattr(choice.message, "refusal", None))
        filtered = choice.finish_reason == "content_filter"
        return Verdict(answer.model, prompt, raw, declined or filtered or not raw.strip())


@lru_cache(maxsize=4)  # making one costs more than asking
def _client(url: str | None, key: str | None) -> Any:
    import openai

    return openai.OpenAI(base_url=url, api_key=key)


def named(model: str | None) -> str | None:
    """The judge that is named, by a parameter or by the environment; None for none."""
    return model or os.environ.get(VARIABLE) or None
