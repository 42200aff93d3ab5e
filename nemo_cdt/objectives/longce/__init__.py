"""LongCE: a token weighs more the more its long context helps to predict it; alone, and after CDT's first pass."""

from nemo_cdt.objectives.longce.objective import CDTLongCE, LongCE

OBJECTIVES = {"longce": LongCE, "cdt_longce": CDTLongCE}
