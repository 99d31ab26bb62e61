"""Placeholders that the holder of a key can turn back: `[EMAIL:…]` carries what it hides, encrypted and authenticated.

AES-SIV (RFC 5297) with the kind as associated data: equal values of a kind give equal placeholders, so that masked
texts still compare and deduplicate, and nothing else but the length of a value shows. Without the key a placeholder
can neither be read nor forged.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from pydantic import SecretStr

from infra.errors import InputError, SettingsError

_SIZES = (32, 48, 64)
_PLACEHOLDER = re.compile(r"\[([A-Z][A-Z0-9_]{0,31}):([A-Za-z0-9_-]{22,})\]")


class Unmasked(NamedTuple):
    """A text with its placeholders turned back."""

    text: str
    """The text as it was before it was masked, as far as the key reaches."""
    restored: int
    """Placeholders turned back."""
    refused: int
    """Placeholders left as they are: sealed with another key, altered, or typed by somebody."""


class Seal:
    """Encrypts what a placeholder hides. `key` is base64 of 32, 48 or 64 random bytes, else `SettingsError`."""

    def __init__(self, key: SecretStr) -> None:
        self._cipher = AESSIV(_decoded(key))

    def token(self, kind: str, value: str) -> str:
        """The placeholder of a value."""
        sealed = self._cipher.encrypt(_bytes(value), [kind.encode()])
        return f"[{kind}:{base64.urlsafe_b64encode(sealed).decode().rstrip('=')}]"

    def opened(self, placeholder: re.Match[str]) -> str | None:
        """What a placeholder found by `places` hides; None when it was not made with this key."""
        kind, token = placeholder.groups()
        try:
            sealed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            return self._cipher.decrypt(sealed, [kind.encode()]).decode("utf-8", "surrogatepass")
        except (InvalidTag, ValueError):
            return None

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where placeholders made with this key stand in a text."""
        return [found.span() for found in _PLACEHOLDER.finditer(text) if self.opened(found) is not None]


def unmask(text: str, key: SecretStr) -> Unmasked:
    """Turn sealed placeholders back. `InputError` when the key is empty, `SettingsError` when it is malformed."""
    if not key.get_secret_value():
        raise InputError("masked text can only be turned back with its key", fix="set masking.key to the key of then")
    seal, counts = Seal(key), [0, 0]

    def back(placeholder: re.Match[str]) -> str:
        value = seal.opened(placeholder)
        counts[value is None] += 1
        return placeholder[0] if value is None else value

    restored = _PLACEHOLDER.sub(back, text)
    return Unmasked(restored, *counts)


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _decoded(key: SecretStr) -> bytes:
    written = key.get_secret_value().strip().translate(str.maketrans("-_", "+/"))
    try:
        decoded = base64.b64decode(written, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if len(decoded) not in _SIZES:
        raise SettingsError(
            "setting masking.key is not a key",
            rule=f"base64 of {', '.join(map(str, _SIZES[:-1]))} or {_SIZES[-1]} random bytes",
            fix="make one with `openssl rand -base64 32`",
        )
    return decoded
