"""Results on disk, one line a finished job, so that a run that was stopped goes on."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from flower_psl import ConfigError

Value = float | int | str
Row = dict[str, Value]


class ResultKey(Protocol):
    """What results are stored under: a frozen dataclass of plain values.

    Its fields are the key, but for those declared with ``compare=False``.

    Attributes
    ----------
    columns : tuple of str
        What each row of the results holds.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    columns: ClassVar[tuple[str, ...]]


class Job(ResultKey, Protocol):
    """A piece of work that can be sent to a process, with the key of its results."""

    def run(self) -> list[Row]:
        """Do the work and return its results."""


class ResultStore:
    """The results of one experiment in a folder.

    ``results.jsonl`` grows by a line a job. Results of jobs that were not asked for, such
    as those of other settings, stay in the file and are left alone.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    job_type : type
        The class of the jobs.

    Raises
    ------
    ConfigError
        If the folder cannot be written to, or holds results with other columns, or a file that
        no run has written. Such a file is left as it is.
    """

    def __init__(self, folder: Path, job_type: type[ResultKey]) -> None:
        self.folder = folder
        self._path = folder / "results.jsonl"
        self._key_columns = [each.name for each in fields(job_type) if each.compare]
        self._columns = [*self._key_columns, *job_type.columns]
        self._rows: dict[str, list[Row]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise ConfigError(
                f"the folder {folder} cannot be written to: {error.strerror}; give another --out"
            ) from error

    def _open(self) -> None:
        """Read what is there, and cut off a last line that was not finished."""
        with self._path.open("a+b") as file:
            file.seek(0)
            text = file.read()
            header = f"{self._header()}\n".encode()
            if not (text.startswith(header) or header.startswith(text)):
                raise ConfigError(
                    f"{self._path} has other columns than this experiment writes "
                    f"({', '.join(self._columns)}); give another --out, or move the file away"
                )
            whole = text[: text.rfind(b"\n") + 1]
            for number, line in enumerate(whole.splitlines()[1:], 2):
                self._read(number, line)
            file.truncate(len(whole))
            if not whole:
                file.write(header)

    def _read(self, number: int, line: bytes) -> None:
        try:
            record = json.loads(line)
            rows = [dict(zip(self._columns, row, strict=True)) for row in record["rows"]]
            self._rows[str(record["key"])] = rows
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{self._path}, line {number}: {line[:60]!r} is not what a finished job leaves "
                f"({', '.join(self._columns)}); give another --out, or take the line out"
            ) from error

    def has(self, job: ResultKey) -> bool:
        """Tell whether a job's results are there."""
        return self._key(job) in self._rows

    def add(self, job: ResultKey, rows: Iterable[Row]) -> None:
        """Keep a job's results.

        Parameters
        ----------
        job : ResultKey
            A finished job.
        rows : iterable of dict
            What it returned.
        """
        key = self._key(job)
        values = {name: getattr(job, name) for name in self._key_columns}
        self._rows[key] = [values | row for row in rows]
        cells = [[row[name] for name in self._columns] for row in self._rows[key]]
        with self._path.open("a") as file:
            file.write(json.dumps({"key": key, "rows": cells}) + "\n")

    def rows(self, jobs: Iterable[ResultKey]) -> list[Row]:
        """Return the rows of these jobs, each with the job's fields."""
        return [row for job in jobs for row in self._rows[self._key(job)]]

    def export(self, jobs: Sequence[ResultKey], summary: Mapping[str, object]) -> None:
        """Write ``results.csv``, the rows of these jobs, and ``summary.json``.

        Parameters
        ----------
        jobs : sequence of ResultKey
            Finished jobs.
        summary : mapping
            What the experiment found, ready for JSON.
        """
        with (self.folder / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self.rows(jobs))
        text = json.dumps(summary, indent=2, allow_nan=False)
        (self.folder / "summary.json").write_text(text + "\n")

    def _header(self) -> str:
        return json.dumps({"columns": self._columns})

    def _key(self, job: ResultKey) -> str:
        values = asdict(job)
        return json.dumps({name: values[name] for name in self._key_columns}, sort_keys=True)
