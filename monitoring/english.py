"""Word lists and patterns of English that the text features use."""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILLER = (
    "as an ai",
    "as a language model",
    "as mentioned before",
    "as previously mentioned",
    "at the end of the day",
    "certainly!",
    "due to the fact that",
    "feel free to",
    "great question",
    "hope this helps",
    "i hope this",
    "i would be happy to",
    "i'd be happy to",
    "in conclusion",
    "in order to",
    "in summary",
    "in today's fast-paced",
    "in today's world",
    "it goes without saying",
    "it is important to note",
    "it is worth noting",
    "it's important to note",
    "it's worth noting",
    "let me know if",
    "needless to say",
    "of course!",
    "overall,",
    "please note that",
    "sure!",
    "the fact that",
    "to sum up",
    "when it comes to",
)
STOP = _words("""
    a about above after again all also am an and any are as at be because been before being below between both but by
    can could did do does doing down during each few for from further had has have having he her here hers him his how i
    if in into is it its itself just me more most my no nor not now of off on once only or other our out over own same
    she should so some such than that the their them then there these they this those through to too under until up us
    very was we were what when where which while who whom why will with would you your please could may might must
    particularly interested tell explain write draft describe give discuss discussing provide make create summarise
    summarize following linkedin post tweet blog paragraph paragraphs essay like want need know
""")
OPENS = frozenset({"the", "a", "an", "of", "my", "our", "your", "their", "its", "every"})
NEVER_AFTER = _words(
    "a am an and are as at be been but by can did do does for from had has have he if in is it of on or our she so than"
    " the they to was we were will would"
)
REFUSAL_WORDS = 45
REFUSAL = re.compile(
    r"\bnot (?:in|found in|covered (?:in|by)|mentioned in) the (?:sources?|context|documents?|passages?)\b"
    r"|\b(?:sources?|context|documents?|passages?) (?:do|does) not (?:say|mention|contain|provide|answer|cover)\b"
    r"|\bI (?:do not|don['’]t) (?:know|have (?:enough |any |the )?information)\b"
    r"|\bI(?: am|['’]m) (?:unable to|not able to)\b"
    r"|\bI (?:cannot|can['’]t|can not) (?:answer|help|assist|provide|find)\b"
    r"|\b(?:no|not enough|insufficient) information\b",
    re.IGNORECASE,
)
POINTS_BACK = _words(
    "that this these those it they he she such both however therefore thus hence also instead then otherwise"
    " consequently moreover furthermore finally meanwhile similarly likewise additionally"
)
