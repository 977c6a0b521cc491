"""`eval --server` against the real server: the lines of an evaluation in process."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import openai
import pytest

import halludecode as hd
from halludecode.cli.app import main
from halludecode.evals.runner.run import run_eval
from halludecode.testbed import write_dataset
from tests.support import eval_world as world
from tests.support import families
from tests.support.serving import KEY, VAR, body, data_url, png

STRATEGIES = ("greedy", "vcd", VAR)
SAMPLED = {"temperature": 1.2, "seed": 3, "controls": False}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set", "iid", 3)


@pytest.fixture(scope="module")
def engine(served):
    # More at a time than the 16 answers that this server writes, so that some are sent again.
    return hd.load(served.url, engine="server", api_key=KEY, concurrency=24, tries=30)


def run(engine, source, output, **more):
    options = {"tasks": ["pope", "chair"], "strategies": STRATEGIES, "max_new_tokens": 12}
    options |= {"data": [source], "prompt_preset": "testbed", "progress": False, **more}
    return run_eval(engine, output=output, **options)


def equal(mine, theirs) -> int:
    """Compare two run folders line by line; times may differ. Returns the number of lines."""
    found = []
    for folder in (mine, theirs):
        lines = world.lines(folder / "samples.jsonl")
        keys = ("task", "split", "strategy", "id")
        found.append({tuple(line[k] for k in keys): line for line in lines})
    assert found[0].keys() == found[1].keys()
    for key, line in found[0].items():
        want = found[1][key]
        assert line.keys() == want.keys()
        if want["margin"] is not None:
            assert line["margin"] == pytest.approx(want["margin"], abs=1e-3), key
        for name in want.keys() - {"ms", "margin"}:
            assert line[name] == want[name], (key, name)
    return len(found[0])


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_run_over_http_writes_the_lines_of_one_in_process(
    engine, testbed, source, tmp_path, sampling
):
    report = run(engine, source, tmp_path / "http", **sampling)
    run(testbed, source, tmp_path / "here", **sampling)
    assert report.failed == 0
    assert equal(tmp_path / "http", tmp_path / "here") >= 3 * 12
    record = json.loads((tmp_path / "http" / "run.json").read_text())
    here = json.loads((tmp_path / "here" / "run.json").read_text())
    assert {record[k] == here[k] for k in ("model", "dtype", "data")} == {True}
    told, known = record["strategies"], here["strategies"]
    assert told == known
    assert record["model_facts"]["served_by"] == "vllm" and "vllm" in record["versions"]


def test_the_command_line_does_it_all(served, source, tmp_path, capsys):
    words = ["eval", "--server", served.url, "--api-key", KEY, "--tasks", "pope", "--json"]
    words += ["--strategy", "vcd", "--data", str(source), "--limit", "1"]
    words += ["--model", "testbed", "--concurrency", "4", "--output", str(tmp_path / "run")]
    assert main(words) == 0
    results = json.loads(capsys.readouterr().out)
    assert {(e["engine"], e["model"]) for e in results["runs"]} == {("server", "testbed")}
    text = (tmp_path / "run" / "run.json").read_text()
    assert KEY not in text and served.url in text


def test_what_the_operator_does_not_allow_is_refused_before_any_answer(served, tmp_path, capsys):
    words = ["eval", "--server", served.url, "--api-key", KEY, "--tasks", "pope"]
    for strategy, says in (("pai", "'pai' is not allowed"), ("vdc", "Did you mean 'vcd'")):
        assert main([*words, "--strategy", strategy, "--output", str(tmp_path / "run")]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_refused_pictures_are_failed_samples(engine, testbed, source, tmp_path):
    import shutil

    from PIL import Image

    wrong = tmp_path / "set"
    shutil.copytree(source, wrong)
    one, two, _ = sorted((wrong / "images").iterdir())
    noise = Image.effect_noise((700, 700), 200)  # above this server's 0.25 MiB
    noise.save(one)
    two.write_bytes(two.read_bytes()[:300])
    report = run(engine, wrong, tmp_path / "run", strategies=["greedy", "vcd"])
    errors = world.lines(tmp_path / "run" / "errors.jsonl")
    assert report.failed == len(errors) > 0
    said = {(line["image"], line["error"].split(";")[0]) for line in errors}
    assert len(said) == 2
    assert any("bytes, this server accepts 262,144" in error for _, error in said)
    assert any("cannot be decoded" in error for _, error in said)  # noticed before it is sent
    assert {line["image"] for line in world.lines(tmp_path / "run" / "samples.jsonl")}.isdisjoint(
        {one.name, two.name}
    )


def test_an_engine_over_http_answers_as_the_hf_engine(engine, testbed):
    pictures = families.pictures()
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
    ]
    asked = [
        hd.Request("Describe the image.", [pictures[0]]),
        hd.Request(turns, pictures[:2]),
        hd.Request("Is it red?"),
    ]
    several = hd.Sampling(max_new_tokens=8, temperature=1.5, seed=3, n=2, top_p=0.9, top_k=40)
    penal = hd.Sampling(max_new_tokens=10, stop=("the",), min_new_tokens=2, repetition_penalty=1.2)
    cases = (
        (hd.Sampling(max_new_tokens=10, logprobs=3), ("greedy", "vcd", VAR)),
        (several, ("greedy", "vcd", VAR)),
        (penal, ("greedy", "vcd", VAR)),
    )
    for sampling, specs in cases:
        for spec in specs:
            a = engine.generate(asked, spec, sampling, score_words=("yes", "no"))
            b = testbed.generate(asked, spec, sampling, score_words=("yes", "no"))
            for x, y in zip(a, b, strict=True):
                same_output(x, y)


def same_output(x: hd.Output, y: hd.Output) -> None:
    assert [(c.text, c.token_ids, c.finish_reason) for c in x.choices] == [
        (c.text, c.token_ids, c.finish_reason) for c in y.choices
    ]
    assert (x.strategy, x.effect, x.warnings) == (y.strategy, y.effect, y.warnings)
    assert set(x.rows) >= set(y.rows)  # engine hf leaves out rows that no token needed
    assert x.scores == pytest.approx(y.scores, abs=1e-3)
    assert (x.logprobs is None) == (y.logprobs is None)
    for p, q in zip(x.logprobs or (), y.logprobs or (), strict=True):
        assert (p.token_id, p.token.strip()) == (q.token_id, q.token.strip())
        assert p.logprob == pytest.approx(q.logprob, abs=1e-3)
        have, want = (sorted(one.top.values()) for one in (p, q))
        assert have == pytest.approx(want, abs=1e-3)


def test_streams_end_with_details_when_asked(served):
    xargs = {"strategy": "vcd", "details": 1, "score_words": ["yes", "no"]}
    asked = body("Is there a dog?", data_url(png(families.pictures()[0])))
    asked["extra_body"] = {"vllm_xargs": xargs, "return_token_ids": True}

    async def both():
        url = f"{served.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            made = await client.chat.completions.create(**asked)
            chunks = [c async for c in await client.chat.completions.create(**asked, stream=True)]
            plain = await client.chat.completions.create(**body(strategy="vcd"))
            return made, chunks, plain

    made, chunks, plain = asyncio.run(both())
    told, streamed = made.halludecode, chunks[-1].halludecode
    assert {k: told[k] for k in ("effect", "rows", "choices")} == {
        k: streamed[k] for k in ("effect", "rows", "choices")
    }
    assert told["choices"][0]["token_ids"] == made.choices[0].token_ids
    assert told["scores"].keys() == {"yes", "no"}
    assert all(value >= 0 for value in told["timings"].values())
    assert not hasattr(chunks[0], "halludecode") and not hasattr(plain, "halludecode")


@pytest.mark.filterwarnings("ignore")  # vLLM's own, where this is the first to import it
def test_early_chunks_that_are_read_late_tell_nothing_of_the_end():
    """An answer may have ended before a slow client reads its first chunk."""
    from halludecode.serve.chat_service import _events

    async def read_late():
        said = json.dumps({"content": '"finish_reason":null'})
        yield f'data: {{"choices":[{{"delta":{said},"finish_reason":null}}]}}\n\n'
        yield 'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
        yield 'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
        yield "data: [DONE]\n\n"

    async def chunks():
        told = {"strategy": "vcd", "halludecode": {"effect": 1}}
        metrics = SimpleNamespace(end=lambda outcome: None)
        return [each async for each in _events(read_late(), lambda: told, metrics, None)]

    *made, done = asyncio.run(chunks())
    told = [json.loads(each.removeprefix("data: ")) for each in made]
    assert ["halludecode" in each for each in told] == [False, True, True]
    assert all(each["strategy"] == "vcd" for each in told) and done == "data: [DONE]\n\n"


def test_tokens_are_explained_as_the_hf_engine_does(engine, testbed):
    asked = hd.Request("Describe the image.", families.pictures()[:1])
    words = hd.Request("Is it red?")
    sampling = hd.Sampling(max_new_tokens=6)
    for spec in ("greedy", "vcd", "m3id"):
        ours, want = (
            each.generate([asked, words], spec, sampling, explain=True)
            for each in (engine, testbed)
        )
        assert [out.token_ids for out in ours] == [out.token_ids for out in want]
        assert [out.effect for out in ours] == [out.effect for out in want]
        assert ours[1].explanation is None
        for x, y in zip(ours[0].explanation.tokens, want[0].explanation.tokens, strict=True):
            assert (x.token_id, x.text) == (y.token_id, y.text)
            for name in ("grounding", "entropy", "mass"):
                assert getattr(x, name) == pytest.approx(getattr(y, name), abs=1e-3)
    with pytest.raises(hd.InvalidRequest, match="explain='maps' is not served over HTTP"):
        engine.generate(asked, "vcd", sampling, explain="maps")


@pytest.mark.parametrize(
    ("words", "says"),
    [("yes", "list of words"), ([1], "list of words"), (["a"] * 17, "at most 16 words")],
)
def test_score_words_must_be_a_short_list(served, words, says):
    asked = body(strategy="vcd")
    asked["extra_body"]["vllm_xargs"]["score_words"] = words
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match=says),
    ):
        client.chat.completions.create(**asked)
