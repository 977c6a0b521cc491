"""ROPE: what five things in red boxes are, asked together or one by one (arXiv:2407.06192)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.core.paper import Paper
from halludecode.core.params import param
from halludecode.evals.benchmarks.base import Benchmark, Lines, Metric
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.data.columns import Columns, said
from halludecode.evals.data.entries import Pictures
from halludecode.evals.data.records import Record, read_text
from halludecode.evals.data.samples import EvalImage, Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

PAPER = Paper(
    "2407.06192",
    "Multi-Object Hallucination in Vision Language Models",
    "Chen, Xuweiyi and Ma, Ziqiao and Zhang, Xuejun and Xu, Sihan and others",
    "NeurIPS",
    2024,
)
OBJECTS = 5  # in every picture
FILES = {
    "AAAAB": "AAAAB_data.json",
    "BAAAA": "BAAAA_data.json",
    "heterogenous": "merged_heterogenous_data.json",
    "homogenous": "merged_homogenous_data.json",
    "mixed": "merged_mixed_data.json",
}
ANSWER = ", ".join(f"obj{n}: CLASS" for n in range(1, OBJECTS + 1))
ASKED = {
    "together": "Five things in the picture are in red boxes, obj1 to obj5. Name the class of "
    f"each, out of these: {{}}. Answer in one line like this and with nothing else: {ANSWER}",
    "single": "What is obj{} in its red box? Answer with one of these classes and nothing else: {}",
}
ASKED["teacher"] = ASKED["together"]


@benchmark("rope", paper=PAPER)
class ROPE(Benchmark):
    """Classes of five boxed objects: all of one class, of five, mixed, or the last or first other.

    ``setting``: together asks for all five in one line, single for each alone, teacher five times
    for the line, its beginning with the right classes of the objects before given. The release's
    student forcing gives the model's own classes instead: nothing here asks what hangs on another
    answer, but such answers, made elsewhere, score by teacher's rule, which is the same: the n-th
    class of the n-th answer counts, and of a picture nothing after the first answer without one.
    ``accuracy`` is the script's: a line that it cannot take apart counts ten times wrong, not five,
    forced all objects from there on twice; ``objects_right`` counts each once. Precision, recall
    and F1 are its too: over classes by plain mean (macro) or weighted, an unreadable line giving
    its first five letters as classes; in intervals the number of made-up classes is held fixed.
    Whoever repeats the first class gets all of the homogenous pictures: read ``AAAAB`` beside them.

    The release's words and its lists of 50 classes have no licence: here the words are ours and the
    classes those that occur in a file, by source; ``template`` and ``classes`` name files with
    others, such as the release's: prompts in evaluation.py, lists in constant.py of sled-group/moh.
    Data Apache-2.0, pictures of COCO and ADE20K with the boxes drawn in, 7.5 MB of questions, so
    not shipped: sled-umich/ROPE is read at 31c3abf146daeb22f1d695e411d12f6128a7ae72. Its files
    could not be had where this was written: pictures that stand in it twice are counted when it is
    read.
    """

    setting: str = param(
        "together", "All five at once, each alone, or each after the right ones.", choices=(*ASKED,)
    )
    part: str = param("validation", "Part of the data.", choices=("validation", "train"))
    template: str | None = param(None, "Text file with other words, {} where the classes go.")
    classes: str | None = param(None, "Text file of lines 'COCO: apple, ...' and 'ADE: ...'.")

    title = "ROPE"
    text_kind = "choice"
    wording = "own"
    max_new_tokens = 96
    splits = tuple(FILES)
    hub = "sled-umich/ROPE@31c3abf146daeb22f1d695e411d12f6128a7ae72"
    hub_files = ("*_data.json", "*.png", "*.jpg")
    needs = "rope/validation/*_data.json with their pictures (download sled-umich/ROPE of the hub)"
    columns = (
        Columns(
            {"image": ("image", "folder"), "objects": ("objects",)}
            | {"source": ("data_source", "label")},
            {"kind": ("split_type",)},
        ),
    )
    examples = tuple(
        {"image": f"{n}.png", "source": "COCO", "objects": [{"name": x} for x in names]}
        for n, names in enumerate((("cup", "dog", "cup", "cup", "cup"), ("dog",) * 5))
    )
    metrics = (
        Metric("accuracy", "accuracy %", headline=True),
        Metric("f1_macro", "macro F1 %"),
    )
    more_metrics = (Metric("objects_right", "objects right %"),)

    def find(self, folder: Path) -> Mapping[str | None, Path]:
        """The five files of a part, or one of our own."""
        roots = [folder / name / self.part for name in ("rope", "ROPE", "")]
        found = {
            split: path
            for root in reversed(roots)
            for split, name in FILES.items()
            if (path := root / name).is_file()
        }
        return found or super().find(folder)

    def split_of(self, path: Path) -> str | None:
        """What the objects of a file are like."""
        return next((split for split, name in FILES.items() if path.name == name), None)

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """Their paths start at the release's folder or end in the file's folder of pictures."""
        return partial(_picture, path, images or folder, {})

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """The question about a picture, or five; `finish` names the classes."""
        cells = record.fields
        names = _names(cells["objects"], record.where)
        image = said(cells["image"])
        stem = PurePosixPath(image).stem
        facts = {"source": said(cells["source"]), "names": names}
        told: dict[str, Any] = {"where": record.where, "group": stem}
        told["split"] = said(cells["kind"]) if cells.get("kind") else None
        if self.setting == "together":
            label = ", ".join(f"obj{n}: {name}" for n, name in enumerate(names, start=1))
            return Sample(stem, "", image, label, facts=facts, **told)
        made = []
        for n, name in enumerate(names, start=1):
            own, asked = {**facts, "names": [name]}, str(n)
            if self.setting == "teacher":
                before = [f"obj{k}: {names[k - 1].lower()}, " for k in range(1, n)]
                own, asked = {**own, "place": n}, f"{''.join(before)}obj{n}:"
            made.append(Sample(f"{stem} {n}", asked, image, name, facts=own, **told))
        return made

    def finish(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Samples with the words that are asked, which name all classes of their source."""
        known: dict[str, dict[str, None]] = {}
        for sample in samples:
            known.setdefault(sample.facts["source"], {}).update(
                dict.fromkeys(sample.facts["names"])
            )
        listed = {source: ", ".join(sorted(names)) for source, names in known.items()}
        if self.classes is not None:
            lines = read_text(Path(self.classes)).splitlines()
            listed = {s.strip(): text.strip() for s, _, text in (x.partition(":") for x in lines)}
            if lacks := known.keys() - listed.keys():
                raise InvalidParameter(f"{self.classes} has no line '{min(lacks)}: ...'.")
        words = ASKED[self.setting] if self.template is None else read_text(Path(self.template))
        parts, places = words.split("{}"), 2 if self.setting == "single" else 1
        if len(parts) != places + 1:
            raise InvalidParameter(
                f"{self.template} has {len(parts) - 1} places {{}}; setting={self.setting} fills "
                f"{places}."
            )
        made = []
        for s in samples:
            filled = [s.question, listed[s.facts["source"]]][-places:]
            words = parts[0] + "".join(a + b for a, b in zip(filled, parts[1:], strict=True))
            begun = f" {s.question}" if self.setting == "teacher" else ""
            made.append(replace(s, question=words.strip() + begun))
        return made

    def complete(self, lines: Lines) -> Lines:
        """Of forced answers those to pictures that are answered whole."""
        if self.setting != "teacher":
            return lines
        answered = Counter(line["image"] for line in lines.values())
        return {i: line for i, line in lines.items() if answered[line["image"]] == OBJECTS}

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """The classes that an answer gives, in order; letters where the line has another form."""
        given, read = self._given(answer, sample.facts.get("place"))
        wanted = [name.lower() for name in sample.facts["names"]]
        right = sum(a == b for a, b in zip(given, wanted, strict=False))
        parsed = ", ".join(given) if read else "other"
        return {"parsed": parsed, "score": right / len(wanted)}

    def _given(self, answer: str, place: int | None = None) -> tuple[list[str], bool]:
        """The classes, of a forced answer the one at its place, and whether they could be read."""
        if self.setting == "single":
            return [answer.lower()], True
        try:
            named = [segment.split(": ")[1] for segment in answer.split(", ")]
        except IndexError:
            return ([] if place else list(answer.lower())[:OBJECTS]), False
        found = [name.lower() for name in named][:OBJECTS]
        own = found[place - 1 : place] if place else found
        return own, bool(own)

    def _taken(self, lines: Sequence[Mapping[str, Any]]) -> Iterable[tuple[Any, ...]]:
        """(line, classes said, right classes, how often they count) of all that counts at all."""
        lost = set[str]()  # pictures with a forced answer that could not be read
        for line in sorted(lines, key=lambda line: line.get("place", 0)):
            place = line.get("place")
            given, read = self._given(line["answer"], place)
            wanted = [name.lower() for name in line["names"]]
            if line["image"] in lost:
                given, wanted = [], []
            rest = len(wanted) if place is None else OBJECTS - place + 1
            asked = len(line["names"]) + (0 if read or not wanted else rest)
            if place is not None and not read:
                lost.add(line["image"])
            yield line, given, wanted, float(asked)

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Objects by class, as the script counts them."""
        rows, strangers = [], set[str]()
        known = {name.lower() for line in lines for name in line["names"]}
        for line, given, wanted, asked in self._taken(lines):
            counts = {"asked": asked, "objects": float(len(line["names"])), "right": 0.0}
            counts["read"] = 0.0
            for said_, true in zip(given, wanted, strict=False):
                added = [("read", 1.0), ("right", float(said_ == true)), (f"true.{true}", 1.0)]
                if said_ in known:
                    added += [(f"said.{said_}", 1.0), (f"hit.{said_}", float(said_ == true))]
                else:
                    strangers.add(said_)
                for name, count in added:
                    counts[name] = counts.get(name, 0.0) + count
            rows.append((self.cluster(line), counts))
        return self.tally(lines, rows, partial(_formula, len(strangers)), {})


def _names(cell: Any, where: str) -> list[str]:
    try:
        objects = json.loads(cell) if isinstance(cell, str) else cell
        names = [one["name"] for one in objects]
    except (ValueError, TypeError, KeyError):
        names = []
    if len(names) != OBJECTS or not all(isinstance(name, str) and name for name in names):
        raise InvalidData(f"{where}: the objects are no list of five with a name each.")
    return names


def _picture(
    path: Path, folder: Path, known: dict[str, EvalImage], name: str, where: str
) -> EvalImage:
    if name not in known:
        # The script reads .png where the data say .jpg.
        names = dict.fromkeys((name, name.replace("jpg", "png")))
        bare = [PurePosixPath(n).name for n in names]
        split = next((s for s, file in FILES.items() if file == path.name), "")
        roots = (folder, path.parent, path.parent.parent, folder / "images")
        places = [root / n for n in names for root in roots]
        for inner in ("image", "images"):
            places += [path.parent / inner / f"{split}-images" / n for n in bare]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise InvalidData(f"{where}: picture {folder / name} does not exist.")
        known[name] = EvalImage.from_file(found, name)
    return known[name]


def _formula(strangers: int, s: Sums) -> dict[str, np.ndarray]:
    """The script's numbers; ``strangers`` are classes that were said and are never right."""
    zero = np.zeros_like(np.asarray(s["asked"]))
    true = {n.removeprefix("true."): s[n] for n in s if n.startswith("true.")}
    total = s.get("read", zero)
    precisions, recalls, said_any = [], [], []
    weighted = zero
    for name, count in true.items():
        hit, named = s.get(f"hit.{name}", zero), s.get(f"said.{name}", zero)
        share = np.where(named == 0, 0.0, ratio(hit, named))
        precisions.append(share)
        said_any.append(named > 0)
        recalls.append(np.where(count == 0, 0.0, ratio(hit, count)))
        weighted = weighted + share * count
    classes = np.sum(said_any, axis=0) + strangers if true else zero
    micro = ratio(s.get("right", zero), total)
    found = {"accuracy": ratio(s.get("right", zero), s["asked"])}
    found["objects_right"] = ratio(s.get("right", zero), s["objects"])
    kinds = {
        "macro": (ratio(np.sum(precisions, axis=0), classes), np.mean(recalls or [zero], axis=0)),
        "micro": (micro, micro),
        "weighted": (ratio(weighted, total), micro),
    }
    for kind, (precision, recall) in kinds.items():
        both = precision + recall
        f1 = np.where(both == 0, 0.0, ratio(2 * precision * recall, both))
        found |= {f"precision_{kind}": precision, f"recall_{kind}": recall, f"f1_{kind}": f1}
    return found
