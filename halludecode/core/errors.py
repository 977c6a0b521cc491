"""One error family: every message says what is wrong, where, and what to do about it."""

from __future__ import annotations


class HalluDecodeError(Exception):
    """Base of all errors a user can cause or cure; the command line prints it as one line."""


class UnknownStrategy(HalluDecodeError):
    """A strategy name that is not registered; the message names near misses."""


class InvalidParameter(HalluDecodeError):
    """A strategy or sampling parameter that does not exist or is out of bounds."""


class UnsupportedStrategy(HalluDecodeError):
    """A strategy this engine or model cannot run; the message says what is missing."""


class IncompatibleStrategies(HalluDecodeError):
    """Two strategies that cannot be composed."""


class HookNeverFired(HalluDecodeError):
    """A declared hook was not called during a forward pass, so the strategy was off."""


class InvalidScores(HalluDecodeError):
    """A strategy gave scores of which no token can be chosen; the message names it."""


class InvalidRequest(HalluDecodeError):
    """A prompt or image that cannot be used: unreadable, too large, too many, too long."""


class InvalidData(HalluDecodeError):
    """An evaluation file or folder that cannot be used; the message names file and line."""


class InvalidModel(HalluDecodeError):
    """A model id or path that cannot be loaded, or whose processor is missing."""


class OutOfMemory(HalluDecodeError):
    """The device ran out of memory; the message names a batch size to try."""


class MissingExtra(HalluDecodeError):
    """An optional dependency is not installed; the message holds the pip line that cures it."""
