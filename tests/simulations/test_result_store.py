import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from flower_psl import ConfigError
from simulations.result_store import ResultStore, Row
from simulations.run_jobs import run_jobs


@dataclass(frozen=True, kw_only=True)
class Square:
    columns: ClassVar[tuple[str, ...]] = ("place", "power")
    done: ClassVar[list[int]] = []

    number: int
    path: str = field(default="", compare=False)

    def run(self) -> list[Row]:
        self.done.append(self.number)
        return [{"place": 1, "power": self.number}, {"place": 2, "power": self.number**2}]


@dataclass(frozen=True, kw_only=True)
class Cube(Square):
    columns: ClassVar[tuple[str, ...]] = ("place", "power", "more")


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    Square.done.clear()


def test_only_missing_jobs_are_done(tmp_path: Path) -> None:
    jobs = [Square(number=number) for number in (3, 1, 2)]
    run_jobs(jobs[:2], ResultStore(tmp_path, Square), workers=1)
    # Where the data lie is no part of a job's key.
    again = [Square(number=number, path="elsewhere") for number in (3, 1, 2)]
    rows = run_jobs(again, ResultStore(tmp_path, Square), workers=1)
    assert Square.done == [3, 1, 2]
    assert rows == [
        {"number": number, "place": place, "power": number**place}
        for number in (3, 1, 2)
        for place in (1, 2)
    ]


def test_a_line_that_was_not_finished_is_cut_off(tmp_path: Path) -> None:
    run_jobs([Square(number=2), Square(number=3)], ResultStore(tmp_path, Square), workers=1)
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    store = ResultStore(tmp_path, Square)
    assert store.has(Square(number=2))
    assert not store.has(Square(number=3))
    run_jobs([Square(number=3)], store, workers=1)
    assert path.read_bytes() == whole


def test_a_header_that_was_not_finished_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"colu')
    ResultStore(tmp_path, Square)
    header = json.loads((tmp_path / "results.jsonl").read_text())
    assert header == {"columns": ["number", "place", "power"]}


def test_other_columns_are_refused(tmp_path: Path) -> None:
    ResultStore(tmp_path, Square)
    with pytest.raises(ConfigError, match=r"other columns .*more.*; give another --out"):
        ResultStore(tmp_path, Cube)


@pytest.mark.parametrize("there", [b'{"columns": ["a"]}\n{"key"', b"a,b,c", b"\xff\n"])
def test_a_file_that_is_refused_is_left_as_it_is(tmp_path: Path, there: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(there)
    with pytest.raises(ConfigError, match="other columns"):
        ResultStore(tmp_path, Square)
    assert path.read_bytes() == there


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", "{}", '{"key": "k", "rows": [[1, 2]]}', '{"key": "k", "rows": 1}']
)
def test_a_line_that_no_job_left_is_refused(tmp_path: Path, line: str) -> None:
    ResultStore(tmp_path, Square)
    path = tmp_path / "results.jsonl"
    path.write_text(f"{path.read_text()}{line}\nunfinished")
    before = path.read_bytes()
    with pytest.raises(ConfigError) as caught:
        ResultStore(tmp_path, Square)
    assert f"{path}, line 2" in str(caught.value)
    assert repr(line.encode())[1:-1] in str(caught.value)
    assert "number, place, power" in str(caught.value)
    assert "give another --out" in str(caught.value)
    assert path.read_bytes() == before


def test_export(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "new" / "folder", Square)
    jobs = [Square(number=2), Square(number=3)]
    run_jobs(jobs, store, workers=1)
    store.export(jobs[1:], {"largest": 9})
    with (store.folder / "results.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"number": "3", "place": "1", "power": "3"},
            {"number": "3", "place": "2", "power": "9"},
        ]
    assert json.loads((store.folder / "summary.json").read_text()) == {"largest": 9}
