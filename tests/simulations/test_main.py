from pathlib import Path

import pytest

from simulations.__main__ import EXPERIMENTS, main


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_explains_an_experiment(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert (EXPERIMENTS[name].run.__doc__ or "?").splitlines()[0] in text
    assert "--quick" in text
    assert f"default: runs/{name}" in text


def test_an_unknown_experiment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["nope"])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "'nope'" in line
    assert all(name in line for name in (*EXPERIMENTS, "demo", "bench", "--help"))


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["steps", "--quick", "--out", str(tmp_path / "file" / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line
    assert "cannot be written" in line
    assert "another --out" in line


def test_results_with_other_columns_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.jsonl").write_text('{"columns": ["a", "b"]}\n')
    assert main(["steps", "--quick", "--out", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "other columns" in line
    assert "inflation" in line
    assert "another --out" in line
    assert (tmp_path / "results.jsonl").read_text() == '{"columns": ["a", "b"]}\n'


def test_a_stopped_run_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.steps.run_jobs", stop)
    assert main(["steps", "--quick", "--out", str(tmp_path)]) == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["soak", "--minutes", "1"], "minutes is 1.0; it must be 4.0 or more: give a larger one"),
        (["chaos", "--moments", "0"], "moments is 0; it must be 1 or more: give a larger one"),
        (["restarts", "--moments", "0"], "moments is 0; it must be 1 or more: give a larger one"),
    ],
)
def test_a_value_out_of_range_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"
