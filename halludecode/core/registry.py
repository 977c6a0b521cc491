"""One generic registry: lookup, near-miss suggestions, discovery by file name and entry point."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Generic, TypeVar

from halludecode.core.errors import HalluDecodeError, InvalidParameter, UnknownStrategy

if TYPE_CHECKING:
    from halludecode.core.strategy import Strategy

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with near misses, swapped letters first; "" where nothing is near."""
    given = name.strip().lower()
    close = difflib.get_close_matches(given, list(known), n=3, cutoff=0.5)
    close.sort(key=lambda word: sorted(word) != sorted(given))
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


@dataclass
class Registry(Generic[T]):
    """Names to things, filled by importing the modules of ``package`` on demand.

    Args:
        kind: The word used in messages, such as "strategy".
        package: Package whose module files are the entries, one a file; adding a file registers it.
        group: Entry-point group through which other packages add theirs.
        missing: Error class raised for an unknown name.
    """

    kind: str
    package: str
    group: str
    missing: type[HalluDecodeError]
    _entries: dict[str, T] = field(default_factory=dict[str, T])
    _broken: set[str] = field(default_factory=set[str])  # entry points that cannot be loaded

    def add(self, name: str, entry: T) -> None:
        """Register; the same definition may come again (a notebook cell or module re-run)."""
        if not name.isidentifier() or name != name.lower():
            raise InvalidParameter(
                f"{self.kind} name {name!r} must be lower-case letters, digits and _."
            )
        if name in self._files():  # the package's own goes first, whichever is imported first
            importlib.import_module(f"{self.package}.{name}")
        earlier = self._entries.get(name)
        if earlier is not None and getattr(earlier, "source", 0) != getattr(entry, "source", 1):
            raise InvalidParameter(
                f"{self.kind} {name!r} is already defined in {getattr(earlier, 'source', '?')}; "
                "choose another name."
            )
        self._entries[name] = entry

    def get(self, name: str) -> T:
        """The entry, importing its module if need be; an unknown name raises with near misses."""
        if name not in self._entries and name in self._files():
            importlib.import_module(f"{self.package}.{name}")
        if name not in self._entries:
            self._plugins()
        if name in self._entries:
            return self._entries[name]
        names = self.names()
        hint = did_you_mean(name, names)
        raise self.missing(f"Unknown {self.kind} {name!r}.{hint} Known: {', '.join(names)}.")

    def names(self) -> list[str]:
        """All names, sorted; imports every module of the package."""
        for name in self._files():
            importlib.import_module(f"{self.package}.{name}")
        self._plugins()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[T]:
        return iter([self._entries[name] for name in self.names()])

    def _files(self) -> list[str]:
        package = importlib.import_module(self.package)
        modules = pkgutil.iter_modules(package.__path__)
        return [module.name for module in modules if not module.name.startswith("_")]

    def _plugins(self) -> None:
        for entry in entry_points(group=self.group):
            if entry.value in self._broken:
                continue
            try:
                entry.load()
            except Exception as error:  # another package's fault must not stop everything else
                self._broken.add(entry.value)
                package = entry.dist.name if entry.dist else entry.value
                warnings.warn(
                    f"{self.kind} {entry.name!r} of {package} cannot be loaded and is left out "
                    f"({type(error).__name__}: {error})",
                    stacklevel=2,
                )


STRATEGIES: Registry[type[Strategy]] = Registry(
    kind="strategy",
    package="halludecode.strategies",
    group="halludecode.strategies",
    missing=UnknownStrategy,
)
