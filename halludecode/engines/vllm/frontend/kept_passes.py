"""In the front end: passes that stay in the workers for later requests, those used last."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PassKey = tuple[int, str]  # an activation request's replica and key


@dataclass(frozen=True)
class Pass:
    """A pass that was run.

    Args:
        name: Under which the workers keep its activations.
        facts: What this side knows of it and they do not, as plain values.
    """

    name: str
    facts: Mapping[str, Any]


class KeptPasses:
    """Passes by what they read; none is given up while a request needs it.

    Args:
        limit: How many are kept beside those in use.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._users = limit, Counter[PassKey]()
        self._kept: OrderedDict[PassKey, Pass] = OrderedDict()

    def use(self, keys: Iterable[PassKey]) -> dict[PassKey, Pass]:
        """Those of these that are kept; in use until `done`."""
        found = {key: self._kept[key] for key in keys if key in self._kept}
        for key in found:
            self._users[key] += 1
            self._kept.move_to_end(key)
        return found

    def done(
        self, used: Iterable[PassKey], new: Mapping[PassKey, Pass]
    ) -> tuple[list[str], list[str]]:
        """Names of passes that workers drop, and of those that they keep from now on.

        Args:
            used: Of what `use` gave.
            new: Passes that were run in the meantime; others may have run the same ones.
        """
        self._users.subtract(list(used))
        unknown = {key: each for key, each in new.items() if key not in self._kept}
        self._kept |= unknown
        dropped = [each.name for key, each in new.items() if key not in unknown]
        for key in [key for key in self._kept if not self._users[key]]:
            if len(self._kept) <= self._limit:
                break
            dropped.append(self._kept.pop(key).name)
            del self._users[key]
        return dropped, [each.name for key, each in unknown.items() if key in self._kept]
