"""Scores predictions made elsewhere: the work behind ``halludecode score``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.evals import amber, chair, hallusion, mme, pope
from halludecode.evals.amber_words import Similarity
from halludecode.evals.records import read_records
from halludecode.evals.stats import intervals
from halludecode.evals.tally import Id, Score

TASKS = ("pope", "chair", "mme", "amber", "hallusionbench")


def score_predictions(
    task: str,
    predictions: Path | str,
    annotations: Path | str | None = None,
    captions: Path | str | None = None,
    parser: str = "official",
    family: str = "wordnet",
    gt_family: str | None = None,
    *,
    similarity: Similarity | str | None = None,
    allow_missing: bool = False,
    resamples: int = 0,
) -> dict[str, Any]:
    """Scores a predictions file, or a results folder (MME).

    Args:
        task: ``pope``, ``chair``, ``mme``, ``amber`` or ``hallusionbench``.
        predictions: POPE ``{"question_id", "answer"}`` or CHAIR ``{"image_id", "caption"}`` lines;
            AMBER ``{"id", "response"}``; HallusionBench's own results with ``model_prediction``, or
            ``{"id", "answer"}`` (`HallusionQuestion.id`); MME a folder of ``<subtask>.txt`` with
            image, question, truth, answer.
        annotations: POPE's question file (needed); CHAIR's COCO instances file or finished sets
            (``.tsv``), by default the shipped sets of COCO 2014; MME a folder of questions that
            must all be answered, optional; AMBER's ``data`` folder or ``annotations.json`` in it
            (needed); ``HallusionBench.json`` (needed).
        captions: COCO captions file, CHAIR only.
        parser: Answer rule of every task but CHAIR.
        family: CHAIR's word family for the predictions.
        gt_family: The same for the reference captions; None repeats ``family``.
        similarity: Similarity of two words, AMBER only; see `amber.score`.
        allow_missing: Score only what is answered, AMBER and HallusionBench only.
        resamples: Bootstrap resamples for ``low`` and ``high``; 0 leaves both out.

    Returns:
        ``task``, ``n``, ``metrics`` (name to ``{"value": ...}``), the rule or family that was used,
        ``unparsed``, ``degenerate``, digests of the files, and for CHAIR ``sentences``.

    Raises:
        InvalidData: Any bad input, in one sentence with file and line.
        MissingExtra: A library or its data is not installed.
    """
    runs: dict[str, Callable[[], Score]] = {
        "pope": lambda: _pope(predictions, annotations, parser),
        "chair": lambda: _chair(predictions, annotations, captions, family, gt_family),
        "mme": lambda: _mme(predictions, annotations, parser),
        "amber": lambda: _amber(predictions, annotations, parser, similarity, allow_missing),
        "hallusionbench": lambda: _hallusion(predictions, annotations, parser, allow_missing),
    }
    if task not in runs:
        raise InvalidData(f"task {task!r} is unknown; the known ones are {', '.join(TASKS)}.")
    if similarity is not None and task != "amber":
        raise InvalidData(f"similarity is for task amber, not {task}; leave it out.")
    if allow_missing and task in ("pope", "chair", "mme"):
        raise InvalidData(f"allow-missing is for amber and hallusionbench, not {task}.")
    score = runs[task]()
    sources = {"predictions": predictions, "annotations": annotations, "captions": captions}
    if task == "amber" and annotations is not None:
        sources |= amber.files(annotations)
    return as_json(score, resamples=resamples) | {
        "files": {name: digest(path) for name, path in sources.items() if path is not None}
    }


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
    """SHA-256 of a file, or of the names and contents of a folder's text files."""
    path = Path(path)
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*.txt")):
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


def _pope(predictions: Path | str, annotations: Path | str | None, parser: str) -> Score:
    if annotations is None:
        raise InvalidData("POPE needs its question file to score answers; give --annotations.")
    questions = pope.load_questions(annotations)
    answers = load_answers(predictions)
    return _named(predictions, lambda: pope.score(questions, answers, parser))


def _chair(
    predictions: Path | str,
    annotations: Path | str | None,
    captions: Path | str | None,
    family: str,
    gt_family: str | None,
) -> Score:
    gt_family = gt_family or family
    texts = chair.load_captions(predictions)
    images = {caption.image_id for caption in texts}
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
    return _named(
        predictions, lambda: chair.score(texts, truth, family=family, gt_family=gt_family)
    )


def _mme(predictions: Path | str, annotations: Path | str | None, parser: str) -> Score:
    questions, answers = mme.load_results(predictions)
    if annotations is not None:
        wanted = {q.id: q.label for q in mme.load_questions(annotations)}
        given = {q.id: q.label for q in questions}
        for q in questions:
            if wanted.get(q.id, q.label) != q.label:
                raise InvalidData(
                    f"{predictions}: the truth of {q.id} is {q.label!r}, the annotations say "
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
