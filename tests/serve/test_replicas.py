"""One server with two data-parallel replicas: groups go whole, each is told of its own."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from types import SimpleNamespace

import openai
import pytest

import halludecode as hd
from tests.serve.conftest import running
from tests.serve.test_answers import metrics
from tests.support import LONG, families
from tests.support.serving import VAR, body, picture_url

OPTIONS = {
    "--data-parallel-size": "2",
    "--kv-cache-memory-bytes": "64M",
    "--block-size": "32",
    "--num-gpu-blocks-override": "40",
    "--max-model-len": "512",
    "--max-num-seqs": "12",
    "--max-num-batched-tokens": "512",
}
SPECS = ("greedy", "vcd", "damro", VAR, "vhr", "vdgd(tokens=4)")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    words = [word for pair in OPTIONS.items() for word in pair]
    words += ["--artifacts", str(folder / "artifacts")]
    with running(words, folder / "log", VLLM_CPU_OMP_THREADS_BIND="nobind") as (url, _):
        yield url


async def ask(client, spec, picture, leave):
    """Token ids of an answer; of a client that leaves, None."""
    asked = body("Describe the image.", picture_url(picture), strategy=spec)
    if not leave:
        made = await client.chat.completions.create(**asked)
        assert (made.strategy == "greedy") == (spec == "greedy")
        return made.choices[0].token_ids
    async with await client.chat.completions.create(**asked, stream=True) as events:
        async for event in events:
            if event.choices and event.choices[0].delta.content:
                return None
    return None


async def all_of(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        asked = [(s, p, k == 2) for s in SPECS for p in range(3) for k in range(3)]
        return asked, await asyncio.gather(*[ask(client, *one) for one in asked])


def engines(url: str, name: str) -> dict[str, float]:
    """One of vLLM's own metrics, by replica."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=LONG) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if line.startswith(name + "{"):
            labels, _, value = line.rpartition(" ")
            engine = labels.partition('engine="')[2].partition('"')[0]
            found[engine] = found.get(engine, 0.0) + float(value)
    return found


def test_replicas_share_the_requests_and_none_its_rows(url, testbed):
    asked, made = asyncio.run(all_of(url))
    for (spec, picture, _), ids in zip(asked, made, strict=True):
        if ids is not None:
            request = hd.Request("Describe the image.", [families.pictures()[picture]])
            want = testbed.generate(request, spec, hd.Sampling(max_new_tokens=10))[0]
            assert tuple(ids) == want.token_ids, (spec, picture)
    counted = engines(url, "vllm:generation_tokens_total")
    assert set(counted) == {"0", "1"} and min(counted.values()) > max(counted.values()) / 4
    for _ in range(1000):
        busy = engines(url, "vllm:num_requests_running"), engines(url, "vllm:kv_cache_usage_perc")
        if not any(value for one in busy for value in one.values()):
            break
        time.sleep(0.1)
    assert not any(value for one in busy for value in one.values()), "clients that left freed rows"
    ours = metrics(SimpleNamespace(url=url))
    assert not any(count for name, count in ours.items() if "running_rows{" in name)
