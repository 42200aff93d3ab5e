"""Where a node finds what its scheduler says of the others."""

import pytest

from nemo_cdt.launch.node.place import Place

SLURM = {"SLURM_JOB_ID": "12345", "SLURM_NNODES": "4", "SLURM_NODEID": "2", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}
JOB = {"NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "run-0.run", "MASTER_PORT": "29500", "NEMO_CDT_JOB": "run"}
OPERATOR = {"PET_NNODES": "4", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "m", "PET_MASTER_PORT": "1", "MASTER_ADDR": "x"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (SLURM, Place(4, 2, "10.0.0.1", 22345, "12345.0")),
        (SLURM | {"SLURM_RESTART_COUNT": "3"}, Place(4, 2, "10.0.0.1", 22345, "12345.3")),
        (JOB, Place(4, 2, "run-0.run", 29500, "run")),
        (OPERATOR, Place(4, 2, "m", 1, "run")),
    ],
    ids=["slurm", "requeued", "job", "operator"],
)
def test_a_node_finds_its_place_in_the_schedulers_environment(env, expected):
    assert Place.of(env) == expected


def test_a_node_without_a_scheduler_says_what_to_set():
    with pytest.raises(ValueError, match="set NNODES, NODE_RANK, MASTER_ADDR"):
        Place.of({})
