"""Feeds an arize-phoenix server through the OpenTelemetry SDK; run by the peers' interpreter, which has both.

    python _phoenix_feed.py ENDPOINT

Order on stdin: [prefix, number, size], JSON lines. Answer: when the first span ended, and when all were exported.
"""

import json
import random
import sys
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

QUEUE = 1 << 20  # the default of 2,048 would drop most spans of a burst
BATCH = 512


def main(endpoint: str) -> None:
    provider = TracerProvider()
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=120)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE, max_export_batch_size=BATCH))
    tracer = provider.get_tracer("benchmark")
    chance = random.Random("pipeline")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(3000)]
    for line in sys.stdin:
        prefix, number, size = json.loads(line)
        texts = [" ".join(chance.choices(words, k=size // 5))[:size] for _ in range(number)]
        started = time.monotonic()
        for index, text in enumerate(texts):
            attributes = {
                "openinference.span.kind": "LLM",
                "session.id": f"c{index % 500}",
                "interaction.id": f"{prefix}-{index}",
                "input.value": text[: size // 4],
                "output.value": text[size // 4 :],
            }
            tracer.start_span("chat", attributes=attributes).end()
        provider.force_flush(300_000)
        sys.stdout.write(json.dumps({"started": started, "exported": time.monotonic()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
