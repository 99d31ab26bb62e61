"""E-mail addresses, and keys and tokens that open something."""

from __future__ import annotations

import re
from collections.abc import Iterator

import re2

from streams.masking.numbers import Finding


def emails(text: str) -> Iterator[Finding]:
    """E-mail addresses, also with letters outside ASCII. `icon@2x.png` and `git@host:path` are none."""
    if "@" not in text:
        return
    for found in _EMAIL.finditer(text):
        start, end = found.span(1)
        if end - start <= 320 and not _OTHER.search(found[1]):  # RFC 5321, section 4.5.3.1: 64 + 1 + 255
            yield Finding(start, end, "EMAIL")


def secrets(text: str) -> Iterator[Finding]:
    """Private keys, keys and tokens of known services, bearer tokens, passwords, and passwords inside URLs."""
    for found in _SECRET.finditer(text):
        # "token:" and "key =" stand in many texts about language models; a value with a digit makes them a secret.
        value, (start, end) = found[_VALUE], found.span(_VALUE)
        if value is None:
            group = next(index for index in range(1, _SECRET.groups + 1) if found.span(index) != (-1, -1))
            yield Finding(found.start(group), found.end(group), "SECRET")
        elif any(character.isdecimal() for character in value):
            yield Finding(start, end, "SECRET")
        elif known := _KNOWN.search(value):
            yield Finding(start + known.start(1), start + known.end(1), "SECRET")


# Letters by block: the tables of Unicode categories make automata of megabytes.
_LETTER = r"A-Za-z\x{C0}-\x{1FFF}\x{2C00}-\x{2DFF}\x{3040}-\x{D7FF}\x{F900}-\x{FDFF}"
_EMAIL = re2.compile(
    rf"([{_LETTER}\d_%+-][{_LETTER}\d_.%+-]*@(?:[{_LETTER}\d_-]+\.)+(?:[{_LETTER}]{{2,}}|xn--[A-Za-z0-9-]+))"
    rf"(?:$|[^{_LETTER}\d_])"
)
_OTHER = re.compile(r"@\dx\.[a-z]+$|^git@")
_SERVICES = (
    r"(?:^|[^\w-])("
    r"(?:sk|pplx|xai|nvapi|tvly)-[\w-]{16,}"  # OpenAI, Anthropic, and those after them
    r"|gh[pousr]_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"
    r"|xox[abeoprs]-[\w-]{10,}|xapp-[\w-]{20,}"
    r"|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|gsk_[A-Za-z0-9]{20,}|dckr_pat_[\w-]{20,}"
    r"|(?:[sr]k_(?:live|test)|whsec)_[A-Za-z0-9]{16,}|shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|dop_v1_[a-f0-9]{64}|hvs\.[\w-]{24,}|lsv2_(?:pt|sk)_[\w-]{20,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"  # JSON web token
    r")"
)
_KNOWN = re2.compile(_SERVICES)
_SECRET = re2.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----[\w+/=\s\\:,.]*(?:-\w[\w+/=\s\\:,.]*)*(?:-----END [A-Z ]*PRIVATE KEY-----)?)"
    rf"|{_SERVICES}"
    r"|\b(?i:bearer) {1,4}([\w.~+/=-]{16,})"
    r"|(?i:passw(?:or)?d)[\"'\\]{0,2} {0,4}[:=]{1,2} {0,4}[\"'\\]{0,2}([^\s\"',;\[\]<>\\]{6,})"
    r"|(?i:secret|token|key)[\"'\\]{0,2} {0,4}[:=]{1,2} {0,4}[\"'\\]{0,2}(?P<value>[\w./+=~-]{12,})"
    r"|://[^\s:/@]+:([^\s:/@]+)@"
)
_VALUE = _SECRET.groupindex["value"]
