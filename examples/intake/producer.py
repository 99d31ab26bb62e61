"""An application in any language that only knows Kafka: CloudEvents in binary mode, by the published JSON Schema."""

import json
import sys
import uuid

from kafka import KafkaProducer

producer = KafkaProducer(bootstrap_servers=sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9092", acks="all")


def send(kind: str, version: int, key: str, payload: dict) -> None:
    headers = {"ce_specversion": "1.0", "ce_id": uuid.uuid4().hex, "ce_source": "digest", "ce_type": kind}
    value = json.dumps({"type": kind, "schema_version": version, **payload}).encode()
    coded = [(name, text.encode()) for name, text in headers.items()]
    producer.send("llm.intake", value, key=key.encode(), headers=coded).get(30)


interaction_id = uuid.uuid4().hex
said = {"prompt": "Summarise this mail from ann@example.org.", "response": "She asks for a date."}
named = {"interaction_id": interaction_id, "conversation_id": "c-17", "application": "digest"}
send("llm.interaction.recorded", 2, "c-17", {**named, **said, "finish_reason": "stop"})
rated = {"interaction_id": interaction_id, "ratings": {"relevance": 5}, "comment": "Send it to bob@example.org."}
send("llm.feedback.given", 1, interaction_id, rated)
print(f"recorded as {interaction_id}")
