"""What a strategy is: a frozen dataclass of parameters with a few pure hooks.

Overriding a hook is the declaration; nothing else is registered. See
`halludecode/strategies/vcd.py` for a whole one.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast, dataclass_transform

from halludecode.core.errors import InvalidParameter

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention
    from halludecode.core.hidden import Hidden
    from halludecode.core.prompt import Branch, Look, Prompt, Seen
    from halludecode.core.rowblock import Queries
    from halludecode.core.search import BeamSearch
    from halludecode.core.step import Step

S = TypeVar("S", bound="type[Strategy]")
State = Mapping[str, Any]  # tensors of one fixed shape, PerImageToken, or strings


@dataclass(frozen=True)
class Paper:
    """Where a strategy comes from; `bibtex` is what `halludecode cite` prints."""

    arxiv: str  # "" for a paper that is not there
    title: str
    authors: str  # "Last, First and Last, First"
    venue: str
    year: int
    openreview: str = ""

    @property
    def number(self) -> str:
        """The paper's number, with the archive it is in."""
        return f"arXiv:{self.arxiv}" if self.arxiv else f"OpenReview {self.openreview}"

    @property
    def url(self) -> str:
        """Where it can be read."""
        if self.arxiv:
            return f"https://arxiv.org/abs/{self.arxiv}"
        return f"https://openreview.net/forum?id={self.openreview}"

    def bibtex(self, key: str) -> str:
        """A BibTeX entry under ``key``."""
        place = f"  url       = {{{self.url}}},\n"
        if self.arxiv:
            place = f"  eprint    = {{{self.arxiv}}},\n  archivePrefix = {{arXiv}},\n"
        return (
            f"@inproceedings{{{key},\n"
            f"  title     = {{{{{self.title}}}}},\n"
            f"  author    = {{{self.authors}}},\n"
            f"  booktitle = {{{self.venue}}},\n"
            f"  year      = {{{self.year}}},\n"
            f"{place}"
            "}"
        )


@dataclass(frozen=True)
class Param:
    """One parameter: the single place for its default, help and bounds."""

    name: str
    default: Any
    help: str
    type: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] | None = None

    @property
    def bounds(self) -> str:
        """Human-readable bounds, empty where there are none."""
        if self.choices is not None:
            return "one of " + ", ".join(map(str, self.choices))
        low = (
            f"[{self.ge:g}"
            if self.ge is not None
            else f"({self.gt:g}"
            if self.gt is not None
            else ""
        )
        high = (
            f"{self.le:g}]"
            if self.le is not None
            else f"{self.lt:g})"
            if self.lt is not None
            else ""
        )
        if low and high:
            return f"in {low}, {high}"
        if low:
            return f"{'>=' if low[0] == '[' else '>'} {low[1:]}"
        return f"{'<=' if high[-1] == ']' else '<'} {high[:-1]}" if high else ""

    def check(self, owner: str, value: Any) -> Any:
        """The value, int widened to float and list to tuple; else InvalidParameter."""
        where = f"{owner}({self.name}={value!r})"
        value = self._typed(where, value)
        if value is None:
            return None
        if self.choices is not None and value not in self.choices:
            raise InvalidParameter(f"{where}: {self.name} must be {self.bounds}.")
        if isinstance(value, int | float) and not isinstance(value, bool):
            inside = (
                math.isfinite(value)
                and (self.ge is None or value >= self.ge)
                and (self.gt is None or value > self.gt)
                and (self.le is None or value <= self.le)
                and (self.lt is None or value < self.lt)
            )
            if not inside:
                raise InvalidParameter(f"{where}: {self.name} must be {self.bounds or 'finite'}.")
        return value

    def _typed(self, where: str, value: Any) -> Any:
        kinds = [kind.strip() for kind in self.type.split("|")]
        if value is None and "None" in kinds:
            return None
        if isinstance(value, list):
            value = tuple(cast("list[Any]", value))  # lists come from YAML; tuples are hashable
        for kind in kinds:
            if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
                return value
            if kind == "bool" and isinstance(value, bool):
                return value
            if kind == "str" and isinstance(value, str):
                return value
            if kind.startswith("tuple[int") and isinstance(value, tuple | int):
                items = (value,) if isinstance(value, int) else cast("tuple[Any, ...]", value)
                if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
                    return items
        raise InvalidParameter(
            f"{where}: {self.name} must be a {self.type.replace(' | ', ' or ')}."
        )


def param(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A strategy parameter with its default, help text and bounds."""
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices}
    return field(default=default, metadata={"help": help, **bounds})


@dataclass(frozen=True)
class Vision:
    """Numbers of the vision tower; None in `Facts` where the family has no plain one."""

    layers: int
    heads: int
    has_cls: bool
    feature_layer: int


@dataclass(frozen=True)
class Facts:
    """Numbers of the loaded model; strategies see nothing else of it.

    Args:
        L: Decoder layers.
        H: Query heads.
        G: Key/value heads.
        D: Hidden size.
        V: Vocabulary size.
        d: Head size.
        vision: The vision tower's numbers.
        mrope: Whether positions are three-dimensional.
        artifact: Tensors made by `calibrate` for this model and strategy, if any.
    """

    L: int
    H: int
    G: int
    D: int
    V: int
    d: int
    vision: Vision | None = None
    mrope: bool = False
    artifact: Mapping[str, Tensor] | None = field(default=None, compare=False)

    def scaled(self, layer: int) -> int:
        """A layer number given for 32-layer models, scaled to this depth."""
        return round(layer * self.L / 32)


def stack(states: Sequence[State]) -> State:
    """State of one strategy over requests: equal-shaped tensors become [B, ...], the rest lists."""
    stacked: dict[str, Any] = {}
    for name in dict.fromkeys(name for state in states for name in state):
        values = [state.get(name) for state in states]
        shapes = {getattr(value, "shape", None) for value in values}
        same = len(shapes) == 1 and None not in shapes
        stacked[name] = _stacked(values) if same else values
    return stacked


def _stacked(values: list[Any]) -> Tensor:
    import torch

    return torch.stack(values)


@dataclass(frozen=True)
class PerImageToken:
    """State of one float per image token ([N_img]), seen by `attend` as ``a.key(name)``."""

    values: Tensor


def _cannot(*_: object) -> Any:
    raise InvalidParameter("This calibration gives prompts and looks, not scores or training.")


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` may ask of the engine.

    Args:
        samples: Prompts to find a model's constants on.
        look: Passes of the plain model.
        answers: The right answer to each sample where the data has one: "yes", "no" or a caption.
        score: ``(strategy, artifact) -> float``, higher is better: the share of yes/no samples
            answered rightly; where no sample has such an answer, minus the mean entropy in nats of
            the first token's distribution (ZeroTuning's supervised and unsupervised searches).
        soft_prompt: ``() -> tensors``: "soft" float32 [n, D], trained to stand for picture features
            with the model frozen (`halludecode.training.soft_prompt`).
        track: Shows progress over an iterable.
        notes: Sentences on what was found; kept with the artifact.
    """

    samples: Sequence[Prompt]
    look: Callable[[Look], Seen]
    answers: Sequence[str | None] = ()
    score: Callable[[Strategy, Mapping[str, Tensor]], float] = _cannot
    soft_prompt: Callable[[], Mapping[str, Tensor]] = _cannot
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter
    notes: list[str] = field(default_factory=list[str])

    @property
    def supervised(self) -> bool:
        """Whether `score` is accuracy."""
        return any(answer in ("yes", "no") for answer in self.answers)


@dataclass(frozen=True)
class Strategy:
    """Base of all strategies: override what the paper does, leave the rest.

    Life of a request: looks -> prepare -> branches -> attend and steer in every forward -> combine
    for every token. Hooks are pure; nothing writes strategy state after `prepare`.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None
    off: ClassVar[Mapping[str, Any]] = {}
    source: ClassVar[str] = ""
    artifact: ClassVar[Literal["optional", "required"] | None] = None
    artifact_params: ClassVar[tuple[str, ...] | None] = None  # what it depends on; None: all
    fetch: ClassVar[tuple[str, ...]] = ()
    site: ClassVar[Literal["residual", "mlp"]] = "residual"  # the stream that `steer` rewrites
    steer_at: ClassVar[Queries] = "all"
    steer_rows: ClassVar[tuple[str, ...]] = ("main",)

    def __post_init__(self) -> None:
        for spec in self.params():
            object.__setattr__(self, spec.name, spec.check(self.name, getattr(self, spec.name)))

    def layers(self, m: Facts) -> Iterable[int]:
        """Decoder layers where `attend` and `steer` run; all by default."""
        return range(m.L)

    def early(self, m: Facts) -> Iterable[int]:
        """Residuals that `combine` decodes: 0 is the embeddings, l what enters layer l."""
        return ()

    def calibrate(self, cal: Calibration, m: Facts) -> Mapping[str, Tensor]:
        """Once per model: the artifact this strategy reads as ``m.artifact``."""
        raise InvalidParameter(f"{self.name} has nothing to calibrate.")

    def looks(self, prompt: Prompt, m: Facts) -> Mapping[str, Look]:
        """Passes of the plain model to run before anything else."""
        return {}

    def prepare(self, seen: Mapping[str, Seen], m: Facts) -> State:
        """Per-request state from what the looks saw."""
        return {}

    def branches(self, prompt: Prompt, state: State, m: Facts) -> Mapping[str, Branch]:
        """Extra rows of the batch, by a name local to this strategy."""
        return {}

    def attend(self, a: Attention) -> None:
        """Edit one layer's attention."""

    def steer(self, h: Hidden) -> Tensor:
        """[R, T, D] to put in place of ``h.x``, for every row of ``steer_rows``."""
        return h.x

    def search(self, m: Facts) -> BeamSearch | None:
        """A search over beams in place of the token loop."""
        return None

    def combine(self, step: Step) -> Tensor:
        """Float32 [B, V] scores of the next token from the rows' logits."""
        return step["main"]

    @classmethod
    def declares(cls, hook: str) -> bool:
        """Whether this strategy overrides ``hook``."""
        return getattr(cls, hook) is not getattr(Strategy, hook)

    @classmethod
    def params(cls) -> tuple[Param, ...]:
        """The parameters in the order they are declared."""
        return tuple(
            Param(name=f.name, default=f.default, type=_type_name(f.type), **f.metadata)
            for f in dataclasses.fields(cls)
        )

    def resolved(self) -> dict[str, Any]:
        """Every parameter with its value."""
        return {spec.name: getattr(self, spec.name) for spec in self.params()}


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
        InvalidParameter: The name is taken by another file or is not a plain word.
    """

    def register(cls: S) -> S:
        from halludecode.core.registry import STRATEGIES

        cls.name, cls.paper, cls.off = name, paper, dict(off or {})
        try:
            cls.source = str(Path(inspect.getfile(cls)))
        except (OSError, TypeError):  # typed in a notebook cell
            cls.source = f"<{cls.__module__}>"
        frozen = dataclass(frozen=True)(cls)
        STRATEGIES.add(name, frozen)
        return frozen

    return register


def _type_name(annotation: Any) -> str:
    """The annotation as written, whether or not the file postpones evaluating them."""
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if type(annotation) is type else str(annotation)
