"""ZoomEye: look for what the question needs, closer and closer (Shen et al., EMNLP 2025).

    c = 2 p(yes) - 1 of yes and no;   visit views by  w c(there) + (1 - w) c(could be further in)
    w = (1 - bias) d^2 / D^2 + bias,   stop at the first view with  c(enough to answer) >= bar

arXiv:2411.16044. A view is one of four parts of the one above it, d levels down of D. The model
names from the question what to look for (or ``cue`` does); several cues are looked for one by one.
After ``visits`` D views the bar falls again and again, until a view passes or it is below
``lower``. The answer is then written from the picture, the view marked in red, and the view; with
``shown="view"`` from the view alone. Their code pads pictures to squares, cuts the view with its
red frame, shrinks the marked picture, frames each view of several, drops cues with pronouns, looks
otherwise for "all" of a kind; ours does not. The examples and questions are ours.
"""

from __future__ import annotations

from collections.abc import Mapping

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.branch import Branch
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy
from halludecode.views import zooming
from halludecode.views.zooming import DROPS, Found, Limits

PAPER = Paper(
    arxiv="2411.16044",
    title="ZoomEye: Enhancing Multimodal LLMs with Human-Like Zooming Capabilities through "
    "Tree-Based Image Exploration",
    authors="Shen, Haozhan and Zhao, Kangjia and Zhao, Tiancheng and Xu, Ruochen and Zhang, Zilun "
    "and Zhu, Mingwei and Yin, Jianwei",
    venue="EMNLP",
    year=2025,
)


@strategy("zoom", paper=PAPER, off={"depth": 0})
class Zoom(Strategy):
    """Answer with the view that a search over the picture settles on."""

    cue: str | None = param(None, "what to look for; None asks the model")
    upper: float = param(0.6, "the bar: confidence that stops the search", ge=-1, le=1)
    lower: float = param(0.0, "bar at which it gives up", ge=-1, le=1)
    drop: float = param(0.1, "by how much the bar falls first; then .1 and .2, .2, ...", ge=0)
    visits: int = param(3, "views visited per level before it falls", ge=1)
    depth: int = param(5, "most levels; 0 searches nothing", ge=0, le=8)
    bias: float = param(0.6, "weight of being there, at the top", ge=0, le=1)
    smallest: int = param(384, "longest side of a view that is not divided", ge=2, le=1024)
    margin: float = param(1.2, "factor on the sides of a view that is shown", ge=1)
    shown: str = param("both", "what is shown of a view", choices=("both", "view"))

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """What to look for, asked without the picture, or at once the first looks."""
        if not prompt.pictures or not self.depth:
            return {}
        if self.cue is None:
            return {"cues": ActivationRequest(zooming.cues_wanted(prompt.question), write=64)}
        return self._found(prompt, {})[0]

    def next_activations(
        self, prompt: Prompt, activations: Mapping[str, Activations], m: ModelInfo
    ) -> Mapping[str, ActivationRequest]:
        """The looks that the search of each picture takes next."""
        return self._found(prompt, self.prepare(activations, m))[0]

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """What was said: the cues, and of each look its confidence."""
        return {name: zooming.said(name, kept) for name, kept in activations.items()}

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The prompt with the views that were found."""
        boxes = self._found(prompt, state)[1] if state else []
        whole = self.shown == "both"
        return {"main": Branch(zooming.shown(prompt, boxes, whole=whole))} if any(boxes) else {}

    def _found(self, prompt: Prompt, said: State) -> Found:
        """Looks to take next, and the views found by those that were taken."""
        bars = (self.upper, self.lower, (self.drop, *DROPS))
        limits = Limits(*bars, self.visits, self.depth, self.bias, self.smallest)
        cues = (self.cue,) if self.cue is not None else zooming.cues_in(said["cues"])
        return zooming.found(prompt, cues, said, limits, self.margin, whole=self.shown == "both")
