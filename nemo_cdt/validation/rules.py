"""What every check needs: one line for a mistake, and a value to set instead."""

import math
from collections.abc import Callable

from nemo_cdt.utils.user_errors import SeveralError


def require(condition: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless ``condition``."""
    if not condition:
        raise ValueError(message)


def require_all(*checks: Callable[[], None]) -> None:
    """Runs every check and raises what they found together, so that a user mends it in one go.

    Raises:
        ValueError: the one mistake, or a :class:`SeveralError` of all.
    """
    found: list[str] = []
    for check in checks:
        try:
            check()
        except SeveralError as error:
            found += [line for line in error.lines if line not in found]
        except ValueError as error:
            found += [str(error)] if str(error) not in found else []
        except (ArithmeticError, TypeError, AttributeError):
            if not found:  # else it is of a value that was found wrong already
                raise
    refuse(found)


def refuse(lines: list[str]) -> None:
    """Raise ValueError of what is wrong, if anything is: the one line, or a :class:`SeveralError` of all."""
    if len(lines) == 1:
        raise ValueError(lines[0])
    if lines:
        raise SeveralError(lines)


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
