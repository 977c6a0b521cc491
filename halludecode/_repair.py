"""Placeholder until the repair lands."""


def plugin() -> None:
    """Return None: no platform is activated."""
