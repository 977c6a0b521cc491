"""RePOPE: POPE's questions under labels that were annotated again.

Neuhaus & Hein 2025, "RePOPE: Impact of Annotation Errors on the POPE Benchmark", arXiv 2504.15707.
Some labels are turned round, and questions that cannot be decided are dropped; nothing new is
asked, so answers to POPE can be scored again. Questions are matched by picture and words, since the
ids of the two sets differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.pope.scoring import PopeQuestion


def relabel(
    questions: Sequence[PopeQuestion], labels: Sequence[PopeQuestion]
) -> tuple[list[PopeQuestion], dict[str, int]]:
    """Gives questions the labels that a later annotation has for them.

    Args:
        questions: What was asked; ids stay.
        labels: The later annotation, read with `pope.load_questions`.

    Returns:
        The questions that have a later label, and how many: ``kept``, ``dropped``, ``yes_to_no``,
        ``no_to_yes``.

    Raises:
        InvalidData: A question is labelled in two ways, or was not asked.
    """
    asked = {_matter(q) for q in questions}
    later: dict[tuple[str, str], str] = {}
    for q in labels:
        if _matter(q) not in asked:
            raise InvalidData(
                f"{q.where}: {q.text!r} about {q.image} is not among the questions asked; "
                "give the relabelled file of the same split."
            )
        if later.setdefault(_matter(q), q.label) != q.label:
            raise InvalidData(f"{q.where}: {q.text!r} about {q.image} has two labels; keep one.")
    known = [(q, later[_matter(q)]) for q in questions if _matter(q) in later]
    turned = Counter(f"{q.label}_to_{label}" for q, label in known)
    return [replace(q, label=label) for q, label in known], {
        "kept": len(known),
        "dropped": len(questions) - len(known),
        "yes_to_no": turned["yes_to_no"],
        "no_to_yes": turned["no_to_yes"],
    }


def _matter(question: PopeQuestion) -> tuple[str, str]:
    # VCD's files and POPE's old ones misspell the last word of some questions.
    return question.image, question.text.replace(" imange?", " image?")
