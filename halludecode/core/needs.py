"""What a strategy may need of an engine and of a model's family, in the words people read.

Needs are short names: verbs of `core.attention.Attention`, hooks, and what a `core.branch.Branch`
edits. Programs compare the names; lists, tables and refusals show these words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Kinds of strategies, in the order in which one of several is listed; the last has no such hook.
KINDS = ("search", "steering", "attention", "layers", "contrast", "other")
WORDS: Mapping[str, str] = {
    "rows": "extra rows",
    "main prompt": "edits the main prompt",
    "rewords": "rewords the question by its pictures",
    "more pictures": "adds pictures to the prompt",
    "images": "edits images",
    "pixels": "edits pixels",
    "tower": "edits the vision tower's layers",
    "features": "edits image features",
    "masked rows": "rows without some image tokens",
    "activations": "passes before the answer",
    "in turn": "passes that depend on earlier ones",
    "raster": "image raster",
    "vision": "vision-tower attention",
    "tower states": "reads the vision tower's states",
    "key": "a value per image token",
    "mass": "reads attention mass",
    "scores": "reads attention scores",
    "weights": "reads attention weights",
    "head_outputs": "reads head outputs",
    "token_mask": "marks tokens by hidden state",
    "received": "reads attention received",
    "paid": "reads attention paid",
    "confidence": "reads how sure the last token was",
    "tally": "keeps a number per token",
    "at_first_token": "chooses at the first token",
    "keys_at_first_token": "chooses at the first token",
    "square": "one square view a picture",
    "open": "opens masked keys",
    "reposition": "moves tokens' positions",
    "add_scores": "edits attention scores",
    "scale_scores": "edits attention scores",
    "mask": "masks keys",
    "scale_weights": "edits attention weights",
    "average_values": "edits values",
    "scale_heads": "edits head outputs",
    "steer": "edits hidden states",
    "early": "decodes early layers",
    "logits": "decodes early layers",
    "decode": "decodes states",
    "branch_off": "a branch of one layer",
    "image_features": "reads image features",
    "whole": "prompts read whole",
    "search": "beam search",
    "generate": "the model's own generate()",
}


def in_words(needs: Iterable[str]) -> tuple[str, ...]:
    """Needs as people read them, in the table's order, each once."""
    needed = set(needs)
    return tuple(dict.fromkeys(words for need, words in WORDS.items() if need in needed))


def quoted(needs: Iterable[str]) -> str:
    """Needs within a sentence: ``'extra rows', 'beam search'``."""
    return ", ".join(map(repr, in_words(needs)))
