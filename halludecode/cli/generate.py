"""``generate``: one answer, as it is written."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halludecode.cli import epilogs, options
from halludecode.cli.output import json_document, memory_advice, note
from halludecode.core.errors import InvalidRequest

if TYPE_CHECKING:
    from halludecode.engines.api import Choice, Engine, Output, Request, Sampling


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog=epilogs.GENERATE)(generate)


def generate(
    model: Annotated[str, typer.Option(help="Hub id, folder, or testbed.")],
    prompt: Annotated[str | None, typer.Option(help="What to ask.")] = None,
    messages: Annotated[
        Path | None,
        typer.Option(help="In place of --prompt: a JSON file of OpenAI's chat messages."),
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="A picture, such as testbed:3; repeat for several.")
    ] = None,
    strategy: Annotated[str, typer.Option(help="Such as vcd, or pai+vcd(alpha=0.5).")] = "greedy",
    engine: options.EngineName = None,
    background: Annotated[
        str, typer.Option(help="Ground of transparent pictures: a colour's name or #rrggbb.")
    ] = "white",
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Likeliest tokens that hold this share.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="This many likeliest tokens; 0 takes all.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling noise.")] = None,
    n: Annotated[int, typer.Option(help="Number of answers.")] = 1,
    logprobs: Annotated[
        int | None, typer.Option(help="Likeliest tokens to report with --json.")
    ] = None,
    bad_word: Annotated[
        list[str] | None, typer.Option(help="A word that is not written; repeat for several.")
    ] = None,
    allowed_token_id: Annotated[
        list[int] | None, typer.Option(help="A token that may be written, and no others; repeat.")
    ] = None,
    logit_bias: Annotated[
        list[str] | None, typer.Option(help="ID=NUMBER, added to a token's logit; repeat.")
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(help="""JSON for the chat template: '{"enable_thinking": false}'."""),
    ] = None,
    continue_final_message: Annotated[
        bool, typer.Option(help="With --messages: go on with the last one.")
    ] = False,
    explain: Annotated[
        Path | None,
        typer.Option(
            help="Also write a page, such as out.html: what each word owes to the picture."
        ),
    ] = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = None,
    engine_arg: options.EngineArgs = None,
    json: options.Json = False,
) -> None:
    """Answer one prompt about pictures under a strategy."""
    settings = dict(locals())  # the options alone: nothing else is a local yet
    from halludecode.core.spec import parse
    from halludecode.engines.api import Request, Sampling
    from halludecode.engines.inputs.images import load_picture

    fields = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "n", "logprobs")
    sampling = Sampling(
        stop=tuple(stop or ()),
        bad_words=tuple(bad_word or ()),
        allowed_token_ids=allowed_token_id or None,
        logit_bias=_biases(logit_bias or ()),
        **{name: settings[name] for name in fields},
    )
    told = None if chat_template_kwargs is None else _json(chat_template_kwargs, "the option")
    asked = _asked(prompt, messages)
    request = Request(asked, tuple(image or ()), told, continue_final_message, background)
    parse(strategy)  # a misspelt strategy should not cost the time of loading a model
    if explain is not None:
        _check_explain(request, explain)
    for number, picture in enumerate(image or (), start=1):
        load_picture(picture, f"image {number}", background)
    load = options.loader(model, engine, options.engine_arguments(settings))
    with json_document(json) as documents, memory_advice(1):
        loaded = load()
        if explain is None and not json:
            output = _write(loaded, request, strategy, sampling)
        else:
            how = {"explain": "maps"} if explain else {}
            output = loaded.generate([request], strategy, sampling, **how)[0]
            if json:
                documents.append(as_json(output))
            else:
                _print(output)
        if explain is not None:
            _page(loaded, request, output, explain)
    for warning in output.warnings:
        note(f"warning: {warning}")


def _asked(prompt: str | None, messages: Path | None) -> Any:
    """The words or the chat, of which one must be given."""
    if (prompt is None) == (messages is None):
        raise InvalidRequest(
            "Give --prompt, or --messages with a JSON file of chat messages; see halludecode "
            "generate --help"
        )
    if messages is None:
        return prompt
    try:
        text = messages.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{messages}: cannot be read ({error}).") from None
    chat = _json(text, str(messages))
    if not isinstance(chat, list):
        raise InvalidRequest(f"{messages}: it must be a list of messages.")
    return chat


def _json(text: str, where: str) -> Any:
    try:
        return json_module.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{where} {text[:60]!r}: not JSON ({error}).") from None


def _biases(given: Sequence[str]) -> dict[int, float] | None:
    """``ID=NUMBER`` as `Sampling` takes it."""
    biases: dict[int, float] = {}
    for each in given:
        token, _, value = each.partition("=")
        try:
            biases[int(token)] = float(value)
        except ValueError:
            raise InvalidRequest(f"--logit-bias {each}: write ID=NUMBER, such as 42=-5.") from None
    return biases or None


def _write(engine: Engine, request: Request, strategy: str, sampling: Sampling) -> Output:
    """Stream one answer to standard output; several are written one after the other."""
    if sampling.n > 1:
        output = engine.generate([request], strategy, sampling)[0]
        _print(output)
        return output
    for chunk in engine.stream(request, strategy, sampling):
        if chunk.text:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        if chunk.output is not None:
            output = chunk.output
    sys.stdout.write("\n")
    return output


def _print(output: Output) -> None:
    """A finished output, several answers numbered."""
    for number, choice in enumerate(output.choices, start=1):
        mark = f"[{number}] " if len(output.choices) > 1 else ""
        sys.stdout.write(f"{mark}{choice.text}\n")


def _check_explain(request: Request, path: Path) -> None:
    """Refuse what could not be explained, before a model is loaded."""
    from halludecode.analysis.explanation_page import check_target

    if not request.images:
        raise InvalidRequest(
            "--explain shows what an answer owes to its pictures; give one with --image."
        )
    check_target(path)


def _page(engine: Any, request: Request, output: Output, path: Path) -> None:
    """Write the page of an explained answer."""
    from halludecode.analysis.explanation_page import write_page

    write_page(path, engine, request, output)
    note(f"wrote {path}")


def as_json(output: Output) -> dict[str, Any]:
    """What ``generate --json`` prints; some keys only where asked for.

    These are ``logprobs``, ``choices`` and ``explanation`` (an answer's numbers, without maps).
    """
    document = {
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "strategy": output.strategy,
        "effect": output.effect,
        "timings": output.timings,
        "rows": output.rows,
        "warnings": output.warnings,
    }
    if output.logprobs is not None:
        document["logprobs"] = output.logprobs
    if output.explanation is not None:
        document["explanation"] = _numbers(output.choices[0])["explanation"]
    if len(output.choices) > 1:
        document["choices"] = [_numbers(choice) for choice in output.choices]
    return document


def _numbers(choice: Choice) -> dict[str, Any]:
    """One answer's fields."""
    fields = dict(vars(choice))
    if choice.explanation is None:
        del fields["explanation"]
        return fields
    from halludecode.analysis.grounding import load_threshold, numbers

    return fields | {"explanation": numbers(choice.explanation, load_threshold())}
