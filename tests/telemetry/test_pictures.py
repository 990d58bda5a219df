import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from flower_psl.telemetry import RoundRecord, draw_rounds, draw_schedule
from flower_psl.telemetry.pictures import PICTURES

ROUNDS = [
    RoundRecord(server_round=r, steps=4, train_loss=1.0 / r, accuracy=None, loss=None, seconds=1)
    for r in range(1, 4)
]
EVALUATED = [
    RoundRecord(server_round=r, steps=4, train_loss=1.0, accuracy=r / 4, loss=2.0, seconds=1)
    for r in range(4)
]


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        wide, high = image.size
        colours = len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))
        return image.format == "PNG" and wide > high > 600 and colours > 20


def test_pictures_are_png_files(tmp_path: Path) -> None:
    written = [*draw_rounds(EVALUATED, tmp_path), *draw_schedule([{0: 3, 1: 5}], tmp_path)]
    assert [path.name for path in written] == list(PICTURES)
    assert all(is_picture(path) for path in written)


def test_no_accuracy_no_picture(tmp_path: Path) -> None:
    assert draw_rounds(ROUNDS, tmp_path) == [tmp_path / "loss.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert draw_rounds([], tmp_path) == []
    assert draw_schedule([], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_waits_for_a_picture_and_pyplot_stays_out(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from flower_psl.telemetry import draw_schedule\n"
        "print('matplotlib' in sys.modules)\n"
        "draw_schedule([{0: 1}], Path(sys.argv[1]))\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
