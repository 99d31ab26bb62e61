"""Clients that log prompts and responses, each run in a process of its own by whichever interpreter has its packages.

    python benchmarks/_emit_clients.py CLIENT FOLDER SINK_URL      (then one turn a line: `TURN NUMBER BYTES`)

Clients: `quillstream` and `unmasked` (the same without masking) write to an outbox in FOLDER; `langfuse` and
`opentelemetry` send to the sink. Each answers a turn with a line of JSON: numbers in seconds.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

EMPTY_EVENT = 565
"""Bytes of an encoded interaction of ours without its two texts; the texts fill the rest."""
IDS = 20_000
PACE = 0.001
Texts = list[tuple[str, str]]


class Client(Protocol):
    """Something that logs."""

    def call(self, _number: int, prompt: str, response: str, /) -> object:
        """Log one prompt and its response, the number-th, as an application does after each answer."""
        ...

    def settle(self) -> None:
        """Return when everything logged so far is durable, or delivered."""
        ...


class Unmasked(NamedTuple):
    """What a masker gives that looks for nothing."""

    text: str
    spans: tuple[()] = ()


class NoMasker:
    """Masks nothing: for the figures without masking only."""

    def mask(self, text: str) -> Unmasked:
        """The text as it is."""
        return Unmasked(text)

    def mask_id(self, text: str) -> str:
        """The id as it is."""
        return text


class Quillstream:
    """The emitter with its outbox. The embedded log on the same disk takes what is forwarded, where there is one."""

    def __init__(self, folder: Path, *, masked: bool) -> None:
        from infra.errors import Unavailable
        from streams.embedded import EmbeddedLog
        from streams.emitter import Emitter
        from streams.events import InteractionRecorded
        from streams.masking import Masker

        class Away:
            def __getattr__(self, name: str) -> object:
                raise Unavailable("the log is away")

        self._interaction = InteractionRecorded
        masker = Masker() if masked else NoMasker()
        limits = {"capacity": 1_000_000, "capacity_bytes": 8 << 30}
        self._emitters = [
            Emitter(log, masker=masker, outbox=folder / name, source="benchmark", **limits)  # type: ignore[arg-type]
            for name, log in (("alone", Away()), ("forwarded", EmbeddedLog(folder / "log.db")))
        ]
        self.emitter = self._emitters[0]
        self._ids = [(f"interaction-{number:08}", f"conversation-{number % 50}") for number in range(IDS)]

    def forwarding(self, wanted: bool) -> None:
        """Whether the log is there."""
        self.emitter = self._emitters[wanted]

    def payload(self, number: int, prompt: str, response: str) -> object:
        """What an application hands over: two texts, the ids it has for them, and what the answer cost."""
        interaction, conversation = self._ids[number % IDS]
        return self._interaction(
            interaction_id=interaction,
            conversation_id=conversation,
            prompt=prompt,
            response=response,
            finish_reason="stop",
            usage={"input_tokens": 250, "output_tokens": 750},
            latency_ms=812.5,
        )

    def call(self, number: int, prompt: str, response: str) -> object:
        """The payload and `emit`; the receipt."""
        return self.emitter.emit(self.payload(number, prompt, response))  # type: ignore[arg-type]

    def settle(self) -> None:
        """All receipts are settled, none failed."""
        while (counters := self.emitter.counters)["acknowledged"] < counters["accepted"]:
            if counters["failed"]:
                sys.exit(f"{counters['failed']} events failed: {self.emitter.trouble}")
            time.sleep(0.0005)


class Langfuse:
    """Langfuse's client, its queue long enough that it drops nothing."""

    def __init__(self, url: str) -> None:
        from langfuse import Langfuse as Api

        self._client = Api(public_key="pk-benchmark", secret_key="sk-benchmark", base_url=url)

    def call(self, _number: int, prompt: str, response: str) -> object:
        """One generation."""
        usage = {"input": 250, "output": 750}
        generation = self._client.start_observation(
            name="chat", as_type="generation", model="m", input=prompt, output=response, usage_details=usage
        )
        return generation.end()

    def settle(self) -> None:
        """Its own flush."""
        self._client.flush()


class OpenTelemetry:
    """OpenTelemetry's SDK with the batch processor and the OTLP exporter."""

    def __init__(self, url: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider()
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url}/v1/traces")))
        self._tracer = self._provider.get_tracer("benchmark")

    def call(self, _number: int, prompt: str, response: str) -> object:
        """One span with the attributes of the GenAI conventions."""
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "m",
            "gen_ai.input.messages": prompt,
            "gen_ai.output.messages": response,
            "gen_ai.usage.input_tokens": 250,
            "gen_ai.usage.output_tokens": 750,
        }
        return self._tracer.start_span("chat", attributes=attributes).end()

    def settle(self) -> None:
        """Its own flush."""
        self._provider.force_flush(120_000)


def texts(size: int) -> Texts:
    """Prompts and responses of words that make events of that many bytes, one part in four the prompt."""
    chance = random.Random(f"texts {size}")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(3000)]
    made = []
    for _ in range(200):
        text = " ".join(chance.choices(words, k=size // 2))[: size - EMPTY_EVENT]
        made.append((text[: len(text) // 4], text[len(text) // 4 :]))
    return made


def calls(client: Client, number: int, pairs: Texts, pause: float) -> dict[str, float]:
    """How long single calls take, `pause` seconds between them; p50, p99 and the longest."""
    taken = []
    clock = time.perf_counter
    for turn in range(number):
        prompt, response = pairs[turn % len(pairs)]
        began = clock()
        client.call(turn, prompt, response)
        taken.append(clock() - began)
        if pause:
            time.sleep(pause)
    client.settle()
    return percentiles(taken)


def emits(client: Quillstream, number: int, pairs: Texts) -> dict[str, float]:
    """As `calls` back to back, of `emit` alone, for payloads that are there already."""
    payloads = [client.payload(turn, *pairs[turn % len(pairs)]) for turn in range(number)]
    taken = []
    clock = time.perf_counter
    for payload in payloads:
        began = clock()
        client.emitter.emit(payload)  # type: ignore[arg-type]
        taken.append(clock() - began)
    client.settle()
    return percentiles(taken)


def throughput(client: Client, number: int, pairs: Texts) -> dict[str, float]:
    """Seconds from the first call until all of them are durable or delivered, and of the processor."""
    began, busy = time.perf_counter(), time.process_time()
    for turn in range(number):
        client.call(turn, *pairs[turn % len(pairs)])
    client.settle()
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - busy}


def lone(client: Quillstream, number: int, pairs: Texts) -> dict[str, float]:
    """Time to acknowledgement of an event that nothing waits beside."""
    taken = []
    for turn in range(number):
        began = time.perf_counter()
        receipt = client.call(turn, *pairs[turn % len(pairs)])
        assert receipt.wait(60)  # type: ignore[attr-defined]
        taken.append(time.perf_counter() - began)
    return percentiles(taken)


def steady(client: Quillstream, number: int, pairs: Texts) -> dict[str, float]:
    """Time to acknowledgement while about a thousand events a second come."""
    under_way: list[tuple[float, object]] = []
    taken: list[float] = []

    def watch() -> None:
        for turn in range(number):
            while turn >= len(under_way):
                time.sleep(0.0002)
            began, receipt = under_way[turn]
            assert receipt.wait(60)  # type: ignore[attr-defined]
            taken.append(time.perf_counter() - began)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for turn in range(number):
        began = time.perf_counter()
        under_way.append((began, client.call(turn, *pairs[turn % len(pairs)])))
        time.sleep(PACE)
    watcher.join()
    return percentiles(taken)


def percentiles(taken: list[float]) -> dict[str, float]:
    """The middle, one in a hundred, and the longest."""
    taken = sorted(taken)
    return {"p50": taken[len(taken) // 2], "p99": taken[len(taken) * 99 // 100], "max": taken[-1]}


def turns(client: Client) -> dict[str, Callable[[int, Texts], dict[str, float]]]:
    """What a client can be told to do."""
    known: dict[str, Callable[[int, Texts], dict[str, float]]] = {
        "burst": lambda number, pairs: calls(client, number, pairs, 0.0),
        "paced": lambda number, pairs: calls(client, number, pairs, PACE),
        "throughput": lambda number, pairs: throughput(client, number, pairs),
    }
    if isinstance(client, Quillstream):
        known |= {
            "emit": lambda number, pairs: emits(client, number, pairs),
            "lone": lambda number, pairs: lone(client, number, pairs),
            "steady": lambda number, pairs: steady(client, number, pairs),
        }
    return known


def main(name: str, folder: str, url: str) -> None:
    """Do the turns that standard input names."""
    os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = "1000000"
    makers: dict[str, Callable[[], Client]] = {
        "quillstream": lambda: Quillstream(Path(folder), masked=True),
        "unmasked": lambda: Quillstream(Path(folder), masked=False),
        "langfuse": lambda: Langfuse(url),
        "opentelemetry": lambda: OpenTelemetry(url),
    }
    client = makers[name]()
    known = turns(client)
    print("{}", flush=True)
    for line in sys.stdin:
        turn, number, size = line.split()
        if isinstance(client, Quillstream):
            client.forwarding(turn in ("burst", "paced", "emit"))
        print(json.dumps(known[turn](int(number), texts(int(size)))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
