"""CHAIR's files: COCO's pictures and captions beside them, captions made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.chair.image_ids import check_ids
from halludecode.evals.data.answers import naming, refuse_strangers
from halludecode.evals.data.records import read_text
from halludecode.evals.statistics.score import Score


def first(folder: Path, stem: str) -> Path | None:
    """The first JSON file of a folder whose name begins so."""
    return min(folder.glob(f"{stem}*.json"), default=None)


def captions_beside(instances: Path, named: bool) -> Path | None:
    """The reference captions that go with an instances file; None where there are none.

    Args:
        instances: The file.
        named: Whether the user named it, and so means the captions of the same name; of a data
            folder any captions are meant.
    """
    if named:
        return first(instances.parent, instances.stem.replace("instances", "captions"))
    return first(instances.parent, "captions") or first(instances.parent.parent, "captions")


def pictures(instances: Path) -> list[tuple[int, str]]:
    """Id and file name of every picture of a COCO file.

    Raises:
        InvalidData: It is no COCO file.
    """
    try:
        images = json.loads(read_text(instances))["images"]
        return [(int(image["id"]), str(image["file_name"])) for image in images]
    except json.JSONDecodeError as error:
        raise InvalidData(f"{instances}:{error.lineno}: not JSON ({error.msg}).") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidData(
            f"{instances}: not a COCO file ({error} is missing or of another type); "
            '"images" must list "id" and "file_name".'
        ) from None


def score_captions(
    predictions: Path,
    annotations: Path | None,
    captions: Path | None,
    families: tuple[str, str],
    incomplete: str,
    wanted: Sequence[int] = (),
    listed_in: str = "",
) -> Score:
    """Scores a file of captions.

    Args:
        predictions: JSON lines of ``image_id`` and ``caption``.
        annotations: COCO instances, or finished sets (``.tsv``); None takes the shipped ones.
        captions: COCO captions of the same pictures.
        families: Word families of captions and ground truth.
        incomplete: See `chair.trim`.
        wanted: Pictures of which each must have a caption, and no other may; () scores all.
        listed_in: Where these are listed, for messages.

    Raises:
        InvalidData: A file cannot be used.
    """
    family, gt_family = families
    chair.trim("", incomplete=incomplete)  # refuses what is neither keep nor drop
    texts = chair.load_captions(predictions)
    images = {caption.image_id for caption in texts}
    if wanted:
        what = f"image of {listed_in}"
        refuse_strangers(predictions, images, set(wanted), what, "image_id")
        check_ids(wanted, images, str(predictions))
    if annotations is None or ".tsv" in annotations.suffixes:
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
    with naming(predictions):
        return chair.score(texts, truth, **recipe)
