"""What a process takes of its machine, as Linux tells it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PARENT = 1  # of the fields behind the name in /proc/PID/stat, counted from 0
# What gRPC calls the threads of its pool.
_POOL = "event_engine"


@dataclass(frozen=True)
class ProcessLoad:
    """What a process takes.

    Attributes
    ----------
    resident_mb : float
        Resident memory, in MB.
    threads : int
        How many there are, without those of gRPC's pool.
    pool_threads : int
        The threads of gRPC's pool. It gets one more whenever all of them happen to be busy
        when it looks, and loses one only after 20 s in which that one had nothing to do.
    open_files : int
        How many there are; sockets and pipes are files.
    """

    resident_mb: float
    threads: int
    pool_threads: int
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
        threads = _thread_names(folder)
        pool_threads = threads.count(_POOL)
        return ProcessLoad(
            resident_mb=int(status["VmRSS"].split()[0]) * 1024 / 1e6,
            threads=len(threads) - pool_threads,
            pool_threads=pool_threads,
            open_files=len(os.listdir(folder / "fd")),
        )
    except (FileNotFoundError, KeyError) as error:
        raise ProcessLookupError(f"process {pid} has ended") from error


def _thread_names(folder: Path) -> list[str]:
    names = []
    for thread in (folder / "task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            names.append((thread / "comm").read_text().strip())
    return names


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
