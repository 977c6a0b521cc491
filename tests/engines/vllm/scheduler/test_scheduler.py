"""The group scheduler without a model: random groups, caches, budgets and aborts, step by step.

Checked in every step: rows of a group sample together and at the same place, whole groups start
unchunked, every picture a worker reads has been encoded and not dropped since; rows that join late
read the answer so far; at the end: every answer has its length, nothing is left behind. Half of the
runs are for model runner V2, which is sent all tokens of a row that comes or comes again, and draws
where a step reaches the last of them.
"""

from __future__ import annotations

import copy
import inspect
import random
import textwrap
import warnings
from collections import Counter, defaultdict, deque
from dataclasses import replace

import pytest

from halludecode.engines.vllm.row_metadata import ASKS, RowMetadata, metadata_of

BLOCK, STOP = 32, 2
PICTURES = {f"picture {n}": 10 + 7 * n for n in range(5)}  # their tokens
SCENARIOS = 120  # of each variant


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """(blocks, seqs, budget, caching, asynchronous) -> scheduler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from halludecode.engines.vllm.scheduler import scheduler
        from halludecode.testbed import model_path

        made = EngineArgs(
            model=str(model_path()), dtype="float32", enforce_eager=True, block_size=BLOCK,
            max_model_len=256, max_num_seqs=8, max_num_batched_tokens=64,
        )  # fmt: skip
        base = made.create_engine_config()
    init_none_hash(sha256)
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.float32)

    def build(blocks, seqs, budget, caching, asynchronous):
        config = copy.copy(base)
        config.scheduler_config = copy.copy(base.scheduler_config)
        config.cache_config = copy.copy(base.cache_config)
        config.scheduler_config.max_num_seqs = seqs
        config.scheduler_config.max_num_batched_tokens = budget
        config.scheduler_config.max_num_scheduled_tokens = None
        config.scheduler_config.async_scheduling = asynchronous
        config.cache_config.enable_prefix_caching = caching
        config.cache_config.num_gpu_blocks = blocks
        return scheduler.make(
            config,
            kv_cache_config=KVCacheConfig(
                num_blocks=blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["x"], spec)],
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
            log_stats=False,
        )

    return build


class Scenario:
    """One random run.

    Args:
        depth: Steps in flight: 1 is the synchronous scheduler.
        late: Whether groups may begin as their main rows.
        held: Whether prefills are held back in some steps, as ``prefill_schedule_interval`` does
            (in 0.32 beside replicas alone).
        first: Whether prompts begin with their pictures, so that a row whose picture has no room
            has nothing to read.
    """

    def __init__(
        self,
        make,
        seed: int,
        depth: int,
        *,
        late: bool = False,
        held: bool = False,
        first: bool = False,
    ) -> None:
        self.rng, self.depth, self.v2 = random.Random(seed), depth, seed % 2 == 1
        self.late, self.held, self.first = late, held, first
        seqs = self.rng.choice([4, 6, 8, 16])
        budget = max(seqs, self.rng.choice([16, 33, 64, 200]))
        self.blocks = self.rng.choice([16, 18, 21, 24, 32, 60])
        self.limit = budget - seqs
        self.scheduler = make(self.blocks, seqs, budget, self.rng.random() < 0.7, depth > 1)
        self.scheduler.use_v2_model_runner = self.v2
        if held and hasattr(self.scheduler, "local_prefill_interval"):  # from 0.33 on
            self.scheduler.local_prefill_interval = 3
        self.known: dict[str, int] = {}  # tokens that V2 was sent of a row
        self.scheduler.max_num_encoder_input_tokens = self.rng.choice([40, 64])
        self.scheduler.encoder_cache_manager.cache_size = self.rng.choice([40, 64, 100])
        self.scheduler.encoder_cache_manager.reset()
        self.encoded: set[str] = set()  # what a worker's cache holds
        self.pixels: dict[str, set[int]] = {}  # of each row of V2, which pictures it still has
        self.info: dict[str, dict] = {}
        self.todo: deque = deque()
        self.later: dict[str, list] = {}  # rows that join when they are asked for
        for k in range(self.rng.choice([10, 25])):
            self._plan_request(k)
        self.flight: deque = deque()
        self.ended: dict[str, tuple] = {}
        self.given: Counter = Counter()
        self.aborted: set[int] = set()
        self.prefilled: set[str] = set()
        self.idle = self.steps = self.never_asked = self.skipped = 0

    def _plan_request(self, k: int) -> None:
        from vllm import SamplingParams

        rng = self.rng
        size = rng.choice([1, 1, 2, 2, 3, 4])
        most = rng.choice([1, 5, 20, 60, 120])
        stop = rng.choice([None, rng.randrange(1, most + 1)])
        lives = ["answer", *(rng.choice(["answer", "answer", "prefill"]) for _ in range(size - 1))]
        shared = [rng.randrange(5, 99) for _ in range(70)]
        lengths = [rng.randrange(2, 120) for _ in range(size)]
        whole = sum(lengths) <= self.limit and rng.random() < (0.4 if size > 1 else 0.2)
        asks = None  # before which token the main row asks for the others
        late = self.late and size > 1 and not whole and rng.random() < 0.6
        if late:
            lives, asks = ["answer"] * size, rng.choice([0, 0, rng.randrange(most), most])
        for role in range(size):
            ids = [rng.randrange(5, 99) for _ in range(lengths[role])]
            if rng.random() < 0.6:
                ids = (shared + ids)[: lengths[role]]
            pictures = self._put_pictures(ids)
            names = [f"row{r}" for r in range(size)]
            metadata = RowMetadata(
                group=f"g{k}", role=role, rows=names, lives=lives, whole=whole, late=late
            )
            if late and role == 0:
                metadata = replace(metadata, rows=names[:1], lives=lives[:1])
            params = SamplingParams(
                max_tokens=most,
                ignore_eos=True,
                stop_token_ids=[STOP] if role == 0 else None,
                extra_args=metadata.extra_args(),
                skip_reading_prefix_cache=whole,
            )
            name = f"g{k}" + (f"#{role}" if role else "")
            self.info[name] = {"k": k, "role": role, "size": size, "most": most, "stop": stop}
            self.info[name] |= {"life": lives[role], "lives": lives, "whole": whole}
            self.info[name] |= {"asks": None if role else asks, "answered": 0}
            made = (name, ids, params, pictures)
            if late and role:
                self.later.setdefault(f"g{k}", []).append(made)
            else:
                self.todo.append(made)

    def _answer_call(self, name: str, written: list[int]) -> None:
        """What a front end does that is asked for rows: perhaps a pass first, then the rows."""
        from vllm import SamplingParams

        info, rows = self.info[name], deque[tuple]()
        info["asks"] = None
        assert written == [self._token(info, place) for place in range(len(written))]
        for row, ids, params, pictures in self.later.pop(name):
            metadata = replace(metadata_of(params), answered=len(written))
            joined = params.clone()
            joined.max_tokens, joined.extra_args = (
                info["most"] - len(written),
                metadata.extra_args(),
            )
            self.info[row]["answered"] = len(written)
            rows.append((row, ids + written, joined, pictures))
        if self.rng.random() < 0.4:
            capture = RowMetadata(f"p{info['k']}", 0, ["main"], ["answer"], capture={"write": 0})
            params = SamplingParams(max_tokens=1, ignore_eos=True, extra_args=capture.extra_args())
            ids = [self.rng.randrange(5, 99) for _ in range(self.rng.randrange(2, 120))]
            own = {"size": 1, "role": 1, "life": "answer", "whole": False, "pass for": rows}
            self.info[f"p{info['k']}"] = {**info, **own, "most": 1}
            rows = deque([(f"p{info['k']}", ids, params, [])])
        self.todo.extendleft(reversed(rows))

    def _put_pictures(self, ids: list[int]) -> list:
        """Up to two pictures into a prompt."""
        from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

        made, start = [], 0 if self.first else self.rng.randrange(1, 40)
        for name in self.rng.choices(list(PICTURES), k=self.rng.choice([0, 1, 1, 2])):
            if start + PICTURES[name] < len(ids):
                place = PlaceholderRange(offset=start, length=PICTURES[name])
                made.append(
                    MultiModalFeatureSpec(
                        data={"pixels": 1}, modality="image", identifier=name, mm_position=place
                    )
                )
                ids[start : start + place.length] = [1] * place.length
                start += place.length + self.rng.randrange(1, 9)
        return made

    def run(self) -> Counter:
        from vllm.v1.request import RequestStatus

        while not self._done():
            self._arrive()
            if self.rng.random() < 0.01 and self.scheduler.requests:
                name = self.rng.choice(list(self.scheduler.requests))
                if name.startswith("g"):
                    self.aborted.add(self.info[name]["k"])
                    self.scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)
            if self.scheduler.has_requests():
                self._step()
            waiting = self.flight and not self.flight[-1][0].num_scheduled_tokens
            if self.flight and (
                len(self.flight) >= self.depth or waiting or not self.scheduler.has_requests()
            ):
                self._receive()
            assert self.steps < 20_000 and self.idle < 200, "stuck"
        self._check_end()
        told = Counter(requests=len(self.ended), steps=0, never_asked=len(self.later))
        told["skipped"] = self.skipped
        return self.scheduler.counts + told

    def _done(self) -> bool:
        return not (self.todo or self.flight or self.scheduler.has_requests())

    def _arrive(self) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        hasher = get_request_block_hasher(BLOCK, sha256)
        for _ in range(self.rng.choice([0, 1, 3])):  # members may come in different steps
            if self.todo:
                name, ids, params, pictures = self.todo.popleft()
                self.scheduler.add_request(
                    Request(
                        name, ids, params, None, mm_features=pictures or None, block_hasher=hasher
                    )
                )

    def _step(self) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        before = {i: r.num_computed_tokens for i, r in self.scheduler.requests.items()}
        status = {i: r.status.name for i, r in self.scheduler.requests.items()}
        made = self.scheduler.schedule(self.held and self.rng.random() < 0.6)
        self.skipped += bool(self.scheduler.deferred_waiting)
        self._encode(made)
        self.steps += 1
        names = list(made.num_scheduled_tokens)
        tokens, together = [], {}
        for name in names:
            row, info = self.scheduler.requests[name], self.info[name]
            samples = not row.is_prefill_chunk
            place = row.num_output_tokens + info["answered"]
            if self.depth > 1:
                place += max(0, row.num_output_placeholders - 1)
            tokens.append([self._token(info, place)] if samples else [])
            if self.v2:
                stop = self.computed[name] + made.num_scheduled_tokens[name]
                assert samples == (stop >= self.known[name]), (name, stop, self.known[name])
            alone = f"g{info['k']}" in self.later
            if info["asks"] is not None and place >= info["asks"]:
                tokens[-1] = []
            if alone:
                assert info["role"] == 0
            elif info["size"] > 1 and info["asks"] is None:
                together.setdefault(info["k"], {})[info["role"]] = (samples, place)
            if info["whole"] and status[name] != "RUNNING" and info["life"] == "answer":
                assert before[name] == 0
                taken = made.num_scheduled_tokens[name]
                assert taken == row.num_prompt_tokens, (name, taken, row.num_prompt_tokens)
        for k, rows in together.items():
            self._check_together(k, rows)
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=tokens,
        )
        self.flight.append((made, output))
        self.idle = 0 if names else self.idle + 1

    def _encode(self, made) -> None:
        """What a worker does with pictures, steps being run in the order they were made in."""
        from vllm.multimodal.utils import get_mm_features_in_window

        rows = {
            row.req_id: (row.mm_features, row.num_computed_tokens)
            for row in made.scheduled_new_reqs
        }
        old = made.scheduled_cached_reqs
        for name, done in zip(old.req_ids, old.num_computed_tokens, strict=True):
            rows[name] = (self.scheduler.requests[name].mm_features, done)
        self.computed = {name: done for name, (_, done) in rows.items()}
        for row in made.scheduled_new_reqs if self.v2 else ():
            assert row.prefill_token_ids == list(self.scheduler.requests[row.req_id].all_token_ids)
            self.known[row.req_id] = len(row.prefill_token_ids)
        if self.v2:
            self._drop_pixels(made)
        self.encoded -= set(made.free_encoder_mm_hashes)
        for name, numbers in made.scheduled_encoder_inputs.items():
            self.encoded |= {rows[name][0][i].identifier for i in numbers}
            assert not self.v2 or self.pixels[name] >= set(numbers), f"{name}: no pixels"
        for name, count in made.num_scheduled_tokens.items():
            pictures, done = rows[name]
            low, high = get_mm_features_in_window(pictures, start=done, end=done + count)
            for picture in pictures[low:high]:
                assert picture.identifier in self.encoded, f"{name}: {picture.identifier} is lost"

    def _drop_pixels(self, made) -> None:
        """VLLM 0.33 says which pictures V2 need not keep, and hands on what is wanted again."""
        for row in made.scheduled_new_reqs:
            self.pixels[row.req_id] = set(range(len(row.mm_features)))
        for name, updates in getattr(made, "encoder_input_updates", {}).items():
            for i, data in updates.items():
                (self.pixels[name].discard if data is None else self.pixels[name].add)(i)

    def _check_together(self, k: int, rows: dict) -> None:
        info = self.info[f"g{k}"]
        if not any(samples for samples, _ in rows.values()):
            return
        assert all(samples for samples, _ in rows.values()), (k, rows)
        assert len({place for _, place in rows.values()}) == 1, (k, rows)
        place = rows[0][1]
        for role, life in enumerate(info["lives"]):
            assert role in rows or (life == "prefill" and place > 0), (k, rows)

    def _token(self, info: dict, place: int) -> int:
        if info["stop"] == place + 1:
            return STOP
        return 100 + (info["k"] * 7 + place * 3) % 150

    def _receive(self) -> None:
        made, output = self.flight.popleft()
        for outputs in self.scheduler.update_from_output(made, output).values():
            for one in outputs.outputs:
                assert "#" not in one.request_id
                if one.stop_reason == ASKS:
                    self._answer_call(one.request_id, one.new_token_ids)
                    continue
                if one.request_id.startswith("p"):
                    self.todo.extendleft(reversed(self.info[one.request_id]["pass for"]))
                    continue
                self.given[one.request_id] += len(one.new_token_ids)
                if one.finish_reason is not None:
                    self.ended[one.request_id] = (str(one.finish_reason), one.stop_reason)

    def _check_end(self) -> None:
        for name, info in self.info.items():
            if info["role"] or info["k"] in self.aborted:
                continue
            assert name in self.ended, f"{name} was never answered"
            reason, why = self.ended[name]
            if reason == "error":
                known = ("exceed max_num_seqs", "blocks of KV cache", "picture tokens must fit one")
                assert any(words in why for words in known), why
                continue
            assert self.given[name] == min(info["most"], info["stop"] or 999)
        s = self.scheduler
        assert s.kv_cache_manager.block_pool.get_num_free_blocks() == self.blocks - 1
        left = (s.running, list(s.waiting), s.groups, s._group_of, s._failed, s.requests)
        assert not any(left), left


@pytest.mark.filterwarnings("ignore")
def test_rows_that_come_after_their_groups_abort_are_not_kept(make):
    """VLLM takes an abort at once, and a second time in its turn."""
    from vllm import SamplingParams
    from vllm.v1.request import Request, RequestStatus

    scheduler = make(32, 8, 64, True, False)
    scheduler.finished_req_ids_dict = defaultdict(set)  # as with replicas

    def arrive(role):
        metadata = RowMetadata(group="g", role=role, rows=["main", "other"], lives=["answer"] * 2)
        params = SamplingParams(max_tokens=4, extra_args=metadata.extra_args())
        scheduler.add_request(Request("g" + "#1" * role, [5, 6, 7], params, None))

    arrive(0)
    scheduler.finish_requests(["g"], RequestStatus.FINISHED_ABORTED)
    arrive(1)
    scheduler.finish_requests(["g"], RequestStatus.FINISHED_ABORTED)
    assert not any((scheduler.groups, scheduler._group_of, scheduler.requests))
    assert dict(scheduler.finished_req_ids_dict) == {0: {"g", "g#1"}}, "a front end must hear of it"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("depth", [1, 2], ids=["synchronous", "two steps in flight"])
def test_groups_stay_together_in_random_scenarios(make, depth):
    run_scenarios(make, depth, range(SCENARIOS))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("depth", [1, 2], ids=["synchronous", "two steps in flight"])
def test_groups_stay_together_in_thousands_of_scenarios(make, depth):
    run_scenarios(make, depth, range(SCENARIOS, SCENARIOS + 1500))


@pytest.mark.filterwarnings("ignore")
def test_rows_that_join_late_stay_together_in_random_scenarios(make):
    seeds = [seed for seed in range(SCENARIOS) if seed % 4 > 1]
    total = totals(make, 1, seeds, late=True)
    for what in ("asked", "joined", "never_asked"):
        assert total[what] > len(seeds), (what, total)
    assert total["preempted groups"] > 0 and total["made way"] > 0, total


HEAD = "if num_new_tokens == 0:\n    # The request cannot be scheduled."
STOPS, SKIPS = "\n    break", "\n    skip_request(request_queue)\n    continue"


@pytest.fixture
def skipping(monkeypatch):
    """VLLM 0.33's loop: a waiting row whose picture has no room is passed over, not waited for."""
    from vllm.v1.core.sched import scheduler

    source = textwrap.dedent(inspect.getsource(scheduler.Scheduler.schedule))
    old, new = (textwrap.indent(HEAD + end, " " * 16) for end in (STOPS, SKIPS))
    if old not in source:  # as it stands in 0.33
        assert "The request cannot be scheduled. Requeue it" in source
        return
    assert source.count(old) == 1
    names: dict = {}
    exec(compile(source.replace(old, new), scheduler.__file__, "exec"), vars(scheduler), names)
    monkeypatch.setattr(scheduler.Scheduler, "schedule", names["schedule"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("depth", [1, 2], ids=["synchronous", "two steps in flight"])
def test_rows_that_are_passed_over_find_their_group(make, skipping, depth):
    seeds = range(SCENARIOS, SCENARIOS + 30)
    total = totals(make, depth, seeds, first=True)
    assert total["skipped"] > len(seeds) and total["whole"] > 0, total


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
def test_groups_stay_together_where_prefills_are_held(make, late):
    seeds = range(SCENARIOS, SCENARIOS + 30)
    total = totals(make, 1, seeds, late=late, held=True)
    assert total["held"] > 0 and total["whole"] > 0, total


def run_scenarios(make, depth, seeds):
    total = totals(make, depth, seeds)
    for what in ("preempted groups", "held", "waited", "whole", "ended at once"):
        assert total[what] > len(seeds) / 20, (what, total)
    for rare in ("preempted by vLLM", "started together"):
        assert total[rare] > 0, (rare, total)


def totals(make, depth, seeds, **how: bool) -> Counter:
    total: Counter = Counter()
    for seed in seeds:
        try:
            total += Scenario(make, seed, depth, **how).run()
        except AssertionError as error:
            raise AssertionError(f"scenario {seed}: {error}") from error
    assert total["requests"] > 10 * len(seeds)
    return total
