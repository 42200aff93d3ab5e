"""The names of the measures; ``nemo-cdt --help`` needs no more."""

from nemo_cdt.utils.enums import StrEnum

RENAMED = {"em": "checkpoints"}
"""As a measure was called before, and what it is called now. The old name works for a release."""


class Measure(StrEnum):
    ig = "ig"
    fr = "fr"
    gradient = "gradient"
    longppl = "longppl"
    detection = "detection"
    denoise = "denoise"
    checkpoints = "checkpoints"
    attention_map = "attention_map"
    significance = "significance"
