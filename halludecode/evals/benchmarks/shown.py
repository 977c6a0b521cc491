"""How a benchmark's numbers are shown: metrics, plots, tables of detail, other kits' names.

Tables, figures, controls and exports read nothing else of a benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from halludecode.evals.statistics.score import Id, Score


@dataclass(frozen=True)
class Metric:
    """One metric as tables, figures and controls show it.

    Args:
        name: Its key in ``results.json``.
        title: What people call it, with its unit: ``accuracy %``.
        scale: What a value is multiplied by to be shown: 100 for fractions shown as percentages.
        lower_is_better: None where neither direction is better (a caption's length).
        beside: Further metrics shown in the same cell without interval: (name, short title).
        unless: A metric in whose presence this one is not shown.
        control: The control its differences must be read with: "yes_ratio" (accuracy at greedy's
            yes-ratio), "length" (captions cut to equal length), or None.
        headline: Whether the text under a table tells what its control came to.
        short: What running text calls it; by default the title without its unit.
        axis: Title of an axis that shows it; by default the title and which way is better.
        guessing: What guessing gets, as shown: bars may start there.
        chance: The same where no bar should, as most models get less; told with `fixed_answers`.
        digits: Digits behind the point.
    """

    name: str
    title: str
    scale: float = 100.0
    lower_is_better: bool | None = False
    beside: tuple[tuple[str, str], ...] = ()
    unless: str = ""
    control: Literal["yes_ratio", "length"] | None = None
    headline: bool = False
    short: str = ""
    axis: str = ""
    guessing: float = 0.0
    chance: float | None = None
    digits: int = 1

    @property
    def words(self) -> str:
        """What running text calls it."""
        return self.short or self.title.removesuffix(" %")

    @property
    def direction(self) -> str:
        """Which way is better, in words; empty where neither is."""
        if self.lower_is_better is None:
            return ""
        return "lower is better" if self.lower_is_better else "higher is better"

    @property
    def axis_title(self) -> str:
        """Title of an axis that shows it."""
        return self.axis or ", ".join(filter(None, (self.title, self.direction)))


@dataclass(frozen=True)
class MetricPlot:
    """Metrics that must be read together, as points of every strategy.

    Args:
        title: The heading.
        pairs: (metric across, metric up) of every drawing.
        note: How to read it.
    """

    title: str
    pairs: tuple[tuple[str, str], ...]
    note: str


YES_RATIO_PLOT = MetricPlot(
    "Yes-ratio against accuracy",
    (("yes_ratio", "accuracy"),),
    "A strategy that moves sideways says yes more or less often than greedy; one that moves up is "
    "right more often. Dotted lines lead to a cross: the accuracy where the strategy's own margins "
    "are cut at greedy's yes-ratio: what is lost on the way is the shift.",
)
YES_RATIO = Metric(
    "yes_ratio", "yes %", lower_is_better=None, axis="share of answers that are yes, %"
)


@dataclass(frozen=True)
class DetailTable:
    """A folded table of many metrics of one kind, one column each, in whole numbers.

    Args:
        title: The heading.
        suffix: What their names end in; the rest heads the column.
    """

    title: str
    suffix: str


@dataclass(frozen=True)
class Mention:
    """An object that a text names, and where.

    Args:
        start: Place of the first letter.
        end: Place behind the last one.
        object: What is named.
        invented: Whether it is not in the picture.
    """

    start: int
    end: int
    object: str
    invented: bool


@dataclass(frozen=True)
class LmmsEvalTask:
    """How lmms-eval names a benchmark.

    Args:
        task: Its task.
        splits: Our split to its task.
        metrics: Our metric to (its name, factor, whether higher is better there).
        pooled: Whether its number over all splits counts all their yes/no questions together,
            where ours is the mean of the splits.
    """

    task: str
    splits: Mapping[str, str] = field(default_factory=dict[str, str])
    metrics: Mapping[str, tuple[str, float, bool]] = field(
        default_factory=dict[str, tuple[str, float, bool]]
    )
    pooled: bool = False


class Shown:
    """What is shown of a benchmark; each has defaults that fit most."""

    title: ClassVar[str] = ""  # what people call it
    text_kind: ClassVar[Literal["yes_no", "caption", "choice"]] = "yes_no"
    metrics: ClassVar[tuple[Metric, ...]] = ()  # what tables show, the main one first
    more_metrics: ClassVar[tuple[Metric, ...]] = ()  # without a column: in text, plots and files
    plots: ClassVar[tuple[MetricPlot, ...]] = ()
    length_curves: ClassVar[tuple[str, ...]] = ()  # metrics drawn over the length of captions
    word_budgets: ClassVar[tuple[str, ...]] = ()  # metrics of captions cut at fixed lengths
    object_metrics: ClassVar[tuple[str, ...]] = ()  # those to be read at an equal number of objects
    details: ClassVar[DetailTable | None] = None
    tells_unparsed: ClassVar[bool] = False  # reports say how many answers could not be read
    lmms_eval: ClassVar[LmmsEvalTask | None] = None
    vlmevalkit: ClassVar[str] = ""  # VLMEvalKit's name of the data set

    @classmethod
    def metric(cls, name: str) -> Metric:
        """A metric by its key in ``results.json``, whether or not it is declared."""
        declared = (*cls.metrics, *cls.more_metrics)
        undeclared = Metric(name, name, scale=cls.scale_of(name), lower_is_better=None)
        return next((metric for metric in declared if metric.name == name), undeclared)

    @classmethod
    def scale_of(cls, name: str) -> float:
        """The scale of a metric that is not declared: they are fractions, but for the count."""
        return 1.0 if name == "unparsed" else 100.0

    @classmethod
    def controlled_by(cls, control: str) -> tuple[str, ...]:
        """Names of the metrics that must be read with a control."""
        return tuple(m.name for m in (*cls.metrics, *cls.more_metrics) if m.control == control)

    @classmethod
    def headlines(cls) -> tuple[str, ...]:
        """Names of the metrics that running text tells of a control."""
        return tuple(m.name for m in (*cls.metrics, *cls.more_metrics) if m.headline)

    @classmethod
    def cluster(cls, line: Mapping[str, Any]) -> str:
        """What the answer of a line is resampled with: its picture, or what counts with it."""
        return str(line.get("group", line["image"]))

    @classmethod
    def stratum(cls, line: Mapping[str, Any]) -> str:
        """What clusters are resampled within; all of them together unless overridden."""
        return ""

    @classmethod
    def pair(cls, line: Mapping[str, Any]) -> str | None:
        """Name of the pair that a line is in: questions that differ in little but their answers.

        Overriding it makes the benchmark paired: beside its numbers stands what answers get that
        do not change within a pair (`fixed_answers`). None for a line in no pair.
        """
        return None

    @classmethod
    def choices(cls, line: Mapping[str, Any]) -> tuple[str, ...]:
        """What the question of a line can be answered with, as ``parsed`` has it."""
        return ("yes", "no") if cls.text_kind == "yes_no" else ()

    @classmethod
    def mentions(
        cls, text: str, line: Mapping[str, Any], settings: Mapping[str, str]
    ) -> Sequence[Mention] | None:
        """The objects that a text names, in order; None where a page has nothing to mark.

        Args:
            text: What is shown of the line's answer.
            line: A line of ``samples.jsonl``.
            settings: How the run read captions, as ``run.json`` keeps it.
        """
        return None

    @classmethod
    def shortened(cls, score: Score, words: Mapping[Id, int]) -> Score:
        """The score with every caption cut after so many of the scorer's words.

        The length control needs it: a benchmark with a metric of ``control="length"`` has it.

        Args:
            score: Of whole captions.
            words: Item to the number of words that stay; items not named are left out.
        """
        raise NotImplementedError

    @classmethod
    def length_rates(cls, score: Score) -> Score:
        """The score with metrics that hang less on length, beside the length control."""
        raise NotImplementedError

    @classmethod
    def objects_named(cls, score: Score) -> Mapping[Id, int]:
        """How many different objects each text of a score names; {} where none is a text.

        The control at an equal number of objects needs it and `cut_after_objects`: a benchmark with
        ``object_metrics`` has both.
        """
        return {}

    @classmethod
    def cut_after_objects(cls, score: Score, objects: Mapping[Id, int]) -> Score:
        """The score with every text cut behind its k-th different object.

        Args:
            score: Of whole texts.
            objects: Text to k, at most what `objects_named` says; texts not named are left out.

        Returns:
            At least the ``object_metrics`` and ``objects``, the mean of k.
        """
        raise NotImplementedError

    @classmethod
    def is_text(cls, line: Mapping[str, Any]) -> bool:
        """Whether a line's answer is a text, whose words can repeat, and not a choice."""
        return line.get("label") is None

    @classmethod
    def recipe_rows(cls, run: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What its numbers hang on besides model, prompt and data, as (name, value).

        Args:
            run: The content of ``run.json``.
        """
        return []

    @classmethod
    def lmms_eval_outcome(cls, line: Mapping[str, Any]) -> dict[str, Any]:
        """What lmms-eval keeps of a line for each of its metrics, to make its sums again."""
        kept = {
            "question_id": line["id"],
            "score": line["score"],
            "prediction": line["parsed"],
            "ground_truth": line["label"],
        }
        theirs = cls.lmms_eval.metrics.values() if cls.lmms_eval else ()
        return {name: kept for name, _, _ in theirs}
