"""Whether a contrast has its object in a model: what a row without the picture knows of the errors.

Contrast methods subtract a row that is to speak the habit. Whether it does is a number: how often
it finds an invented object likelier than a true one. And how much of a contrast can decide
anything: the share of tokens beside which a plausibility cut leaves another candidate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from halludecode.testbed import CAPTION, dataset

BETA = 0.1  # of the plausibility cut
_TOKENS = 90  # as in the testbed's CHAIR protocol


def habit(model: Path, count: int, strategy: str = "greedy") -> dict[str, float | None]:
    """Measures captions.

    Args:
        model: Folder of the model.
        count: Pictures of iid.
        strategy: What runs the model as it was trained.

    Returns:
        ``auroc``: how often the row without the picture finds the words of an invented object
        likelier than those of a true one (0.5 is chance; None without either); ``mentions`` and
        ``invented``, how many; ``decided``: share of tokens beside which a cut at `BETA` leaves no
        other.
    """
    import halludecode as hd
    from halludecode.evals.benchmarks.chair.scoring import ground_truth

    folder = dataset("testbed-iid", count)
    truth = ground_truth(*(folder / "annotations" / f for f in ("instances.json", "captions.json")))
    paths = sorted((folder / "images").iterdir())
    sampling = hd.Sampling(max_new_tokens=_TOKENS, logprobs=2)
    asked = [hd.Request(CAPTION, [path]) for path in paths]
    outputs = hd.load(str(model)).generate(asked, strategy, sampling, explain=True)
    said, invented = [], []
    for path, output in zip(paths, outputs, strict=True):
        present = truth[int(path.stem.rpartition("_")[2])]
        for name, score in _blind(output):
            said.append(score)
            invented.append(name not in present)
    alone = [_alone(token.top.values()) for output in outputs for token in output.logprobs or ()]
    return {
        "auroc": _auroc(np.array(said), np.array(invented, bool)),
        "mentions": len(said),
        "invented": sum(invented),
        "decided": sum(alone) / len(alone),
    }


def _blind(output: Any) -> Iterator[tuple[str, float]]:
    """Objects of a caption, and the log-probability of their words without the picture."""
    from halludecode.analysis.grounding import REDUCE, SIGNALS, Threshold, words

    threshold = Threshold(0.0, dict.fromkeys(SIGNALS, next(iter(REDUCE))), "", {})
    tokens = output.explanation.tokens
    without = [
        seen.logprob - token.grounding for seen, token in zip(output.logprobs, tokens, strict=False)
    ]
    for word in words(output.explanation, threshold):
        if word.object is not None:
            yield word.object, sum(without[i] for i in word.tokens)


def _alone(top: Any) -> bool:
    """Whether the second token lies below the cut."""
    first, second = sorted(top, reverse=True)[:2]
    return second < first + math.log(BETA)


def _auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    from scipy.stats import mannwhitneyu

    if positive.all() or not positive.any():
        return None
    high, low = scores[positive], scores[~positive]
    statistic = mannwhitneyu(high, low, method="asymptotic").statistic
    return float(statistic / (len(high) * len(low)))
