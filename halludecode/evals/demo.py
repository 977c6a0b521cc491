"""The demo: the embedded model under seven strategies, told, scored, compared, shown on one page.

It begins with one picture and a line for each strategy (`demo_story`). What acts on attention
sinks, which the embedded model lacks, acts on the model in which they are planted. It ends with
what released answers of real models say of four published claims, where those answers are: in a
checkout, whose benchmarks/published/ is no part of the installed package. With a picture of the
user's own it describes that one picture under every strategy instead; nothing is scored then,
because what the picture shows is not known.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.engines.api import Request, Sampling
from halludecode.evals.data.run_files import write_json
from halludecode.evals.data.samples import EvalImage
from halludecode.evals.results.build import Report, labels
from halludecode.evals.results.run_answers import run_answers
from halludecode.evals.runner.batching import threads_for
from halludecode.evals.runner.run import run_eval
from halludecode.testbed.assets import PLANTED, named_picture

STRATEGIES = ("greedy", "vcd", "m3id", "var", "vhr", "agla", "var+vcd")
SOURCES = ("testbed-iid", "testbed-broken")
SPLITS = ("random", "adversarial")
SINKS = ("greedy", "var")  # on the model with planted sinks
RELEASED = Path(__file__).parents[2] / "benchmarks" / "published"
# Claim, benchmark, metric, and the files of strategy and baseline.
CLAIMS = (
    ("OPERA against greedy, Shikra", "chair", "chair_s", "OPERA/chair/shikra_{opera,greedy}"),
    (
        "SHIELD against greedy, LLaVA-1.5",
        "chair",
        "chair_s",
        "{SHIELD/chair/llava_shield,OPERA/chair/llava-1.5_greedy}",
    ),
    (
        "PAINT at alpha 0.7 against 0.1, LLaVA-1.5",
        "chair",
        "chair_s",
        "PAINT/chair/ratio_0.25_alpha_{0.7,0.1}_beta_0.3_cfg_1.1",
    ),
    (
        "VCD against sampling, LLaVA-1.5",
        "pope",
        "accuracy",
        "yeutong-VCD/pope/llava-1.5-7b_popular_{vcd,sample}",
    ),
)


def run_demo(
    output: str | Path,
    image: str | Path | None = None,
    images_per_split: int = 200,
    mme_pairs: int = 60,
    strategies: Sequence[str] = STRATEGIES,
    progress: bool = True,
    engine: Any = None,
    planted_images: int = 40,
) -> Report | Path:
    """Runs the demo and prints its table; resumes what ``output`` holds.

    Args:
        output: Folder for ``report.html``, ``results.json`` and pictures.
        image: A picture, or ``testbed:N``, to describe instead of the evaluation.
        images_per_split: Pictures per source for POPE and for captions.
        mme_pairs: Pictures per source for MME, two questions each.
        strategies: Strategy specs; greedy first.
        progress: Progress bars on standard error, the table on standard output.
        engine: A loaded engine; None loads the embedded model on the Hugging Face engine.
        planted_images: Pictures for the model with planted sinks; 0 leaves it out.

    Returns:
        The report, or for one picture the page's path.

    Raises:
        InvalidRequest: The picture cannot be read.
        HalluDecodeError: As `run_eval`.
    """
    output = Path(output)
    if image is not None:
        image = named_picture(image) or image
        EvalImage.from_file(Path(image), Path(image).name)  # before a model is loaded
        return _one_picture(output, Path(image), strategies, engine or _testbed(), progress)
    engine = engine or _testbed()
    tasks = {"tasks": ["pope", "chair"], "pope_splits": SPLITS}
    shared = {
        "strategies": strategies,
        "data": SOURCES,
        "output": output,
        "progress": progress,
        "testbed_images": max(images_per_split, mme_pairs),
    }
    first = run_eval(engine, limit=images_per_split, **tasks, **shared)
    report = run_eval(engine, tasks=["mme"], limit=mme_pairs, **shared)
    report = replace(report, failed=first.failed + report.failed)
    from halludecode.evals.report.render import render

    render([output], "html", output / "report.html")
    planted = None
    if planted_images:
        few = {**shared, **tasks, "output": output / "planted", "limit": planted_images}
        planted = run_eval(_testbed(PLANTED), **{**few, "strategies": SINKS})
        report = replace(report, failed=report.failed + planted.failed)
    if progress:
        _print(*_told(report, planted), f"Report: {output / 'report.html'}", *released())
    return report


def _told(report: Report, planted: Report | None) -> list[Any]:
    """The story, the tables, and what acts on sinks."""
    from halludecode.evals import demo_story
    from halludecode.evals.results.kept_pictures import picture_path

    names = labels(report.run)
    groups = run_answers(report.path, report.run)
    found, parts = demo_story.scene(groups), list[Any]()
    if found is not None:
        picture = picture_path(report.path, found.data, found.image)
        parts = demo_story.opening(found, picture, names)
    parts += [report.table(), demo_story.deeds(groups, report.results, names)]
    if planted is not None:
        theirs = run_answers(planted.path, planted.run)
        parts += [demo_story.deeds(theirs, planted.results, labels(planted.run), PLANTED)]
    return parts


def released(folder: Path = RELEASED) -> list[Any]:
    """Four published claims, held against released answers of real models; no model runs.

    Args:
        folder: Where the answers are.

    Returns:
        A table and a sentence, or a sentence alone where the answers are not here.
    """
    if not folder.is_dir():
        return [
            "Four published claims, held against released answers of real models, would stand "
            "here: the answers are in the repository (benchmarks/published), not in the package."
        ]
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold")
    table.title = "Real models: published claims, from the answers their authors released"
    for title in ("claim", "metric", "baseline, strategy", "difference [95 %]", "what is left"):
        table.add_column(title, overflow="fold")
    for claim in CLAIMS:
        table.add_row(*_claim(folder, *claim))
    return [table, f"All of them: {folder.parent / 'published_claims.md'}"]


def _claim(folder: Path, words: str, task: str, metric: str, files: str) -> tuple[str, ...]:
    """One row: what the answers give, and what their controls leave of it."""
    from halludecode.evals.benchmarks.registry import benchmark_named
    from halludecode.evals.results.build import arrange
    from halludecode.evals.results.paired import differences
    from halludecode.evals.results.sections import gap_text
    from halludecode.evals.results.verdict import verdict
    from halludecode.evals.runner.import_answers import judged

    head, _, rest = files.partition("{")
    names, _, tail = rest.partition("}")
    pair = {name: folder / f"{head}{name}{tail}.jsonl.gz" for name in names.split(",")}
    questions = folder / "truth" / "pope" / "coco_pope_popular.jsonl.gz"
    made = judged(task, pair, annotations=questions if task == "pope" else None)
    (group,) = arrange(made.lines, made.run).values()
    strategy, baseline = pair
    gap = differences(group, [strategy], baseline, run=made.run)[0]
    shown, found = benchmark_named(task).metric(metric), gap["metrics"][metric]
    values = (f"{found[side]['value'] * shown.scale:.1f}" for side in ("baseline", "strategy"))
    return words, shown.words, ", ".join(values), gap_text(found, shown.scale), verdict(gap, metric)


def _testbed(name: str = "testbed") -> Any:
    import halludecode

    return halludecode.load(name)


def _print(*parts: Any) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
    for part in parts:
        console.print(part, markup=False)


# One picture ------------------------------------------------------------------------------------


def _one_picture(
    output: Path, image: Path, strategies: Sequence[str], engine: Any, progress: bool
) -> Path:
    from halludecode.evals.presets import describing
    from halludecode.evals.report.html import page

    try:
        picture = EvalImage.from_file(image, image.name)
        shown = picture.load()
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidData(f"{output}: cannot be made a folder ({error.strerror}).") from None
    name, preset = describing(None, engine.model_id)
    prompt = preset.prompt("caption", "")
    sampling = Sampling(max_new_tokens=preset.tokens("caption", 512))
    answers = {}
    for strategy in strategies:
        with threads_for(engine.model_id):
            answer = engine.generate([Request(prompt, (shown,))], strategy, sampling)[0]
        answers[strategy] = {"answer": answer.text, "canonical": answer.strategy}
        if progress:
            _print(f"{strategy}: {answer.text}")
    described = engine.describe()
    write_json(
        output / "results.json",
        {"schema": 1, "image": image.name, "prompt": prompt, "answers": answers, "runs": []},
    )
    kept = output / "pictures" / image.name
    kept.parent.mkdir(exist_ok=True)
    if not (kept.exists() and kept.samefile(image)):
        shutil.copyfile(image, kept)
    recipe = [
        ("model", f"{engine.model_id} (weights {str(described.get('model_digest'))[:16]})"),
        ("picture", f"{image.name} ({picture.digest})"),
        ("prompt", f"{prompt!r} ({name}); greedy, at most {sampling.max_new_tokens} tokens"),
        ("versions", ", ".join(f"{k} {v}" for k, v in described.get("versions", {}).items())),
    ]
    text = page([_picture_run(engine.model_id, picture, answers, recipe)])
    (output / "report.html").write_text(text, encoding="utf-8")
    if progress:
        _print(f"Report: {output / 'report.html'}")
    return output / "report.html"


def _picture_run(
    model: str, picture: Any, answers: dict[str, dict[str, str]], recipe: list[tuple[str, str]]
) -> dict[str, Any]:
    """What the page shows of one picture: captions without marks, no table."""
    import html

    from halludecode.evals.report.gallery import Scene, data_uri

    captions = [(name, html.escape(a["answer"]), None) for name, a in answers.items()]
    scene = Scene(picture.name, None, captions, data_uri(picture.read()))
    return {
        "name": picture.name,
        "model": model,
        "stand_in": model == "testbed",
        "intro": (
            "One picture, described under every strategy. Nothing is scored: what the picture "
            "shows is not known to the program, so invented objects cannot be marked. The embedded "
            "model knows drawn scenes of 80 kinds of objects and no photographs."
        ),
        "sections": [],
        "galleries": [
            {
                "title": picture.name,
                "about": "Every strategy answers the same prompt.",
                "scenes": [scene],
            }
        ],
        "notes": [],
        "recipe": recipe,
        "strategies": [(name, a["canonical"]) for name, a in answers.items()],
    }
