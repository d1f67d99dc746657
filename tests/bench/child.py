"""One measurement in a process of its own, which prints its numbers as JSON in its last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def measured_apart(module: str, *arguments: str, **environment: str) -> dict[str, float]:
    """The numbers of ``python -m tests.bench.MODULE --child ARGUMENTS``."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{module}", "--child", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer
