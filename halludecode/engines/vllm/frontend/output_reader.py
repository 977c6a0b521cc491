"""In the front end: reading answers while vLLM writes them, with stop strings and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from halludecode.core.errors import HalluDecodeError, InvalidRequest
from halludecode.engines.api import Choice, Explanation, Sampling, TokenLogprob
from halludecode.engines.vllm.frontend.late_rows import Asks
from halludecode.engines.vllm.frontend.loading import Loaded
from halludecode.engines.vllm.frontend.requests import OpenRequest, RequestGroup
from halludecode.engines.vllm.protocol import REPORT, GroupReport
from halludecode.engines.vllm.row_metadata import replica_of


@dataclass
class PartialAnswer:
    """One child's answer while it is written; ``error`` is why there will be none."""

    sampling: Sampling
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    error: HalluDecodeError | None = None

    def choice(self, explanation: Explanation | None = None) -> Choice:
        """The finished answer."""
        logprobs = tuple(self.logprobs) if self.sampling.logprobs is not None else None
        return Choice(self.text, tuple(self.ids), self.finish or "length", logprobs, explanation)


# A request, the main row of one of its answers, and what asks for its other rows.
Late: TypeAlias = tuple[OpenRequest, Any, Asks]


class OutputReader:
    """Hands groups to vLLM and reads their answers.

    Args:
        loaded: The engine.
        live: Whether text is wanted after every token.
        join: Makes the rows that join answers, or says why it cannot; None where nobody asks.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        live: bool = False,
        join: Callable[[Sequence[Late]], list[list[Any] | HalluDecodeError]] | None = None,
    ) -> None:
        self._engine, self._router = loaded.engine, loaded.router
        self._tokenizer = loaded.processor.tokenizer
        self._call_workers = loaded.call_workers
        self._live, self._join = live, join
        self._late: dict[str, tuple[OpenRequest, Any]] = {}
        self._open: dict[str, PartialAnswer] = {}
        self._names: list[str] = []
        self.answers: list[PartialAnswer] = []
        self.first: float | None = None  # when the last answer got its first token

    def add(
        self, group: RequestGroup, sampling: Sampling, opened: OpenRequest | None = None
    ) -> None:
        """Hand one group over, child by child: main row first, then its siblings."""
        for rows in group.members:
            if opened is not None and opened.prepared.main_only:
                self._late[rows[0].request_id] = opened, rows[0]
            answer = PartialAnswer(sampling)
            self.answers.append(answer)
            self._open[rows[0].request_id] = answer
            self._names.append(rows[0].request_id)
            with self._router.turn():
                self._router.open(rows[0].request_id)
                self._engine.output_processor.add_request(rows[0], None, None, 0)
                for row in rows:
                    self._engine.engine_core.add_request(row)

    def steps(self) -> Iterator[None]:
        """Run vLLM until every answer is done or void; yields after every step with news."""
        while self._open:
            outputs = self._router.step(self._engine, tuple(self._open))
            asks = [each for each in outputs if isinstance(each, Asks)]
            for output in outputs:
                if output.request_id in self._open and not isinstance(output, Asks):
                    self._read(output)
            self._let_join([each for each in asks if each.request_id in self._open])
            if len(outputs) > len(asks):
                yield

    def _let_join(self, asks: Sequence[Asks]) -> None:
        """Rows beside main for answers that need them now."""
        if not asks or self._join is None:
            return
        joined = self._join([(*self._late[each.request_id], each) for each in asks])
        for each, rows in zip(asks, joined, strict=True):
            if isinstance(rows, HalluDecodeError):
                self._open.pop(each.request_id).error = rows
                self._stop([each.request_id])
                continue
            with self._router.turn():
                for row in rows:
                    self._engine.engine_core.add_request(row)

    def reports(self) -> list[GroupReport]:
        """What the workers report of every answer; asked for once."""
        names, self._names = self._names, []
        self._router.close(names)
        by_replica: dict[int, list[str]] = {}
        for name in names:
            by_replica.setdefault(replica_of(name), []).append(name)
        by_name: dict[str, GroupReport] = {}
        for replica, own in by_replica.items():
            # Ranks of a replica make the same edits of the same numbers: the first speaks for all.
            reports = self._call_workers(REPORT, own, at=replica)[0]
            by_name.update(zip(own, reports, strict=True))
        return [by_name[name] for name in names]

    def abort(self) -> None:
        """Stop whatever is still being written."""
        if self._open:
            names = list(self._open)
            self._open.clear()
            self._stop(names)
        if self._names:
            self.reports()  # or the workers would keep them

    def _read(self, output: Any) -> None:
        answer = self._open[output.request_id]
        news = output.outputs[0]
        if news.finish_reason == "error":
            self._open.pop(output.request_id)
            answer.error = InvalidRequest(
                f"vLLM gave a request up: {news.stop_reason or 'unknown reason'}."
            )
            return
        if not answer.ids and news.token_ids:
            self.first = time.perf_counter()
        for i, token in enumerate(news.token_ids):
            answer.ids.append(token)
            if news.logprobs:
                answer.logprobs.append(self._logprob(answer, token, news.logprobs[i]))
            if (self._live or answer.sampling.stop) and self._stopped(answer):
                self._stop([output.request_id])
                self._open.pop(output.request_id)
                return
        if output.finished:
            answer.finish = "stop" if news.finish_reason == "stop" else "length"
            answer.text = self._decode(answer.ids)
            self._open.pop(output.request_id)
            if news.finish_reason not in ("stop", "length"):
                answer.error = HalluDecodeError(f"vLLM ended a request: {news.finish_reason}.")

    def _stop(self, names: list[str]) -> None:
        with self._router.turn():
            self._engine.abort_request(names, internal=True)

    def _stopped(self, answer: PartialAnswer) -> bool:
        answer.text = self._decode(answer.ids)
        for stop in answer.sampling.stop:
            at = answer.text.find(stop)
            if at >= 0:
                answer.text, answer.finish = answer.text[:at], "stop"
        return answer.finish == "stop"

    def _logprob(self, answer: PartialAnswer, token: int, given: Mapping[int, Any]) -> TokenLogprob:
        most = answer.sampling.logprobs or 0
        ranked = sorted(given.items(), key=lambda entry: -entry[1].logprob)
        top = {i: entry.logprob for i, entry in ranked[:most]}
        return TokenLogprob(token, self._tokenizer.decode([token]), given[token].logprob, top)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True).strip()
