"""Runs on four nodes of Kubernetes, one for each kind of job."""

from nemo_cdt.config import Config
from tests.launch.composed import MODEL, run

KINDS = {
    "job": ["launcher.kind=job", "launcher.priority=high"],
    "pytorchjob": ["launcher.kind=pytorchjob", "launcher.priority=high"],
    "trainjob": ["launcher.kind=trainjob"],
    "trainjob_before_2_2": ["launcher.kind=trainjob", "launcher.trainjob_patch=podTemplateOverrides"],
}


def four_nodes(kind: str, *overrides: str) -> Config:
    experiment = ("experiment=rows_llama31_8b_32k", "trainer.num_nodes=4", "parallel.context=4")
    return run("launcher=kubernetes", *experiment, *MODEL, *KINDS[kind], *overrides)
