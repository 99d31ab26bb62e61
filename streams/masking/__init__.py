"""Masking of personal data and secrets, before they touch a disk."""

from streams.masking.masker import Masked, Masker, Span, open_masker
from streams.masking.payloads import mask_payload

__all__ = ["Masked", "Masker", "Span", "mask_payload", "open_masker"]
