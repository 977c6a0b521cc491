"""The testbed's adversarial POPE questions as each harness reads local data; answers compared.

    python -m tests.adapters.local_pope lmms_eval SCENES OUT   # OUT/*.yaml and OUT/pope.parquet
    python -m tests.adapters.local_pope vlmeval SCENES OUT     # OUT/LMUData/HalluPOPE.tsv
    python -m tests.adapters.local_pope same RUN FILE          # a run folder's answers = a file's

SCENES is a folder of `halludecode testbed data`. It runs in the harness's environment, too.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

ONE_WORD = "\nAnswer the question using a single word or phrase."


def questions(scenes: Path) -> list[dict]:
    lines = (scenes / "pope" / "adversarial.jsonl").read_text().splitlines()
    asked = [json.loads(line) for line in lines]
    (folder,) = {path.parent for path in scenes.rglob(asked[0]["image"])} - set(
        (scenes / "mme").iterdir()
    )
    return [{**each, "bytes": (folder / each["image"]).read_bytes()} for each in asked]


def lmms_eval(scenes: Path, out: Path) -> None:
    """A task that is lmms-eval's own `pope` but for where its data lie."""
    import datasets
    import lmms_eval.tasks
    import pyarrow

    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "question_id": str(each["question_id"]),
            "question": each["text"],
            "answer": each["label"],
            "image": {"bytes": each["bytes"], "path": each["image"]},
            "category": "adversarial",
        }
        for each in questions(scenes)
    ]
    table = datasets.Dataset(pyarrow.Table.from_pylist(rows))
    table.cast_column("image", datasets.Image()).to_parquet(str(out / "pope.parquet"))
    own = Path(lmms_eval.tasks.__file__).parent / "pope"
    (out / "utils.py").write_text((own / "utils.py").read_text())
    task = (own / "pope.yaml").read_text()
    task = task.replace("dataset_path: lmms-lab-encoder/POPE", "dataset_path: parquet")
    task = task.replace('task: "pope"', 'task: "pope_local"')
    data = json.dumps({"test": str((out / "pope.parquet").resolve())})
    (out / "pope_local.yaml").write_text(task.replace("  token: True", f"  data_files: {data}"))


def vlmeval(scenes: Path, out: Path) -> None:
    """A table as VLMEvalKit reads one for questions that are answered yes or no."""
    import pandas

    folder = out / "LMUData"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "index": each["question_id"],
            "image": base64.b64encode(each["bytes"]).decode(),
            "question": each["text"],
            "answer": each["label"].capitalize(),
            "category": "adversarial",
        }
        for each in questions(scenes)
    ]
    pandas.DataFrame(rows).to_csv(folder / "HalluPOPE.tsv", sep="\t", index=False)


def answers_of(path: Path) -> dict[int, str]:
    """Question id -> answer: our run folder, lmms-eval's samples, inspect's log, a table."""
    if path.is_dir():
        lines = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
        return {line["id"]: line["answer"] for line in lines if line["split"] == "adversarial"}
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {int(line["doc_id"]) + 1: line["filtered_resps"] for line in lines}
    if path.suffix == ".eval":
        from inspect_ai.log import read_eval_log

        return {int(s.id): s.output.completion for s in read_eval_log(str(path)).samples or []}
    import pandas

    table = pandas.read_excel(path) if path.suffix == ".xlsx" else pandas.read_csv(path, sep="\t")
    return dict(zip(table["index"].astype(int), table["prediction"], strict=True))


def same(run: Path, file: Path) -> None:
    ours, theirs = answers_of(run), answers_of(file)
    other = {key: (ours.get(key), theirs.get(key)) for key in ours | theirs
             if ours.get(key) != theirs.get(key)}  # fmt: skip
    if other or not ours:
        sys.exit(f"{len(other)} of {len(ours)} answers differ: {other}")
    print(f"All {len(ours)} answers are equal: {sorted(set(ours.values()))}")


if __name__ == "__main__":
    {"lmms_eval": lmms_eval, "vlmeval": vlmeval, "same": same}[sys.argv[1]](
        *map(Path, sys.argv[2:])
    )
