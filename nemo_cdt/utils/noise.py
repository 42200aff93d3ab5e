"""Warnings of libraries that no user can act on, where more than one room keeps them quiet."""

PYNVML = "The pynvml package is deprecated"
"""Of torch, whenever it is imported beside pynvml."""
