"""A run again from its ``run.json``, and what differs: versions, data, answers, scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidData
from halludecode.evals.data.run_files import key_of, read_json, read_lines
from halludecode.evals.runner.run import run_eval
from halludecode.evals.runner.run_folder import check_folder

if TYPE_CHECKING:
    from rich.console import Group

# What a run was made with; the rest of run.json says what was asked.
MADE_WITH = ("model", "model_digest", "engine", "dtype")
SHOWN = 5  # answers that differ and are quoted


@dataclass(frozen=True)
class Reproduction:
    """What a second run has in common with the first, and what not.

    Args:
        made_with: (what, before, now) of versions, weights and hardware that differ.
        data: (source, before, now) of digests that differ.
        answers: Keys of answers that differ -> the two texts; None where there is none.
        count: Answers of the first run.
        scores: (task, source, split, strategy, metric, before, now) of values that differ.
        compared: Values that were held against each other.
        path: The second run's folder.
    """

    made_with: tuple[tuple[str, Any, Any], ...]
    data: tuple[tuple[str, Any, Any], ...]
    answers: Mapping[tuple[Any, ...], tuple[str | None, str | None]]
    count: int
    scores: tuple[tuple[Any, ...], ...]
    compared: int
    path: Path

    @property
    def same(self) -> bool:
        """Whether all answers and scores are the same."""
        return not (self.answers or self.scores)

    def table(self) -> Group:
        """All that differs, in words; what is the same is counted."""
        from rich.console import Group
        from rich.text import Text

        return Group(*map(Text, self._sentences()))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1,
            "same": self.same,
            "made_with": [list(each) for each in self.made_with],
            "data": [list(each) for each in self.data],
            "answers": {
                "compared": self.count,
                "differ": [[list(key), *texts] for key, texts in self.answers.items()],
            },
            "scores": {"compared": self.compared, "differ": [list(each) for each in self.scores]},
            "run": str(self.path),
        }

    def _sentences(self) -> Iterator[str]:
        for title, changed in (("Made with", self.made_with), ("Data", self.data)):
            yield f"{title}: {'the same' if not changed else 'differs'}"
            yield from (f"  {what}: {before} -> {now}" for what, before, now in changed)
        yield f"Answers: {len(self.answers)} of {self.count} differ"
        for key, (before, now) in list(self.answers.items())[:SHOWN]:
            where = " ".join(str(part) for part in key if part is not None)
            yield f"  {where}: {before!r} -> {now!r}"
        yield f"Scores: {len(self.scores)} of {self.compared} differ"
        for *where, before, now in self.scores:
            place = " ".join(str(part) for part in where if part is not None)
            yield f"  {place}: {before:.4f} -> {now:.4f}"


def read_card(file: Path) -> tuple[Path, dict[str, Any]]:
    """A run's folder and what its ``run.json`` holds, checked for what a second run needs.

    Args:
        file: ``run.json``, or the folder that holds it.

    Raises:
        InvalidData: It is no run of `eval`.
    """
    file = file / "run.json" if file.is_dir() else file
    if not file.is_file():
        raise InvalidData(f"{file}: no such file; give the run.json of a run folder.")
    run = read_json(file)
    if not isinstance(run.get("calls"), dict) or not run["calls"]:
        raise InvalidData(
            f"{file}: it does not say how it was called, so it cannot be run again: its answers "
            "were imported, a part of the pictures was asked about, or an older version wrote it."
        )
    return file.parent, run


def reproduce(
    file: Path, engine_or_loader: Any, output: Path, *, progress: bool = True
) -> Reproduction:
    """Runs what a ``run.json`` tells once more, into another folder, and compares.

    Args:
        file: ``run.json``, with the first run's files beside it.
        engine_or_loader: As for `run_eval`.
        output: Where the second run goes.
        progress: Show progress bars.

    Raises:
        InvalidData: The file is none, or the output is the first run's own folder.
        HalluDecodeError: As `run_eval`.
    """
    folder, run = read_card(file)
    if output.resolve() == folder.resolve():
        raise InvalidData(f"{output} is the run itself; name another folder for the second one.")
    check_folder(output)
    for call in run["calls"].values():
        run_eval(engine_or_loader, **call, output=output, progress=progress)
    again = read_json(output / "run.json")
    before, now = (_answers(path) for path in (folder, output))
    scores = [_scores(path) for path in (folder, output)]
    common = [key for key in scores[0] if key in scores[1]]
    return Reproduction(
        made_with=tuple(_made_with(run, again)),
        data=tuple(_data(run, again)),
        answers={
            key: (before.get(key), now.get(key))
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        },
        count=len(before),
        scores=tuple(
            (*key, scores[0][key], scores[1][key])
            for key in common
            if abs(scores[0][key] - scores[1][key]) > 1e-9
        ),
        compared=len(common),
        path=output,
    )


def _answers(folder: Path) -> dict[tuple[Any, ...], str]:
    file = folder / "samples.jsonl"
    if not file.is_file():
        raise InvalidData(f"{file}: not there, so there is nothing to compare with.")
    return {key_of(line): line["answer"] for line in read_lines(file)}


def _scores(folder: Path) -> dict[tuple[Any, ...], float]:
    """Values by task, source, split, strategy and metric."""
    return {
        (entry["task"], entry["data"], entry["split"], entry["strategy"], name): interval["value"]
        for entry in read_json(folder / "results.json")["runs"]
        for name, interval in entry["metrics"].items()
    }


def _made_with(run: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in MADE_WITH:
        if run.get(name) != again.get(name):
            yield name, run.get(name), again.get(name)
    for part in ("versions", "hardware"):
        old, new = run.get(part, {}), again.get(part, {})
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                yield name, old.get(name), new.get(name)


def _data(run: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    old, new = run.get("data", {}), again.get("data", {})
    for name in {**old, **new}:
        digests = [side.get(name, {}).get("digest") for side in (old, new)]
        if digests[0] != digests[1]:
            yield name, *(str(digest)[:16] for digest in digests)
