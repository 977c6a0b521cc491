"""Yes or no questions about the testbed's pictures, as an Inspect task, see `try_inspect.sh`."""

import json
import os
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText
from inspect_ai.scorer import match
from inspect_ai.solver import generate

ONE_WORD = "\nAnswer the question using a single word or phrase."


@task
def pope() -> Task:
    scenes = Path(os.environ["SCENES"])
    lines = (scenes / "pope" / "adversarial.jsonl").read_text().splitlines()
    asked = [json.loads(line) for line in lines]
    samples = [
        Sample(
            id=each["question_id"],
            input=[
                ChatMessageUser(
                    content=[
                        ContentImage(image=str(scenes / "images" / each["image"])),
                        ContentText(text=each["text"] + ONE_WORD),
                    ]
                )
            ],
            target=each["label"],
        )
        for each in asked
    ]
    return Task(
        dataset=MemoryDataset(samples),
        solver=generate(max_tokens=128),
        scorer=match(location="begin"),
    )
