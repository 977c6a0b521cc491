"""A short soak as part of `make test-all`; `make soak` runs the long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.mark.full
def test_mixed_requests_get_their_own_answers_and_leave_nothing_behind():
    words = ["--requests", "120", "--pool", "54"]
    command = [sys.executable, "-m", "tests.soak", *words]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPO, env=settings, capture_output=True, text=True)
    assert done.stdout, done.stderr[-3000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["wrong"] == 0, told["examples"]
    assert told["left"] == {}
    assert told["scheduler"]["preempted groups"] > 0
    assert all(end["good"] for end in told["ends"].values()), told["ends"]
    assert done.returncode == 0, done.stderr[-3000:]
