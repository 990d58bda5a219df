"""What a process takes of its machine, as Linux tells it."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PARENT = 1  # of the fields behind the name in /proc/PID/stat, counted from 0


@dataclass(frozen=True)
class ProcessLoad:
    """What a process takes.

    Attributes
    ----------
    resident_mb : float
        Resident memory, in MB.
    threads, open_files : int
        Their numbers; sockets and pipes are files.
    """

    resident_mb: float
    threads: int
    open_files: int


def load_of(pid: int) -> ProcessLoad:
    """Return what a process takes now.

    Raises
    ------
    ProcessLookupError
        If it has ended.
    """
    folder = _PROC / str(pid)
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return ProcessLoad(
            resident_mb=int(status["VmRSS"].split()[0]) * 1024 / 1e6,
            threads=int(status["Threads"]),
            open_files=len(os.listdir(folder / "fd")),
        )
    except (FileNotFoundError, KeyError) as error:
        raise ProcessLookupError(f"process {pid} has ended") from error


def processes(ancestor: int, program: str) -> list[int]:
    """Return the processes that a process has started, or those it has, by a program's name.

    Parameters
    ----------
    ancestor : int
        The process at the root.
    program : str
        The name of the program's file, anywhere in the command line.
    """
    parents: dict[int, int] = {}
    named: list[int] = []
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        parents[int(folder.name)] = int(after_name[_PARENT])
        if program in map(os.path.basename, words):
            named.append(int(folder.name))
    return sorted(pid for pid in named if ancestor in _ancestors(pid, parents))


def _ancestors(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    while (parent := parents.get(pid)) is not None:
        yield parent
        pid = parent
