import subprocess
import sys
from pathlib import Path

import pytest

from flower_psl import sampling

ROOT = Path(sampling.__file__).parents[2]


@pytest.mark.parametrize("heavy", ["torch", "flwr"])
def test_sampling_loads_without(heavy: str) -> None:
    code = f"import sys; import flower_psl.sampling; print({heavy!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there_and_documented() -> None:
    for name in sampling.__all__:
        assert getattr(sampling, name).__doc__, name
