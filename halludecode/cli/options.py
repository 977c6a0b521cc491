"""Options that several commands share, and the engine arguments made of them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halludecode.core.errors import InvalidParameter

if TYPE_CHECKING:
    from halludecode.engines.api import Engine

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
EngineName = Annotated[str | None, typer.Option("--engine", help="hf (default) or vllm.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16 or auto."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")]
DeviceMap = Annotated[str | None, typer.Option(help="Spread the model over devices, such as auto.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
TrustRemoteCode = Annotated[
    bool | None,
    typer.Option("--trust-remote-code", help="Run code that comes with the model."),
]
PromptPreset = Annotated[
    str | None,
    typer.Option(
        help="Whose protocol words a prompt and limits its tokens: llava-1.5 (default), vcd, "
        "cd-rethink, opera, opera-512, opera-64 (drops the unfinished last sentence), ritual, "
        "deco, pai, damro, pope-brief, pope-short, testbed (default for it)."
    ),
]
# Where `calibrate` and `sinks` take their samples from: `analysis.calibration_samples.samples`.
SampleImages = Annotated[Path | None, typer.Option(help="Folder of the pictures.")]
SampleAnnotations = Annotated[
    Path | None, typer.Option(help="POPE question file or COCO captions file.")
]
SamplePreset = Annotated[
    str | None, typer.Option(help="Whose words go round a question, as for eval.")
]
Family = Annotated[
    str | None,
    typer.Option(
        help="CHAIR: how words become objects: wordnet (default), pattern, or opera_published, "
        "which is wordnet captions against pattern ground truth."
    ),
]
GtFamily = Annotated[
    str | None, typer.Option(help="CHAIR: the same for the ground truth; default as --family.")
]
Incomplete = Annotated[
    str | None,
    typer.Option(
        help="CHAIR: keep or drop a caption's unfinished last sentence; default keep, in eval the "
        "prompt preset's."
    ),
]
ImageIds = Annotated[
    str | None,
    typer.Option(
        help="CHAIR: exactly these pictures: chair500 (500 of COCO val2014, OPERA's) or a file "
        "with one image id a line."
    ),
]
Synonyms = Annotated[
    str | None,
    typer.Option(
        help="CHAIR: object words of your own: a file of lines 'category, word, word ...'. Words "
        "that CHAIR's own list lacks need NLTK with its data, WordNet's among them."
    ),
]
Similarity = Annotated[
    str | None, typer.Option(help="AMBER: of its words: spacy:en_core_web_lg (default none).")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        help="OURS=THEIRS: a hub data set's own name of a column, such as answer=reply; repeat for "
        "several."
    ),
]
AnswerColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        help="OURS=THEIRS: a file's own name of a column (answer, id, question, image, split), "
        "such as answer=reply, where what is in them does not tell; repeat for several.",
    ),
]
Answers = Annotated[
    str | None,
    typer.Option(help="as_written (default), or final: without thoughts, tags, boxes and marks."),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Requests in one batch.")]

Servers = Annotated[
    list[str] | None,
    typer.Option(
        "--server",
        help="URL of a running `halludecode serve`, which answers in place of a model here; repeat "
        "for several that serve the same model.",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(help="What the server asks for; default the environment's HALLUDECODE_API_KEY."),
]
Concurrency = Annotated[
    int | None, typer.Option(min=1, help="Requests sent to servers at a time (default 32).")
]

ExtraRows = Annotated[
    str | None,
    typer.Option(
        help="When rows beside the main one begin: on_demand (default), at the first token that "
        "they can change, or always, with the prompt. The answers are the same."
    ),
]

EngineArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-arg",
        help="KEY=VALUE: anything else that the engine's loader takes (from_pretrained of "
        "transformers, vLLM's EngineArgs), such as attn_implementation=eager, max_model_len=4096 "
        "or limit_mm_per_prompt='{image: 2}'; repeat for several.",
    ),
]

ENGINE_ARGUMENTS = (
    "dtype",
    "device",
    "device_map",
    "revision",
    "trust_remote_code",
    "batch_size",
    "extra_rows",
)
SERVER_ARGUMENTS = {
    "model": "model_name",
    "api_key": "api_key",
    "concurrency": "concurrency",
}


def engine_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of ``settings`` that `halludecode.load` takes and that the user set.

    Raises:
        InvalidParameter: An ``engine_arg`` is not KEY=VALUE, or has an option of its own, too.
    """
    named = {name: settings[name] for name in ENGINE_ARGUMENTS if settings.get(name) is not None}
    more = engine_args(settings.get("engine_arg"))
    if both := sorted(named.keys() & more.keys()):
        option = both[0].replace("_", "-")
        raise InvalidParameter(f"--engine-arg {both[0]} and --{option} are both given; keep one.")
    return named | more


def engine_args(given: Any) -> dict[str, Any]:
    """Keyword arguments from ``["key=value", ...]``, values as in YAML, or from a mapping."""
    if isinstance(given, dict):
        return {str(name): value for name, value in given.items()}
    found: dict[str, Any] = {}
    for text in [given] if isinstance(given, str) else given or ():
        name, sign, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not (sign and name.isidentifier()):
            raise InvalidParameter(
                f"--engine-arg {text!r}: give KEY=VALUE, such as max_model_len=4096."
            )
        if name in found:
            raise InvalidParameter(f"--engine-arg {name} is given twice; keep one.")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    """What YAML reads, and numbers such as 1e-1, which YAML takes for words."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    exponent = isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)e[+-]?\d+", value)
    return float(value) if exponent else value


def loader(model: str, engine: str | None, arguments: dict[str, Any]) -> partial[Engine]:
    """Loads the model when it is called; what can be refused at once is.

    Raises:
        HalluDecodeError: As `halludecode.load`.
    """
    from halludecode.api import check_load

    check_load(model, engine or "hf", **arguments)
    return partial(load, model, engine=engine or "hf", **arguments)


def load(model: Any, **arguments: Any) -> Engine:
    """`halludecode.load`, which is imported by then and not before."""
    import halludecode

    return halludecode.load(model, **arguments)


def server_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """The same for engine "server"; what only a model in this process takes is refused.

    Raises:
        InvalidParameter: The sentence names the option.
    """
    for name in (*ENGINE_ARGUMENTS, "engine_arg"):
        if settings.get(name) is not None:
            raise InvalidParameter(
                f"--{name.replace('_', '-')} is for a model loaded here; with --server it is "
                "`halludecode serve` that takes it."
            )
    if settings.get("engine") not in (None, "server"):
        raise InvalidParameter(
            f"--engine {settings['engine']} does not go with --server; drop one."
        )
    named = SERVER_ARGUMENTS.items()
    return {theirs: settings[name] for name, theirs in named if settings.get(name) is not None}
