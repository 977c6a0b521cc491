"""In the front end: one engine, several readers; outputs wait for the reader they belong to."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any


class OutputRouter:
    """Outputs of one engine.

    Args:
        shared: Whether the engine's `step` gives everybody's outputs; if not, it knows itself whose
            turn it is and needs no lock.
    """

    def __init__(self, *, shared: bool = True) -> None:
        self._lock: AbstractContextManager[Any] = threading.RLock() if shared else nullcontext()
        self._waiting: dict[str, list[Any]] = {}

    def turn(self) -> AbstractContextManager[Any]:
        """The engine, to one thread at a time."""
        return self._lock

    def open(self, name: str) -> None:
        """From now on, outputs of this request are kept for its reader."""
        self._waiting[name] = []

    def close(self, names: Iterable[str]) -> None:
        """Nobody waits for these requests any more."""
        for name in names:
            self._waiting.pop(name, None)

    def put(self, output: Any) -> None:
        """Keep an output for the reader of its request, if it has one."""
        with self._lock:
            if output.request_id in self._waiting:
                self._waiting[output.request_id].append(output)

    def step(self, engine: Any, mine: Collection[str]) -> list[Any]:
        """Outputs of a reader's requests: those that wait, else those of one more step.

        A step of vLLM gives everybody's outputs to whoever runs it; threads that read answers at
        the same time would otherwise take each other's.
        """
        with self._lock:
            if not any(self._waiting[name] for name in mine):
                for output in engine.step():
                    self.put(output)
            outputs = [output for name in mine for output in self._waiting[name]]
            for name in mine:
                self._waiting[name] = []
            return outputs
