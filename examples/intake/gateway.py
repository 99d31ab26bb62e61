"""An application whose calls pass through the gateway, and what its reader says of the answer."""

import sys

import httpx
from openai import OpenAI

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8400"
client = OpenAI(base_url=f"{server}/gateway/v1", default_headers={"x-quillstream-application": "blog"})
stream = client.chat.completions.with_raw_response.create(
    model="gpt-4o-mini",
    messages=[{"role": "user", "content": "What does LoRA train?"}],
    extra_headers={"x-quillstream-conversation-id": "c-17", "x-quillstream-session-id": "s-3"},
    stream=True,
)
for chunk in stream.parse():
    print((chunk.choices[0].delta.content or "") if chunk.choices else "", end="")
interaction_id = stream.headers["x-quillstream-interaction-id"]
said = {"interaction_id": interaction_id, "ratings": {"relevance": 4}, "reviewer": "ann", "comment": "Say how many."}
httpx.post(f"{server}/v1/feedback", json=said).raise_for_status()
print(f"\nrecorded as {interaction_id}")
