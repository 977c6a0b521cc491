"""benchmarks/answers.py: examples are copied into as many different questions as are asked for."""

from __future__ import annotations

import json
import random

import pytest

from benchmarks import answers


@pytest.mark.parametrize("cls", answers.measured(), ids=lambda cls: cls.name)
def test_copies_are_different_questions(cls, tmp_path):
    file = tmp_path / f"{cls.name}.jsonl"
    file.write_text("\n".join(map(json.dumps, answers.questions(cls, 40))))
    samples = [s for own in cls().annotated(file, ()).values() for s in own]
    assert 40 <= len(samples) < 60
    assert len({s.id for s in samples}) == len(samples)
    said = answers.answers_of(samples, random.Random(0))
    assert [line["id"] for line in said] == [s.id for s in samples]
