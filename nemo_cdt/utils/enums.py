"""What Python 3.10 lacks."""

from enum import Enum


class StrEnum(str, Enum):
    """``enum.StrEnum`` of Python 3.11, for 3.10."""

    __str__ = str.__str__
