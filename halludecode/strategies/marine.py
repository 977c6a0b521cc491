r"""MARINE: be guided by the objects that a detector found (Zhao et al., ICML 2025).

    ln p = (1 - gamma) ln p(y | v, x) + gamma ln p(y | v, x with the objects named)

arXiv:2402.08680. One more row reads the question with the names of what the detector found, each once, surest first;
where it found nothing, the row is the main one. The official list is what DETR (score over .95) and
RAM++ (.68) both name, synonyms joined; RAM++ has no class in transformers, so here one detector
does it: DETR, or Grounding DINO with ``labels`` to look for. The official code resizes pictures to
800 x 800, here the detector's processor decides. Its questions are in lower case and it draws one
of four wordings for each; here there is one, in our words, with `request` for another. It samples
at T = .6 and top-p .9. Objects of several pictures make one list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch, Edit
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views.detection import find

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.prompt import Picture
    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="2402.08680",
    title="Mitigating Object Hallucination in Large Vision-Language Models via Image-Grounded "
    "Guidance",
    authors="Zhao, Linxi and Deng, Yihe and Zhang, Weitong and Gu, Quanquan",
    venue="ICML",
    year=2025,
)
REQUEST = "A detector found in this picture: {objects}. Keep to what it found. {question}"


def guided(
    question: str,
    *,
    pictures: Sequence[Picture],
    model: str,
    threshold: float,
    labels: tuple[str, ...],
    request: str,
) -> str:
    """The question with the objects named; as it is where none was found."""
    found = find(pictures, model=model, threshold=threshold, labels=labels)
    names = list(dict.fromkeys(thing.label for things in found for thing in things))
    if not names:
        return question
    return request.replace("{objects}", ", ".join(names)).replace("{question}", question)


@strategy("marine", paper=PAPER, off={"gamma": 0.0})
class Marine(Strategy):
    """Mix with a row that is told which objects there are."""

    gamma: float = param(0.7, "share of the row that is told", ge=0)
    threshold: float = param(0.95, "least score of an object", ge=0, le=1)
    detector: str = param("facebook/detr-resnet-50", "detector's id or path")
    labels: tuple[str, ...] = param((), "what to look for, for a detector that must be told")
    request: str = param(REQUEST, "the question; {objects} and {question} are filled in")

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The same prompt, its question with the objects' names."""
        told = (("model", self.detector), ("threshold", self.threshold), ("labels", self.labels))
        return {"told": Branch(prompt, words=Edit(guided, (*told, ("request", self.request))))}

    def combine(self, step: Step) -> Tensor:
        """Between the rows, or beyond the second."""
        return step["main"].lerp(step["told"], self.gamma)
