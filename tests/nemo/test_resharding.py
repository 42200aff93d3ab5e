"""What a resumed run may change of its layout, by the format in which the optimizer's state was saved."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_cdt.config import Config, Parallel, Resharding, Schedule
from tests import jobs
from tests.resuming import assert_same, metrics, run, train
from tests.runs import write_documents


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "d.jsonl"
    write_documents(path, kind="sft", count=40, longest=60)
    return path


@pytest.fixture
def part(documents: Path, tmp_path: Path) -> Any:
    """Trains to a step, in tmp_path/run unless it has a name, from the last one saved there."""

    def go_on(steps: int, name: str = "run", full: bool = False, **changes: Any) -> Path:
        config: Config = run(tmp_path / name, documents, steps=steps, resume=True, **changes)
        config.optim.schedule = Schedule.constant
        config.trainer.checkpoint_resharding = Resharding.full if full else Resharding.dp
        train(config)
        return tmp_path / name

    return go_on


ONE = {"devices": 1}
DP2 = {"devices": 2}
CP2 = {"devices": 2, "parallel": Parallel(context=2)}
TP2 = {"devices": 2, "parallel": Parallel(tensor=2)}
PP2 = {"devices": 2, "parallel": Parallel(pipeline=2)}
OVERLAPPED = {"devices": 2, "parallel": Parallel(overlap_grad_reduce=True)}


@pytest.mark.parametrize("layout", [DP2, TP2, PP2], ids=["DP2", "TP2", "PP2"])
def test_a_run_of_two_ranks_resumes_bit_for_bit(layout: dict[str, Any], part: Any) -> None:
    whole = part(6, "whole", **layout)
    part(3, **layout)
    assert_same(part(6, **layout), whole)


@pytest.mark.parametrize(
    "layouts",
    [[ONE, DP2, ONE], [DP2, CP2, DP2], [ONE, CP2, ONE], [OVERLAPPED, OVERLAPPED]],
    ids=["1-DP2-1", "DP2-CP2-DP2", "1-CP2-1", "overlapped"],
)
def test_the_sizes_of_data_and_context_parallelism_may_change(layouts: list[dict[str, Any]], part: Any) -> None:
    whole = part(6, "whole")
    for steps, layout in zip((2, 4, 6)[-len(layouts) :], layouts, strict=True):
        run = part(steps, **layout)
    assert_like(run, whole)


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        (DP2, TP2, "parallel.tensor=1"),
        (TP2, DP2, "parallel.tensor=2"),
        (PP2, DP2, "parallel.pipeline=2"),
        (DP2, OVERLAPPED, "parallel.overlap_grad_reduce=false"),
    ],
    ids=["DP2-TP2", "TP2-DP2", "PP2-DP2", "overlapped"],
)
def test_any_other_change_is_refused_and_the_way_there_works(
    before: dict[str, Any], after: dict[str, Any], key: str, part: Any
) -> None:
    run = part(2, **before)
    with pytest.raises(RuntimeError) as refused:
        part(6, **after)
    line = str(refused.value).strip().splitlines()[-1]
    assert f"checkpoints/step=2 was saved with trainer.checkpoint_resharding=dp and {key}, and does not load" in line
    assert f": set {key}, and trainer.checkpoint_resharding=full until a checkpoint is saved" in line
    assert len(metrics(run)) == 2

    part(4, full=True, **before)
    assert_like(part(6, **after), part(6, "whole", **before))


def test_a_checkpoint_in_the_other_format_loads_whatever_the_key_says(part: Any) -> None:
    """All were, before there was a key; they said nothing of the layout."""
    part(2, full=True, **TP2)
    part(4, **PP2)
    assert_like(part(6, full=True, **PP2), part(6, "whole", full=True, **TP2))


def assert_like(folder: Path, expected: Path) -> None:
    """Losses and weights; the optimizer's state too where it is kept in the same way."""
    for ours, theirs in zip(metrics(folder), metrics(expected), strict=True):
        for name in {"loss", "val_loss"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5)
    found, want = (jobs.tensors(each / "checkpoints/step=6") for each in (folder, expected))
    assert {name for name in found if name.startswith("module.")} == {n for n in want if n.startswith("module.")}
    for name in (n for n in found.keys() & want.keys() if found[n].shape == want[n].shape):
        np.testing.assert_allclose(found[name], want[name], atol=1e-5, err_msg=name)
