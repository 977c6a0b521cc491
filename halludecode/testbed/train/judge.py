"""What a trained model does on the published splits, greedily: the figures of its card."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from halludecode.testbed import dataset
from halludecode.testbed.categories import NAMES, PARTNERS, THEMES
from halludecode.testbed.mme import SUBTASKS
from halludecode.testbed.scenes import casts
from halludecode.testbed.train.habit import habit

SPLITS = ("iid", "broken")
_ASKED = re.compile(r"is there an? (.+) in the image\?", re.IGNORECASE)
Json = dict[str, Any]


def judge(
    model: Path,
    out: Path,
    count: int,
    train_scenes: int,
    strategy: str = "greedy",
    progress: bool = True,
) -> Json:
    """Runs POPE, CHAIR and the MME-style set, greedily but for a trained scheme, and sums them up.

    Args:
        model: Folder of the model.
        out: Run folder, resumed.
        count: Pictures per split.
        train_scenes: How many scenes were trained on; a test scene whose multiset of objects is
            among theirs is no new one.
        strategy: What runs the model as it was trained.
        progress: Show a progress bar.

    Returns:
        By split: metrics, those on scenes with a multiset of objects never seen in training, and
        the rate of false "yes" by kind of absent object; under ``habit``, see there. Fractions are
        0..1.
    """
    import halludecode as hd
    from halludecode.evals.runner.run import run_eval

    report = run_eval(
        hd.load(str(model)),
        tasks=["pope", "chair", "mme"],
        strategies=[strategy],
        data=[f"testbed-{split}" for split in SPLITS],
        limit=count,
        testbed_images=count,
        prompt_preset="testbed",
        batch_size=64,  # of prompts this short: an eighth quicker than the engine's own 16
        output=out,
        progress=progress,
    )
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text("utf-8").splitlines()]
    trained_on = {_multiset(names) for names in casts("train", train_scenes)}
    figures: Json = {}
    for split in SPLITS:
        split_lines = [line for line in lines if line["data"] == f"testbed-{split}"]
        scenes = _scenes(split, count)
        new = {
            name for name, scene in scenes.items() if _multiset(scene["names"]) not in trained_on
        }
        figures[split] = {
            "metrics": _metrics(report.results["runs"], split),
            "unseen": _unseen(split_lines, new),
            "false_yes": _false_yes(split_lines, scenes),
        }
    figures["habit"] = habit(model, min(count, 200), strategy)
    return figures


def sinks(model: Path, count: int = 50) -> str:
    """Whether the model has attention sinks, in one sentence: see `hd.sinks`."""
    import halludecode as hd
    from halludecode.analysis.calibration_samples import samples

    pairs = samples("testbed", ["testbed-dev-iid"], limit=count)
    return hd.sinks(hd.load(str(model)), [request for request, _ in pairs]).verdict


def _multiset(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def _scenes(split: str, count: int) -> dict[str, Json]:
    """Theme and object names by picture file."""
    folder = dataset(f"testbed-{split}", count) / "annotations"
    about = json.loads((folder / "instances.json").read_text("utf-8"))
    names = {kind["id"]: kind["name"] for kind in about["categories"]}
    scenes = {image["id"]: {"theme": image["theme"], "names": []} for image in about["images"]}
    for thing in about["annotations"]:
        scenes[thing["image_id"]]["names"].append(names[thing["category_id"]])
    return {image["file_name"]: scenes[image["id"]] for image in about["images"]}


def _metrics(runs: Iterable[Json], split: str) -> dict[str, float]:
    by_name: dict[str, float] = {}
    for run in runs:
        if run["data"] != f"testbed-{split}":
            continue
        values = {name: metric["value"] for name, metric in run["metrics"].items()}
        if "yes_ratio" in values:
            by_name[f"pope {run['split']}"] = values["accuracy"]
            by_name[f"yes {run['split']}"] = values["yes_ratio"]
        elif "chair_i" in values:
            by_name |= {name: values[name] for name in ("chair_i", "chair_s", "recall", "length")}
        else:
            by_name |= {f"mme {name}": values[f"{name}.acc"] for name in SUBTASKS}
    return by_name


def _unseen(lines: Iterable[Json], new: set[str]) -> dict[str, float]:
    """POPE's accuracy and CHAIR_i on scenes whose multiset of objects no training scene has."""
    right: Counter[str] = Counter()
    questions: Counter[str] = Counter()
    named = wrong = 0
    for line in lines:
        if line["image"] not in new:
            continue
        if line["split"] is not None:  # yes/no questions come in splits
            questions[line["split"]] += 1
            right[line["split"]] += line["parsed"] == line["label"]
        elif "objects" in line:
            named += len(line["parsed"]["generated"])
            wrong += len(line["parsed"]["hallucinated"])
    shares = {f"pope {split}": right[split] / questions[split] for split in questions}
    return {"pictures": len(new), **shares, "chair_i": wrong / max(1, named)}


def _false_yes(lines: Iterable[Json], scenes: Mapping[str, Json]) -> dict[str, list[float]]:
    """Rate of "yes" and number of POPE's random negatives by kind of absent object.

    The adversarial setting asks for partners by design, so the random one is the fair contrast.
    """
    yes: Counter[str] = Counter()
    questions: Counter[str] = Counter()
    for line in lines:
        if line["split"] != "random" or line["label"] != "no":
            continue
        match = _ASKED.match(line["prompt"])
        name = match[1].lower() if match else ""
        if name in NAMES:
            kind = _kind(name, scenes[line["image"]])
            questions[kind] += 1
            yes[kind] += line["parsed"] == "yes"
    return {kind: [yes[kind] / n, n] for kind, n in sorted(questions.items())}


def _kind(name: str, scene: Mapping[str, Any]) -> str:
    if any(PARTNERS.get(present) == name for present in scene["names"]):
        return "partner"
    return "same theme" if name in THEMES[scene["theme"]] else "other"
