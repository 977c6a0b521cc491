"""How sensitive every attention head is to the picture: three metrics, one map.

    vhd       || a_h(y_1 | image, text) - a_h(y_1 | text) ||_2          (VHR, arXiv:2412.13949)
    mass      sum_{j in image} w_hj of the last prompt token, visual sinks apart
    ablation  log p(answer | head h silenced) - log p(answer)

VHD is taken at the position that predicts the first token, as VHR chooses its heads; T-VHD of every
written token is the sum over layers of the largest quarter of the layer's VHD (the paper's k is
unknown). Where a sample tells the true objects instead of an answer, the model's own caption is
written and ablation is read on its object words: what silencing does to real ones minus what it
does to invented ones. Positive values of ablation thus always mark heads whose silence helps:
hallucination heads (AD-HH, which takes probabilities; here they are log-probabilities).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from halludecode.analysis import sample_metrics as measure
from halludecode.analysis.head_map import METRICS, Grid, HeadMap, spearman
from halludecode.analysis.head_records import HeadRecord, Part, Records, Summary, summarise
from halludecode.analysis.sample_metrics import HeadReading, Sinks
from halludecode.core.errors import InvalidData, InvalidParameter, InvalidRequest
from halludecode.core.model_info import ModelInfo
from halludecode.core.prompt import Prompt, digest
from halludecode.engines.api import Output, Request, Sampling
from halludecode.engines.base import local

TOP_SHARE = 0.25  # of a layer's heads that count in T-VHD
UNITS = {
    "vhd": "norm of the difference",
    "mass": "share of the attention",
    "ablation": "change of log-probability, nats",
}


@dataclass(frozen=True)
class HeadSample:
    """A question about a picture, and what is true of it.

    Args:
        request: With at least one picture.
        answer: The right answer: "yes", "no" or other words.
        objects: COCO categories the picture shows, where the question asks for a description.
    """

    request: Request
    answer: str | None = None
    objects: tuple[str, ...] | None = None


Given = HeadSample | Request | tuple[Request, str | None]


def head_sensitivity(
    engine: Any,
    samples: Iterable[Given],
    metric: str = "vhd",
    *,
    output: str | Path | None = None,
    tokens: int = 32,
    sinks: str = "var",
    source: str = "",
    resamples: int = 2000,
    seed: int = 0,
    fresh: bool = False,
    progress: bool = False,
) -> HeadMap:
    """Measure every head of a loaded model.

    Args:
        engine: From `halludecode.load`. "ablation" needs the Hugging Face engine; on others "vhd"
            and T-VHD look at the first token only.
        samples: Requests with pictures, alone or with the right answer, or `HeadSample`.
        metric: "vhd", "mass" or "ablation".
        output: Folder that keeps ``METRIC.jsonl``, one line a sample, and the map ``METRIC.json``;
            samples that are there are not measured again. None keeps nothing.
        tokens: Most tokens of an answer that is written.
        sinks: A `var` spec that says which tokens are sinks (mass).
        source: Where the samples are from, for the record.
        resamples: Bootstrap resamples of the pictures.
        seed: Seed of the resampling.
        fresh: Measure anew what ``output`` holds.
        progress: Show a bar on standard error.

    Raises:
        InvalidParameter: Unknown metric, or samples that lack what it needs.
        InvalidRequest: No samples, or one without a picture or with one that cannot be read.
        InvalidData: ``output`` belongs to another model or was measured otherwise.
        UnsupportedStrategy: The engine cannot measure it.
        MissingExtra: SciPy is not installed.
    """
    if metric not in METRICS:
        raise InvalidParameter(f"Unknown metric {metric!r}; known: {', '.join(METRICS)}.")
    head_samples = [_sample(each) for each in samples]
    if not head_samples:
        raise InvalidRequest("No samples to measure heads on: give at least one with a picture.")
    engine = local(engine)
    task = _Task.of(engine, head_samples, metric, tokens, sinks)
    model_facts = {name: engine.describe()[name] for name in ("model", "model_digest", "dtype")}
    identity = {"heads": 1, "metric": metric, **model_facts, "settings": task.settings}
    ids = _ids(engine, head_samples)
    with tempfile.TemporaryDirectory() as scratch:
        records = Records(Path(output or scratch) / f"{metric}.jsonl", identity, fresh=fresh)
        _measure(engine, task, head_samples, ids, records, progress)
        summary = summarise(records, set(ids), task.formula, resamples=resamples, seed=seed)
    head_map = _map(task, model_facts, summary, source, engine.model_info)
    if output is not None:
        head_map.save(Path(output) / f"{metric}.json")
    return head_map


@dataclass(frozen=True)
class _Task:
    """What is measured, and how."""

    metric: str
    tokens: int
    sinks: Sinks | None
    on: str  # ablation: "answers" or "objects"

    @classmethod
    def of(
        cls, engine: Any, samples: Sequence[HeadSample], metric: str, tokens: int, sinks: str
    ) -> _Task:
        if metric != "ablation":
            sink_rule = measure.sinks_of(engine, sinks) if metric == "mass" else None
            return cls(metric, tokens, sink_rule, "")
        measure.check_ablation(engine)
        answers = sum(sample.answer is not None for sample in samples)
        objects = sum(sample.answer is None and sample.objects is not None for sample in samples)
        if len(samples) not in (answers, objects):
            raise InvalidParameter(
                "Metric 'ablation' reads what silencing does to the truth, and "
                f"{answers} of {len(samples)} samples have an answer, {objects} true objects; give "
                "all of them one or the other."
            )
        return cls(metric, tokens, None, "answers" if answers else "objects")

    @property
    def settings(self) -> dict[str, Any]:
        """What lines of one file must share."""
        if self.metric == "vhd":
            return {"tokens": self.tokens, "top_share": TOP_SHARE}
        if self.sinks is not None:
            return {"sinks": list(self.sinks.dims), "tau": self.sinks.tau}
        return {"on": self.on, **({"tokens": self.tokens} if self.on == "objects" else {})}

    def formula(self, means: Mapping[str, ndarray]) -> dict[str, ndarray]:
        """The map itself under "", and what stands beside it."""
        if self.metric == "ablation" and self.on == "objects":
            both = {name: means[name] for name in ("hallucinated", "real") if name in means}
            if len(both) < 2:
                raise InvalidData(
                    "The captions name no "
                    f"{'invented' if 'hallucinated' not in both else 'real'} object, so ablation "
                    "has nothing to compare; give more pictures."
                )
            return {"": both["real"] - both["hallucinated"], **both}
        main = {"vhd": "vhd", "mass": "image", "ablation": "answer"}[self.metric]
        return {"": means[main], **{name: x for name, x in means.items() if name != main}}

    def read(self, engine: Any, samples: Sequence[HeadSample]) -> Iterator[tuple[dict, dict]]:
        """Parts and shown of every sample."""
        requests = [sample.request for sample in samples]
        if self.metric == "vhd":
            readings = measure.divergences(engine, requests, self.tokens)
            for sample, reading in zip(samples, readings, strict=True):
                yield _divergence(engine, sample, reading)
        elif self.metric == "mass":
            for reading in measure.masses(engine, requests, self.sinks or Sinks((), 1.0)):
                yield {n: Part(1, x.numpy()) for n, x in reading.tokens[0].items()}, {}
        elif self.on == "answers":
            for sample in samples:
                yield _answer(engine, sample)
        else:
            outputs = engine.generate(requests, "greedy", Sampling(max_new_tokens=self.tokens))
            for sample, output in zip(samples, outputs, strict=True):
                yield _objects(engine, sample, output)


def _measure(
    engine: Any,
    task: _Task,
    samples: Sequence[HeadSample],
    ids: Sequence[str],
    records: Records,
    progress: bool,
) -> None:
    """Read the samples that the file lacks, a batch at a time."""
    from tqdm import tqdm

    todo = [(i, s) for i, s in zip(ids, samples, strict=True) if i not in records.done]
    at_once = 1 if task.metric == "ablation" else engine.batch_size or 1
    bar = tqdm(
        total=len(samples),
        initial=len(samples) - len(todo),
        desc=task.metric,
        unit="sample",
        disable=not progress,
        dynamic_ncols=True,
    )
    waiting = iter(todo)
    with bar:
        while batch := list(islice(waiting, at_once)):
            read = task.read(engine, [sample for _, sample in batch])
            records.append(
                [
                    HeadRecord(name, _picture(engine, sample), parts, shown)
                    for (name, sample), (parts, shown) in zip(batch, read, strict=True)
                ]
            )
            bar.update(len(batch))


def _map(
    task: _Task, model_facts: Mapping[str, str], summary: Summary, source: str, m: ModelInfo
) -> HeadMap:
    """The map of a summary; [L, H] parts beside it, single numbers apart."""
    grids = {
        name: Grid(value, summary.low[name], summary.high[name])
        for name, value in summary.means.items()
        if value.ndim == 2
    }
    numbers = {
        name: {
            "value": float(v),
            "low": float(summary.low[name]),
            "high": float(summary.high[name]),
        }
        for name, v in summary.means.items()
        if v.ndim == 0
    }
    main = grids.pop("")
    notes: tuple[str, ...] = ()
    if task.sinks is not None and not task.sinks.dims:
        notes = ("No sink dimensions were found on this model: all image tokens count as others.",)
    attending = list(m.attending(range(m.num_layers)))
    if m.recurrent:
        shown = ", ".join(map(str, attending))
        notes += (f"Only layers {shown} have attention; in all others the map is 0.",)
    return HeadMap(
        metric=task.metric,
        model=model_facts["model"],
        model_digest=model_facts["model_digest"],
        samples=summary.samples,
        pictures=summary.pictures,
        grid=main,
        parts=grids,
        numbers=numbers,
        stability=spearman(*(half[""][attending] for half in summary.halves))
        if summary.halves
        else None,
        unit=UNITS[task.metric],
        source=source,
        settings={**task.settings, "dtype": model_facts["dtype"]},
        notes=notes,
    )


# One sample -------------------------------------------------------------------------------------


def t_vhd(vhd: ndarray, share: float = TOP_SHARE) -> float:
    """T-VHD of one token: the sum over layers of the largest VHD [L, H] of each.

    Args:
        vhd: Of the token's heads.
        share: Of a layer's heads that count, at least one; the paper does not tell its k.
    """
    k = max(1, round(share * vhd.shape[1]))
    return float(np.sort(vhd, axis=1)[:, -k:].sum())


def _divergence(engine: Any, sample: HeadSample, reading: HeadReading) -> tuple[dict, dict]:
    first = reading.tokens[0]
    scores = [t_vhd(maps["vhd"].numpy()) for maps in reading.tokens]
    groups = {"t_vhd": list(range(len(scores)))}
    shown: dict[str, Any] = {"t_vhd": [float(f"{x:.6g}") for x in scores]}
    if reading.output is not None:
        shown = {"answer": reading.output.text, **shown}
        groups |= _kinds(engine, sample, reading.output)
    parts = {name: Part(1, first[name].numpy()) for name in ("vhd", "inliers")}
    for name, places in groups.items():
        if places:
            parts[name] = Part(len(places), np.array(sum(scores[i] for i in places)))
    return parts, shown


def _kinds(engine: Any, sample: HeadSample, output: Output) -> dict[str, list[int]]:
    """Tokens whose T-VHD is averaged apart: of object words, or of right and wrong answers."""
    if sample.objects is not None:
        by_kind = object_tokens(engine, output, sample.objects)
        return {f"t_vhd_{kind}": places for kind, places in by_kind.items()}
    if sample.answer in ("yes", "no"):
        right = output.text.lower().startswith(sample.answer)
        return {"t_vhd_right" if right else "t_vhd_wrong": [0]}
    return {}


def _answer(engine: Any, sample: HeadSample) -> tuple[dict, dict]:
    words = str(sample.answer)
    if words in ("yes", "no"):
        steps = [engine.inputs.word_ids(words)]
    else:
        ids = engine.tokenizer(words, add_special_tokens=False)["input_ids"]
        steps = [[token] for token in ids]
    change = measure.ablation(engine, sample.request, steps)
    return {"answer": Part(1, change.mean(-1).numpy())}, {"answer": words}


def _objects(engine: Any, sample: HeadSample, output: Output) -> tuple[dict, dict]:
    places = object_tokens(engine, output, sample.objects or ())
    last = max((i for tokens in places.values() for i in tokens), default=-1)
    parts: dict[str, Part] = {}
    if last >= 0:  # nothing after the last object word need be written again
        steps = [[token] for token in output.token_ids[: last + 1]]
        change = measure.ablation(engine, sample.request, steps).numpy()
        for kind, tokens in places.items():
            if tokens:
                parts[kind] = Part(len(tokens), change[..., tokens].sum(-1))
    return parts, {"answer": output.text}


def object_tokens(engine: Any, output: Output, objects: Sequence[str]) -> dict[str, list[int]]:
    """Tokens of the object words of a caption: "real" ones and "hallucinated" ones (CHAIR's rule).

    Args:
        engine: Whose tokenizer wrote it.
        output: The caption.
        objects: COCO categories that the picture shows.
    """
    from halludecode.evals.benchmarks.chair.object_words import reader

    ids = list(output.token_ids)
    text = [engine.tokenizer.decode(ids[:i], skip_special_tokens=True) for i in range(len(ids) + 1)]
    lead = len(text[-1]) - len(text[-1].lstrip())
    ends = [len(part) - lead for part in text]
    by_kind: dict[str, list[int]] = {"hallucinated": [], "real": []}
    for mention in reader().read(output.text).mentions:
        kind = "real" if mention.object in objects else "hallucinated"
        by_kind[kind] += [
            i for i in range(len(ids)) if ends[i] < mention.end and ends[i + 1] > mention.start
        ]
    return by_kind


def _sample(sample: Given) -> HeadSample:
    if isinstance(sample, Request):
        return HeadSample(sample)
    if isinstance(sample, HeadSample):
        return sample
    request, answer = sample
    return HeadSample(request, answer)


def _ids(engine: Any, samples: Sequence[HeadSample]) -> list[str]:
    """Digests of prompt, pictures and truth; a sample that comes again is counted again."""
    names: list[str] = []
    times: dict[str, int] = {}
    for number, sample in enumerate(samples, start=1):
        prompt = _prompt(engine, sample)
        if not prompt.pictures:
            raise InvalidRequest(f"Sample {number} has no picture; heads are measured on pictures.")
        name = digest(prompt.key, sample.answer, sample.objects)
        times[name] = times.get(name, 0) + 1
        names.append(name if times[name] == 1 else f"{name}#{times[name]}")
    return names


def _picture(engine: Any, sample: HeadSample) -> str:
    return digest(*(picture.key for picture in _prompt(engine, sample).pictures))


def _prompt(engine: Any, sample: HeadSample) -> Prompt:
    return engine.prompt_of(sample.request)
