"""What the server answers: the tokens of the HF engine, streamed or not, alone or among others."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections import Counter

import openai
import pytest

import halludecode as hd
from halludecode import serve
from halludecode.core.spec import parse
from tests.serve.conftest import DEFAULT
from tests.support import LONG, families
from tests.support.processes import REPO, environment
from tests.support.serving import KEY, VAR, body, picture_url

SPECS = ["greedy", "vcd", VAR, DEFAULT, "vhr", "vista", "ritual+vcd"]
WORDS = ("Describe the image.", "Is there a dog in the image?", "What is it? Please.")


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def truth(testbed):
    """(strategy, question, picture) -> what the HF engine answers."""
    known = {}

    def get(spec, words, picture, **sampling):
        key = (spec, words, picture, str(sampling))
        if key not in known:
            request = hd.Request(words, [families.pictures()[picture]])
            chosen = hd.Sampling(**{"max_new_tokens": 10, **sampling})
            known[key] = testbed.generate(request, spec, chosen)[0]
        return known[key]

    return get


def words(text: str) -> list[str]:
    """Words and signs: vLLM joins them with other blanks than the tokenizer's own decoder."""
    return re.findall(r"\w+|[^\w\s]", text)


def metrics(served) -> dict[str, float]:
    with urllib.request.urlopen(f"{served.url}/metrics", timeout=LONG) as answer:
        lines = answer.read().decode().splitlines()
    found = (re.fullmatch(r"(\S+) ([0-9.e+-]+|NaN)", line) for line in lines)
    return {match[1]: float(match[2]) for match in found if match}


def label_of(spec: str) -> str:
    """What the server's metrics call a strategy."""
    parts = parse(spec)
    return parts[0].name if len(parts) == 1 else "composed"


def gauge(served, name: str) -> float:
    return sum(value for key, value in metrics(served).items() if key.startswith(name))


async def one(client, spec, words, picture, stream):
    """(token ids, text, strategies named, finish reason) of one request."""
    asked = body(words, picture_url(picture), strategy=spec)
    if not stream:
        made = await client.chat.completions.create(**asked)
        choice = made.choices[0]
        return choice.token_ids, choice.message.content, {made.strategy}, choice.finish_reason
    ids, text, names, finish = [], "", set(), None
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        names.add(chunk.strategy)
        for choice in chunk.choices:
            ids += getattr(choice, "token_ids", None) or []
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return ids, text, names, finish


def test_concurrent_clients_get_the_tokens_of_the_hf_engine(served, truth):
    cases = [
        (spec, WORDS[(i + j) % 3], (i + j) % 3, (i + j) % 2 == 1)
        for i, spec in enumerate(SPECS)
        for j in range(2)
    ]

    async def every():
        url = f"{served.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*[one(client, *case) for case in cases])

    answers = asyncio.run(every())
    for case, (ids, text, names, finish) in zip(cases, answers, strict=True):
        spec, question, picture, _ = case
        want = truth(spec, question, picture)
        assert tuple(ids) == want.token_ids, (spec, question)
        assert words(text) == words(want.text)
        assert names == {want.strategy}
        assert finish == want.finish_reason


def test_every_strategy_reads_the_prompt_that_plain_requests_read(client):
    plain, vcd = (
        client.chat.completions.create(**body(strategy=spec)) for spec in ("greedy", "vcd")
    )
    assert plain.prompt_token_ids == vcd.prompt_token_ids
    assert plain.usage.prompt_tokens == vcd.usage.prompt_tokens > 64


TURN = {"role": "user", "content": "And is there a cat?"}
CHATS = {
    "developer": ([{"role": "developer", "content": "Be brief."}], [], {}),
    "tool": (
        [],
        [
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
            ]},
            {"role": "tool", "content": [{"type": "text", "text": word} for word in "AB"],
             "tool_call_id": "1"},
        ],
        {},
    ),
    "several turns": ([], [{"role": "assistant", "content": "Yes."}, TURN], {}),
    "begun": ([], [{"role": "assistant", "content": "the image shows"}],
              {"continue_final_message": True}),
    "not opened": ([], [], {"add_generation_prompt": False}),
    "no thinking": ([], [], {"chat_template_kwargs": {"enable_thinking": False}}),
    "effort": ([], [], {"reasoning_effort": "low"}),
    "false": ([], [], {"logprobs": False, "echo": False, "ignore_eos": False, "min_tokens": 0}),
    "harmless": ([], [], {"store": False, "metadata": {"a": "b"}, "user": ""}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHATS)
def test_plain_and_strategy_requests_read_one_prompt(client, testbed, name):
    before, after, more = CHATS[name]
    ids = []
    for spec in ("greedy", "vcd"):
        asked = body(strategy=spec)
        asked["messages"] = [*before, *asked["messages"], *after]
        asked["extra_body"] |= more
        made = client.chat.completions.create(**asked)
        assert made.strategy.startswith(spec)
        ids.append(made.prompt_token_ids)
    assert ids[0] == ids[1]
    told = {k: more[k] for k in ("chat_template_kwargs", "continue_final_message") if k in more}
    if "add_generation_prompt" in more:
        told["chat_template_kwargs"] = more
    row = testbed.rows(hd.Request(asked["messages"], **told), "greedy")["main"]
    assert row.input_ids.tolist() == ids[0]


RULED = {
    "bad words": {"bad_words": ["dog", "a red"]},
    "bias": {"logit_bias": {"30": 4.0, "31": -100.0}},
    "allowed": {"allowed_token_ids": list(range(20, 60)), "min_tokens": 3},
    "cool": {"temperature": 0.003, "seed": 1},
    "hot": {"temperature": 3.5, "seed": 1},
    "seeded": {"temperature": 1.0, "seed": 7},
    "penalised": {"repetition_penalty": 1.4},
}


@pytest.mark.parametrize("name", RULED)
def test_rules_and_draws_are_those_of_the_hf_engine_with_and_without_a_strategy(
    client, truth, name
):
    more = dict(RULED[name])
    ours = {{"min_tokens": "min_new_tokens"}.get(key, key): value for key, value in more.items()}
    if "logit_bias" in ours:
        ours["logit_bias"] = {int(token): bias for token, bias in ours["logit_bias"].items()}
    sent = {key: more.pop(key) for key in ("temperature", "seed", "logit_bias") if key in more}
    for spec in ("greedy", "vcd", VAR):
        want = truth(spec, WORDS[0], 0, **ours)
        made = client.chat.completions.create(**body(strategy=spec, extra_body=more, **sent))
        assert tuple(made.choices[0].token_ids) == want.token_ids, spec


STRUCTURES = {
    "choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "regex": {"structured_outputs": {"regex": "(two|three)"}},
    "grammar": {"structured_outputs": {"grammar": 'root ::= "yes" | "no"'}},
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_is_kept_under_every_strategy(client, name):
    patterns = {"choice": "yes|no", "grammar": "yes|no", "regex": "(two|three)"}
    for spec in ("greedy", "vcd", VAR, "ritual+vcd", "vhr"):
        asked = body(WORDS[1], strategy=spec, extra_body=STRUCTURES[name])
        made = client.chat.completions.create(**asked)
        assert re.fullmatch(patterns[name], made.choices[0].message.content.strip()), spec
        assert made.choices[0].finish_reason == "stop"


def test_several_seeded_answers_are_those_of_the_hf_engine(client, truth):
    want = truth("vcd", WORDS[0], 0, n=3, temperature=1.5, seed=3, top_p=0.9)
    asked = body(strategy="vcd", **{"n": 3, "temperature": 1.5, "seed": 3, "top_p": 0.9})
    made = client.chat.completions.create(**asked)
    assert [tuple(c.token_ids) for c in made.choices] == [c.token_ids for c in want.choices]
    streamed = {0: [], 1: [], 2: []}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += getattr(choice, "token_ids", None) or []
    assert [tuple(streamed[i]) for i in range(3)] == [c.token_ids for c in want.choices]


def test_logprobs_are_of_the_combined_distribution(client, truth):
    want = truth("vcd", WORDS[0], 0, logprobs=2)
    made = client.chat.completions.create(**body(strategy="vcd", logprobs=True, top_logprobs=2))
    have = [entry.logprob for entry in made.choices[0].logprobs.content]
    assert have == pytest.approx([entry.logprob for entry in want.logprobs], abs=1e-3)


def test_a_stop_string_ends_a_group(client, truth):
    stop = truth("vcd", WORDS[0], 0).text[4:9]
    made = client.chat.completions.create(**body(strategy="vcd", stop=[stop]))
    assert made.choices[0].finish_reason == "stop"
    assert stop not in made.choices[0].message.content


def test_the_client_that_is_shown_works_unchanged(served, testbed, tmp_path):
    lines = serve.__doc__.partition("::\n")[2]
    code = textwrap.dedent(lines).strip()
    code = code.replace("http://127.0.0.1:8000", served.url)
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(REPO), capture_output=True, text=True
    )
    asked = hd.Request(WORDS[0], [hd.testbed.picture(3)])
    (want,) = testbed.generate(asked, "vcd(alpha=0.5)", hd.Sampling(max_new_tokens=64))
    answer, strategy = done.stdout.strip().splitlines()
    assert words(answer) == words(want.text)
    assert strategy == want.strategy


def test_aliases_and_the_default_serve_clients_without_extra_fields(client, truth):
    listed = [model.id for model in client.models.list()]
    assert listed == ["testbed", "testbed:vcd(alpha=0.5)", "testbed:greedy"]
    cases = {**dict.fromkeys(listed[1:]), "testbed": DEFAULT, "testbed:vcd(alpha=2.0)": None}
    for model, spec in cases.items():
        made = client.chat.completions.create(**{**body(), "model": model})
        want = truth(spec or model.partition(":")[2], WORDS[0], 0)
        assert (made.strategy, tuple(made.choices[0].token_ids)) == (want.strategy, want.token_ids)


def test_pictures_come_from_allowed_places(served, client, truth):
    want = truth("vcd", WORDS[0], 0).token_ids
    for url in (f"{served.web}/one.png", f"file://{served.folder}/one.png"):
        made = client.chat.completions.create(**body(WORDS[0], url, strategy="vcd"))
        assert tuple(made.choices[0].token_ids) == want


def test_words_alone_are_a_plain_request(client):
    asked = body(strategy="vcd")
    asked["messages"] = [{"role": "user", "content": "Is there a dog?"}]
    made = client.chat.completions.create(**asked)
    assert made.choices[0].token_ids
    assert "No image" in made.strategy_warning


def test_tools_and_structured_output_work_on_plain_requests(client):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    asked = body(strategy="greedy", tools=[tool], tool_choice="none")
    assert client.chat.completions.create(**asked).choices[0].message.content
    asked = body(strategy="greedy", extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    asked["max_tokens"] = 20
    assert client.chat.completions.create(**asked).choices[0].message.content.strip() in (
        "yes",
        "no",
    )
    made = client.completions.create(model="testbed", prompt="a dog", max_tokens=3)
    assert made.choices[0].text is not None


def test_a_client_that_leaves_frees_every_row(served, client, truth):
    before = gauge(served, 'halludecode_requests_total{outcome="left"')

    async def leave(client, spec, after):
        asked = body(strategy=spec, stream=True, max_tokens=300, extra_body={"ignore_eos": True})
        stream = await client.chat.completions.create(**asked)
        async for _ in stream:
            after -= 1
            if after == 0:
                await stream.close()
                return

    async def impatient(client, spec, in_work):
        asked = body(strategy=spec, max_tokens=300, extra_body={"ignore_eos": True})
        answer = asyncio.create_task(client.chat.completions.create(**asked))
        await in_work.wait()
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer

    def in_work() -> Counter:
        name = "halludecode_prepare_seconds_count"
        return Counter({label: gauge(served, f'{name}{{strategy="{label}"}}') for label in hasty})

    async def tell(event, expected):
        for _ in range(1000):
            if expected <= await asyncio.to_thread(in_work):
                break
            await asyncio.sleep(0.02)
        event.set()

    async def every():
        url = f"{served.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            some = [leave(client, spec, 2 + i % 3) for i, spec in enumerate(SPECS)]
            event, stay = asyncio.Event(), ("vcd", "greedy")
            asked = Counter(map(label_of, (*SPECS, *hasty.values(), *stay)))
            expected = in_work() + Counter({label: asked[label] for label in hasty})
            some += [impatient(client, spec, event) for spec in hasty.values()]
            stays = [one(client, spec, WORDS[1], 1, True) for spec in stay]
            return (await asyncio.gather(*some, tell(event, expected), *stays))[-2:]

    hasty = {label_of(spec): spec for spec in ("vcd", "vhr", VAR)}
    for spec, answer in zip(("vcd", "greedy"), asyncio.run(every()), strict=True):
        assert tuple(answer[0]) == truth(spec, WORDS[1], 1).token_ids
    made = client.chat.completions.create(**body(strategy="vcd"))
    assert tuple(made.choices[0].token_ids) == truth("vcd", WORDS[0], 0).token_ids
    idle = wait_idle(served)
    assert idle == {"rows": 0, "running": 0, "waiting": 0, "cache": 0}
    left = gauge(served, 'halludecode_requests_total{outcome="left"')
    assert left - before == len(SPECS) + len(hasty)


def wait_idle(served) -> dict[str, float]:
    """Gauges once the server has written its next statistics."""
    for _ in range(1000):
        now = {
            "rows": gauge(served, "halludecode_running_rows"),
            "running": gauge(served, "vllm:num_requests_running"),
            "waiting": gauge(served, "vllm:num_requests_waiting{"),
            "cache": gauge(served, "vllm:kv_cache_usage_perc"),
        }
        if not any(now.values()):
            return now
        time.sleep(0.05)
    return now


def test_metrics_tell_strategies_apart(served, client):
    def count():
        name = 'halludecode_requests_total{outcome="done",strategy="composed"}'
        tokens = 'halludecode_generated_tokens_total{strategy="composed"}'
        found = metrics(served)
        return found.get(name, 0), found.get(tokens, 0)

    before = count()
    made = client.chat.completions.create(**body(strategy="ritual+vcd"))
    client.chat.completions.create(**body(strategy="vcd+ritual", max_tokens=1))
    after = count()
    written = len(made.choices[0].token_ids)
    assert (after[0] - before[0], after[1] - before[1]) == (2, written + 1)
    known = metrics(served)
    assert known['halludecode_request_seconds_count{strategy="composed"}'] == after[0]
    assert known['halludecode_prepare_seconds_count{strategy="composed"}'] >= after[0]
