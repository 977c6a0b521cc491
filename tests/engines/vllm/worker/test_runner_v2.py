"""Model runner V2 on fakes of what it has: rows of a step, what is noted of them, pictures, noise.

With vLLM's own runner all of the engine's tests run in `make test-v2`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from halludecode.core.errors import HalluDecodeError
from halludecode.engines.sampling import gumbel
from halludecode.engines.vllm.row_metadata import RowMetadata
from halludecode.engines.vllm.worker import image_features, runner, runner_v2, sampler_v2, tower
from halludecode.engines.vllm.worker.runner_v2 import EncoderOutputs, Noted, RunnerV2, places
from halludecode.engines.vllm.worker.sampler import Current
from halludecode.engines.vllm.worker.state import WorkerState
from halludecode.engines.vllm.worker.step_batch import StepBatch


@dataclass
class New:
    """As vLLM's `NewRequestData`."""

    req_id: str
    prompt_len: int = 4
    mm_features: list[Any] = field(default_factory=list)
    prefill_token_ids: list[int] = field(default_factory=list)
    sampling_params: Any = None


def params(group="g", role=0, **more):
    metadata = RowMetadata(group, role, ["main", "noised"], ["answer"] * 2, **more)
    return SimpleNamespace(extra_args=metadata.extra_args())


@dataclass
class Picture:
    """As vLLM's `MultiModalFeatureSpec`."""

    identifier: str
    data: Any = None
    mm_position: Any = field(
        default_factory=lambda: SimpleNamespace(offset=1, length=2, is_embed=None)
    )


class StockRunner:
    """What vLLM's runner does with requests that come and go."""

    def __init__(self):
        self.slots: set[str] = set()
        self.hd_state, self._hd_noted = WorkerState(), {}

    def add_requests(self, output):
        self.slots |= {new.req_id for new in output.scheduled_new_reqs}

    def finish_requests(self, output):
        self.slots -= output.finished_req_ids | output.preempted_req_ids

    def prepare_inputs(self, batch):
        return batch


class Runner(RunnerV2, StockRunner):
    def __init__(self):
        StockRunner.__init__(self)


def step(runner, come=(), finished=(), preempted=()):
    output = SimpleNamespace(
        scheduled_new_reqs=list(come),
        finished_req_ids=set(finished),
        preempted_req_ids=set(preempted),
    )
    runner.finish_requests(output)
    runner.add_requests(output)


def batch(**rows):
    """name: (tokens computed before, tokens of this step, tokens known when it came)."""
    starts, counts, known = np.array(list(rows.values())).T
    return SimpleNamespace(
        req_ids=[name.replace("_", "#") for name in rows],
        query_start_loc_np=np.concatenate([[0], counts.cumsum(), [99]]),  # padded
        num_computed_tokens_np=starts,
        num_scheduled_tokens=counts,
        prefill_len_np=known,
    )


def test_rows_of_a_step_are_found_in_its_order():
    noted = {name: Noted(params(role=role), 4, []) for role, name in enumerate(("g", "g#1"))}
    noted["other"] = Noted(SimpleNamespace(extra_args=None), 3, [])
    # The second row decodes, the first is cut short of its prompt's end, a stranger lies between.
    found = StepBatch.of(
        WorkerState(), places(noted, batch(g_1=(6, 1, 4), other=(0, 3, 3), g=(0, 3, 4)))
    )
    rows = found.groups["g"]
    assert (rows["noised"].index, rows["noised"].first, rows["noised"].written) == (0, 0, 3)
    assert (rows["main"].index, rows["main"].first, rows["main"].stop) == (2, 4, 3)
    assert (rows["noised"].samples, rows["main"].samples) == (True, False)
    assert rows["main"].vllm_id == "g" and not list(found.sampling())


@pytest.mark.parametrize(("count", "samples"), [(4, False), (5, False), (6, True)])
def test_a_row_that_comes_again_draws_after_what_it_had_written(count, samples):
    noted = {"g": Noted(params(), 4, [])}
    row = StepBatch.of(WorkerState(), places(noted, batch(g=(0, count, 6)))).groups["g"]["main"]
    assert (row.samples, row.prompt, row.written) == (samples, 4, count - 4)


def test_what_is_noted_survives_preemption_and_goes_with_the_request():
    runner, pictures = Runner(), [Picture("p", data="pixels")]
    step(runner, [New("g", mm_features=pictures, sampling_params=params())])
    assert runner.hd_state.metadata("g", runner.hd_requests["g"].sampling_params)
    pictures[0] = Picture("p")  # vLLM dropped the pixels of its own
    assert runner.hd_requests["g"].mm_features[0].data == "pixels"
    step(runner, preempted=["g"])
    assert not runner.slots and runner.hd_requests["g"].num_prompt_tokens == 4
    assert runner.hd_state._rows == {"g": {"g"}}
    step(runner, [New("g", sampling_params=params())])
    step(runner, finished=["g", "never seen"])
    assert not runner.hd_requests and not runner.hd_state._rows and not runner.hd_state._metadata


def test_pixels_are_kept_until_the_prompt_is_read_and_come_again():
    runner, new = Runner(), New("g", mm_features=[Picture("p", "pixels")], sampling_params=params())
    step(runner, [new])
    for start, kept in ((0, "pixels"), (3, "pixels"), (4, None)):
        runner.prepare_inputs(batch(g=(start, 1, 4)))
        assert runner.hd_requests["g"].mm_features[0].data == kept
    assert new.mm_features[0].data == "pixels", "vLLM's own are its own"
    step(runner, [new], preempted=["g"])
    assert runner.hd_requests["g"].mm_features[0].data == "pixels"


def test_history_is_read_where_it_lies():
    lies = torch.tensor([[0, 0, 0, 0], [5, 6, 7, 9]], dtype=torch.int32)
    states = SimpleNamespace(
        req_id_to_index={"g": 1}, all_token_ids=SimpleNamespace(gpu=lies), total_len=None
    )
    found = RunnerV2.hd_history(
        SimpleNamespace(req_states=states), SimpleNamespace(vllm_id="g", stop=3)
    )
    assert found.tolist() == [5, 6, 7] and found.dtype == torch.int64


class StockState:
    """What vLLM's model state does with pictures and positions."""

    def __init__(self, features):
        self.encoder_cache = SimpleNamespace(encoder_outputs=features, mm_features={})
        self.positions, self.calls = None, []

    def execute_mm_encoder(self, scheduled):
        self.calls.append(scheduled)
        for name, pictures in scheduled.items():
            for i in pictures:
                identifier = self.encoder_cache.mm_features[name][i].identifier
                self.encoder_cache.encoder_outputs.setdefault(identifier, torch.ones(2, 3))

    def add_request(self, req_index, new):
        self.encoder_cache.mm_features[new.req_id] = new.mm_features
        self.positions = "raster" if new.mm_features else "in line"


@pytest.fixture
def encoding(monkeypatch):
    """A runner and its model state; edits double features."""
    runner = Runner()
    state = runner_v2._model_state(StockState)(EncoderOutputs(runner))
    state.hd_runner, runner.model_state, runner.encoder_cache = runner, state, state.encoder_cache
    runner.towers = []
    monkeypatch.setattr(Runner, "hd_capture_towers", lambda self, scheduled: None)
    monkeypatch.setattr(image_features, "apply", lambda runner, name, edit, x: 2 * x)
    return runner, state


def comes(runner, state, name, pictures, **more):
    new = New(name, mm_features=pictures, sampling_params=params(**more))
    step(runner, [new])
    state.add_request(0, new)
    state.encoder_cache.mm_features[name] = pictures  # as vLLM's runner does


EDITS = {"feature_edits": [[0, "noised", 0, 0, "", 2]]}


def test_features_are_edited_once_as_they_enter(encoding):
    runner, state = encoding
    features = state.encoder_cache.encoder_outputs
    comes(runner, state, "a", [Picture("plain", 1)])
    comes(runner, state, "b", [Picture("edited", 1)], **EDITS)
    state.execute_mm_encoder({"a": [0], "b": [0]})
    assert features.get("plain").mean() == 1 and features.get("edited").mean() == 2
    state.execute_mm_encoder({"b": [0]})
    assert features.get("edited").mean() == 2, "what was there already is not edited again"


def test_pictures_whose_row_edits_the_tower_are_encoded_apart(encoding, monkeypatch):
    runner, state = encoding
    obeyed = []

    @contextmanager
    def obeying(runner, edit):
        obeyed.append((edit, len(state.calls)))
        yield

    monkeypatch.setattr(tower, "_edit_of", lambda runner, plan, place, name, identity: identity)
    monkeypatch.setattr(tower, "_obeying", obeying)
    comes(runner, state, "a", [Picture("plain", 1)])
    comes(runner, state, "b", [Picture("other", 1)], tower_edit=[0, "noised", "an edit"])
    state.execute_mm_encoder({"a": [0], "b": [0]})
    assert state.calls == [{"a": [0]}, {"b": [0]}] and obeyed == [("an edit", 1)]
    assert state.encoder_cache.encoder_outputs.keys() == {"plain", "other"}


def test_features_that_were_lost_are_made_again_from_the_pixels_that_were_kept(encoding):
    runner, state = encoding
    features = state.encoder_cache.encoder_outputs
    comes(runner, state, "b", [Picture("edited", 1)], **EDITS)
    state.encoder_cache.mm_features["b"] = [Picture("edited")]  # its pixels are gone
    assert features.get("edited").mean() == 2
    assert runner.encoder_cache.mm_features["b"][0].data == 1
    assert features.get("nobody's") is None and features.get("nobody's", 3) == 3


@pytest.mark.parametrize(("in_line", "told"), [(True, "in line"), (False, "raster")])
def test_chosen_image_tokens_stand_in_line(encoding, in_line, told):
    runner, state = encoding
    comes(runner, state, "b", [Picture("p", 1)], in_line=in_line)
    assert state.positions == told
    assert len(runner.hd_requests["b"].mm_features) == 1


@pytest.fixture
def sampling(monkeypatch):
    """A sampler in a step of "g" (our noise, temperature 0.5 of our own) and a stranger."""
    noted = {
        "g": Noted(params(noise_key=77, temperature=0.5), 4, []),
        "other": Noted(SimpleNamespace(extra_args=None), 3, []),
    }
    rows = StepBatch.of(WorkerState(), places(noted, batch(other=(3, 1, 3), g=(4, 1, 4)))).groups
    sampler = object.__new__(sampler_v2.GroupSamplerV2)
    sampler.current = Current([rows["g"]])
    return sampler


def test_our_rows_are_drawn_with_our_noise_and_others_as_vllm_does(sampling, monkeypatch):
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([50, 10])
    given = []

    def stock(self, logits, *args):
        given.append(args)
        return torch.tensor([7, 7]), logits

    monkeypatch.setattr(sampler_v2.Sampler, "_sample_random", stock)
    more = ("whether 0.33 has rows of top-p alone", False)
    tokens, _ = sampling._sample_random(logits, "expanded", "mapping", "pos", k, None, *more)
    cut = logits[1].where(logits[1] >= logits[1].topk(10).values[-1], -torch.inf)
    wanted = (cut + gumbel(torch.tensor([77]), torch.tensor([1]), 50)[0]).argmax()
    assert tokens.tolist() == [7, wanted]
    assert given == [("expanded", "mapping", "pos", k, None, *more)]


def test_a_temperature_that_vllm_would_not_take_is_ours(sampling, monkeypatch):
    monkeypatch.setattr(
        sampler_v2.SamplingStates, "apply_temperature", lambda self, logits, *a: logits.div_(2)
    )
    states = object.__new__(sampler_v2.Temperatures)
    states.sampler = sampling
    logits = torch.ones(2, 3)
    states.apply_temperature(logits, "expanded", "mapping")
    assert logits.tolist() == [[0.5] * 3, [2.0] * 3]


@pytest.mark.parametrize(
    "option",
    [
        {"prefill_context_parallel_size": 2},
        {"decode_context_parallel_size": 2},
        {"use_ubatching": True},
        {"enable_batch_sharded_sampling": True},
        {"kv_sharing_fast_prefill": True},
    ],
    ids=lambda option: next(iter(option)),
)
def test_parts_of_rows_are_refused(option):
    whole = {
        "prefill_context_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "use_ubatching": False,
        "enable_batch_sharded_sampling": None,
        "kv_sharing_fast_prefill": False,
    }

    def config(**options):
        both = SimpleNamespace(**options)
        return SimpleNamespace(parallel_config=both, cache_config=both)

    runner._refuse(config(**whole))
    name = next(iter(option)).replace("use_ubatching", "enable_dbo")
    with pytest.raises(HalluDecodeError, match=f"{name}= gives a worker a part"):
        runner._refuse(config(**whole | option))


def test_a_sampler_that_is_not_vllms_is_refused():
    with pytest.raises(HalluDecodeError, match="sampler is a str, which"):
        sampler_v2.install(SimpleNamespace(sampler="a model's own"))
