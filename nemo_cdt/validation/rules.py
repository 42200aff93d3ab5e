"""What every check needs: one line for a mistake, and a value to set instead."""

import math


def require(condition: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless ``condition``."""
    if not condition:
        raise ValueError(message)


def nearest(value: int, divisor: int, most: float = math.inf) -> int:
    """The multiple of ``divisor`` nearest to ``value``, at least one ``divisor``."""
    below = value // divisor * divisor
    above = below + divisor
    return above if below == 0 or (above - value <= value - below and above <= most) else below


def yaml(value: bool) -> str:
    """As an override has it."""
    return str(value).lower()


def divisors(value: int) -> list[int]:
    """In order, 1 and ``value`` included."""
    return [divisor for divisor in range(1, value + 1) if value % divisor == 0]


def listed(value: int) -> str:
    """Its divisors, for a message."""
    return ", ".join(map(str, divisors(value)))
