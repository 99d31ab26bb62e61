"""The machine's llama.cpp server: find it, start it when it is gone, ask it for a model.

One process serves all clones and commands of a user. It is registered in `<models.cache>/llama-server/server.json`
(pid, control port, token, start); a registry whose process is dead or mute is stale and replaced at the next call.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from pydantic import Field, SecretStr

from infra.errors import CorruptArtifact, InputError, NotFound, Unavailable
from infra.identity import Value
from infra.llm.endpoint import Connection
from infra.llm.llamacpp import LOG, REGISTRY
from infra.locking import exclusive
from infra.models import resolve
from infra.settings import ModelSettings, child_environment

UNLOAD_AFTER = 600.0
EXIT_AFTER = 900.0
START_SECONDS = 60.0
LOAD_SECONDS = 300.0
STATUS_SECONDS = 60.0
"""llama.cpp holds the process's Python threads while it loads (2 s for the 1.5B here, more from a slow disk): a live
process that is silent for less than this is loading, not dead. A dead one refuses the connection at once."""
LOG_LIMIT = 10_000_000


class _Registered(Value):
    pid: int = Field(description="Process id.")
    port: int = Field(description="Port of the control endpoint.")
    token: SecretStr = Field(description="What every request must show.")
    started_at: str = Field(description="ISO 8601 UTC.")


class _Vanished(Exception):
    """The server's process went away, or is about to."""


def ensure(models: ModelSettings, name: str, adapter: Path | None = None) -> str:
    """The base URL (ending in /v1) of a model on the machine's server; see `connect` for the key and the errors."""
    return connect(models, name, adapter).base_url


def connect(
    models: ModelSettings,
    name: str,
    adapter: Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Connection:
    """Start the server and load the model (with a GGUF LoRA adapter) when needed; say where it answers.

    Raises what `infra.models.resolve` raises, `NotFound` when the adapter file does not exist, `CorruptArtifact`
    when llama.cpp cannot load a file, `Unavailable` when the server does not start.
    """
    weights = resolve(name, models, on_progress).path
    if weights.is_dir():
        raise InputError("this model does not write text", seen=name, fix="name a GGUF model of the catalogue")
    if adapter is not None and not adapter.is_file():
        raise NotFound("no adapter at this path", seen=adapter, rule="a GGUF LoRA file", fix="train it again")
    wanted = {"model": str(weights), "adapter": str(adapter.absolute()) if adapter else None}
    for _ in range(2):
        server = _running(models) or _start(models)
        try:
            status, answer = _ask(server, "POST", "/ensure", wanted, LOAD_SECONDS)
        except _Vanished:
            continue
        if status == 200:
            return Connection(base_url=answer["base_url"], api_key=server.token)
        if status == 422:
            raise _cannot_load(adapter or weights, str(answer["error"]))
    raise _cannot_load(adapter or weights, f"the server ended while loading it; see {_directory(models) / LOG}")


def status(models: ModelSettings) -> dict[str, Any] | None:
    """Process id, memory, address and age of the loaded models; None when no server runs."""
    server = _running(models)
    if server is None:
        return None
    try:
        _, answer = _ask(server, "GET", "/status", None, STATUS_SECONDS)
    except _Vanished:
        return None
    return answer | {"started_at": server.started_at, "log": str(_directory(models) / LOG)}


def stop(models: ModelSettings, timeout: float = 10.0) -> bool:
    """End the server; False when none ran. A server that does not end in `timeout` seconds is killed."""
    server = _running(models)
    if server is None:
        return False
    try:
        process = psutil.Process(server.pid)
        process.terminate()
        try:
            process.wait(timeout)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(timeout)
    except psutil.NoSuchProcess:
        return True
    return True


def next_token_logprobs(
    models: ModelSettings,
    name: str,
    adapter: Path | None,
    prompts: Sequence[str],
    top: int,
    *,
    scale: float = 1.0,
) -> list[dict[str, float]]:
    """For each raw prompt, the `top` likeliest next tokens (text to natural-log probability).

    Probabilities are of the model's own distribution, a softmax over the whole vocabulary before any sampling
    setting. `scale` multiplies the adapter's effect: 0 is the base model, 1 the adapter as trained. Tokens that
    print alike (halves of one character) share a key; the likelier one is kept. Errors as `connect`.
    """
    connection = connect(models, name, adapter)
    lora = [{"id": 0, "scale": scale}] if adapter is not None else []
    found: list[dict[str, float]] = []
    for prompt in prompts:
        body = {"prompt": prompt, "n_predict": 1, "n_probs": top, "temperature": 0.0, "cache_prompt": False}
        answer = _native(connection, "/completion", body | {"lora": lora})
        likeliest: dict[str, float] = {}
        for token in answer["completion_probabilities"][0]["top_logprobs"]:
            likeliest.setdefault(token["token"], float(token["logprob"]))
        found.append(likeliest)
    return found


def tokens(models: ModelSettings, name: str, text: str) -> list[int]:
    """The token ids that llama.cpp makes of a text, special tokens parsed. Errors as `connect`."""
    answer = _native(connect(models, name), "/tokenize", {"content": text, "parse_special": True})
    return [int(token) for token in answer["tokens"]]


def _native(connection: Connection, path: str, body: dict[str, Any]) -> dict[str, Any]:
    port = int(connection.base_url.removesuffix("/v1").rpartition(":")[2])
    try:
        code, answer = _http(port, connection.api_key, "POST", path, body, timeout=LOAD_SECONDS)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable("the llama.cpp server went away", seen=connection.base_url, fix="run it again") from error
    if code != 200:
        raise InputError("llama.cpp refused the request", seen=answer)
    return answer


def _directory(models: ModelSettings) -> Path:
    return models.cache / "llama-server"


def _cannot_load(file: Path, reason: str) -> CorruptArtifact:
    return CorruptArtifact(
        "llama.cpp cannot load this file",
        seen=file,
        rule=reason,
        fix="delete it and make it again; an adapter must fit its base model",
    )


def _running(models: ModelSettings) -> _Registered | None:
    """The registered server when its process lives and answers as itself."""
    try:
        server = _Registered.model_validate_json((_directory(models) / REGISTRY).read_bytes())
    except (OSError, ValueError):
        return None
    try:
        if psutil.Process(server.pid).status() == psutil.STATUS_ZOMBIE:
            return None
        code, answer = _ask(server, "GET", "/status", None, STATUS_SECONDS)
    except (psutil.NoSuchProcess, _Vanished):
        return None
    return server if code == 200 and answer["pid"] == server.pid else None


def _start(models: ModelSettings) -> _Registered:
    directory = _directory(models)
    with exclusive(directory / "start.lock"):
        server = _running(models)
        if server is not None:
            return server
        (directory / REGISTRY).unlink(missing_ok=True)
        log = directory / LOG
        if log.exists() and log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_suffix(".log.old"))
        _launch(directory, log)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            server = _running(models)
            if server is not None:
                return server
            time.sleep(0.05)
    raise Unavailable(f"the llama.cpp server did not start in {START_SECONDS:g} s", seen=log, fix="read this log")


def _launch(directory: Path, log: Path) -> None:
    command = [sys.executable, "-P", "-m", "infra.llm.llamacpp", "--directory", str(directory)]
    command += ["--unload-after", str(UNLOAD_AFTER), "--exit-after", str(EXIT_AFTER)]
    with log.open("ab") as out:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=directory,
            env=child_environment(),
            start_new_session=True,
            check=False,
        )


def _ask(
    server: _Registered, method: str, path: str, body: dict[str, Any] | None, timeout: float
) -> tuple[int, dict[str, Any]]:
    try:
        code, answer = _http(server.port, server.token, method, path, body, timeout=timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Vanished from error
    if code == 503:
        raise _Vanished
    return code, answer


def _http(
    port: int, token: SecretStr, method: str, path: str, body: dict[str, Any] | None, *, timeout: float
) -> tuple[int, dict[str, Any]]:
    """One JSON request on loopback (`http.client` never goes through a proxy)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        headers = {"Authorization": f"Bearer {token.get_secret_value()}", "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
