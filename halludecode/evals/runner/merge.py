"""The run folders of shards become the one that an undivided run would have left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.engines.api import Engine
from halludecode.evals.data.run_files import Key, key_of, read_lines
from halludecode.evals.results.build import Report
from halludecode.evals.runner.batching import Setup
from halludecode.evals.runner.reproduce import read_card
from halludecode.evals.runner.run import prepare, score
from halludecode.evals.runner.run_folder import MOMENT, RunStore, check_folder
from halludecode.evals.runner.run_record import check_data, recipe

# What shards may differ in: which they are, and where and when they ran.
OWN = ("shard", "resumed", "model_facts", *MOMENT)


class Answered(Engine):
    """Stands for the model of a run whose answers are all there: it has plans and answers nothing.

    Args:
        card: The content of ``run.json``.
    """

    def __init__(self, card: Mapping[str, Any]) -> None:
        self.name, self.model_id = card["engine"], card["model"]  # pyright: ignore
        self.provides = frozenset()
        self._card = card

    def plan(self, strategy: Any) -> Any:
        """What the run tells of a strategy, by its spec or its canonical form."""
        for canonical, told in self._card["strategies"].items():
            if strategy in (canonical, told["spec"]):
                return _Told(canonical, told)
        raise InvalidData(f"run.json tells of no strategy {strategy!r}.")

    def describe(self) -> dict[str, Any]:
        """Facts of the model and the versions, as the run tells them."""
        facts = {"device": self._card["hardware"]["device"], "versions": self._card["versions"]}
        said = {name: self._card[name] for name in ("model_digest", "engine", "dtype")}
        return {**self._card["model_facts"], **facts, **said}

    def generate(self, *_: Any, **__: Any) -> Any:
        """Never called.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("answers are merged, not made")


class _Told:
    """A plan as ``run.json`` tells of it."""

    def __init__(self, canonical: str, told: Mapping[str, Any]) -> None:
        self.canonical = canonical
        self._told = {k: v for k, v in told.items() if k not in ("spec", "controls")}

    def describe(self) -> dict[str, Any]:
        return self._told


def merge(folders: Sequence[Path], output: Path) -> Report:
    """Joins shards; data are read again for their scores, the model is not.

    Args:
        folders: Run folders of ``eval --shard K/N``, one for each K.
        output: The run folder to write.

    Raises:
        InvalidData: A folder is no shard, one is missing or is there twice, or they are of
            different runs; the sentence names it.
    """
    cards = _checked(folders)
    check_folder(output)
    if (output / "run.json").exists():
        raise InvalidData(f"{output} holds a run already; choose another output folder.")
    first = next(iter(cards.values()))
    lines, failures = (_pooled(cards, name) for name in ("samples.jsonl", "errors.jsonl"))
    report = None
    for call in first["calls"].values():
        setup = prepare(Answered(first), **call)
        identity, rest = recipe(setup)
        rest |= {name: first[name] for name in ("strategies", *MOMENT) if name in first}
        rest["shards"] = {str(path): {k: c.get(k) for k in OWN} for path, c in cards.items()}
        check = partial(check_data, setup, output)
        with RunStore(output, identity, rest, check=check) as store:
            keys = _in_order(setup)
            check_data(setup, output, {key: lines[key] for key in keys if key in lines})
            store.append(lines[key] for key in keys if key in lines)
            store.append_errors(failures[key] for key in keys if key in failures)
            report = score(setup, store)
    assert report is not None  # read_card wants a call
    return report


def _checked(folders: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """run.json by folder, of shards that make one run."""
    cards = {folder: read_card(folder)[1] for folder in folders}
    for folder, card in cards.items():
        if "shard" not in card:
            raise InvalidData(f"{folder} is a whole run, no shard of one; leave it out.")
    (start, first), count = next(iter(cards.items())), 0
    for folder, card in cards.items():
        count = int(card["shard"].split("/")[1])
        for name in {**first, **card}:
            if name not in OWN and first.get(name) != card.get(name):
                raise InvalidData(
                    f"{start} and {folder} are not of one run: {name} differs. Run one of them "
                    "again with the options of the others."
                )
    given = Counter(cards[folder]["shard"] for folder in folders)
    wanted = [f"{k}/{count}" for k in range(1, count + 1)]
    if strange := [shard for shard in given if shard not in wanted]:
        raise InvalidData(f"Shard {', '.join(strange)} is of another division than 1/{count}.")
    if twice := [shard for shard in given if given[shard] > 1]:
        raise InvalidData(f"Shard {', '.join(twice)} is given more than once; keep one of each.")
    if missing := [shard for shard in wanted if shard not in given]:
        raise InvalidData(
            f"Shard {', '.join(missing)} of the run is missing: {len(given)} of {count} were given."
        )
    return cards


def _pooled(cards: Mapping[Path, Any], name: str) -> dict[Key, dict[str, Any]]:
    files = [folder / name for folder in cards]
    return {key_of(line): line for file in files if file.exists() for line in read_lines(file)}


def _in_order(setup: Setup) -> list[Key]:
    """Keys in the order in which an undivided run asks."""
    jobs = [(plan, ask) for _, plan, batch in setup.jobs() for ask in batch]
    return [
        (*unit.key, plan.canonical, sample.id) for plan, ask in jobs for unit, sample in ask.takers
    ]
