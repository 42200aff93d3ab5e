"""The benchmarks on a tiny model: that they measure what they say. What they find means nothing here."""

import argparse
import copy
import json
import math
import warnings

import numpy as np
import pytest
import torch
import transformers

from benchmarks import callbacks, checkpoint, conversion, layouts, measured, peer_hf, resume, run, runs, speed
from tests import jobs
from tests.ranks import on_ranks
from tests.reference import ReferenceCDT

FP32 = 1e-5


def arguments(*words: str) -> argparse.Namespace:
    found = run.parsed(["speed", "--repetitions", "2", *words])
    found.deadline = math.inf
    return found


def rows(name: str, *words: str) -> list[dict]:
    """Of a benchmark that trains, in a process of its own."""
    return on_ranks(jobs.benchmark, 1, name, arguments(*words))[0]


# --- what is computed


@pytest.mark.parametrize("head", ["all", "labelled"])
def test_the_peer_takes_the_references_step(monkeypatch, head):
    monkeypatch.setattr(peer_hf, "BETA", 1e6)  # lr * beta = 10, so that a wrong shift shows
    torch.manual_seed(0)
    peer = peer_hf.built(2, no_optimizer=True)
    initial = copy.deepcopy(peer.model.state_dict())
    tokens, labels = peer_hf.document(peer, 48, "few")
    peer.keep = peer_hf.FEW + 1 if head == "labelled" else 0
    reference = ReferenceCDT(
        copy.deepcopy(peer.model), lambda _: 1e-5, beta=1e6, weight_decay=0.0, clip_grad=1.0, eps=1e-8
    )
    # The reference feeds all tokens but the last.
    gradients = reference.step([(torch.cat([tokens[0], tokens[0, :1]]), torch.cat([labels[0], torch.tensor([-100])]))])
    norm = torch.stack([g.norm() for g in gradients.gradients.values()]).norm()
    peer.optimizer = torch.optim.SGD(peer.model.parameters(), lr=1.0)

    peer.cdt(tokens, labels)

    for name, weight in peer.model.named_parameters():
        expected = initial[name] - gradients.gradients[name] / norm.clamp(min=1.0)
        torch.testing.assert_close(weight, expected, atol=FP32, rtol=FP32)


def test_the_peers_plain_step_is_not_its_cdt_step(monkeypatch):
    monkeypatch.setattr(peer_hf, "BETA", 1e6)
    torch.manual_seed(0)
    peer = peer_hf.built(2, no_optimizer=True)
    peer.optimizer = torch.optim.SGD(peer.model.parameters(), lr=1.0)
    other = copy.deepcopy(peer)
    other.optimizer = torch.optim.SGD(other.model.parameters(), lr=1.0)
    given = peer_hf.document(peer, 48, "few")

    peer.cdt(*given)
    other.plain(*given)

    differences = [(a - b).abs().max() for a, b in zip(peer.model.parameters(), other.model.parameters(), strict=True)]
    assert max(differences) > 100 * FP32


# --- how it is kept


def fits_up_to(limit: int):
    def attempt(length: int) -> dict:
        return {} if length <= limit else {"error": "out of memory", "out_of_memory": True}

    return attempt


@pytest.mark.parametrize("limit", [7, 8, 64, 100])
def test_the_longest_is_bracketed(limit):
    *tries, last = measured.longest(fits_up_to(limit), 32, 8)

    assert last["fits"] <= limit < last["does_not_fit"] == last["fits"] + 8
    assert len({row["seq_length"] for row in tries}) == len(tries)


def test_the_search_for_the_longest_ends_where_it_is_told_to_and_at_other_errors():
    broken = {"error": "no kernel", "out_of_memory": False}

    assert list(measured.longest(fits_up_to(100), 32, 8, 64))[-1] == {"fits": 64, "does_not_fit": None}
    assert list(measured.longest(lambda _: broken, 32, 8))[-1] == {"fits": 0, "does_not_fit": None}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("Tried to allocate"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("no kernel"), False),
    ],
)
def test_what_does_not_fit_is_a_row_and_so_is_another_error(error, expected, capsys):
    def measure(given: str) -> dict:
        assert given == "an argument"
        raise error

    row = measured.attempted(measure, "an argument")

    assert row == {"error": str(error), "out_of_memory": expected}
    assert ("Traceback" in capsys.readouterr().err) is not expected


def test_results_are_whole_after_every_row_and_replace_none(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "versions", lambda: {"device": "NVIDIA H100 80GB HBM3"})
    first = measured.Results("speed", tmp_path, {})
    for count in (1, 2):
        first.add({"seq_length": 8, "cdt_s": measured.repeated([1.0, 3.0, 2.0])})
        assert len(json.loads(first.path.read_text())["rows"]) == count
    second = measured.Results("speed", tmp_path, {})
    second.add({})

    date = first.head["date"]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"speed_h100_80gb_hbm3_{date}.json",
        f"speed_h100_80gb_hbm3_{date}_2.json",
    }
    assert json.loads(first.path.read_text())["rows"][0]["cdt_s"]["median"] == 2.0


def test_the_hosts_waits_are_counted_by_line(monkeypatch):
    """As torch warns of them on a GPU."""
    monkeypatch.setattr(callbacks, "on_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: warnings.warn("a prototype", stacklevel=1))

    with callbacks.synchronisations() as found:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    assert list(found.values()) == [3]
    assert next(iter(found)).startswith("benchmarks/test_benchmarks.py:")


# --- each one, run


def test_speed_compares_repetitions_of_both_kinds_of_step():
    ceiling, *found = rows("speed", "--lengths", "256", "--layers", "1", "--only", "full,none")

    assert ceiling["ceiling_tflops"] > 0
    for row in found:
        assert [len(row[name]["all"]) for name in ("cdt_s", "plain_s", "detection_s", "delta_s")] == [2, 2, 2, 2]
        assert row["ratio"] == row["cdt_s"]["median"] / row["plain_s"]["median"]
        assert row["over_floor"] == pytest.approx(row["ratio"] / row["floor"] - 1)
        assert 0 < row["delta_s"]["median"] < row["detection_s"]["median"] < row["cdt_s"]["median"]
    assert [(row["recompute"], row["detection_recompute"]) for row in found] == [("full", "none")]


def test_a_recomputation_that_speed_has_not_is_one_line():
    with pytest.raises(ValueError, match="--only full,half: speed has none,none full,full full,none"):
        speed._asked("full,half")


def test_speed_leaves_off_when_its_time_is_up():
    given = arguments("--lengths", "256", "--layers", "1", "--only", "none,none")
    given.deadline = 0.0

    *_, row = on_ranks(jobs.benchmark, 1, "speed", given)[0]

    assert row["error"] == "no time was left for a repetition"


def test_the_longest_trains_with_every_label_and_long_positions():
    found = rows("longest", "--labels", "all", "--lengths", "256", "--layers", "1")

    assert [row["seq_length"] for row in found] == [256]
    assert found[0]["step_s"] > found[0]["detection_s"] > 0


def test_the_longest_trains_on_two_devices():
    [row] = rows("longest", "--lengths", "256", "--layers", "1", "--set", "trainer.devices=2", "parallel.tensor=2")

    assert row["step_s"] > row["detection_s"] > 0
    assert len(row["losses"]) == 2


def test_what_a_device_of_two_died_of_is_a_row():
    [row] = rows(
        "longest",
        "--lengths",
        "256",
        "--layers",
        "1",
        "--set",
        "trainer.devices=2",
        "parallel.tensor=2",
        "optim.lr=1e30",
    )

    assert "the loss is nan" in row["error"]


def test_the_alignment_experiment_learns_from_files_in_the_published_formats():
    about, *found = rows("alignment", "--steps", "3", "--set", "optim.lr=1e-3")

    assert about["data"]["sources"].keys() == {"longmit", "longalpaca"}
    assert [row["objective"] for row in found] == ["cdt", "sft", "longce"]
    for row in found:
        assert row["last_loss"] < row["first_loss"] == pytest.approx(math.log(384), rel=0.05)
        assert len(row["curves"]["reduced_train_loss"]) == 3
    assert ["detection_s" in row for row in found] == [True, False, False]


def test_a_checkpoint_of_random_weights_is_a_model(tmp_path):
    checkpoint.write("tiny", tmp_path / "made", layers=2)

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype="auto")
    assert (model.config.num_hidden_layers, model.dtype) == (2, torch.bfloat16)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "made")("a")["input_ids"]


def test_a_run_leaves_its_memory_to_the_next(tmp_path):
    data = runs.write_rows(tmp_path / "rows.jsonl", seq_length=256, labels="few")
    overrides = runs.words(runs.model(1), data, f"output={tmp_path}/run trainer.max_steps=2")

    during, after, after_recipe = on_ranks(jobs.bytes_left, 1, overrides)[0]

    assert after < during / 10
    assert after_recipe < during / 10


def test_masks_of_one_precision_agree_and_each_pass_is_timed():
    plain, packed = rows("fp8", "--lengths", "256", "--set", "model.num_layers=1")

    assert plain["mask_agreement"] == packed["mask_agreement"] == 1
    assert packed["score_median_difference"] < FP32
    for row in (plain, packed):
        assert 0.5 < row["noise_fraction"] < 1
        assert len(row["step_s"]["all"]) == 2
        assert row["step_s"]["median"] > row["detection_s"]["median"] + 0.5 * row["training_s"]["median"]


def test_a_conversion_there_and_back_is_measured_and_the_same():
    found = list(conversion.rows(arguments()))

    assert [row["conversion"] for row in found] == ["nothing", "to NeMo", "back"]
    assert all(0 < row["own_gib"] <= row["with_mapped_gib"] and row["cpu_seconds"] > 0 for row in found)
    assert found[-1]["same"]


def test_starts_agree():
    found = rows("starts", "--starts", "2", "--steps", "2", "--lengths", "600", "--layers", "1")

    assert found[0]["detection_loss"] == found[1]["detection_loss"]
    assert len(found[0]["steps"]) == 2


def test_a_layout_is_compared_to_one_device(tmp_path):
    name, length = "TP2+SP", 600
    for world in (1, 2):
        on_ranks(jobs.layouts, world, tmp_path, length, name)

    row = layouts.compared(tmp_path, name, length)

    assert row["same_tokens"]
    assert row["mask_agreement"] == 1
    assert row["threshold_difference"] < FP32
    assert row["grad_norm_difference"] < FP32

    file = tmp_path / f"{name}-{length}-1.npz"
    saved = dict(np.load(file))
    np.savez(file, **(saved | {"0/noise": ~saved["0/noise"]}))
    assert layouts.compared(tmp_path, name, length)["mask_agreement"] == pytest.approx(0.75, abs=0.01)


def test_the_benchmark_of_resuming_runs_a_run_that_can_be(tmp_path):
    config = runs.configured(*resume.overrides(tmp_path / "run"))

    assert (config.trainer.max_steps, config.trainer.checkpoint_interval) == (resume.STEPS, resume.INTERVAL)
    assert config.model.num_layers == 1


def test_benchmarks_run_by_name_and_leave_a_file_each(tmp_path, capsys):
    run.main(["ceilings", "peer", "--lengths", "64", "--repetitions", "1", "--out", str(tmp_path)])

    ceilings, peer = (json.loads(next(tmp_path.glob(f"{name}_*.json")).read_text()) for name in ("ceilings", "peer"))
    assert {"command", "date", "versions", "settings"} < ceilings.keys()
    assert all(row.get("tflops", row.get("forward_tflops")) > 0 for row in ceilings["rows"])
    assert [(row["checkpointing"], row["head"]) for row in peer["rows"][1:]] == [
        ("none", "all"),
        ("none", "labelled"),
        ("full", "all"),
        ("full", "labelled"),
    ]
    assert "plain_tokens_per_s" in capsys.readouterr().out


def test_no_row_begins_behind_the_budget(tmp_path):
    run.main(["ceilings", "--lengths", "64", "--budget", "0", "--out", str(tmp_path)])

    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert found["over_budget"]
    assert len(found["rows"]) == 1
