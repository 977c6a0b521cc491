"""Why vLLM could not start, in its own words, from whichever of its processes knew.

A worker that cannot load the model logs why and ends; the process that waits for it hears only that
it ended. So the front end names a file in the environment, which the processes it starts inherit,
and they write the last words of what they log there.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from halludecode.core.errors import HalluDecodeError, InvalidModel, InvalidRequest

VARIABLE = "HALLUDECODE_START_LOG"  # a file; processes of vLLM inherit its name
GUARD = (
    "vLLM's processes import the script that starts them, so it must not start vLLM when it is "
    'imported; put what it does below a line: if __name__ == "__main__":'
)
_VALUE = re.compile(r"Value error, (.*?) \[type=", re.S)  # what pydantic wraps


@contextmanager
def starting(model: str) -> Iterator[None]:
    """Whatever ends a start of vLLM in this block becomes one sentence.

    Args:
        model: As the user named it.

    Raises:
        InvalidModel: With the last line of vLLM's reason.
        InvalidRequest: The script starts vLLM whenever it is imported.
    """
    with tempfile.NamedTemporaryFile("r", prefix="halludecode-", encoding="utf-8") as words:
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = words.name
        try:
            yield
        except HalluDecodeError:
            raise
        except Exception as error:
            why = next(iter(words.read().splitlines()), "") or last_words(error)
            if why == GUARD:
                raise InvalidRequest(f"{model}: {GUARD}") from None
            raise InvalidModel(
                f"{model}: vLLM cannot start ({why}). Change the option or the model that it "
                "names, or use engine='hf'."
            ) from error
        finally:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


def check_guarded() -> None:
    """Told in a process that vLLM starts: it imports the user's script, which starts vLLM again.

    Raises:
        SystemExit: Quietly, where the process that waits can be told.
        InvalidRequest: Where there is none of ours.
    """
    if not getattr(multiprocessing.current_process(), "_inheriting", False):
        return
    path = Path(os.environ.get(VARIABLE, ""))
    if not path.is_file():
        raise InvalidRequest(GUARD)
    path.write_text(GUARD + "\n", encoding="utf-8")
    raise SystemExit(1)


def last_words(error: BaseException) -> str:
    """The sentence of an error that says most: pydantic's reason, else its last line."""
    value = _VALUE.search(str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(value[1].split()) if value else (lines or [type(error).__name__])[-1]
    return said.rstrip(".")[:400]


class LastWordsHandler(logging.Handler):
    """Writes the last words of errors that vLLM logs into the file of the process that waits."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line per error; nothing once nobody waits any more."""
        path = Path(os.environ.get(VARIABLE, ""))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and path.is_file():
            with path.open("a", encoding="utf-8") as words:
                words.write(last_words(error) + "\n")


def listen() -> None:
    """Called in processes of vLLM that load the model; what they log from then on is heard."""
    logger = logging.getLogger("vllm")
    if VARIABLE in os.environ and not any(isinstance(h, LastWordsHandler) for h in logger.handlers):
        logger.addHandler(LastWordsHandler(logging.ERROR))
