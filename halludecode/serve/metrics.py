"""Request metrics per strategy, in the registry that vLLM's ``/metrics`` shows."""

from __future__ import annotations

import time

from prometheus_client import Counter, Gauge, Histogram

from halludecode.core.plan import Plan

COMPOSED = "composed"

REQUESTS = Counter(
    "halludecode_requests_total",
    "Chat requests by strategy and outcome: done, refused, failed, left (the client went away).",
    ("strategy", "outcome"),
)
TOKENS = Counter("halludecode_generated_tokens_total", "Tokens written by strategy.", ("strategy",))
CHANGED = Counter(
    "halludecode_changed_tokens_total",
    "Tokens that differ from the plain model's own choice, where that is known.",
    ("strategy",),
)
ROWS = Gauge("halludecode_running_rows", "Rows of requests in work by strategy.", ("strategy",))
JOINED = Counter(
    "halludecode_joined_answers_total",
    "Answers whose other rows began at a token that needed them, by strategy.",
    ("strategy",),
)
SECONDS = Histogram(
    "halludecode_request_seconds",
    "From arrival to the last token, by strategy.",
    ("strategy",),
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250),
)
PREPARE = Histogram(
    "halludecode_prepare_seconds",
    "From arrival to handing the rows over: pictures, earlier passes, edits; by strategy.",
    ("strategy",),
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25),
)


def label_of(plan: Plan) -> str:
    """A plan's strategy by name, without parameters.

    All that is composed shares one label: clients could name any number of compositions, and every
    label costs a server dozens of time series for good.
    """
    if len(plan.parts) > 1:
        return COMPOSED
    return plan.parts[0].strategy.name if plan.parts else "greedy"


class RequestMetrics:
    """Follows one request; strategies are labelled by name, see `label_of`."""

    def __init__(self) -> None:
        self.strategy = "unknown"
        self._arrived = time.perf_counter()
        self._rows = 0

    def prepared(self, rows: int) -> None:
        """Its rows are ready."""
        self._rows = rows
        PREPARE.labels(self.strategy).observe(time.perf_counter() - self._arrived)
        ROWS.labels(self.strategy).inc(rows)

    def end(self, outcome: str) -> None:
        """It is over; only the first call counts."""
        if self._arrived < 0:
            return
        REQUESTS.labels(self.strategy, outcome).inc()
        if outcome == "done":
            SECONDS.labels(self.strategy).observe(time.perf_counter() - self._arrived)
        if self._rows:
            ROWS.labels(self.strategy).dec(self._rows)
        self._arrived = -1.0
