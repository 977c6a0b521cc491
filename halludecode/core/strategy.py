"""What a strategy is: a frozen dataclass of parameters with a few pure hooks.

Overriding a hook is the declaration; nothing else is registered. See
`halludecode/strategies/vcd.py` for a whole one.

Shapes: R or B requests, T tokens, D hidden size, V vocabulary size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, dataclass_transform

from halludecode.core.calibration import Calibration
from halludecode.core.errors import InvalidParameter
from halludecode.core.model_info import ModelInfo
from halludecode.core.paper import Paper
from halludecode.core.params import Parameters, check_class, check_name, param
from halludecode.core.prompt import Prompt
from halludecode.core.state import State

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.activations import ActivationRequest, Activations
    from halludecode.core.attention import Attention
    from halludecode.core.attention_block import Queries
    from halludecode.core.beam_search import BeamSearch
    from halludecode.core.branch import Branch
    from halludecode.core.residual import ResidualStream
    from halludecode.core.step import Step

__all__ = [  # what the file of a strategy takes from here
    "Calibration",
    "ModelInfo",
    "Paper",
    "Prompt",
    "State",
    "Strategy",
    "param",
    "strategy",
]

S = TypeVar("S", bound="type[Strategy]")


@dataclass(frozen=True)
class Strategy(Parameters):
    """Base of all strategies: override what the paper does, leave the rest.

    Life of a request: activations, next_activations until there are none -> prepare -> branches ->
    attend and steer in every forward -> combine for every token. Hooks are pure; nothing writes
    strategy state after `prepare`.
    """

    paper: ClassVar[Paper | None] = None
    off: ClassVar[Mapping[str, Any]] = {}
    source: ClassVar[str] = ""
    artifact: ClassVar[Literal["optional", "required"] | None] = None
    artifact_params: ClassVar[tuple[str, ...] | None] = None  # what it depends on; None: all
    samples: ClassVar[Literal["answers", "pairs", "labels"]] = "answers"  # what `calibrate` reads
    trained: ClassVar[str] = ""  # scheme that the weights must be trained with, to be told if not
    fetch: ClassVar[tuple[str, ...]] = ()
    site: ClassVar[Literal["residual", "mlp"]] = "residual"  # the stream that `steer` rewrites
    steer_at: ClassVar[Queries] = "all"
    steer_rows: ClassVar[tuple[str, ...]] = ("main",)
    # Which of its `layers` must have attention, in models where some have none: `attend` leaves
    # those out, unless the first decides for the others, or each was named for itself.
    must_attend: ClassVar[Literal["one", "first", "all"]] = "one"

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """Decoder layers where `attend` and `steer` run; all by default."""
        return range(m.num_layers)

    def early(self, m: ModelInfo) -> Iterable[int]:
        """Residuals that `combine` decodes: 0 is the embeddings, l what enters layer l."""
        return ()

    def calibrate(self, cal: Calibration, m: ModelInfo) -> Mapping[str, Tensor]:
        """Once per model: the artifact this strategy reads as ``m.artifact``."""
        raise InvalidParameter(f"{self.name} has nothing to calibrate.")

    def activations(self, prompt: Prompt, m: ModelInfo) -> Mapping[str, ActivationRequest]:
        """Passes of the plain model to run before anything else."""
        return {}

    def next_activations(
        self, prompt: Prompt, activations: Mapping[str, Activations], m: ModelInfo
    ) -> Mapping[str, ActivationRequest]:
        """Passes to run after those, by what they kept; asked again until none has a new name.

        Args:
            prompt: As `activations` was given it.
            activations: Of all passes so far, by name.
            m: The model.
        """
        return {}

    def prepare(self, activations: Mapping[str, Activations], m: ModelInfo) -> State:
        """Per-request state from what those passes kept."""
        return {}

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """Extra rows of the batch, by a name local to this strategy."""
        return {}

    def attend(self, a: Attention) -> None:
        """Edit one layer's attention."""

    def steer(self, h: ResidualStream) -> Tensor:
        """[R, T, D] to put in place of ``h.x``, for every row of ``steer_rows``."""
        return h.x

    def search(self, m: ModelInfo) -> BeamSearch | None:
        """A search over beams in place of the token loop."""
        return None

    def combine(self, step: Step) -> Tensor:
        """Float32 [B, V] scores of the next token from the rows' logits."""
        return step["main"]

    def decided(self, step: Step) -> Tensor | None:
        """Bool [B]: tokens for which `combine` gives the same whatever the extra rows hold.

        ``step`` has the main row alone. A cut that leaves one token (`Step.plausible` as the last
        thing `combine` does) is found without this; a rule of the paper's own, such as a gate, is
        told here. None, the default, is never.
        """
        return None

    @classmethod
    def declares(cls, hook: str) -> bool:
        """Whether this strategy overrides ``hook``."""
        return getattr(cls, hook) is not getattr(Strategy, hook)


@dataclass_transform(frozen_default=True, field_specifiers=(param,))
def strategy(
    name: str, *, paper: Paper | None = None, off: Mapping[str, Any] | None = None
) -> Callable[[S], S]:
    """Make a class a strategy: frozen, hashable, registered under ``name``.

    Args:
        name: Lower-case name used in spec strings; unique.
        paper: The citation.
        off: Parameter values at which the strategy must equal greedy, token for token.

    Raises:
        InvalidParameter: The name is taken by another file or is not a plain word, or the class
            has a misspelt hook or a field that is no `param`.
    """
    check_name(name, "strategy")

    def register(cls: S) -> S:
        from halludecode.core.registry import STRATEGIES

        check_class(cls, Strategy, name)
        cls.name, cls.paper, cls.off = name, paper, dict(off or {})
        try:
            cls.source = str(Path(inspect.getfile(cls)))
        except (OSError, TypeError):  # typed in a notebook cell
            cls.source = f"<{cls.__module__}>"
        frozen = dataclass(frozen=True)(cls)
        frozen.params()
        STRATEGIES.add(name, frozen)
        return frozen

    return register
