"""Patterns of the operator: a name for the placeholder and a regular expression in the syntax of RE2.

RE2 matches in time linear in the text whatever the pattern, because it has no look-around and no back-references.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import re2

from infra.errors import SettingsError
from streams.masking.numbers import Finding

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,31}")
_SYNTAX = "https://github.com/google/re2/wiki/Syntax"
# Every neighbourhood that an assertion without width can ask for: both ends, both sides of words and of lines.
_PROBES = ("", "a", " ", "\n", "ab 0.\n\n-a\n")
_MAX_MEMORY = 8 << 20


class Pattern:
    """One pattern. `SettingsError` when the name or the expression cannot be used."""

    def __init__(self, name: str, expression: str) -> None:
        if not _NAME.fullmatch(name):
            raise SettingsError(
                "a masking pattern has no usable name",
                seen=name,
                rule="up to 32 of A-Z, 0-9 and _, a letter first",
                fix="rename it in masking.patterns",
            )
        self.name = name
        self._compiled = _compiled(name, expression)
        if any(found.start() == found.end() for probe in _PROBES for found in self._compiled.finditer(probe)):
            raise SettingsError(
                f"masking pattern {name} can match empty text",
                seen=expression,
                rule="each match has at least one character",
                fix="replace * by +, or name a character that must be there",
            )

    def findings(self, text: str) -> Iterator[Finding]:
        """Every place where the pattern matches."""
        for found in self._compiled.finditer(text):
            if found.end() > found.start():
                yield Finding(found.start(), found.end(), self.name)


def _compiled(name: str, expression: str) -> re2._Regexp:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        raise SettingsError(
            f"masking pattern {name} cannot be used",
            seen=expression,
            rule=reason.decode() if isinstance(reason, bytes) else str(reason),
            fix=f"write it in the syntax of RE2, which has no look-around and no back-references: {_SYNTAX}",
        ) from error
