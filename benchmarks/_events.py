"""The events that benchmarks of the logs use."""

from __future__ import annotations

import random

from infra.identity import new_id
from streams.codec import encode
from streams.events import Event, InteractionRecorded, now
from streams.log import Record

BYTES = 1024


def events(number: int) -> list[Record]:
    """Encoded interactions whose values are 1 KB of words, always the same but for their ids."""
    chance = random.Random("embedded log")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(3000)]
    made: list[Record] = []
    for _ in range(number):
        name, text = new_id(), " ".join(chance.choices(words, k=200))
        empty = len(encode(_interaction(name, "", "")).value)
        made.append(encode(_interaction(name, text[:200], text[200 : BYTES - empty])))
    return made


def _interaction(name: str, prompt: str, response: str) -> Event:
    data = InteractionRecorded(
        interaction_id=name, conversation_id=name, prompt=prompt, response=response, finish_reason="stop"
    )
    return Event(id=name, source="benchmark", time=now(), data=data)
