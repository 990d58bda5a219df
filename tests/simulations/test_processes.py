import os
import subprocess
import sys

import pytest

from simulations.processes import load_of, processes

CODE = """
import pathlib, threading
files = [open("/dev/null") for _ in range(20)]
memory = bytearray(64_000_000)
def name_it():
    pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("event_engine")
    named.set()
    threading.Event().wait()
named = threading.Event()
threading.Thread(target=threading.Event().wait, daemon=True).start()
threading.Thread(target=name_it, daemon=True).start()
named.wait()
print("ready", flush=True)
input()
"""


def test_what_a_process_takes_is_seen_as_long_as_it_runs() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CODE, "a/b/psl-test-program"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        load = load_of(process.pid)
        assert 64 < load.resident_mb < 200
        assert (load.threads, load.pool_threads) == (2, 1)
        assert 20 <= load.open_files < 30
        assert processes(os.getpid(), "psl-test-program") == [process.pid]
        assert processes(os.getppid(), "psl-test-program") == [process.pid]
        assert processes(os.getpid(), "another") == []
        assert processes(process.pid, "psl-test-program") == []
        process.communicate("\n")
    assert processes(os.getpid(), "psl-test-program") == []
    with pytest.raises(ProcessLookupError, match=f"process {process.pid} has ended"):
        load_of(process.pid)
