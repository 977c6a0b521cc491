"""Tiny random detectors and a tiny model of pictures and words, each with its real processor."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

_FOLDER = Path(tempfile.mkdtemp(prefix="halludecode-detectors-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
# Where they are once `save_detr`, `save_grounding_dino` and `save_siglip` were called.
DETR, DINO, SIGLIP = (str(_FOLDER / name) for name in ("detr", "grounding-dino", "siglip"))
LABELS = ("cat", "dog", "sofa")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", *LABELS, "red"]


def _resnet():
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        out_features=["stage4"],
    )


@cache
def save_detr() -> str:
    """A DETR that is told nothing and knows three labels."""
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor

    torch.manual_seed(0)
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=_resnet(),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=6,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    model = DetrForObjectDetection(config).eval()
    with torch.no_grad():
        model.class_labels_classifier.weight.mul_(20)
        model.model.query_position_embeddings.weight.mul_(50)  # so that queries differ
    model.save_pretrained(DETR)
    DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(DETR)
    return DETR


@cache
def save_grounding_dino() -> str:
    """A Grounding DINO, which is told what to look for."""
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    bert = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=bert,
        d_model=32,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    folder = DINO
    GroundingDinoForObjectDetection(config).eval().save_pretrained(folder)
    GroundingDinoProcessor(
        image_processor=GroundingDinoImageProcessor(
            size={"shortest_edge": 128, "longest_edge": 224}
        ),
        tokenizer=_bert_words(),
    ).save_pretrained(folder)
    return folder


@cache
def save_siglip() -> str:
    """A SigLIP, which scores words for a picture."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    torch.manual_seed(0)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = SiglipConfig(
        text_config={**tower, "vocab_size": len(WORDS), "max_position_embeddings": 8},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    folder = SIGLIP
    SiglipModel(config).eval().save_pretrained(folder)
    SiglipProcessor(
        image_processor=SiglipImageProcessor(size={"height": 32, "width": 32}),
        tokenizer=_bert_words(model_max_length=8),
    ).save_pretrained(folder)
    return folder


def _bert_words(**options):
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, **options)
