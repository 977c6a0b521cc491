"""The words that a published protocol puts around a question, and its token limits.

The prompt text around a question moves POPE by more than any decoding strategy does, so a prompt is
a named preset and is recorded with every run. A preset has words of three kinds (`Wording`); which
of them a benchmark is asked in, the benchmark says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from halludecode.core.errors import InvalidParameter
from halludecode.testbed.assets import MODELS

if TYPE_CHECKING:
    from halludecode.evals.benchmarks.base import Benchmark

# question: words after a bare question; caption: a whole instruction; instructed: words in place of
# the question's own "Please answer yes or no."; own: the data's words as they are.
Wording = Literal["question", "caption", "instructed", "own"]
ONE_WORD = "Answer the question using a single word or phrase."
_INSTRUCTION = re.compile(r"\s*Please answer yes or no\.\s*$")


@dataclass(frozen=True)
class Preset:
    """The words a published protocol puts around a question.

    Args:
        source: Whose protocol this is.
        question: Text appended to a question; None where the protocol asks no such question.
        caption: The whole instruction; None where the protocol has no caption prompt.
        instructed: Text that replaces a question's own "Please answer yes or no."; "" keeps the
            question as published; None where the protocol asks no such question.
        max_new_tokens: Most tokens by kind of words, where the protocol says.
        incomplete: What becomes of a caption's unfinished last sentence before it is scored; see
            `chair.trim`.
    """

    source: str
    question: str | None = None
    caption: str | None = None
    instructed: str | None = None
    max_new_tokens: Mapping[str, int] | None = None
    incomplete: str = "keep"

    def has(self, wording: Wording) -> bool:
        """Whether the protocol has words of this kind."""
        return wording == "own" or getattr(self, wording) is not None

    def template(self, wording: Wording) -> str:
        """The prompt with ``{question}`` in place of the question, for ``run.json``."""
        if wording == "instructed" and self.instructed:
            return "{question without its 'Please answer yes or no.'}" + self.instructed
        return self.prompt(wording, "{question}")

    def prompt(self, wording: Wording, question: str) -> str:
        """The words sent to the model for ``question`` (ignored by captions)."""
        if wording == "caption":
            return str(self.caption)
        if wording == "instructed":
            kept = _INSTRUCTION.sub("", question) if self.instructed else question
            return kept + str(self.instructed)
        return question + (str(self.question) if wording == "question" else "")

    def tokens(self, wording: Wording, default: int) -> int:
        """Most new tokens for words of this kind; the default where the protocol says nothing."""
        return (self.max_new_tokens or {}).get(wording, default)


_DETAIL = "Please describe this image in detail."
# Token limits are part of a protocol: POPE's official rule reads the first sentence only, but other
# rules read all of a long answer, and a caption of 64 tokens names less than one of 512.
PRESETS: dict[str, Preset] = {
    "llava-1.5": Preset(
        "LLaVA-1.5, InternVL, lmms-eval (POPE, MME); OPERA's instruction (CHAIR)",
        question=f"\n{ONE_WORD}",
        caption=_DETAIL,
        instructed=f"\n{ONE_WORD}",
        max_new_tokens={"question": 128},
    ),
    "vcd": Preset(
        "VCD",
        question=" Please answer this question with one word.",
        instructed="",
        max_new_tokens={"question": 1024},
    ),
    "cd-rethink": Preset("cd_rethink", question=f" {ONE_WORD}", max_new_tokens={"question": 1024}),
    "opera": Preset(
        "OPERA: POPE; captions of 512 tokens, scored as they are",
        question="",
        caption=_DETAIL,
        instructed="",
        max_new_tokens={"question": 10, "caption": 512},
    ),
    "opera-512": Preset(
        "OPERA, DeCo: captions of 512 tokens, scored as they are",
        caption=_DETAIL,
        max_new_tokens={"caption": 512},
    ),
    "opera-64": Preset(
        "OPERA: captions of 64 tokens, the unfinished last sentence dropped (its issue 30)",
        caption=_DETAIL,
        max_new_tokens={"caption": 64},
        incomplete="drop",
    ),
    "ritual": Preset(
        "RITUAL, AvisC: POPE; captions of 64 tokens, scored as they are (RITUAL)",
        question="",
        caption=_DETAIL,
        instructed="",
        max_new_tokens={"question": 1024, "caption": 64},
    ),
    "deco": Preset(
        "DeCo",
        question="",
        caption=_DETAIL,
        instructed="",
        max_new_tokens={"question": 5, "caption": 512},
    ),
    "pai": Preset(
        "PAI, VISTA, SPIN, without their system message",
        question="",
        caption="Please help me describe the image in detail.",
        max_new_tokens={"question": 512},
    ),
    "damro": Preset(
        "DAMRO's script",
        caption="Generate a short caption of this image.",
        max_new_tokens={"caption": 1024},
    ),
    "pope-brief": Preset("POPE paper", caption="Provide a brief description of the given image."),
    "pope-short": Preset("POPE paper", caption="Generate a short caption of the image."),
}


def preset_for(
    name: str | None, model_id: str, asked: Sequence[str | Benchmark | type[Benchmark]]
) -> tuple[str, Preset]:
    """Finds a preset; without a name, the testbed's for its model and LLaVA-1.5's for others.

    Args:
        name: A name of `PRESETS` or ``testbed``.
        model_id: The model's name.
        asked: Benchmarks, or their names.

    Raises:
        InvalidParameter: No such preset, or it has no words for one of the benchmarks.
    """
    from halludecode.evals.benchmarks.registry import BENCHMARKS

    name = name or ("testbed" if model_id in MODELS else "llava-1.5")
    known = [*PRESETS, "testbed"]
    if name not in known:
        raise InvalidParameter(f"No prompt preset {name!r}; known: {', '.join(known)}.")
    preset = _testbed_preset() if name == "testbed" else PRESETS[name]
    for item in asked:
        benchmark: Any = BENCHMARKS.get(item) if isinstance(item, str) else item
        if not preset.has(benchmark.wording):
            defined = ", ".join(b.name for b in BENCHMARKS if preset.has(b.wording))
            raise InvalidParameter(
                f"Prompt preset {name!r} has no {benchmark.name} prompt, only {defined}; "
                f"choose another preset for {benchmark.name}."
            )
    return name, preset


def describing(name: str | None, model_id: str) -> tuple[str, Preset]:
    """The preset by which a picture is described; arguments as for `preset_for`.

    Raises:
        InvalidParameter: No such preset, or it has no caption prompt.
    """
    from halludecode.evals.benchmarks.registry import standard_of

    return preset_for(name, model_id, [standard_of("caption")])


def _testbed_preset() -> Preset:
    from halludecode.testbed.assets import CAPTION, QUESTION

    return Preset(
        "the embedded testbed",
        question=QUESTION,
        caption=CAPTION,
        instructed="",
        max_new_tokens={"question": 4, "caption": 64, "instructed": 4},
    )
