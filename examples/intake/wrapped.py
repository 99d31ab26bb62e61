"""An application that records its own OpenAI client in process; nothing needs to be running."""

import asyncio

from openai import AsyncOpenAI, OpenAI

import quillstream

client = quillstream.wrap(OpenAI(), application="blog")
answer = client.chat.completions.create(
    model="gpt-4o-mini",
    messages=[{"role": "user", "content": "What does a reranker read?"}],
    metadata={"conversation_id": "c-17", "session_id": "s-3"},
)
quillstream.feedback(answer.id, ratings={"coherence": 5}, edited_response="The question and one passage.")


async def stream() -> str:
    awaited = quillstream.wrap(AsyncOpenAI(), application="blog")
    messages = [{"role": "user", "content": "What is an embedding?"}]
    chunks = await awaited.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True)
    return "".join([(chunk.choices[0].delta.content or "") if chunk.choices else "" async for chunk in chunks])


print(asyncio.run(stream()))
job = quillstream.InteractionRecorded(
    interaction_id="nightly-1",
    conversation_id="nightly",
    application="digest",
    prompt="Summarise the day.",
    response="It rained.",
    finish_reason="stop",
    tool_calls=(quillstream.ToolCall(name="weather", arguments='{"day": "today"}', result="rain"),),
)
print("durable:", quillstream.emit(job).wait(10))
