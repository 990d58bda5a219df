import re
from pathlib import Path

import pytest

from flower_psl.errors import ConfigError
from flower_psl.sampling.cost_file import read_costs

HEADER = "client,seconds_per_example,seconds_per_participation\n"


def test_both_formats_are_read(tmp_path: Path) -> None:
    table, tree = tmp_path / "costs.csv", tmp_path / "costs.json"
    table.write_text(HEADER + "3,0.5,2\n0,1e-3,0\n")
    tree.write_text(
        '{"3": {"seconds_per_example": 0.5, "seconds_per_participation": 2},'
        ' "0": {"seconds_per_participation": 0, "seconds_per_example": 1e-3}}'
    )
    assert read_costs(table) == read_costs(tree) == {3: (0.5, 2.0), 0: (0.001, 0.0)}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "", "a.txt ends in '.txt'; costs are read from .csv or .json files: save"),
        ("a.csv", HEADER + "3,0.5,2\n3,1,1\n", "a.csv, line 3: client 3 is there twice; each"),
        ("a.csv", HEADER + "three,1,1\n", "line 2: client is 'three'; the columns client, secon"),
        ("a.csv", HEADER + "3,1\n", "line 2: seconds_per_participation is None; the columns cl"),
        ("a.csv", HEADER + "3,fast,1\n", "line 2: seconds_per_example is 'fast'; the columns"),
        ("a.csv", "key,seconds\n3,1\n", "line 2: client is None; the columns client, seconds_per"),
        ("a.json", "{", "a.json is no JSON (Expecting property name"),
        ("a.json", "[1]", 'a.json: [1] is no JSON object; write {"0": {"seconds_per_example":'),
        ("a.json", '{"3": 4}', "a.json, client 3: 4 is no JSON object; write"),
        ("a.json", '{"3": {"seconds_per_example": 1}}', "client 3: seconds_per_participation is"),
        (
            "a.json",
            '{"3": {"seconds_per_example": 1, "seconds_per_participation": 1},'
            ' "3": {"seconds_per_example": 2, "seconds_per_participation": 1}}',
            "a.json, client 3: client 3 is there twice; each has one cost: keep one",
        ),
    ],
)
def test_invalid_files_are_refused(name: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_costs(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.csv cannot be read .* name a readable text"):
        read_costs(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary.csv cannot be read .*codec"):
        read_costs(tmp_path / "binary.csv")
