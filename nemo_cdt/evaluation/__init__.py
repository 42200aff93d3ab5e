"""A model asked and judged, in plain torch, for validations, analyses and benchmarks/effect.py alike."""
