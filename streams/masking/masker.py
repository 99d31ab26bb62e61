"""Finding personal data and secrets in a text, and putting placeholders in their place.

Each detector finds candidates with RE2, in time linear in the text, and confirms them (Luhn for cards, ISO 7064 mod 97
for IBANs, the address parser for IP addresses). What it masks becomes a placeholder such as `[EMAIL]`, or with a key
one such as `[EMAIL:…]` that its holder can turn back (`unmask`); equal values get equal placeholders, so that equal
texts stay equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from operator import attrgetter

import re2
from pydantic import Field

from infra.identity import Value
from infra.settings import MaskingSettings
from streams.masking.numbers import Finding, addresses, ibans, numbers
from streams.masking.patterns import Pattern
from streams.masking.seal import Seal
from streams.masking.secrets import emails, secrets

# Arabic, Persian, Devanagari, Bengali and full-width digits.
_ZEROS = (0x660, 0x6F0, 0x966, 0x9E6, 0xFF10)
_DIGITS = re2.compile("[" + "".join(f"{chr(zero)}-{chr(zero + 9)}" for zero in _ZEROS) + "]")
_TO_ASCII = {zero + digit: 48 + digit for zero in _ZEROS for digit in range(10)}
NAMES_KEPT = 4096
LONGEST_NAME_KEPT = 256
_NUMBERS = frozenset({"CARD", "IBAN", "PHONE"})
_PSEUDONYM = 20
"""Letters of a pseudonym, of 16 kinds: 80 bits."""
_TO_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


class Span(Value):
    """Something that was masked."""

    start: int = Field(ge=0, description="Offset of its first character in the original text.")
    end: int = Field(ge=0, description="Offset after its last character in the original text.")
    kind: str = Field(description="EMAIL, PHONE, CARD, IBAN, IP, SECRET, or the name of a pattern from the settings.")


class Masked(Value):
    """A text without what was found in it."""

    text: str = Field(description="The text with placeholders such as [EMAIL].")
    spans: tuple[Span, ...] = Field(description="What was replaced, in order, without overlaps.")


class Masker:
    """Finds e-mail addresses, phone and card numbers, IBANs, IP addresses, keys and tokens, and what `patterns` name.

    `patterns` maps a name for the placeholder to a regular expression of RE2; `SettingsError` when one cannot be used.
    With a `seal` placeholders carry what they hide, encrypted, and those already in a text are left as they are.
    """

    def __init__(self, patterns: Mapping[str, str] | None = None, seal: Seal | None = None) -> None:
        custom = [Pattern(name, expression).findings for name, expression in (patterns or {}).items()]
        self._detectors = (*custom, secrets, emails, ibans, addresses, numbers)
        self._seal = seal
        # The names of applications, conversations and tags come again and again.
        self._masked_ids = lru_cache(NAMES_KEPT)(self._mask_id)

    def mask(self, text: str) -> Masked:
        """Replace each finding by its placeholder; where two overlap, the one found by the earlier detector stays."""
        spans = tuple(Span(start=start, end=end, kind=kind) for start, end, kind in self._findings(text))
        if not spans:
            return Masked(text=text, spans=())
        pieces: list[str] = []
        position = 0
        for span in spans:
            pieces += [text[position : span.start], self._placeholder(span.kind, text[span.start : span.end])]
            position = span.end
        return Masked(text="".join([*pieces, text[position:]]), spans=spans)

    def mask_id(self, name: str) -> str:
        """A name that others refer by: itself, or a pseudonym in its place when something to mask stands in it.

        Equal names get equal pseudonyms, and a pseudonym stays as it is, so what belongs together stays together.
        Without a `seal` it is made of a hash, by which whoever guesses the name can check the guess. A number alone
        counts only when it is the whole name or begins with a plus: ids are full of digits.
        """
        return self._masked_ids(name) if len(name) <= LONGEST_NAME_KEPT else self._mask_id(name)

    def _mask_id(self, name: str) -> str:
        kind = next((finding.kind for finding in self._findings(name) if _tells(finding, name)), "")
        if not kind:
            return name
        if self._seal:
            return self._seal.token(kind, name)
        # Letters only: digits could be taken for a number, and masked once more.
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_PSEUDONYM]
        return f"[{kind}:{digest.translate(_TO_LETTERS)}]"

    def _findings(self, text: str) -> list[Finding]:
        readable = text if text.isascii() else _readable(text)
        kept = [Finding(start, end, "") for start, end in self._seal.places(readable)] if self._seal else []
        for detector in self._detectors:
            kept = _merged(kept, detector(readable))
        return [finding for finding in kept if finding.kind]

    def _placeholder(self, kind: str, value: str) -> str:
        return self._seal.token(kind, value) if self._seal else f"[{kind}]"


def open_masker(settings: MaskingSettings) -> Masker:
    """The masker that the settings name. Raises `SettingsError` for a pattern or a key that cannot be used."""
    return Masker(settings.patterns, Seal(settings.key) if settings.key.get_secret_value() else None)


def _tells(finding: Finding, name: str) -> bool:
    whole = finding.end - finding.start == len(name)
    return finding.kind not in _NUMBERS or whole or name[finding.start] == "+"


def _readable(text: str) -> str:
    """A text of the same length that RE2 reads: no lone surrogates, which have no UTF-8 form, and digits from ASCII."""
    plain = text.encode("utf-8", "replace").decode()
    return plain.translate(_TO_ASCII) if _DIGITS.search(plain) else plain


def _merged(kept: list[Finding], found: Iterable[Finding]) -> list[Finding]:
    """Both, in order, without those found that overlap what is kept. Each comes in order and without overlaps."""
    free: list[Finding] = []
    index = 0
    for finding in found:
        while index < len(kept) and kept[index].end <= finding.start:
            index += 1
        if index == len(kept) or kept[index].start >= finding.end:
            free.append(finding)
    return sorted(kept + free, key=attrgetter("start")) if free else kept
