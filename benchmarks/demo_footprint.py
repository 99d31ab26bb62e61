"""Time and peak memory of `quill demo`, from nothing and again: resident memory summed over every process that the
demo started, the shared llama.cpp server included. One run each; the stages' own seconds are in the demo's report."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from infra.settings import child_environment

SERVER_MODULE = "infra.llm.llamacpp"
INTERVAL_SECONDS = 0.5


def main() -> None:
    """Print seconds, peak GiB and exit code of both runs."""
    with tempfile.TemporaryDirectory() as home:
        for label in ("first", "again"):
            seconds, peak, code = measured(Path(home))
            print(f"{label}: {seconds:.0f} s, peak {peak / 2**30:.2f} GiB, exit code {code}", flush=True)


def measured(home: Path) -> tuple[float, int, int]:
    """(seconds, peak bytes, exit code) of one demo on an installation."""
    began = time.monotonic()
    command = [Path(sys.executable).with_name("quill"), "demo"]
    with (home / "output.txt").open("ab") as output:
        process = subprocess.Popen(command, env=child_environment(QUILL_HOME=str(home)), stdout=output, stderr=output)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(INTERVAL_SECONDS)
    return time.monotonic() - began, peak, process.returncode


def resident(pid: int) -> int:
    """Bytes resident in a process, its descendants, and the llama.cpp server, shared pages counted once each time."""
    total = 0
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            ours = process.pid == pid or any(parent.pid == pid for parent in process.parents())
            if ours or SERVER_MODULE in (process.info["cmdline"] or []):
                total += process.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


if __name__ == "__main__":
    main()
