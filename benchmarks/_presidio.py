"""presidio-analyzer in an interpreter of its own: a line of JSON texts in, a line with findings and seconds out.

Needs nothing of ours: `python -m venv PEERS && PEERS/bin/pip install presidio-analyzer`.
"""

import json
import sys
import time

import spacy
import tldextract
from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    EmailRecognizer,
    IbanRecognizer,
    IpRecognizer,
    PhoneRecognizer,
)

# Its own list of suffixes, not one from the network.
tldextract.extract = tldextract.TLDExtract(suffix_list_urls=())


class Blank(SpacyNlpEngine):
    """A tokenizer without a model: named entities are not what is compared."""

    def __init__(self) -> None:
        super().__init__(ner_model_configuration=NerModelConfiguration(labels_to_ignore=[]))
        self.nlp = {"en": spacy.blank("en")}


def main() -> None:
    """Recognizers of structured kinds, at the default threshold, English."""
    kinds = (CreditCardRecognizer, EmailRecognizer, IbanRecognizer, IpRecognizer, PhoneRecognizer)
    registry = RecognizerRegistry(recognizers=[kind() for kind in kinds])
    engine = AnalyzerEngine(registry=registry, nlp_engine=Blank(), supported_languages=["en"])
    for line in sys.stdin:
        texts = json.loads(line)
        started = time.perf_counter()
        found = [engine.analyze(text, "en") for text in texts]
        seconds = time.perf_counter() - started
        spans = [[(each.start, each.end, each.entity_type) for each in one] for one in found]
        print(json.dumps({"seconds": seconds, "found": spans}), flush=True)


if __name__ == "__main__":
    main()
