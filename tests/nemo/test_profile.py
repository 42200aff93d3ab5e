"""``trainer.profile``: one step is traced, and its time told apart."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import Interval

from nemo_cdt.nemo import profile
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import small_run, write_documents


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "d.jsonl"
    write_documents(path, kind="sft", count=20, longest=60)
    return path


def profiled(output: Path, documents: Path, **changes: object) -> dict[str, dict]:
    """What the fourth step's table says, by rank."""
    config = small_run(output, documents, steps=5, **changes)
    config.trainer.profile = True
    on_ranks(jobs.train, 1, config)
    folder = output / "profile"
    assert {path.name for path in folder.iterdir()} == {
        f"step=4-rank=0.{end}" for end in ("json", "txt", "trace.json.gz")
    }
    return json.loads((folder / "step=4-rank=0.json").read_text())


def test_a_cdt_step_is_traced_and_its_time_told_apart(tmp_path, documents):
    found = profiled(tmp_path / "run", documents)

    phases = found["phases_s"]
    both = {f"{which}, {way}" for which in ("detection", "training") for way in ("forward", "backward")}
    assert all(phases[name] > 0 for name in both | {"denoising", "optimizer"})
    assert sum(phases.values()) == pytest.approx(found["wall_s"], rel=1e-6)
    assert found["top"][0]["s"] >= found["top"][1]["s"] > 0
    trace = json.loads(gzip.decompress((tmp_path / "run/profile/step=4-rank=0.trace.json.gz").read_bytes()))
    marks = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert [marks.count(name) for name in ("detection", "denoising", "optimizer")] == [4, 4, 1]  # 4 micro-batches
    assert "detection, backward" in (tmp_path / "run/profile/step=4-rank=0.txt").read_text()


def test_a_plain_step_has_no_detection(tmp_path, documents):
    phases = profiled(tmp_path / "run", documents, name="ce")["phases_s"]

    assert [phases[name] for name in ("detection, forward", "detection, backward", "denoising")] == [0, 0, 0]
    assert phases["training, backward"] > 0


def event(name, start, end, *, kernels=(), parent=None, mark=False, device=DeviceType.CPU):
    found = SimpleNamespace(name=name, time_range=Interval(start, end), cpu_parent=parent, is_user_annotation=mark)
    found.kernels = [SimpleNamespace(name=kernel, duration=microseconds) for kernel, microseconds in kernels]
    found.device_type = device
    return found


def test_a_kernel_belongs_to_the_phase_in_which_it_was_launched():
    """As on a GPU: a backward pass launches from a thread of its own, and kernels end long after their phase."""
    backward = event("autograd::engine::evaluate_function: MmBackward0", 20, 30)
    events = [
        event("ProfilerStep*", 0, 1e6, mark=True, kernels=[("ProfilerStep*", 5e5)]),
        event("detection", 0, 50, mark=True, kernels=[("detection", 4e5)]),
        event("detection", 0, 4e5, mark=True, device=DeviceType.CUDA),
        event("denoising", 40, 50, mark=True),
        event("windows", 52, 58, mark=True),
        event("optimizer", 90, 99, mark=True),
        event("aten::mm", 5, 6, kernels=[("gemm", 1e5)]),
        event("aten::mm", 25, 26, kernels=[("gemm", 2e5)], parent=event("MmBackward0", 24, 27, parent=backward)),
        event("aten::sub", 45, 46, kernels=[("elementwise", 1e3)]),
        event("flash_attn", 55, 56, kernels=[("flash", 3e3)]),
        event("aten::mm", 60, 61, kernels=[("gemm", 1e5)]),
        event("c10d::allreduce_", 70, 71, kernels=[("ncclDevKernel_AllReduce", 5e4)]),
        event("fused_adam", 95, 96, kernels=[("adam", 1e4)]),
    ]

    found = profile.times(events, on_gpu=True)

    expected = {
        "windows": 0.003,
        "detection, forward": 0.1,
        "detection, backward": 0.2,
        "denoising": 0.001,
        "training, forward": 0.1,
        "training, backward": 0.0,
        "optimizer": 0.01,
        "communication": 0.05,
        "none of these": 0.536,
    }
    assert found["phases_s"] == pytest.approx(expected)
    assert found["wall_s"] == 1.0
    assert found["top"][0] == {"name": "gemm", "s": pytest.approx(0.4), "calls": 3}


def test_an_attempt_that_is_too_short_says_so(tmp_path, caplog):
    callback = profile.Profile(tmp_path)

    with caplog.at_level("WARNING"):
        callback.on_train_start(SimpleNamespace(global_step=8, max_steps=10))

    assert "2 steps are left of this one: nothing is traced" in caplog.text
    callback.on_train_batch_end(SimpleNamespace(global_step=9))
    assert list(tmp_path.iterdir()) == []
