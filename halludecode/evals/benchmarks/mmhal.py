"""MMHal-Bench: free answers to 96 hard questions, rated by a language model (arXiv:2309.14525)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.judged import REFUSED, REFUSED_AND_UNREAD, UNREAD, JudgedBenchmark
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.data.columns import Columns, said, words_of
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

PAPER = Paper(
    "2309.14525",
    "Aligning Large Multimodal Models with Factually Augmented RLHF",
    "Sun, Zhiqing and Shen, Sheng and Cao, Shengcao and Liu, Haotian and others",
    "ACL Findings",
    2024,
)
RATINGS = range(7)
HONEST = 3  # the least rating without hallucination


@benchmark("mmhal", paper=PAPER)
class MMHal(JudgedBenchmark):
    """Answers rated 0 to 6 by a judge that reads the picture's contents and a human answer.

    ``average`` and ``hallucination_rate`` (ratings below 3) as the official script counts them: a
    verdict with no rating, or with several, is a 0, and so is a refusal; ``unread`` and ``refused``
    count both. The words for the judge are `template` in Eval/eval_gpt_mmhal.py of
    llava-rlhf/LLaVA-RLHF (Apache-2.0), with four places; its judge was gpt-4-0314, and numbers of
    different judges do not compare; no judge was at hand to repeat a published number.

    Questions and pictures: response_template.json and images/ of Shengcao1006/MMHal-Bench
    (Apache-2.0), read at 8c04a4a8ae40b80763eee9b3eadf115e2267bfa6; a picture's name is the end of
    its ``image_src``. Counted (in the copy that RLHF-V/RLHF-V has): 96 questions, twelve of each of
    eight kinds, each about a picture of its own; none is asked twice, though eight ask for the
    same, a detailed description.
    """

    title = "MMHal-Bench"
    max_new_tokens = 512
    hub = "Shengcao1006/MMHal-Bench@8c04a4a8ae40b80763eee9b3eadf115e2267bfa6"
    hub_files = ("response_template.json", "images/*")
    files = ("mmhal.jsonl", "mmhal/response_template.json", "response_template.json")
    needs = (
        "mmhal/response_template.json with images/ in the folder, or Shengcao1006/MMHal-Bench of "
        "the hub"
    )
    columns = (
        Columns(
            {"image": ("image", "image_src"), "question": ("question",), "answer": ("gt_answer",)}
            | {"contents": ("image_content",), "kind": ("question_type",)}
        ),
    )
    examples = tuple(
        {
            "image": f"{n}.jpg",
            "question": f"How many {thing}s are there?",
            "answer": f"{n} {thing}s",
        }
        | {"contents": [thing, "Table"], "kind": "counting"}
        for n, thing in enumerate(("cup", "dog"), start=2)
    )
    replies = ("Rating: 6", "Rating: 0")
    metrics = (
        Metric("average", "rating (0 to 6)", scale=1.0, digits=2, short="rating"),
        Metric("hallucination_rate", "hallucinated %", lower_is_better=True),
    )
    more_metrics = REFUSED_AND_UNREAD

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """One question, named after its picture: they have one each."""
        cells = record.fields
        name = said(cells["image"]).rpartition("/")[2]
        contents = words_of(cells["contents"], record.where)
        facts = {"contents": ", ".join(contents), "kind": said(cells["kind"])}
        asked = (said(cells["question"]), name, said(cells["answer"]))
        return Sample(f"{facts['kind']} {name}", *asked, facts=facts, where=record.where)

    def asked(self, sample: Sample, answer: str) -> Sequence[str]:
        """Contents, question, the human's answer, the model's."""
        return sample.facts["contents"], sample.question, str(sample.label), answer

    def verdict(self, raw: str) -> Any:
        """The one rating that is named."""
        found = [rating for rating in RATINGS if f"rating: {rating}" in raw.lower()]
        return found[0] if len(found) == 1 else UNREAD

    def right(self, verdict: Any, sample: Sample) -> bool:
        """Without hallucination."""
        return verdict >= HONEST

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Mean rating and share of answers with hallucination, over all and by kind."""
        rows = []
        for line in lines:
            read = line["parsed"]
            rating = 0.0 if read in (REFUSED, UNREAD) else float(read)
            counts = {"n": 1.0, "rating": rating, "wrong": float(rating < HONEST)}
            counts |= {"refused": float(read == REFUSED), "unread": float(read == UNREAD)}
            counts |= {f"{line['kind']}.n": 1.0, f"{line['kind']}.rating": rating}
            rows.append((self.cluster(line), counts))
        honest = {line["id"]: int(not line["score"]) for line in lines}
        return self.tally(lines, rows, _formula, {"hallucination_rate": honest})


def _formula(s: Sums) -> dict[str, np.ndarray]:
    kinds = [name.removesuffix(".n") for name in s if name.endswith(".n")]
    found = {"average": ratio(s["rating"], s["n"]), "hallucination_rate": ratio(s["wrong"], s["n"])}
    found |= {name: np.asarray(s[name], dtype=float) for name in ("refused", "unread")}
    return found | {f"average.{kind}": ratio(s[f"{kind}.rating"], s[f"{kind}.n"]) for kind in kinds}
