"""What stands where in a picture, and how well words fit it: models beside the one that answers.

`find` asks a detector, one that knows its labels (DETR and whatever else `transformers` loads as an
object detector) or one that is told them (Grounding DINO); `similarities` asks a model of pictures
and words (SigLIP, CLIP). A model is loaded when it is first named, from a folder or the hub, by
``transformers``' own classes and without code of the checkpoint's; the last one asked for stays.
What was found is remembered by model and picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from halludecode.core.errors import InvalidModel

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.prompt import Picture

REMEMBERED = 4096  # pictures
KNOWING, TOLD = "AutoModelForObjectDetection", "AutoModelForZeroShotObjectDetection"
WANTED = {
    KNOWING: "detector that knows its labels, as DETR does; Grounding DINO wants `labels`",
    TOLD: "detector that is told its labels, as Grounding DINO is; leave `labels` out for others",
    "AutoModelForZeroShotImageClassification": "model of pictures and words, as SigLIP is",
}
_found: dict[tuple[str, tuple[str, ...], str], tuple[Thing, ...]] = {}


@dataclass(frozen=True)
class Thing:
    """Something found: name, the detector's score, (left, top, right, bottom) in pixels."""

    label: str
    score: float
    box: tuple[float, float, float, float]


class Detector(Protocol):
    """What finds things; `find` keeps those it is sure of."""

    def __call__(self, pictures: Sequence[Picture]) -> list[tuple[Thing, ...]]:
        """All candidates of each picture, surest first."""
        ...


def find(
    pictures: Sequence[Picture], *, model: str, threshold: float, labels: tuple[str, ...] = ()
) -> list[tuple[Thing, ...]]:
    """What a detector sees in each picture.

    Args:
        pictures: Those of equal size after the detector's own resizing run as one batch.
        model: Id or path of the detector.
        threshold: Least score, in [0, 1].
        labels: What to look for, for a detector that is told; () for one that knows.

    Returns:
        Per picture what was found, surest first.

    Raises:
        InvalidModel: The detector cannot be loaded, or wants labels and has none, or the other way
            round.
    """
    new = {p.key: p for p in pictures if (model, labels, p.key) not in _found}
    if new:
        everything = _detector(model, labels)(list(new.values()))
        for key, things in zip(new, everything, strict=True):
            _found[model, labels, key] = things
    seen = [
        tuple(thing for thing in _found[model, labels, p.key] if thing.score >= threshold)
        for p in pictures
    ]
    for oldest in list(_found)[: max(0, len(_found) - REMEMBERED)]:
        _found.pop(oldest, None)
    return seen


def similarities(pictures: Sequence[Picture], texts: Sequence[str], *, model: str) -> Tensor:
    """float32 [pictures, texts]: cosines of their embeddings, in [-1, 1].

    Raises:
        InvalidModel: The model cannot be loaded, or is none of both.
    """
    import torch
    from transformers import AutoModelForZeroShotImageClassification

    network, processor, device = _loaded(model, AutoModelForZeroShotImageClassification)
    # SigLIP was trained on texts of full length and has no mask for shorter ones
    padding = "max_length" if network.config.model_type.startswith("siglip") else True
    inputs = processor(
        text=list(texts),
        images=[p.image for p in pictures],
        padding=padding,
        truncation=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        output = network(**inputs.to(device))
    images, words = output.image_embeds, output.text_embeds
    normalize = torch.nn.functional.normalize
    return (normalize(images.float(), dim=-1) @ normalize(words.float(), dim=-1).T).cpu()


@dataclass(frozen=True)
class _Detector:
    network: Any
    processor: Any
    device: str
    labels: tuple[str, ...]

    def __call__(self, pictures: Sequence[Picture]) -> list[tuple[Thing, ...]]:
        import torch

        words = {"text": [list(self.labels)]} if self.labels else {}
        inputs = [self.processor(images=p.image, return_tensors="pt", **words) for p in pictures]
        alike: dict[tuple[int, ...], list[int]] = {}  # padding would change what is seen
        for i, one in enumerate(inputs):
            alike.setdefault(tuple(one["pixel_values"].shape), []).append(i)
        made: dict[int, tuple[Thing, ...]] = {}
        for places in alike.values():
            batch = {
                key: torch.cat([inputs[i][key] for i in places]).to(self.device)
                for key in inputs[places[0]]
            }
            with torch.inference_mode():
                output = self.network(**batch)
            sizes = [pictures[i].image.size[::-1] for i in places]
            for i, read in zip(places, self._read(output, batch, sizes), strict=True):
                made[i] = self._things(read)
        return [made[i] for i in range(len(pictures))]

    def _read(self, output: Any, batch: Any, sizes: list[tuple[int, int]]) -> Any:
        if not self.labels:
            return self.processor.post_process_object_detection(
                output, threshold=0.0, target_sizes=sizes
            )
        return self.processor.post_process_grounded_object_detection(
            output, batch["input_ids"], threshold=0.0, target_sizes=sizes
        )

    def _things(self, read: Any) -> tuple[Thing, ...]:
        names = read.get("text_labels")
        if names is None:
            names = [self.network.config.id2label[int(label)] for label in read["labels"]]
        rows = zip(names, read["scores"].tolist(), read["boxes"].tolist(), strict=True)
        things = [Thing(name, score, tuple(box)) for name, score, box in rows if name]
        return tuple(sorted(things, key=lambda thing: -thing.score))


def _detector(model: str, labels: tuple[str, ...]) -> Detector:
    import transformers

    kind = getattr(transformers, TOLD if labels else KNOWING)
    network, processor, device = _loaded(model, kind)
    return _Detector(network, processor, device, labels)


@lru_cache(maxsize=2)
def _loaded(model: str, kind: Any) -> tuple[Any, Any, str]:
    """A model of a kind with its processor, on a GPU if there is one, and where it is."""
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        if type(config) not in kind._model_mapping:
            raise InvalidModel(
                f"{model!r} is a {config.model_type} and no {WANTED[kind.__name__]}."
            )
        reader = AutoImageProcessor if kind.__name__ == KNOWING else AutoProcessor
        processor = reader.from_pretrained(model)
        network, report = kind.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidModel(
            f"The model {model!r}, wanted beside the one that answers, cannot be loaded "
            f"({reason}); download it, or name another."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise InvalidModel(  # transformers would fill the gaps with random weights and only log it
            f"{model!r} lacks {missing[0]!r} and {len(missing) - 1} more weights of a "
            f"{config.model_type}; give another model."
        )
    return network.eval().requires_grad_(False).to(device), processor, device
