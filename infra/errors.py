"""The error tree. Every error that a user can mend derives from `QuillError` and prints without a traceback.

QuillError                 what happened, the value seen, the rule it broke, how to mend it (exit code 2)
├── SettingsError          a setting is missing, malformed or contradicts another
├── InputError             a document, file or argument cannot be used
├── NotFound               a named thing does not exist
├── Conflict               a name is taken, a version is immutable, an owner already runs
├── Unavailable            an endpoint, broker, database or model carrier cannot be reached
└── CorruptArtifact        stored bytes do not match their recorded hash or layout
"""

from __future__ import annotations


class QuillError(Exception):
    """An error that says what, the value seen, the rule and the fix.

    `what` is a sentence without a final stop; `seen`, `rule` and `fix` are optional clauses. `str()` joins
    them in one line, which is what the command line prints before it exits with `exit_code` (2).
    """

    exit_code = 2

    def __init__(self, what: str, *, seen: object = None, rule: str = "", fix: str = "") -> None:
        self.what = what
        self.seen = seen
        self.rule = rule
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.seen is not None:
            parts.append(f"seen: {_short(self.seen)}")
        if self.rule:
            parts.append(f"rule: {self.rule}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "; ".join(parts)


class SettingsError(QuillError):
    """A setting is missing, malformed or contradicts another."""


class InputError(QuillError):
    """A document, file or argument cannot be used."""


class NotFound(QuillError):
    """A named thing does not exist."""


class Conflict(QuillError):
    """A name is taken, a version is immutable, or another process owns the resource."""


class Unavailable(QuillError):
    """An endpoint, broker, database or model carrier cannot be reached."""


class CorruptArtifact(QuillError):
    """Stored bytes do not match their recorded hash or layout."""


def _short(value: object, limit: int = 200) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
