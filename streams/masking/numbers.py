"""Numbers that belong to somebody: cards, IBANs, IP addresses and telephones.

RE2 finds clusters of digits in one linear pass; each place in a cluster where a number may start is then confirmed by
patterns of bounded length and by what the number says of itself (Luhn, ISO 7064 mod 97, the address parser, assigned
country codes). A run of digits without such a mark counts as a telephone only when the words beside it say so.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

import re2


class Finding(NamedTuple):
    """Something to mask."""

    start: int
    """Offset of its first character."""
    end: int
    """Offset after its last character."""
    kind: str
    """The name in its placeholder."""


_GAP = "[ .()/\u00a0\u2009\u202f\u2010\u2011\u2013-]"
_CLUSTERS = re2.compile(
    rf"\d(?:{_GAP}{{0,3}}\d){{6,}}|\d{{1,3}}(?:\.\d{{1,3}}){{3}}"  # 7 digits close together, or four octets
)
_IBANS = re2.compile(r"(?:^|\W)([A-Za-z]{2}\d\d[ -]?[A-Za-z0-9]{4})")
_COLONS = re2.compile(r"[0-9A-Fa-f:]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*")


def ibans(text: str) -> Iterator[Finding]:
    """International bank account numbers, with or without spaces."""
    for found in _IBANS.finditer(text):
        start = found.start(1)
        if (end := _iban_end(text, start)) is not None:
            yield Finding(start, end, "IBAN")


def addresses(text: str) -> Iterator[Finding]:
    """IPv6 addresses. Those of version 4 come with `numbers`."""
    for found in _COLONS.finditer(text):
        start, end = found.span()
        if end - start > 45 or text[max(0, start - 1) : start + 1][:-1].isalnum() or text[end : end + 1].isalnum():
            continue
        written = text[start:end].rstrip(".")
        if any(character.isdecimal() for character in written):
            for address in (written, written.removesuffix(":")):
                if _is_address(address):
                    yield Finding(start, start + len(address), "IP")
                    break


def numbers(text: str) -> Iterator[Finding]:
    """Card numbers, IPv4 addresses and telephones, in order and without overlaps."""
    floor = 0
    for cluster in _CLUSTERS.finditer(text):
        position, end = max(floor, cluster.start()), cluster.end()
        while position < end and (group := _GROUP.search(text, position, end)):
            found = _number_at(text, group.start(), floor)
            if found:
                yield found
            floor = found.end if found else floor
            position = found.end if found else group.end()


def _number_at(text: str, at: int, floor: int) -> Finding | None:
    before = text[at - 1] if at else ""
    if before == "_" or before.isalnum():
        return None
    if before == "+" and (phone := _phone_at(text, at, floor)):
        return phone
    if before != ".":
        if (card := _CARD.match(text, at)) and _is_card(card[0], said=_PAID.search(text[max(0, at - 32) : at])):
            return Finding(at, card.end(), "CARD")
        if (four := _IP4.match(text, at)) and _is_address(four[0]) and not _VERSION.search(text[max(0, at - 16) : at]):
            return Finding(at, four.end(), "IP")
    return _phone_at(text, at, floor)


# --- cards and accounts -----------------------------------------------------------------------------------


def _is_card(written: str, said: object) -> bool:
    """Luhn holds, and an issuer has the range or the words before have `said` that it is a card."""
    digits = [int(each) for each in written if each.isdecimal()]
    if not said and not _ISSUED.fullmatch("".join(map(str, digits))):
        return False
    # Luhn, ISO/IEC 7812-1 annex B: every second digit from the right is doubled and its digits are added.
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and any(digits[1:])


def _iban_end(text: str, start: int) -> int | None:
    length = _IBAN_LENGTHS.get(text[start : start + 2].upper())
    found = _IBAN.match(text, start)
    if length is None or found is None:
        return None
    places = [index for index, character in enumerate(found[0]) if character.isalnum()]
    if len(places) < length:
        return None
    end = places[length - 1] + 1
    if text[start + end : start + end + 1].isalnum():
        return None
    compact = "".join(character for character in found[0][:end] if character.isalnum()).upper()
    # ISO 13616: country and check digits go last, letters count from A = 10, and the number is 1 modulo 97.
    number = int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4]))
    return start + end if number % 97 == 1 else None


def _is_address(written: str) -> bool:
    try:
        ipaddress.ip_address(written)
    except ValueError:
        return False
    return True


# Lengths from the IBAN registry (SWIFT, release 99).
_IBAN_REGISTRY = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBAN_REGISTRY.split()}
_IBAN = re.compile(r"[A-Za-z]{2}\d\d(?:[ -]?[A-Za-z0-9]){11,40}", re.ASCII)
# Issuer ranges and lengths (ISO/IEC 7812 registrations as the schemes publish them). A time stamp in milliseconds,
# an EAN or an IMEI starts or ends elsewhere.
_ISSUED = re.compile(
    r"4\d{12}(?:\d{3}){0,2}"  # Visa
    r"|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    r"|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11,16}"  # American Express, Diners Club
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12,15}|62\d{14,17}"  # Discover, RuPay, UnionPay
    r"|(?:2131|1800)\d{11}|35\d{14,17}"  # JCB
    r"|(?:50\d\d|5[6-8]\d\d|6[37]\d\d)\d{8,15}"  # Maestro
    r"|220[0-4]\d{12,15}|9792\d{12}|81\d{14}"  # Mir, Troy, RuPay
)
_CARD = re.compile(r"(?:\d{12,19}|\d{4}([ -])\d{6}\1\d{4,5}|\d{4}([ -])\d{4}\2\d{4}(?:\2\d{1,4}){1,2})(?!\w|@|\.\d)")
_PAID = re.compile(
    r"(?i)\b(?:card|cc|visa|mastercard|maestro|amex|pan)s?\W{0,3}"
    r"(?:(?:number|num|no|nr|ending|is|was|of|with)\W{0,3}){0,2}$"
)
_IP4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_VERSION = re.compile(r"(?i)(?:version|release|build|section|chapter|[=~<>]=|\bv\.?) ?$")
_GROUP = re.compile(r"\d+")

# --- telephones -------------------------------------------------------------------------------------------


def _phone_at(text: str, at: int, floor: int) -> Finding | None:
    start = at
    while start > floor and at - start < 3 and text[start - 1] in "(+":
        start -= 1
    before = text[start - 1] if start else ""
    if before.isalnum() or (before and before in "_.@#") or _DATE.match(text, at):
        return None
    # A minus or a slash before a number makes it part of something longer, an equals sign a value.
    found = (
        None if before and before in "-/=" else _SHAPED.match(text, start) or (start < at and _SHAPED.match(text, at))
    )
    if found and _is_shaped(found) and not (found["national"] and _PAIR.search(text[max(0, at - 4) : at])):
        return Finding(found.start(), found.end(), "PHONE")
    # In a row of numbers no word stands before this one.
    found = None if text[max(0, start - 4) : start].rstrip()[-1:].isdecimal() else _SPOKEN.match(text, start)
    if found and 7 <= _digits(found[0]) <= 15:
        words = text[max(0, start - 48) : start]
        ends = _GROUPED.search(found[0]) and _CLAUSE_END.match(text, found.end())
        if _LABEL.search(words) or (ends and _HINT.search(words)):
            return Finding(start, found.end(), "PHONE")
    found = _SIGNED.match(text, start)
    if found and 7 <= _digits(found[1]) <= 15:
        return Finding(start, found.end(1), "PHONE")
    return None


def _is_shaped(found: re.Match[str]) -> bool:
    written, digits = found[0], _digits(found["number"])
    if found["country"]:
        compact = "".join(character for character in found["number"] if character.isdecimal())
        # E.164: a country code and a subscriber number, 15 digits at most; in zones 1 and 7 always 11.
        country = compact.removeprefix("00")
        if country[0] in "17":
            return len(country) == 11
        return 8 <= len(country) <= 16 and not country.startswith(_UNASSIGNED)
    if found["national"]:
        return 9 <= digits <= 12 and not _NO_PHONE.match(written)
    return 7 <= digits <= 15 and not _CITATION.match(written)


def _digits(written: str) -> int:
    return sum(character.isdecimal() for character in written)


_END = r"(?![\w@]|[-.]\d)"
_EXTENSION = r"(?:,?[ ]?(?:x|ext\.?[ ]?|extension[ ])\d{1,5})?"
# Country codes that the ITU has not assigned (E.164, list of 2016 with amendments).
_UNASSIGNED = (
    *("210", "214", "215", "217", "219", "28", "292", "293", "294", "295", "296", "384", "422", "424", "425"),
    *("426", "427", "428", "429", "693", "694", "695", "696", "697", "698", "699", "83", "851", "854", "857"),
    *("858", "859", "871", "872", "873", "874", "884", "885", "887", "889", "89", "969", "978", "990", "997", "999"),
)
_SHAPED = re.compile(
    r"(?P<number>"
    rf"(?P<country>\(?\+\(?[1-9]|\(?00(?=[1-9]\d{{0,2}}{_GAP}|[2-9]\d{{9}})[1-9])"
    rf"\d{{0,14}}+\)?(?:{_GAP}{{0,2}}\(?\d{{1,9}}+\)?){{0,7}}+"
    rf"|\(0?\d{{2,4}}\)[ .\u00a0-]?\d{{2,4}}(?:[ .\u00a0\u2011-]?\d{{2,4}}){{1,3}}"
    # With the leading zero: two separators or more (an old arXiv number has one), or one after an area code.
    r"|(?P<national>0[1-9]\d{0,3}+(?:(?:[ ./\u00a0\u2011-]\d{2,8}+){2,5}+|[ /-]\d{5,8}+)|0[1-9]\d{9})"
    r"|(?:1-)?[2-9]\d\d([.\u2011-])\d{3}\4\d{4}"  # North America, where no area code begins with 0 or 1
    r"|\d{2}-\d{2}-\d{2}-\d{2}"  # Denmark, Norway
    rf"){_EXTENSION}{_END}"
)
_SPOKEN = re.compile(rf"\(?\+?\d(?:{_GAP}{{0,2}}\d){{6,14}}+{_EXTENSION}{_END}")
# A line of an address card: the number, then what it rings. "1 000 000 mobile users" goes on after the word.
_SIGNED = re.compile(
    r"(\(?\d{1,5}+\)?(?:[ .-]\(?\d{1,5}+\)?){1,5}+)[ ]?[-/(]?[ ]?"
    r"(?i:office|fax|mobile|cell|home|work|phone|tel|desk|direct)\)?[ ]?(?=$|[\n\r,;.|\\/])"
)
_LABEL = re.compile(
    r"(?ix)(?<![^\W_])(?:"
    r"(?:tele|cell)?phone | tele?fax | tel | t[ée]l[ée]phone | tel[eé]fono? | telefone? | telefoon | fax | mobile?"
    r" | m[oó]vil | handy | cellulare | celular | landline | hotline | helpline | whats\ ?app | sms | pager"
    r" | (?:desk|office|home|work|cell|direct|day|evening|emergency|contact)(?=\ (?:number|phone|line|no)|[ ]?[:.#])"
    r" | (?:my|his|her|their|your|our)\ (?:new\ )?(?=number)"
    r" | (?:call|ring|dial|text|reach|contact|phone)(?:s|ed|ing)?"
    r"   \ (?:me|us|him|her|them|you|someone|anyone|my\ \w{1,12})(?:\ (?:back|now|today|directly))?"
    r")(?:\ ?(?:number|line|no|nr|num))?(?:\ (?:is|on|at|under|via))?[\"']?[ ]?[.:#=]?[\"']?\s{0,3}[\"'(+]?$"
)
# Weaker words, as in "replay the messages to 1234567": the number must be in groups and end its clause.
_HINT = re.compile(
    r"(?ix)(?<![^\W_])(?:(?:answering|reached|contacted|available|calling|texting)\ (?:me\ )?(?:at|on|under|from|to)"
    r" | (?:message|text|call|voicemail|sms)s?\ (?:to|from|at|on) | (?:called|rang|texted|dial|dialled|call|ring)"
    r")\ $"
)
_GROUPED = re.compile(rf"\d{_GAP}{{1,2}}\d")
_CLAUSE_END = re.compile(r"[\"')]?(?:\s{0,8}$|[\n\r,;.?!])")
_DATE = re.compile(r"(?:\d{4}[-/.]\d\d[-/.]\d\d|\d\d[-/.]\d\d[-/.]\d{4}|(?:19|20)\d\d ?[-/–] ?(?:19|20)\d\d)(?!\d)")
_NO_PHONE = re.compile(r"\d\d(?:[ .:/-]\d\d){5,}|\d{3}-\d\d-\d{4}$")  # a dump of bytes, a social security number
_PAIR = re.compile(r"(?<!\d)\d\d[ .:/-]$")
_CITATION = re.compile(r"\((?:19|20)\d\d\)")  # a year before pages
