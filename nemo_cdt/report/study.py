"""``study.json`` in a report: which method finds the facts, and what was answered before and after training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_cdt.utils.reading import blamed_on, read_json

STUDY = "study.json"
"""In OUTPUT; an attempt that trains on removes that of the one before."""


@dataclass(kw_only=True, slots=True)
class Method:
    """Of one way to tell facts from the rest: each figure as a mean with its 95 % interval over samples, or a dash."""

    name: str
    auc: str
    precision: str
    recall: str
    supporting: str
    interference: str


@dataclass(kw_only=True, slots=True)
class Written:
    """How a model goes on where the answer belongs."""

    question: str
    answer: str
    before: str
    after: str


@dataclass(kw_only=True, slots=True)
class Study:
    """What ``study.json`` holds.

    Attributes:
        blind: the share of facts in the context, which a blind choice finds; base: of each kind.
        before, after: which questions were answered right.
    """

    samples: int
    top_k: int
    blind: float
    base: dict[str, float]
    methods: list[Method]
    before: list[bool]
    after: list[bool]
    written: list[Written]


def read_study(path: Path) -> Study:
    """Raises ValueError where it is no study of ours."""
    with blamed_on(path.name, "it is not the study of a run", whatever=True):
        raw = read_json(path)
        rights = {name: [right is True for right in raw["answers"][name]] for name in ("before", "after")}
        if not rights["before"] or len(rights["before"]) != len(rights["after"]):
            raise ValueError("it has other questions before than after")
        return Study(
            samples=int(raw["samples"]),
            top_k=int(raw["top_k"]),
            blind=float(raw["blind"]),
            base={kind: float(raw["base"][kind]) for kind in ("supporting", "interference")},
            methods=[_method(str(name), found) for name, found in raw["methods"].items()],
            written=[
                Written(**{key: str(one[key]) for key in ("question", "answer", "before", "after")})
                for one in raw["written"]
            ],
            **rights,
        )


def _method(name: str, found: dict[str, Any]) -> Method:
    top = {kind: f"{100 * (found['top'][kind]['mean'] or 0.0):.0f} %" for kind in ("supporting", "interference")}
    return Method(
        name=name,
        auc=_estimate(found["auc"]),
        precision=_estimate(found["precision"]),
        recall=_estimate(found["recall"]),
        **top,
    )


def _estimate(found: dict[str, Any]) -> str:
    """As ``.955 [.941, .967]``, or of few samples ``.955``."""
    mean, low, high = (found[key] for key in ("mean", "low", "high"))
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return "—" if mean is None else f"{mean:.3f}{interval}"
