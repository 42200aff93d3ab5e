"""The arms of the effect study: what each trains, as overrides."""

STRENGTHS = ["5e-5", "1e-3", "1e-2", "1e-1", "1", "10"]
"""lr * beta of Eq. 3, the first of which is the paper's."""
RHOS = ["1e-3", "1e-2", "1e-1", "3e-1"]
ARMS = {
    "ce": "objective=ce",
    "sft": "objective=sft",
    "longce": "objective=longce objective.window=512 objective.stride=128",
    **{f"cdt_gradient_{s}": f"objective=cdt objective.shift_lr=1 objective.beta={s}" for s in STRENGTHS},
    **{f"cdt_relative_{rho}": f"objective=cdt objective.normalization=relative objective.rho={rho}" for rho in RHOS},
}
