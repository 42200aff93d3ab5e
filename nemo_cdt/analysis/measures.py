"""The names of the measures; ``nemo-cdt --help`` needs no more."""

from nemo_cdt.utils.enums import StrEnum


class Measure(StrEnum):
    ig = "ig"
    fr = "fr"
    gradient = "gradient"
    longppl = "longppl"
    detection = "detection"
    denoise = "denoise"
    em = "em"
    attention_map = "attention_map"
    significance = "significance"
