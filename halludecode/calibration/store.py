"""Where artifacts are kept: one safetensors file each, in a folder of the user's.

The folder is the one given to `hd.load(..., artifacts=DIR)`, else ``$HALLUDECODE_ARTIFACTS``, else
``halludecode/artifacts`` below ``$XDG_DATA_HOME`` (``~/.local/share``). What an artifact is for
stands in the file's metadata; its name only repeats it. A file is used whole or refused: its
content must have the digest that its metadata names.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halludecode.core.artifact import PIN, Artifact, command, shaping
from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.core.strategy import Strategy

VARIABLE = "HALLUDECODE_ARTIFACTS"
SUFFIX = ".safetensors"
FORMAT = "1"
_NAME = re.compile(r"[A-Za-z0-9_.\-]+")


class ArtifactStore:
    """A folder of artifacts.

    Args:
        folder: None is the user's own, see the module.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder).expanduser() if folder is not None else default_folder()

    def path(self, artifact: Artifact) -> Path:
        """Where an artifact is kept."""
        return self.folder / (artifact.name + SUFFIX)

    def save(self, artifact: Artifact) -> Path:
        """Write an artifact in one step and give its path; the same content keeps its name.

        Raises:
            InvalidData: The folder cannot be written.
        """
        from safetensors.torch import save_file

        path = self.path(artifact)
        about = {
            "halludecode": FORMAT,
            "strategy": artifact.strategy,
            "parameters": json.dumps(dict(artifact.parameters)),
            "model": artifact.model,
            "digest": artifact.digest,
            "source": artifact.source,
            "notes": json.dumps(artifact.notes),
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".making-") as scratch:
                beside = Path(scratch) / path.name
                save_file({k: v.contiguous() for k, v in artifact.items()}, beside, about)
                beside.replace(path)
        except OSError as error:
            raise InvalidData(
                f"{self.folder}: artifacts cannot be written there ({error.strerror}); name "
                f"another folder with --out or {VARIABLE}."
            ) from None
        return path

    def find(self, strategy: Strategy, model: str) -> Artifact | None:
        """The artifact of a strategy on a model: the pinned one, else the last made that fits.

        Args:
            strategy: Its ``pin`` parameter, where it has one, names the artifact.
            model: Digest of the model's weights.

        Raises:
            InvalidParameter: The pin names no artifact of this strategy and model.
            InvalidData: The file is damaged.
        """
        pin = getattr(strategy, PIN, None)
        if pin is not None:
            return self._pinned(strategy, model, pin)
        fitting = [
            (about["made"], path)
            for path in self._of(strategy.name)
            if _misfit(about := _about(path), strategy, model) is None
        ]
        return _load(max(fitting)[1]) if fitting else None

    def _pinned(self, strategy: Strategy, model: str, pin: str) -> Artifact:
        path = self.folder / (pin + SUFFIX)
        where = f"{strategy.name}(pin={pin})"
        if not _NAME.fullmatch(pin) or not path.is_file():
            names = ", ".join(p.stem for p in self._of(strategy.name)) or "none"
            raise InvalidParameter(
                f"{where}: no such artifact in {self.folder}; of {strategy.name} there is {names}."
            )
        reason = _misfit(_about(path), strategy, model)
        if reason is not None:
            raise InvalidParameter(
                f"{where}: it was made for {reason}; pin another or run `{command(strategy)}`."
            )
        return _load(path)

    def _of(self, name: str) -> list[Path]:
        """Files that say by their name that they belong to a strategy."""
        return sorted(self.folder.glob(f"{name}-*{SUFFIX}"))


def default_folder() -> Path:
    """The user's own folder of artifacts."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "halludecode" / "artifacts"


def _misfit(about: Mapping[str, Any], strategy: Strategy, model: str) -> str | None:
    """What an artifact was made for where that is something else, in words."""
    if about["strategy"] != strategy.name:
        return f"the strategy {about['strategy']}"
    if about["model"] != model:
        return f"another model (weights {about['model'][:8]}, here {model[:8]})"
    if about["parameters"] != shaping(strategy):
        return f"other parameters ({about['parameters']})"
    return None


def _about(path: Path) -> dict[str, Any]:
    """A file's metadata; nothing of its tensors is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = dict(file.metadata() or {})
        if about.get("halludecode") != FORMAT:
            raise ValueError("it was not written by this version's calibrate")
        return {
            **about,
            "parameters": json.loads(about["parameters"]),
            "notes": tuple(json.loads(about["notes"])),
            **{key: about[key] for key in ("strategy", "model", "digest", "source", "made")},
        }
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, error) from None


def _load(path: Path) -> Artifact:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    about = _about(path)
    given = ("strategy", "parameters", "model", "source", "notes")
    try:
        artifact = Artifact(tensors=load_file(path), **{key: about[key] for key in given})
        if artifact.digest != about["digest"]:
            raise ValueError("its content is not what its digest says")
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, error) from None
    return artifact


def _damaged(path: Path, error: Exception) -> InvalidData:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InvalidData(
        f"{path}: not a usable artifact ({reason}); delete it and run `halludecode calibrate`."
    )
