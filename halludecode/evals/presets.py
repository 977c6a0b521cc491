"""What is asked of a model: samples, their prompts, and the scorer that judges the answers.

A `EvalUnit` is one thing with one set of metrics: a task on one data source and, for POPE, one
split. The prompt text around a question moves POPE by more than any decoding strategy does, so a
prompt is a named preset and is recorded with every run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidParameter
from halludecode.testbed import MODELS

if TYPE_CHECKING:
    pass

TASKS = ("pope", "chair", "mme", "amber", "hallusionbench")
DESCRIBED = "amber/generative"  # AMBER's descriptions, beside its questions, which are "amber"
_WORDED_AS = {"amber": "pope", "hallusionbench": "pope"}  # whose words a preset puts round them
POPE_SPLITS = ("random", "popular", "adversarial")
ONE_WORD = "Answer the question using a single word or phrase."
_MME_SUFFIX = re.compile(r"\s*Please answer yes or no\.\s*$")


@dataclass(frozen=True)
class Preset:
    """The words a published protocol puts around a task's question.

    Args:
        source: Whose protocol this is.
        pope: Text appended to the question, also AMBER's and HallusionBench's; None where the
            protocol has no POPE prompt.
        chair: The whole instruction; None where the protocol has no caption prompt.
        mme: Text that replaces MME's own "Please answer yes or no."; "" keeps the question as
            published; None where the protocol has no MME prompt.
        max_new_tokens: Most tokens per task.
        incomplete: What becomes of a caption's unfinished last sentence before it is scored; see
            `chair.trim`.
    """

    source: str
    pope: str | None = None
    chair: str | None = None
    mme: str | None = None
    max_new_tokens: Mapping[str, int] | None = None
    incomplete: str = "keep"

    def template(self, task: str) -> str:
        """The prompt of ``task`` with ``{question}`` in place of the question, for ``run.json``."""
        if task == "chair":
            return str(self.chair)
        if task == "mme" and self.mme:
            return "{question without its 'Please answer yes or no.'}" + self.mme
        return "{question}" + str(self.mme if task == "mme" else self.pope)

    def prompt(self, task: str, question: str) -> str:
        """The words sent to the model for ``question`` (ignored by the caption task)."""
        if task == "chair":
            return str(self.chair)
        if task == "mme":
            return _MME_SUFFIX.sub("", question) + self.mme if self.mme else question
        return question + str(self.pope)

    def tokens(self, task: str) -> int:
        """Most new tokens for ``task`` or `DESCRIBED`; by default 512 for texts, 16 for words."""
        return (self.max_new_tokens or {}).get(task, 512 if task in ("chair", DESCRIBED) else 16)


_DETAIL = "Please describe this image in detail."
# Token limits are part of a protocol: POPE's official rule reads the first sentence only, but other
# rules read all of a long answer, and a caption of 64 tokens names less than one of 512.
PRESETS: dict[str, Preset] = {
    "llava-1.5": Preset(
        "LLaVA-1.5, InternVL, lmms-eval (POPE, MME); OPERA's instruction (CHAIR)",
        pope=f"\n{ONE_WORD}",
        chair=_DETAIL,
        mme=f"\n{ONE_WORD}",
        max_new_tokens={"pope": 128},
    ),
    "vcd": Preset(
        "VCD",
        pope=" Please answer this question with one word.",
        mme="",
        max_new_tokens={"pope": 1024},
    ),
    "cd-rethink": Preset("cd_rethink", pope=f" {ONE_WORD}", max_new_tokens={"pope": 1024}),
    "opera": Preset(
        "OPERA: POPE; captions of 512 tokens, scored as they are",
        pope="",
        chair=_DETAIL,
        mme="",
        max_new_tokens={"pope": 10, "chair": 512},
    ),
    "opera-512": Preset(
        "OPERA, DeCo: captions of 512 tokens, scored as they are",
        chair=_DETAIL,
        max_new_tokens={"chair": 512},
    ),
    "opera-64": Preset(
        "OPERA: captions of 64 tokens, the unfinished last sentence dropped (its issue 30)",
        chair=_DETAIL,
        max_new_tokens={"chair": 64},
        incomplete="drop",
    ),
    "ritual": Preset(
        "RITUAL, AvisC: POPE; captions of 64 tokens, scored as they are (RITUAL)",
        pope="",
        chair=_DETAIL,
        mme="",
        max_new_tokens={"pope": 1024, "chair": 64},
    ),
    "deco": Preset(
        "DeCo", pope="", chair=_DETAIL, mme="", max_new_tokens={"pope": 5, "chair": 512}
    ),
    "pai": Preset(
        "PAI, VISTA, SPIN, without their system message",
        pope="",
        chair="Please help me describe the image in detail.",
        max_new_tokens={"pope": 512},
    ),
    "damro": Preset(
        "DAMRO's script",
        chair="Generate a short caption of this image.",
        max_new_tokens={"chair": 1024},
    ),
    "pope-brief": Preset("POPE paper", chair="Provide a brief description of the given image."),
    "pope-short": Preset("POPE paper", chair="Generate a short caption of the image."),
}


def preset_for(name: str | None, model_id: str, tasks: Sequence[str]) -> tuple[str, Preset]:
    """Finds a preset; without a name, the testbed's for its model and LLaVA-1.5's for others.

    Raises:
        InvalidParameter: No such preset, or it has no prompt for one of the tasks.
    """
    name = name or ("testbed" if model_id in MODELS else "llava-1.5")
    known = [*PRESETS, "testbed"]
    if name not in known:
        raise InvalidParameter(f"No prompt preset {name!r}; known: {', '.join(known)}.")
    preset = _testbed_preset() if name == "testbed" else PRESETS[name]
    for task in tasks:
        if getattr(preset, _WORDED_AS.get(task, task)) is None:
            worded = (t for t in TASKS if getattr(preset, _WORDED_AS.get(t, t)) is not None)
            defined = ", ".join(worded)
            raise InvalidParameter(
                f"Prompt preset {name!r} has no {task} prompt, only {defined}; "
                f"choose another preset for {task}."
            )
    return name, preset


def _testbed_preset() -> Preset:
    from halludecode.testbed import PROMPTS

    return Preset(
        "the embedded testbed",
        pope=PROMPTS["pope"],
        chair=PROMPTS["chair"],
        mme="",
        max_new_tokens={"pope": 4, "chair": 64, "mme": 4},
    )
