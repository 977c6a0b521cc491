"""Scores predictions made elsewhere: the work behind ``halludecode score``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.amber import scoring as amber
from halludecode.evals.benchmarks.amber.description_words import Similarity
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.chair.caption_records import write_sentences
from halludecode.evals.benchmarks.hallusionbench import scoring as hallusion
from halludecode.evals.benchmarks.mme import scoring as mme
from halludecode.evals.benchmarks.pope import relabel as repope
from halludecode.evals.benchmarks.pope import scoring as pope
from halludecode.evals.data.image_ids import check_ids, load_ids
from halludecode.evals.data.records import read_records
from halludecode.evals.load import pope_files
from halludecode.evals.statistics.intervals import intervals
from halludecode.evals.statistics.score import Id, Score, match

TASKS = ("pope", "chair", "mme", "amber", "hallusionbench")

# Options that are of some tasks only, with the value that means "not given".
_ONLY: Mapping[str, tuple[tuple[str, ...], Any]] = {
    "incomplete": (("chair",), "keep"),
    "image_ids": (("chair",), None),
    "details": (("chair",), None),
    "relabel": (("pope",), None),
    "similarity": (("amber",), None),
    "allow_missing": (("amber", "hallusionbench"), False),
}


def score_predictions(
    task: str,
    predictions: Path | str,
    annotations: Path | str | None = None,
    captions: Path | str | None = None,
    parser: str = "official",
    family: str = "wordnet",
    gt_family: str | None = None,
    *,
    incomplete: str = "keep",
    image_ids: Path | str | None = None,
    details: Path | str | None = None,
    relabel: Path | str | None = None,
    similarity: Similarity | str | None = None,
    allow_missing: bool = False,
    resamples: int = 0,
) -> dict[str, Any]:
    """Scores a predictions file, or a results folder (MME, all splits of POPE).

    Args:
        task: ``pope``, ``chair``, ``mme``, ``amber`` or ``hallusionbench``.
        predictions: POPE ``{"question_id", "answer"}`` or CHAIR ``{"image_id", "caption"}`` lines;
            AMBER ``{"id", "response"}``; HallusionBench's own results with ``model_prediction``, or
            ``{"id", "answer"}`` (`HallusionQuestion.id`); MME a folder of ``<subtask>.txt`` with
            image, question, truth, answer; POPE also a folder with one file a split, beside a
            folder of annotations: each split and their mean are then scored.
        annotations: POPE's question file (needed); CHAIR's COCO instances file or finished sets
            (``.tsv``), by default the shipped sets of COCO 2014; MME a folder of questions that
            must all be answered, optional; AMBER's ``data`` folder or ``annotations.json`` in it
            (needed); ``HallusionBench.json`` (needed).
        captions: COCO captions file, CHAIR only.
        parser: Answer rule of every task but CHAIR.
        family: CHAIR's word family for the predictions, or a name of `chair.MIXTURES`.
        gt_family: The same for the reference captions; None repeats ``family``.
        incomplete: What becomes of a caption's unfinished last sentence; see `chair.trim`.
        image_ids: List of pictures of which each must have a caption, and no other may; see
            `image_ids.load_ids`. None scores what is there.
        details: File to write every caption's words to; see `sentences.records`.
        relabel: POPE questions with later labels, such as RePOPE's; see `repope.relabel`.
        similarity: Similarity of two words, AMBER only; see `amber.score`.
        allow_missing: Score only what is answered, AMBER and HallusionBench only.
        resamples: Bootstrap resamples for ``low`` and ``high``; 0 leaves both out.

    Returns:
        ``task``, ``n``, ``metrics`` (name to ``{"value": ...}``), the rule or family that was used,
        ``unparsed``, ``degenerate``, digests of the files, for CHAIR ``sentences``, for a folder of
        POPE splits ``splits``, and for relabelled questions ``relabelled``.

    Raises:
        InvalidData: Any bad input, in one sentence with file and line.
        MissingExtra: A library or its data is not installed.
    """
    runs: dict[str, Callable[[], Score]] = {
        "pope": lambda: _pope(predictions, annotations, parser, relabel),
        "chair": lambda: _chair(
            *(predictions, annotations, captions, family, gt_family, incomplete, image_ids)
        ),
        "mme": lambda: _mme(predictions, annotations, parser),
        "amber": lambda: _amber(predictions, annotations, parser, similarity, allow_missing),
        "hallusionbench": lambda: _hallusion(predictions, annotations, parser, allow_missing),
    }
    sources = {"predictions": predictions, "annotations": annotations, "captions": captions}
    sources |= {"relabel": relabel}
    _check_options(
        task,
        {"incomplete": incomplete, "image_ids": image_ids, "details": details}
        | {"relabel": relabel, "similarity": similarity, "allow_missing": allow_missing},
    )
    _check_output(details, sources.values())
    score = runs[task]()
    if task == "amber" and annotations is not None:
        sources |= amber.files(annotations)
    made = as_json(score, resamples=resamples)
    made["files"] = {name: digest(path) for name, path in sources.items() if path is not None}
    return made | _kept(score, image_ids, details)


def _kept(score: Score, image_ids: Path | str | None, details: Path | str | None) -> dict[str, Any]:
    """Writes the details, and tells of them and of the list of pictures."""
    told: dict[str, Any] = {}
    if image_ids is not None:
        told["image_ids"] = str(image_ids)
    if details is not None:
        told["details"] = {"file": str(details), "words": write_sentences(score, details)}
    return told


def _check_options(task: str, given: Mapping[str, Any]) -> None:
    if task not in TASKS:
        raise InvalidData(f"task {task!r} is unknown; the known ones are {', '.join(TASKS)}.")
    for name, value in given.items():
        tasks, absent = _ONLY[name]
        if value != absent and task not in tasks:
            listed = " and ".join(tasks) if tasks[1:] else f"task {tasks[0]}"
            option = name.replace("_", "-")
            raise InvalidData(f"{option} is for {listed}, not {task}; leave it out.")


def _check_output(details: Path | str | None, inputs: Iterable[Path | str | None]) -> None:
    taken = {Path(path).resolve() for path in inputs if path is not None}
    if details is not None and Path(details).resolve() in taken:
        raise InvalidData(f"{details} is an input; write details to another file.")


def as_json(score: Score, *, resamples: int = 0) -> dict[str, Any]:
    """A score as the JSON document of ``score --json``."""
    metrics: dict[str, dict[str, float]] = {n: {"value": v} for n, v in score.metrics.items()}
    if resamples:
        for name, interval in intervals(score, resamples=resamples).items():
            metrics[name] |= {"low": interval.low, "high": interval.high}
    out: dict[str, Any] = {"task": score.task, "n": score.n, "metrics": metrics}
    if score.task == "chair":
        keys = ("image_id", "generated", "hallucinated", "mentions")
        out["sentences"] = [{key: o[key] for key in keys} for o in score.outcomes.values()]
    else:
        out |= {"parser": score.rule, "unparsed": score.unparsed}
    out |= {name: list(v) if isinstance(v, tuple) else v for name, v in score.notes.items()}
    return out | {"degenerate": list(score.degenerate)}


def digest(path: Path | str) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's text and JSON files."""
    path = Path(path)
    total = hashlib.sha256()
    inner = (file for kind in ("*.txt", "*.json*") for file in path.rglob(kind))
    for file in [path] if path.is_file() else sorted(inner):
        if file != path:
            total.update(file.relative_to(path).as_posix().encode())
        total.update(file.read_bytes())
    return total.hexdigest()


def load_answers(
    path: Path | str, key: str = "question_id", names: tuple[str, ...] = ("answer", "text")
) -> dict[Id, str]:
    """Reads POPE predictions: ``{"question_id": int, "answer": str}``, or the official ``text``.

    Args:
        path: The file.
        key: Name of the id.
        names: Accepted names of the answer.

    Raises:
        InvalidData: A key is missing or of the wrong type, or an id occurs twice.
    """
    answers: dict[Id, str] = {}
    lines: dict[Id, int] = {}
    for record in read_records(path):
        name = record.get(key, kind=(int, str), what="an integer")
        if name in lines:
            raise InvalidData(
                f"{record.where}: {key} {name} was already answered on line {lines[name]}; "
                "give one answer per question."
            )
        lines[name] = record.line
        answers[name] = record.get(*names, kind=str, what="the answer as a string")
    return answers


def _pope(
    predictions: Path | str,
    annotations: Path | str | None,
    parser: str,
    relabel: Path | str | None,
) -> Score:
    if annotations is None:
        raise InvalidData("POPE needs its question file to score answers; give --annotations.")
    given = [predictions, annotations, *([] if relabel is None else [relabel])]
    folders = [Path(path) for path in given if Path(path).is_dir()]
    if not folders:
        return _split(predictions, annotations, parser, relabel)
    if len(folders) < len(given):
        other = next(path for path in given if Path(path) not in folders)
        raise InvalidData(f"{folders[0]} is a folder and {other} is not; give either, not both.")
    answered, asked, *later = (dict(pope_files(folder)) for folder in folders)
    # POPE's own folder holds tables as well: only splits count, and what is named after answers.
    asked = {s: file for s, file in asked.items() if s in answered or s in pope.SETTINGS}
    _same_splits(folders[0], answered, folders[1], asked)
    for found in later:
        mine = {s: file for s, file in found.items() if s in asked}
        _same_splits(folders[2], mine, folders[1], asked)
    scores = {
        split: _split(answered[split], asked[split], parser, later[0][split] if later else None)
        for split in asked
    }
    return replace(pope.mean(scores), notes=_split_notes(scores))


def _same_splits(
    folder: Path, found: Mapping[str, Path], other: Path, asked: Mapping[str, Path]
) -> None:
    if set(found) != set(asked) or not asked:
        names = [", ".join(splits) or "none" for splits in (found, asked)]
        raise InvalidData(
            f"{folder} holds the splits {names[0]}, {other} {names[1]}; give files named after the "
            "same splits in both."
        )


def _split_notes(scores: Mapping[str, Score]) -> dict[str, Any]:
    """What `as_json` adds to a mean: the splits, and how many labels changed in all of them."""
    kept = ("n", "metrics", "degenerate", "relabelled")
    shown = {name: as_json(score) for name, score in scores.items()}
    splits = {name: {key: s[key] for key in kept if key in s} for name, s in shown.items()}
    total: Counter[str] = Counter()
    for part in splits.values():
        total.update(part.get("relabelled", {}))
    return {"splits": splits} | ({"relabelled": dict(total)} if total else {})


def _split(
    predictions: Path | str, annotations: Path | str, parser: str, relabel: Path | str | None
) -> Score:
    questions = pope.load_questions(annotations)
    answers = load_answers(predictions)
    asked = {q.question_id for q in questions}
    _no_strangers(predictions, "question_id", answers, asked, "question of the annotations")
    if relabel is None:
        return _named(predictions, lambda: pope.score(questions, answers, parser))
    _named(predictions, lambda: match([q.question_id for q in questions], answers, "question_id"))
    kept, counts = repope.relabel(questions, pope.load_questions(relabel))
    known = {q.question_id: answers[q.question_id] for q in kept}
    score = _named(predictions, lambda: pope.score(kept, known, parser))
    return replace(score, notes={**score.notes, "relabelled": counts})


def _no_strangers(
    path: Path | str, key: str, given: Iterable[Id], known: Collection[Id], what: str
) -> None:
    """Refuses answers to what was not asked, naming the line of the first."""
    extra = {i for i in given if i not in known}
    if extra:
        first = next(r for r in read_records(path) if r.fields.get(key) in extra)
        raise InvalidData(
            f"{first.where}: {key} {first.fields[key]!r} is no {what} ({len(extra)} such answers); "
            "check that both are of the same set."
        )


def _chair(
    predictions: Path | str,
    annotations: Path | str | None,
    captions: Path | str | None,
    family: str,
    gt_family: str | None,
    incomplete: str,
    image_ids: Path | str | None,
) -> Score:
    family, gt_family = chair.families_of(family, gt_family)
    chair.trim("", incomplete=incomplete)  # refuses what is neither keep nor drop
    texts = chair.load_captions(predictions)
    images = {caption.image_id for caption in texts}
    if image_ids is not None:
        wanted = load_ids(image_ids)
        _no_strangers(predictions, "image_id", images, set(wanted), f"image of {image_ids}")
        check_ids(wanted, images, str(predictions))
    if annotations is None or ".tsv" in Path(annotations).suffixes:
        if captions is not None:
            raise InvalidData("a captions file needs COCO instances beside it; give --annotations.")
        if annotations is None and gt_family != "wordnet":
            raise InvalidData(
                f"the shipped object sets are of the wordnet family, not {gt_family!r}; "
                "give --annotations and --captions."
            )
        truth = chair.load_truth(annotations or chair.SHIPPED)
    else:
        truth = chair.ground_truth(annotations, captions, family=gt_family, images=images)
    recipe = {"family": family, "gt_family": gt_family, "incomplete": incomplete}
    return _named(predictions, lambda: chair.score(texts, truth, **recipe))


def _mme(predictions: Path | str, annotations: Path | str | None, parser: str) -> Score:
    questions, answers = mme.load_results(predictions)
    if annotations is not None:
        wanted = {q.id: q.label for q in mme.load_questions(annotations)}
        given = {q.id: q.label for q in questions}
        for q in questions:
            if wanted.get(q.id, q.label) != q.label:
                raise InvalidData(
                    f"{q.where}: the truth of {q.id} is {q.label!r}, the annotations say "
                    f"{wanted[q.id]!r}; use results of the same questions."
                )
        missing = [name for name in wanted if name not in given]
        extra = [name for name in given if name not in wanted]
        if missing or extra:
            what = "is not answered" if missing else "is not in the annotations"
            raise InvalidData(
                f"{predictions}: {(missing or extra)[0]} {what} "
                f"({len(missing)} missing, {len(extra)} extra); answer every question once."
            )
    return _named(predictions, lambda: mme.score(questions, answers, parser))


def _amber(
    predictions: Path | str,
    annotations: Path | str | None,
    parser: str,
    similarity: Similarity | str | None,
    allow_missing: bool,
) -> Score:
    if annotations is None:
        raise InvalidData("AMBER needs its data folder to score answers; give --annotations.")
    items = amber.load_items(annotations)
    responses = load_answers(predictions, "id", ("answer", "response"))
    described = any(item.label is None and item.id in responses for item in items)
    lexicon = amber.load_lexicon(annotations) if described else None
    given = {"rule": parser, "similarity": similarity, "allow_missing": allow_missing}
    return _named(predictions, lambda: amber.score(items, responses, lexicon, **given))


def _hallusion(
    predictions: Path | str, annotations: Path | str | None, parser: str, allow_missing: bool
) -> Score:
    if annotations is None:
        raise InvalidData("HallusionBench needs HallusionBench.json; give --annotations.")
    questions = hallusion.load_questions(annotations)
    answers = hallusion.load_answers(predictions)
    return _named(
        predictions,
        lambda: hallusion.score(questions, answers, parser, allow_missing=allow_missing),
    )


def _named(path: Path | str, run: Callable[[], Score]) -> Score:
    try:
        return run()
    except InvalidData as error:
        text = str(error)
        raise InvalidData(text if str(path) in text else f"{path}: {text}") from None
