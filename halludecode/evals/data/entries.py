"""From what a benchmark read to what is asked: limits, pictures and prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidData
from halludecode.evals.data.run_files import LINE_FACTS
from halludecode.evals.data.samples import EvalImage, EvalUnit, Sample

if TYPE_CHECKING:
    from halludecode.evals.benchmarks.base import Benchmark
    from halludecode.evals.presets import Preset

Pictures = Callable[[str, str], EvalImage]  # (name, where it is asked for) -> picture


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
    testbed_images: int = 500


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

    Raises:
        InvalidData: A picture is missing, or an id occurs twice.
    """
    preset, seen = selection.presets[benchmark.name], dict[int | str, str]()
    found: dict[tuple[str, ...], EvalImage] = {}
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
        if sample.image is None:
            picture = EvalImage.none(f"{group}: no picture")
        else:
            names = (sample.image, *sample.more)
            if names not in found:
                shown = [pictures(name, sample.where) for name in names]
                found[names] = EvalImage.joined(shown) if sample.more else shown[0]
            picture = found[names]
        prompt = benchmark.prompt(preset, sample)
        filled = {"picture": picture, "prompt": prompt, "group": group}
        asked.append(replace(sample, **filled, group_size=sizes[group]))
    return EvalUnit(benchmark, data, split, tuple(asked), revision)


def limited(benchmark: Benchmark, samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """The samples of the first ``limit`` groups."""
    kept = set(list(dict.fromkeys(map(benchmark.group, samples)))[:limit])
    return [sample for sample in samples if benchmark.group(sample) in kept]
