"""The files that a run leaves behind."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import torch
from safetensors.torch import save_file
from torch import Tensor

from flower_psl.errors import CheckpointError, ConfigError, PslError
from flower_psl.telemetry.pictures import PICTURES, draw_rounds, draw_schedule
from flower_psl.telemetry.records import RoundRecord, RunInfo, StepRecord
from flower_psl.telemetry.run_summary import RunSummary

_SUMMARY = "summary.json"
_SUMMARY_DRAFT = "summary.json.tmp"
_STEPS = "steps.jsonl"
_MODEL = "model.safetensors"


class RunRecorder:
    """Write the files of one run into a folder.

    ``steps.jsonl`` grows with the run; ``model.safetensors``, the pictures and, last of
    all, ``summary.json`` are written when it has finished. A folder with a summary is
    therefore that of a complete run. A recorder may serve one run after the other, each
    in place of the one before it.

    Parameters
    ----------
    out : str or Path
        The folder; `start` creates it.
    clock : callable, optional
        Returns the time in seconds; it never goes back.
    """

    def __init__(self, out: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = Path(out)
        self._clock = clock
        self._started = 0.0
        self._run: tuple[RunInfo, RunSummary, TextIO] | None = None

    def prepare(self, *, keep_steps: bool = False) -> None:
        """Create the folder and remove what an earlier run left there.

        Only files that a recorder writes are removed. A run calls it before it waits for
        anybody, so that one that fails early leaves no results of another.

        Parameters
        ----------
        keep_steps : bool
            Leave ``steps.jsonl``, for a run that may be resumed.

        Raises
        ------
        ConfigError
            If the folder cannot be made or written to.
        PslError
            If the recorder is recording.
        """
        if self._run is not None:
            raise PslError(
                f"a run is being recorded in {self._out}; a recorder records one run at a time. "
                f"Call finish() or close() first."
            )
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            for name in (_SUMMARY, _SUMMARY_DRAFT, _MODEL, *PICTURES):
                (self._out / name).unlink(missing_ok=True)
            with (self._out / _STEPS).open("a") as steps:
                if not keep_steps:
                    steps.truncate(0)
        except OSError as error:
            raise ConfigError(
                f"out is {str(self._out)!r}, but {error}; a run writes its files into this "
                f"folder. Name a folder that can be created and written to."
            ) from error

    def start(self, info: RunInfo) -> None:
        """Begin to record, in a folder that is prepared.

        Parameters
        ----------
        info : RunInfo
            What is known of the run.

        Raises
        ------
        ConfigError, PslError
            As `prepare`.
        """
        self.prepare()
        self._started = self._clock()
        self._run = (info, RunSummary(info), (self._out / _STEPS).open("w", encoding="utf-8"))

    def state(self) -> dict[str, object]:
        """Return what `resume` needs, once every step so far is on the disk.

        Returns
        -------
        dict of str to object
            Plain values; the steps themselves are in ``steps.jsonl``.

        Raises
        ------
        PslError
            If no run has been started.
        """
        _, summary, steps = self._recording("state()")
        steps.flush()
        os.fsync(steps.fileno())
        return {
            "steps_bytes": os.fstat(steps.fileno()).st_size,
            "rounds": [asdict(record) for record in summary.rounds],
            "seconds": self._clock() - self._started,
        }

    def resume(self, info: RunInfo, state: Mapping[str, Any]) -> None:
        """Go on recording a run that was stopped, as if it had not been.

        What was recorded after `state` was asked for is dropped: it will come again.

        Parameters
        ----------
        info : RunInfo
            What is known of the run.
        state : Mapping
            What `state` returned.

        Raises
        ------
        CheckpointError
            If ``steps.jsonl`` does not have the steps that were recorded.
        ConfigError, PslError
            As `prepare`.
        """
        self.prepare(keep_steps=True)
        path, length = self._out / _STEPS, int(state["steps_bytes"])
        if length > path.stat().st_size:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes; the run that is resumed had written "
                f"{length} when it was saved. Bring the file back, or resume without a recorder."
            )
        os.truncate(path, length)
        summary = RunSummary(info)
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                summary.add_step(_step_of(line, f"{path}, line {number}"))
        for values in state["rounds"]:
            record = RoundRecord(**values)
            record.to_json()  # a value that cannot be written is refused now, not at the end
            summary.add_round(record)
        self._started = self._clock() - float(state["seconds"])
        self._run = (info, summary, path.open("a", encoding="utf-8"))

    def record_step(self, record: StepRecord) -> None:
        """Append a step to ``steps.jsonl``; lines reach the disk at the round's end.

        Parameters
        ----------
        record : StepRecord
            The step.

        Raises
        ------
        PslError
            If no run has been started.
        """
        _, summary, steps = self._recording("record_step()")
        steps.write(json.dumps(record.to_json(), allow_nan=False) + "\n")
        summary.add_step(record)

    def record_round(self, record: RoundRecord) -> None:
        """Note a round that has ended, or the evaluation before the first one.

        Parameters
        ----------
        record : RoundRecord
            The round.

        Raises
        ------
        PslError
            If no run has been started.
        """
        _, summary, steps = self._recording("record_round()")
        summary.add_round(record)
        steps.flush()

    def finish(
        self,
        state_dict: Mapping[str, Tensor],
        refused: Mapping[str, int] | None = None,
        failures: Mapping[int, Mapping[str, int]] | None = None,
    ) -> Path:
        """Write the model, the pictures and, last and at one stroke, the summary.

        Parameters
        ----------
        state_dict : Mapping of str to Tensor
            The whole model under its original keys; tensors may share memory.
        refused : Mapping of str to int, optional
            How often the transport refused something, by reason.
        failures : Mapping of int to Mapping of str to int, optional
            How often each client failed, by client key and reason.

        Returns
        -------
        Path
            The summary's path.

        Raises
        ------
        PslError
            If no run has been started, or the last round has not been recorded.
        """
        info, summary, _ = self._recording("finish()")
        last_round = summary.rounds[-1].server_round if summary.rounds else 0
        if last_round != info.rounds:
            raise PslError(
                f"finish() was called after round {last_round} of {info.rounds}; a summary is "
                f"that of a complete run. Record the last round first, or call close()."
            )
        seconds = self._clock() - self._started
        self.close()
        _write_model(state_dict, self._out / _MODEL)
        draw_rounds(summary.rounds, self._out)
        draw_schedule(summary.first_schedule, self._out)
        values = summary.to_json(seconds, refused, failures)
        return self._publish_summary(json.dumps(values, indent=2, allow_nan=False) + "\n")

    def close(self) -> None:
        """End the recording; without `finish` before it, the folder gets no summary."""
        if self._run is not None:
            _, _, steps = self._run
            self._run = None
            steps.close()

    def __enter__(self) -> Self:
        """Return the recorder itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the recorder."""
        self.close()

    def _recording(self, caller: str) -> tuple[RunInfo, RunSummary, TextIO]:
        if self._run is None:
            raise PslError(
                f"{caller} was called while no run is being recorded in {self._out}; records "
                f"belong to a run. Call start() first."
            )
        return self._run

    def _publish_summary(self, text: str) -> Path:
        draft, summary = self._out / _SUMMARY_DRAFT, self._out / _SUMMARY
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, summary)
        finally:
            draft.unlink(missing_ok=True)
        return summary


def _step_of(line: str, where: str) -> StepRecord:
    try:
        return StepRecord.from_json(json.loads(line))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where}: {error!r}; it is not the record of a step that was written there. Bring "
            "the file back, or resume without a recorder."
        ) from error


def _write_model(state_dict: Mapping[str, Tensor], path: Path) -> None:
    # safetensors refuses tensors that share memory or are strided, as tied weights are.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
