"""From what a benchmark read to what is asked: limits, pictures and prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidData
from halludecode.evals.data.oddities import oddities
from halludecode.evals.data.run_files import LINE_FACTS
from halludecode.evals.data.samples import EvalImage, EvalUnit, Sample

if TYPE_CHECKING:
    from halludecode.evals.benchmarks.base import Benchmark
    from halludecode.evals.presets import Preset

Pictures = Callable[[str, str], EvalImage]  # (name, where it is asked for) -> picture
TESTBED_IMAGES = 500  # of a testbed source, unless more are asked for


@dataclass(frozen=True)
class Selection:
    """What to take from every source.

    Args:
        benchmarks: Those asked for, their parameters set.
        presets: Prompt preset of every one, by name.
        limit: Pictures (or groups) per source and benchmark; None takes all.
        columns: Our column name to a hub data set's own, where they differ.
        testbed_images: Pictures per testbed source.
    """

    benchmarks: Sequence[Benchmark]
    presets: Mapping[str, Preset]
    limit: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    testbed_images: int = TESTBED_IMAGES


def folder_pictures(folder: Path) -> Pictures:
    """Pictures of a folder by name, each read and hashed once."""
    known: dict[str, EvalImage] = {}

    def find(name: str, where: str) -> EvalImage:
        if name not in known:
            path = folder / name
            if not path.is_file():
                raise InvalidData(f"{where}: picture {path} does not exist.")
            known[name] = EvalImage.from_file(path, name)
        return known[name]

    return find


def first_folder(root: Path, *names: str) -> Path:
    """The first of these folders beside or above the questions; ``root`` without any."""
    places = [root / name for name in names] + [root.parent / name for name in names]
    return next((place for place in places if place.is_dir()), root)


def make_unit(
    benchmark: Benchmark,
    data: str,
    split: str | None,
    samples: Sequence[Sample],
    pictures: Pictures,
    selection: Selection,
    revision: str | None = None,
    path: Path | None = None,
) -> EvalUnit:
    """Applies the limit, finds the pictures and words the prompts.

    Args:
        benchmark: Whose samples they are.
        data: Name of the source.
        split: Split of the benchmark.
        samples: As read.
        pictures: Finds a picture by its name.
        selection: Limit and prompts.
        revision: Of a hub data set.
        path: The question file; None of a hub data set.

    Raises:
        InvalidData: Pictures are missing (how many is told), or an id occurs twice.
    """
    preset, seen = selection.presets[benchmark.name], dict[int | str, str]()
    find = _Finder(pictures)
    taken = limited(benchmark, samples, selection.limit)
    sizes = Counter(map(benchmark.group, taken))
    asked = []
    for sample in taken:
        if sample.id in seen:
            raise InvalidData(
                f"{sample.where}: id {sample.id} was already used at {seen[sample.id]}."
            )
        if clash := LINE_FACTS & sample.facts.keys():
            raise InvalidData(
                f"{benchmark.title or benchmark.name} keeps a fact called {min(clash)!r}, which is "
                "a word of samples.jsonl; give it another name in the benchmark's read."
            )
        seen[sample.id] = sample.where
        group = benchmark.group(sample)
        picture = EvalImage.none(f"{group}: no picture") if sample.image is None else find(sample)
        if picture is None:
            continue
        if sample.image is not None:
            picture = benchmark.shown(sample, picture, path)
        prompt = benchmark.prompt(preset, sample)
        filled = {"picture": picture, "prompt": prompt, "group": group}
        asked.append(replace(sample, **filled, group_size=sizes[group]))
    find.refuse_missing()
    odd = oddities((sample.prompt, sample) for sample in asked)
    return EvalUnit(benchmark, data, split, tuple(asked), revision, odd)


class _Finder:
    """Finds the pictures of samples, and counts those that are missing."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._found: dict[tuple[str, ...], EvalImage | None] = {}
        self._missing: list[InvalidData] = []

    def __call__(self, sample: Sample) -> EvalImage | None:
        """The picture of a sample, of several joined; None where one is missing."""
        names = (str(sample.image), *sample.more)
        if names not in self._found:
            try:
                shown = [self._pictures(name, sample.where) for name in names]
                self._found[names] = EvalImage.joined(shown) if sample.more else shown[0]
            except InvalidData as error:
                self._found[names] = None
                self._missing.append(error)
        return self._found[names]

    def refuse_missing(self) -> None:
        """Raises the first complaint, with how many more there are."""
        if self._missing:
            told, more = str(self._missing[0]), len(self._missing) - 1
            if more:
                told = f"{told.rstrip('.')} ({more} more of {len(self._found)} are missing too)."
            raise InvalidData(told)


def limited(benchmark: Benchmark, samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """The samples of the first ``limit`` groups."""
    kept = set(list(dict.fromkeys(map(benchmark.group, samples)))[:limit])
    return [sample for sample in samples if benchmark.group(sample) in kept]
