"""Plain cross-entropy on what the data labels, and the same where only answers may be labelled."""

from dataclasses import dataclass
from typing import ClassVar

from nemo_cdt.objectives.base import Objective, Settings


@dataclass(kw_only=True)
class CESettings(Settings):
    name: str = "ce"


@dataclass(kw_only=True)
class SFTSettings(Settings):
    name: str = "sft"


class CE(Objective):
    """One pass, nothing denoised (the paper's Appendix D: CE)."""

    label = "plain CE"
    about = "Plain training with cross-entropy, the objective that Context Denoising Training is held against."
    settings_class: ClassVar[type[Settings]] = CESettings


class SFT(CE):
    """Supervised fine-tuning: CE, and a document without a prompt that is masked is an error."""

    label = "SFT"
    settings_class: ClassVar[type[Settings]] = SFTSettings
    prompted = True

    def describe(self) -> list[str]:
        return ["loss on answers alone"]


OBJECTIVES = {"ce": CE, "sft": SFT}
