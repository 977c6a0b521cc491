from __future__ import annotations

import pytest
import torch

from halludecode.core.errors import InvalidModel
from halludecode.core.prompt import Picture
from halludecode.strategies.marine import REQUEST, guided
from halludecode.views import detection
from halludecode.views.detection import find, similarities
from tests.support import detectors, families


@pytest.fixture(autouse=True)
def nothing_remembered():
    detection._found.clear()


@pytest.fixture
def pictures():
    return [Picture.of(image) for image in families.pictures()]


@pytest.mark.parametrize("labels", [(), detectors.LABELS])
def test_together_and_alone_the_same_is_found(pictures, labels):
    model = detectors.save_grounding_dino() if labels else detectors.save_detr()
    pictures.append(Picture.of(pictures[0].image.rotate(90)))  # of the first one's size
    together = find(pictures, model=model, threshold=0.0, labels=labels)
    assert all(things for things in together)
    for picture, things in zip(pictures, together, strict=True):
        detection._found.clear()
        (alone,) = find([picture], model=model, threshold=0.0, labels=labels)
        assert [thing.label for thing in alone] == [thing.label for thing in things]
        for one, other in zip(alone, things, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert one.box == pytest.approx(other.box, abs=1e-3)
            assert set(one.label.split()) <= set(detectors.LABELS)
        assert [t.score for t in things] == sorted((t.score for t in things), reverse=True)


def test_detr_is_read_as_its_own_processor_does(pictures):
    from transformers import DetrForObjectDetection, DetrImageProcessor

    path = detectors.save_detr()
    model, processor = (
        each.from_pretrained(path) for each in (DetrForObjectDetection, DetrImageProcessor)
    )
    inputs = processor(images=pictures[1].image, return_tensors="pt")
    with torch.no_grad():
        output = model.eval()(**inputs)
    probabilities = output.logits[0].softmax(-1)[:, :-1]
    width, height = pictures[1].image.size
    naive = []
    for row, (cx, cy, w, h) in zip(probabilities, output.pred_boxes[0].tolist(), strict=True):
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        box = [c * side for c, side in zip(corners, (width, height) * 2, strict=True)]
        naive.append((float(row.max()), detectors.LABELS[int(row.argmax())], box))
    naive = sorted((each for each in naive if each[0] >= 0.5), reverse=True)
    (found,) = find(pictures[1:2], model=path, threshold=0.5)
    assert len(found) == len(naive) > 0
    for thing, (score, label, box) in zip(found, naive, strict=True):
        assert (thing.label, thing.score) == (label, pytest.approx(score, abs=1e-5))
        assert thing.box == pytest.approx(box, abs=1e-3)


def test_a_picture_is_looked_at_once(pictures, monkeypatch):
    model = detectors.save_detr()
    first = find(pictures, model=model, threshold=0.0)
    monkeypatch.setattr(detection, "_detector", None)
    assert find(pictures, model=model, threshold=0.0) == first
    assert all(
        t.score >= 0.5 for things in find(pictures, model=model, threshold=0.5) for t in things
    )
    assert len(detection._found) == len(pictures)


def test_similarities_are_cosines_of_the_towers(pictures):
    from transformers import SiglipModel, SiglipProcessor

    path, texts = detectors.save_siglip(), ["a red cat", "sofa"]
    model, processor = SiglipModel.from_pretrained(path), SiglipProcessor.from_pretrained(path)
    inputs = processor(
        text=texts, images=[p.image for p in pictures], padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        output = model.eval()(**inputs)
    logits = output.logits_per_image
    cosines = (logits - model.logit_bias) / model.logit_scale.exp()
    found = similarities(pictures, texts, model=path)
    assert found.shape == (3, 2)
    torch.testing.assert_close(found, cosines.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda p: find(p, model="no/such/model", threshold=0), "cannot be loaded"),
        (lambda p: find(p, model=detectors.save_grounding_dino(), threshold=0), "wants `labels`"),
        (
            lambda p: find(p, model=detectors.save_detr(), threshold=0, labels=("cat",)),
            "leave `labels` out",
        ),
        (lambda p: find(p, model=detectors.save_siglip(), threshold=0), "no detector that knows"),
        (
            lambda p: similarities(p, ["a"], model=detectors.save_detr()),
            "no model of pictures and words",
        ),
    ],
)
def test_another_model_is_refused_in_a_sentence(pictures, ask, words):
    with pytest.raises(InvalidModel, match=words):
        ask(pictures[:1])


def test_missing_weights_are_refused(tmp_path, pictures):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(detectors.save_detr(), tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    cut = {k: v for k, v in weights.items() if "bbox_predictor" not in k}
    save_file(cut, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidModel, match=r"lacks 'bbox_predictor.* more weights of a detr"):
        find(pictures[:1], model=str(folder), threshold=0)


def test_marine_names_each_object_once(pictures):
    told = {"model": detectors.save_detr(), "labels": (), "request": REQUEST}
    things = [
        t for things in find(pictures[:2], model=told["model"], threshold=0.4) for t in things
    ]
    names = list(dict.fromkeys(thing.label for thing in things))
    assert len(things) > len(names) > 0
    text = guided("Is it red?", pictures=pictures[:2], threshold=0.4, **told)
    assert text == (
        f"A detector found in this picture: {', '.join(names)}. Keep to what it found. Is it red?"
    )
    assert guided("Is it red?", pictures=pictures, threshold=1.0, **told) == "Is it red?"
