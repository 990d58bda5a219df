import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_process_killed_at_random_moments_loses_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.server.checkpoints.killing", "20", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "killed 20 times\n"
