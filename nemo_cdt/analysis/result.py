"""What a measure found: numbers for a machine, tables and pictures for a reader."""

from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_cdt.data.documents import TokenType

# Okabe and Ito's colours; supporting and interference, the two that matter most, differ in lightness too.
COLORS = {
    TokenType.supporting: "#0072B2",
    TokenType.interference: "#D55E00",
    TokenType.irrelevant: "#999999",
    TokenType.low_frequency: "#009E73",
}
MARKERS = {
    TokenType.supporting: "o",
    TokenType.interference: "s",
    TokenType.irrelevant: ".",
    TokenType.low_frequency: "^",
}


@dataclass(kw_only=True, slots=True)
class Table:
    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass(kw_only=True, slots=True)
class Drawing:
    """A picture, and the words that explain it. ``name``: of its PNG file."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(kw_only=True, slots=True)
class Result:
    """title: what was asked.  explanation: how it is answered, for someone who has not read the paper.
    headline: (value, what it is), the few numbers to read first.
    """

    title: str
    explanation: str
    headline: list[tuple[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)


def axes(x: str, y: str, width: float = 7.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 3.4), layout="constrained")
    drawn = figure.add_subplot()
    drawn.set_xlabel(x)
    drawn.set_ylabel(y)
    return figure, drawn
