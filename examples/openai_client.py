"""The official OpenAI client against `quill up`: the call is grounded in your documents, cited and logged."""

import sys

from openai import OpenAI

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8400/v1"
client = OpenAI(base_url=address, api_key="unused")
answer = client.chat.completions.create(
    model="production",
    messages=[{"role": "user", "content": "Write a short post that explains LoRA to backend engineers."}],
)
print(answer.choices[0].message.content)
for citation in answer.model_extra["citations"]:
    print(f"[{citation['marker']}] {citation['source']}: {citation['quote']}")
