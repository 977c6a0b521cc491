"""What a benchmark is: one class that finds, reads, asks, judges and scores.

Overriding a method is the declaration; nothing else is registered. A file in this folder, a module
of another package (entry-point group ``halludecode.benchmarks``) or a notebook cell are all alike::

    @benchmark("mine", paper=PAPER)
    class Mine(YesNoBenchmark):
        title = "Mine"  # reads mine.jsonl of a data folder, or a table with the same columns

Life of a sample: find -> load (read) -> order -> limit (group) -> prompt -> judge -> answered (its
line) -> complete -> score. Nothing outside this folder compares with a benchmark's name; what
tables, figures, controls and exports need to know of it is written in its class as data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from halludecode.core.errors import InvalidData
from halludecode.core.params import Parameters
from halludecode.evals.benchmarks.answered import Answered, Answers
from halludecode.evals.benchmarks.shown import (
    YES_RATIO,
    YES_RATIO_PLOT,
    DetailTable,
    LmmsEvalTask,
    Mention,
    Metric,
    MetricPlot,
    Shown,
)
from halludecode.evals.data.columns import Columns, cells_of, map_columns, nearest
from halludecode.evals.data.entries import Pictures, folder_pictures
from halludecode.evals.data.records import Record, first_fields, read_records
from halludecode.evals.data.samples import EvalImage, Sample
from halludecode.evals.statistics.score import Formula, Id, Score, gather, mean_of

if TYPE_CHECKING:
    from halludecode.core.paper import Paper
    from halludecode.evals.presets import Preset, Wording

__all__ = ["YES_RATIO", "YES_RATIO_PLOT", "Answers", "Benchmark", "DetailTable", "LmmsEvalTask"]
__all__ += ["Mention", "Metric", "MetricPlot"]

Lines = Mapping[Id, Mapping[str, Any]]  # lines of a run folder by sample id


@dataclass(frozen=True)
class Benchmark(Parameters, Shown, Answered):
    """Base of all benchmarks: override what the benchmark does, leave the rest.

    Fields are its parameters, in the strategies' grammar: ``--tasks "chair(family=pattern)"``.
    """

    paper: ClassVar[Paper | None] = None
    source: ClassVar[str] = ""  # the file it is defined in
    splits: ClassVar[tuple[str, ...]] = ()  # in order; results add their mean
    whole: ClassVar[bool] = False  # a group counts only if all of it was answered
    standard: ClassVar[int] = 0  # place among what is run where no task is named; 0 is none

    files: ClassVar[tuple[str, ...]] = ()  # where a data folder may have its file; see `find`
    needs: ClassVar[str] = ""  # what files it reads, for "No questions for NAME; it needs ..."
    hub: ClassVar[str] = ""  # its data set there, OWNER/NAME or, pinned, OWNER/NAME@COMMIT
    hub_files: ClassVar[tuple[str, ...]] = ()  # of it, where it is no table but files to fetch
    columns: ClassVar[tuple[Columns, ...]] = ()  # tables and JSON lines it reads
    categories: ClassVar[tuple[str, ...]] = ()  # the rows of a shared table that are its own
    # Rows of its first table, under our names and pictures by name, of two groups or more: what the
    # contract suite tries it on; `list NAME` shows the first.
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ()

    wording: ClassVar[Wording] = "question"  # which of a preset's words go round a question
    max_new_tokens: ClassVar[int | Mapping[str, int]] = 16  # by kind where there are several
    preset_tokens: ClassVar[bool] = False  # whether a preset's limit goes before its own

    aliases: ClassVar[Mapping[str, str]] = {}  # options of `evaluate` to the parameter they set

    # Reading ------------------------------------------------------------------------------------

    @property
    def what_it_needs(self) -> str:
        """The files it reads, or their columns, in words."""
        if self.needs:
            return self.needs
        lists = [", ".join(kind.needs) for kind in self.columns]
        table = f", or a data set with {' or '.join(lists)}" if lists else ""
        return f"{self._places()[0]} in the folder{table}"

    def _places(self) -> tuple[str, ...]:
        stems = (self.name, f"{self.name}/{self.name}")
        return self.files or tuple(f"{stem}{end}" for stem in stems for end in (".jsonl", ".json"))

    def find(self, folder: Path) -> Mapping[str | None, Path]:
        """Split to the file that holds its questions; empty where there are none.

        By default the first of ``files`` (``NAME.jsonl``, ``NAME/NAME.jsonl``, or ``.json``) that
        has the benchmark's columns; where none has, the first, for `load` to say what is wrong.

        Args:
            folder: A data folder.
        """
        found = [folder / place for place in self._places() if (folder / place).is_file()]
        fitting = (path for path in found if self.reads(path, first_fields(path)))
        ours = next(fitting, next(iter(found), None))
        return {} if ours is None else {self.split_of(ours): ours}

    def reads(self, path: Path, first: Mapping[str, Any]) -> bool:
        """Whether a file looks like one of its question files.

        Args:
            path: The file, or a folder of files.
            first: Its first JSON object; {} where there is none.
        """
        return any(kind.fits(first) for kind in self.columns)

    def split_of(self, path: Path) -> str | None:
        """The split that a question file holds."""
        return None

    def taken(self, found: Sequence[str | None], where: str) -> list[str | None]:
        """Which of the splits found are asked for, in order: its own before others.

        Args:
            found: Splits a source has.
            where: The source, for messages.
        """
        own = [split for split in self.splits if split in found]
        return [*own, *(split for split in found if split not in own)]

    def bound_to(self, path: Path) -> Self:
        """This benchmark with what lies beside a question file, such as word lists."""
        return self

    def load(
        self, path: Path, *, limit: int | None = None, images: Path | None = None
    ) -> list[Sample]:
        """All samples of a question file; by default JSON lines of the names in ``columns``.

        Args:
            path: What `find` found, or ``--annotations``.
            limit: Groups that will be taken; more may be returned.
            images: Folder of the pictures, if the file lists more pictures than there are.

        Raises:
            InvalidData: A line cannot be used; the sentence names it.
        """
        records = read_records(path)
        kind = self.table(records[0].fields)
        if kind is None:
            raise InvalidData(
                f"{path}: {self.name} reads no JSON lines; it needs {self.what_it_needs}."
            )
        # A column that may be absent may be so in the first line alone.
        found = dict.fromkeys(name for record in records for name in record.fields)
        names = map_columns(kind, str(path), list(found), {})
        samples: list[Sample] = []
        split = Path(path).stem
        for record in records:
            cells = cells_of(kind, names, record)
            samples += self.samples(Record(record.where, cells, record.line, split))
        return samples

    def table(self, found: Iterable[str]) -> Columns | None:
        """The kind of table that has these columns, or that misses least."""
        names = tuple(found)
        fits = (kind for kind in self.columns if kind.fits(names))
        return next(fits, None) or nearest(self.columns, names)

    def samples(self, record: Record) -> tuple[Sample, ...]:
        """What `read` makes of a row that is one of its own."""
        if not self.owns(record):
            return ()
        made = self.read(record)
        return (made,) if isinstance(made, Sample) else tuple(made)

    def owns(self, record: Record) -> bool:
        """Whether a row of a table that several benchmarks read is one of this one."""
        return not self.categories or record.fields.get("category") in self.categories

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """The sample of one row, or several.

        Args:
            record: Its cells under our names (of pictures their names), and where it stands.

        Raises:
            InvalidData: The row cannot be used; the sentence begins with ``record.where``.
        """
        raise InvalidData(
            f"{record.where}: {self.name} reads no tables; it needs {self.what_it_needs}."
        )

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """Finds a picture of a question file by its name.

        Args:
            path: The question file.
            folder: The data folder it was found in.
            images: Where the user says the pictures are.
        """
        return folder_pictures(images or folder / "images")

    def shown(self, sample: Sample, picture: EvalImage, path: Path | None) -> EvalImage:
        """The picture as it is asked about, such as with what a question names marked in it.

        Args:
            sample: The question.
            picture: As the data have it.
            path: The question file; None of a data set on the hub.

        Raises:
            InvalidData: What is drawn into it does not exist.
        """
        return picture

    def order(self, samples: Sequence[Sample], where: str) -> Sequence[Sample]:
        """The samples in the order that a limit takes them.

        Args:
            samples: Those of one split, as they were read.
            where: The source, for messages.
        """
        return samples

    def finish(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """The samples with what can only be told from all of them."""
        return samples

    def group(self, sample: Sample) -> str:
        """What a limit counts and, in `whole` benchmarks, what counts only all together."""
        return sample.group or sample.image or str(sample.id)

    def enough(
        self, groups: Mapping[str | None, Sequence[str]], limit: int, table: Columns
    ) -> bool:
        """Whether the rows read so far hold all that a limit takes.

        Args:
            groups: Groups met so far, by split, in order.
            limit: Groups wanted.
            table: The table that is read.
        """
        if table.apart or not groups:
            return False
        if table.single:
            return any(len(names) >= limit for names in groups.values())
        # A group's rows are neighbours: it is complete once the next one begins.
        return all(len(names) > limit for names in groups.values())

    # Asking -------------------------------------------------------------------------------------

    def settled(self, preset: Preset) -> Self:
        """This benchmark with every choice made that was left open.

        Args:
            preset: The prompt preset it is asked under.
        """
        return self

    def kind(self, sample: Sample) -> str:
        """What decides the length of an answer and the words it is read by."""
        return self.name

    def kinds(self) -> tuple[str, ...]:
        """All that `kind` may say."""
        many = self.max_new_tokens
        return tuple(many) if isinstance(many, Mapping) else (self.name,)

    def tokens(self, kind: str, preset: Preset) -> int:
        """Most new tokens of an answer."""
        many = self.max_new_tokens
        own = many[kind] if isinstance(many, Mapping) else many
        return preset.tokens(self.wording, own) if self.preset_tokens else own

    def words(self, kind: str) -> tuple[str, ...]:
        """The two words whose first-step scores make the margin; () for none."""
        return ("yes", "no") if self.text_kind == "yes_no" else ()

    def prompt(self, preset: Preset, sample: Sample) -> str:
        """The words sent to the model."""
        return preset.prompt(self.wording, sample.question)

    # Scoring ------------------------------------------------------------------------------------

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """What one answer says and how right it is: the ``parsed`` and ``score`` of its line."""
        raise NotImplementedError

    def answered(self, sample: Sample, answer: str) -> dict[str, Any]:
        """What the line of an answer holds for `score`."""
        truth = {"label": sample.label}
        if sample.objects is not None:
            truth = {"objects": list(sample.objects)}
        judged = {"answer": answer, **self.judge(sample, answer)}
        return {**judged, **truth, **sample.facts, **(self.marks(sample) if self.whole else {})}

    def marks(self, sample: Sample) -> dict[str, Any]:
        """What a line holds for `group_of`."""
        return {"group": sample.group, "group_size": sample.group_size}

    def group_of(self, line: Mapping[str, Any]) -> tuple[str, int]:
        """Name and size of the group that a line counts in."""
        return line["group"], line["group_size"]

    def complete(self, lines: Lines) -> Lines:
        """The lines that can be scored: in a `whole` benchmark those of groups answered whole."""
        if not self.whole:
            return lines
        groups = {i: self.group_of(line) for i, line in lines.items()}
        answered = Counter(name for name, _ in groups.values())
        return {i: lines[i] for i, (name, size) in groups.items() if answered[name] == size}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Scores lines of a run folder, whole groups in the order of their ids."""
        raise NotImplementedError

    def tally(
        self,
        lines: Sequence[Mapping[str, Any]],
        rows: Sequence[tuple[str, Mapping[str, float]]],
        formula: Formula,
        shares: Mapping[str, Mapping[Any, int]] | None = None,
        wilson: tuple[str, ...] = (),
    ) -> Score:
        """A score from counts, for `score` to return.

        Args:
            lines: All that is scored.
            rows: Cluster (what is resampled together) and counts, whose sums the formula takes.
            formula: Metrics from sums; NaN marks a zero denominator.
            shares: Metrics that are plain shares, by item; None is ``accuracy`` of the lines.
            wilson: Those whose interval is Wilson's.
        """
        clusters, columns = gather(rows)
        outcomes = {
            x["id"]: {
                "image": x.get("image"),
                "answer": x["answer"],
                "parsed": x["parsed"],
                "label": x.get("label"),
                "correct": x["score"],
            }
            for x in lines
        }
        right = {i: outcome["correct"] for i, outcome in outcomes.items()}
        return Score(
            task=self.name,
            n=len(outcomes),
            rule="official",
            outcomes=outcomes,
            clusters=clusters,
            columns=columns,
            formula=formula,
            shares={"accuracy": right} if shares is None else shares,
            wilson=wilson,
            unparsed=self.unparsed(lines),
            unread=sum(outcome["parsed"] == "other" for outcome in outcomes.values()),
        )

    def unparsed(self, lines: Sequence[Mapping[str, Any]]) -> int:
        """Answers that hold none of the benchmark's words as a word, whatever its rule."""
        return sum(line["parsed"] == "other" for line in lines)

    def grouped(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
        """The lines of every group of a `whole` benchmark, by its name."""
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for line in lines:
            groups.setdefault(self.group_of(line)[0], []).append(line)
        return groups

    def mean(self, scores: Mapping[str, Score]) -> Score:
        """The mean over splits."""
        return mean_of(scores)

    def scored_text(self, answer: str) -> str:
        """The part of an answer that is scored."""
        return answer

    def recipe(self) -> dict[str, Any]:
        """What answers to be compared must share of its parameters, for ``run.json``."""
        values = self.resolved().items()
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values}

    @classmethod
    def recorded(cls, recipe: Mapping[str, Any]) -> Self:
        """The benchmark behind a run folder's lines; what `recipe` left out is at its default."""
        known = {spec.name for spec in cls.params()}
        return cls(**{name: value for name, value in recipe.items() if name in known})

    def record(self) -> dict[str, Any]:
        """What else ``run.json`` tells of it, at its top level."""
        return {}
