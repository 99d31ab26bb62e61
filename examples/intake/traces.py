"""An application that traces its calls with the OpenTelemetry SDK, by the GenAI semantic conventions."""

import json
import sys

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8400"
provider = TracerProvider(resource=Resource.create({"service.name": "blog"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{server}/v1/traces")))
tracer = provider.get_tracer("blog")


def message(role: str, text: str) -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])


with tracer.start_as_current_span("answer"):
    with tracer.start_as_current_span("search", attributes={"openinference.span.kind": "RETRIEVER"}):
        pass
    with tracer.start_as_current_span("chat gpt-4o-mini") as span:
        span.set_attribute("gen_ai.operation.name", "chat")
        span.set_attribute("gen_ai.request.model", "gpt-4o-mini")
        span.set_attribute("gen_ai.conversation.id", "c-17")
        span.set_attribute("gen_ai.input.messages", message("user", "What does QLoRA save?"))
        span.set_attribute("gen_ai.output.messages", message("assistant", "Memory."))
context = span.get_span_context()
provider.shutdown()
print(f"recorded as {context.trace_id:032x}-{context.span_id:016x}")
