"""LOGO: a preference loss, SimPO with several rejected answers."""

from nemo_cdt.objectives.logo.objective import LOGO

OBJECTIVES = {"logo": LOGO}
