"""One installation in a folder, used as a person uses it: through its commands, each in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.settings import Settings, child_environment, load_settings
from serving.presence import FILE

START_SECONDS = 120
SMALL = "smollm2-135m-instruct"


class Installation:
    """One home, its commands as processes, and its server."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.environment = child_environment(
            QUILL_HOME=str(folder / "home"),
            QUILL_LLM_MODEL=SMALL,
            QUILL_JUDGE_SAMPLE="0",
            COLUMNS="200",
            no_proxy="127.0.0.1",
            **environment,
        )
        self.settings: Settings = load_settings(environment=self.environment, file=folder / "none.toml")
        self.server: subprocess.Popen[str] | None = None
        self.processes: list[subprocess.Popen[str]] = []
        self.url = ""

    def command(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).with_name("quill")), *arguments]

    def quill(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        run = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert run.returncode == code, run.stdout + run.stderr
        return run

    def spawn(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """A command that keeps running; what it prints goes to `<folder>/<name>.log`."""
        with self.log_of(name).open("a") as log:
            process = subprocess.Popen(
                self.command(*arguments), cwd=self.folder, env=self.environment, stdout=log, stderr=log, text=True
            )
        self.processes.append(process)
        return process

    def log_of(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def start(self, *arguments: str) -> None:
        """`quill up` until it has announced itself."""
        server = self.server = self.spawn("server", "up", "--port", "0", *arguments)
        announcement = self.settings.home / FILE
        wait_until(lambda: announcement.exists() or server.poll() is not None, START_SECONDS)
        assert announcement.exists(), self.log_of("server").read_text()
        self.url = json.loads(announcement.read_text())["url"]

    def stop(self) -> int:
        assert self.server is not None
        self.server.send_signal(signal.SIGTERM)
        return self.server.wait(60)

    def end(self) -> None:
        """End whatever still runs, also after a failed test."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()


def wait_until(true: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
