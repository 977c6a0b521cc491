"""A process of vLLM's ends with the one that started it, however that one ended."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

OURS = "EngineCore"  # what vLLM calls the process; its workers watch it themselves


def end_with_parent() -> None:
    """Watch the parent of an engine's process; once it is gone, end without ado.

    vLLM's engine waits for messages of its front end, which never come when that was killed or ran
    out of memory. Where the engine lives in the user's own process there is nothing to watch.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith(OURS):
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="halludecode-parent", daemon=True).start()
