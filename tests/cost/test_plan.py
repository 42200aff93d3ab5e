"""`nemo-cdt plan` as a user calls it, and its estimates beside what was measured."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_cdt.cli import main
from nemo_cdt.config import Config, Data, Model, Parallel, Recompute, Trainer, typed
from nemo_cdt.cost.cluster import Cluster, Planned
from nemo_cdt.cost.memory import GIB, Memory, detection_peak, detection_recompute, peak, training_peak
from nemo_cdt.cost.plan import plans
from nemo_cdt.cost.request import compose_planned, read
from nemo_cdt.cost.steptime import step_time
from nemo_cdt.cost.table import command
from nemo_cdt.validation import validate_layout, validate_values
from tests.described import write_described

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
EXAMPLE = "model=llama31_8b data.seq_length=131072 cluster.gpus=64 cluster.gpu=h100"
POINTS = [
    pytest.param(measured["gpu"], point, id=f"{file.stem}-{index}")
    for file in sorted(RESULTS.glob("memory_*.json"))
    for measured in [json.loads(file.read_text())]
    for index, point in enumerate(measured["points"])
]


def plan(*arguments: str) -> int:
    return main(["plan", *arguments])


def planned(arguments: str):
    request = read(arguments.split())
    return request, plans(request.config, request.held)


# As a user calls it


def test_a_length_that_nobody_named_is_no_more_than_the_models_positions(tmp_path, capsys):
    write_described(tmp_path / "model", Model(max_positions=4096))
    words = [f"init.hf={tmp_path}/model", "cluster.gpus=8"]

    assert plan(*words) == 0
    shown = capsys.readouterr()
    with pytest.raises(SystemExit):
        plan(*words, "data.seq_length=8192")

    assert shown.err == "note: no data.seq_length is named, so it is 4096, the positions of the model\n"
    assert " sequences of 4,096 tokens a step" in shown.out
    assert " data.seq_length=4096 " in shown.out.splitlines()[-1]
    assert "data.seq_length=8192 is longer than model.max_positions=4096" in capsys.readouterr().err


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    output = tmp_path_factory.mktemp("plan") / "plan.json"
    code = "import sys; from nemo_cdt.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", *EXAMPLE.split(), f"output={output}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    *lines, modules = done.stdout.splitlines()
    return lines, set(modules.split()), json.loads(output.read_text())


def test_the_table_is_best_first_and_fits_a_terminal(example):
    lines, modules, _ = example
    start = next(index for index, line in enumerate(lines) if line.startswith("  # TP SP CP"))
    rows = lines[start + 1 : lines.index("", start)]
    seconds = [float(row.split("|")[2].split()[0]) for row in rows]

    assert [int(row.split()[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > 10
    assert seconds == sorted(seconds)
    assert max(map(len, lines[start : start + len(rows) + 3])) <= 120
    assert not {"torch", "nemo", "megatron", "transformers"} & modules


def test_the_size_of_a_checkpoint_is_told_and_the_guide_has_it(example):
    (line,) = [line for line in example[0] if line.startswith("A checkpoint has ")]
    guide = (ROOT / "docs/guides/resume-and-reshard.md").read_text()

    whole, weights = (8_030_261_248 * each / GIB for each in (14, 2))
    assert line == f"A checkpoint has {whole:.1f} GiB on disk, the exported model {weights:.1f}."
    assert f"`{line}`" in guide


def test_the_file_has_every_plan_and_each_fits(example):
    _, _, written = example
    found = written["plans"]
    seconds = [each["step_seconds"]["total"] for each in found]

    assert seconds == sorted(seconds)
    assert len(found) > 500
    for each in found:
        memory, parallel = each["memory_gib"], each["parallel"]
        parts = ("parameters", "gradients", "optimizer", "activations", "deltas", "runtime")
        assert memory["total"] <= written["cluster"]["memory_gib"]
        assert sum(memory[part] for part in parts) + max(memory["head"], memory["layer"]) == pytest.approx(
            memory["total"]
        )
        assert parallel["tensor"] * parallel["context"] * parallel["pipeline"] * parallel["data"] == 64
        rate = 32 * 131072 / each["step_seconds"]["total"] / 64
        assert each["tokens_per_second_per_gpu"] == pytest.approx(rate)
        assert 0 < each["mfu"] < 1
        assert 1 < each["cdt_to_ce_flops"] < 2


def test_what_a_save_takes_is_said_and_training_waits_for_less_than_all_of_it(example):
    lines, _, written = example
    saves = [each["save"] for each in written["plans"]]

    assert all(0 < save["waited"] < save["written"] for save in saves)
    assert f"saving takes up to {saves[0]['node_host_gib']:.1f} GiB of a node's memory and " in lines[-3]


def test_the_command_that_is_printed_runs_the_first_plan(example, tmp_path):
    lines, _, written = example
    words = shlex.split(lines[-1])
    assert words[-3:] == ["data.path=FILE", "init.hf=DIR", "launcher=NAME"]

    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes/cdt_llama31.py"), "--cfg", "job", *words[2:-1]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    config = typed(OmegaConf.create(done.stdout))
    first = written["plans"][0]

    assert config.model.name == "llama31_8b"
    assert (config.trainer.devices, config.trainer.num_nodes) == (8, 8)
    assert config.trainer.micro_batch_size == first["micro_batch_size"]
    assert str(config.objective.detection_recompute) == first["detection_recompute"]
    assert config.data_parallel == first["parallel"].pop("data")
    for key, value in first["parallel"].items():
        assert getattr(config.parallel, key) == value
    validate_values(config)


@pytest.mark.parametrize(
    ("model", "gpu", "gpus"),
    [
        *(("llama31_8b", path.stem, 8) for path in sorted((ROOT / "conf/cluster").glob("*.yaml"))),
        ("llama32_1b", "a100", 4),
        ("llama31_70b", "h200", 64),
        ("qwen25_7b", "h200", 2),
        ("qwen3_8b", "h200", 2),
        ("mistral_7b", "h200", 2),
    ],
)
def test_every_plan_of_every_model_and_cluster_is_a_valid_run(model, gpu, gpus):
    request, found = planned(f"model={model} cluster.gpu={gpu} cluster.gpus={gpus} data.seq_length=32768")

    assert request.config.cluster.gpu == gpu
    for each in found:
        validate_layout(each.config)
        assert not [key for key in command(each, request) if key.startswith(("cluster", "output"))]


def test_what_is_set_holds():
    request, found = planned(
        "parallel.tensor=4 parallel.context_comm=a2a trainer.recompute=full objective.detection_recompute=full "
        "trainer.micro_batch_size=1 data.seq_length=32768"
    )

    assert {each.config.parallel.tensor for each in found} == {4}
    assert {str(each.config.parallel.context_comm) for each in found} == {"a2a"}
    assert {each.config.trainer.recompute for each in found} == {each.detection for each in found} == {Recompute.full}
    chosen = command(found[0], request)
    assert len({each.partition("=")[0] for each in chosen}) == len(chosen)


def test_a_sliding_window_is_exchanged_by_anything_but_p2p():
    _, found = planned(
        "model=mistral_7b model.sliding_window=4096 data.seq_length=32768 data.pack=false parallel.context=2"
    )

    assert {str(each.config.parallel.context_comm) for each in found} == {"all_gather", "a2a"}


def test_packed_documents_are_exchanged_by_p2p_alone():
    _, found = planned("data.pack=true data.seq_length=32768 parallel.context=4")

    assert {str(each.config.parallel.context_comm) for each in found} == {"p2p"}
    assert {each.config.trainer.micro_batch_size for each in found} == {1}


def test_plain_training_has_no_detection(capsys):
    assert plan("objective=ce", "data.seq_length=8192") == 0

    out = capsys.readouterr().out
    assert "objective ce" in out
    assert "detection_recompute" not in out
    assert "detection recomputes" not in out


def test_an_estimate_of_bf16_says_so_where_fp8_is_asked_for(capsys):
    assert plan("data.seq_length=8192", "trainer.fp8=detection") == 0

    assert "Of bf16: trainer.fp8=detection is not in them." in capsys.readouterr().out


def test_windows_are_planned_for():
    _, plain = planned("objective=ce data.seq_length=32768")
    _, weighed = planned("objective=longce data.seq_length=32768")

    assert [each.time.windows for each in plain] == [0.0] * len(plain)
    for one, other in ((plain[0], each) for each in weighed if each.config.parallel == plain[0].config.parallel):
        assert 0.5 * one.time.training < other.time.windows < 1.5 * one.time.training  # 4.4 forwards, no backward
    assert all(each.config.parallel.context_comm != "all_gather" for each in weighed)


def test_another_experiment_and_cluster_by_their_groups():
    request, _ = planned("experiment=tiny model=llama32_1b trainer.precision=bf16 cluster=h200 cluster.gpus_per_node=4")

    assert request.overrides == ["experiment=tiny", "model=llama32_1b", "trainer.precision=bf16"]
    assert (request.config.cluster.gpu, request.config.data.seq_length) == ("h200", 1024)


def test_where_nothing_fits_a_line_says_what_is_too_large_and_what_would_fit(capsys):
    asked = ["data.seq_length=32768", "cluster.gpus=1", "cluster.gpu=h200"]
    with pytest.raises(SystemExit) as exit:
        plan(*asked)
    line = capsys.readouterr().err

    assert exit.value.code == 2
    assert line.startswith("error: nothing fits 1 h200 of 139.8 GiB: the smallest, one GPU for each model with ")
    assert "GiB, 89.7 of it optimizer; what fits, each alone: optim.offload=0.5, cluster.gpus=2" in line
    assert line.count("\n") == 1

    assert plan(*asked, "optim.offload=0.5") == plan(*asked, "cluster.gpus=2") == 0


def test_where_nothing_fits_without_recomputation_it_says_so(capsys):
    with pytest.raises(SystemExit):
        plan("data.seq_length=131072", "trainer.recompute=none")

    assert (
        "of it activations; what fits, each alone: trainer.recompute=full, cluster.gpus=16" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("cluster.gpu=v100", "cluster=v100 does not exist: choose cluster=a100|b200|h100|h200"),
        ("cluster.gpuz=3", "unknown key cluster.gpuz: did you mean cluster.gpu?"),
        ("cluster.gpus=0", "cluster.gpus=0: set it to a number above 0"),
        ("cluster.gpus=12", "cluster.gpus=12 must be a multiple of cluster.gpus_per_node=8, or below it"),
        ("trainer.devices=8", "trainer.devices=8: a plan says that; set cluster.gpus"),
        ("data.seq_length=300000", "data.seq_length=300000 is longer than model.max_positions=131072"),
        ("parallel.tensor=3", "no layout of 8 GPUs has parallel.tensor=3"),
        ("parallel.tensor=8 model.num_query_groups=4", "parallel.tensor=8 must divide model.num_query_groups=4"),
        ("optim.beta1=2", "optim.beta1=2.0: set it below 1"),
        ("output=nowhere/plan.json", "output=nowhere/plan.json cannot be written: set output=FILE"),
        ("output=.", "output=. cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        plan(*arguments.split())
    captured = capsys.readouterr()

    assert (exit.value.code, captured.out) == (2, "")
    assert captured.err.startswith(f"error: {expected}")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# Beside what was measured


def run_of(length: int, vocabulary: int, batch: int = 1, gpus: int = 1, tensor: int = 1) -> Config:
    """What benchmarks/starts.py and benchmarks/layouts.py train: 4 layers of Llama-3.1-8B's width."""
    model = Model(
        num_layers=4,
        hidden_size=4096,
        ffn_hidden_size=14336,
        num_attention_heads=32,
        num_query_groups=8,
        vocab_size=vocabulary,
    )
    return Config(
        model=model,
        data=Data(seq_length=length),
        parallel=Parallel(tensor=tensor),
        trainer=Trainer(global_batch_size=batch, devices=gpus),
    )


def results(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def layouts(name: str, length: int) -> float:
    rows = results("layouts_partial_h200_2026-11-22.json")["rows"]
    return next(row["metrics"]["peak_memory_gib"] for row in rows if (row["name"], row["seq_length"]) == (name, length))


def first_start() -> float:
    return results("starts_h200_2026-11-21.json")["runs"][0]["peak_memory_gib"][0]


def steps_at_32k(key: str) -> list[float]:
    return results("train_32k_h200_2026-11-21.json")["runs"][0][key]


def static(memory: Memory) -> float:
    return memory.parameters + memory.gradients + memory.optimizer


@pytest.mark.parametrize(
    ("config", "measured"),
    [
        (run_of(8192, 128256), first_start()),
        (run_of(8192, 32768, batch=2), layouts("one GPU", 8192)),
        (run_of(8192, 32768, batch=2, gpus=2, tensor=2), layouts("TP2", 8192)),
    ],
)
def test_what_stays_is_what_the_first_step_of_a_short_row_ended_with(config, measured):
    """Adam's moments come after the first backward, whose activations took less."""
    memory = training_peak(config)

    assert static(memory) / GIB == pytest.approx(measured, rel=0.02)
    assert static(memory) - memory.optimizer * 8 / 12 + memory.activations < static(memory)


def test_adams_moments_are_what_the_second_step_had_more():
    first, second, *_ = steps_at_32k("peak_memory_gib")
    moments = training_peak(run_of(32768, 128256)).optimizer * 8 / 12

    assert moments / GIB == pytest.approx(second - first, rel=0.01)


def test_activations_are_what_two_vocabularies_had_in_common():
    """These runs made the logits of all rows at once, so many bytes for each: what is left is not the head's."""
    wide, narrow = steps_at_32k("peak_memory_gib")[0], layouts("one GPU", 32768)
    memories = [training_peak(run_of(32768, vocabulary)) for vocabulary in (128256, 32768)]
    before_adam = [(static(memory) - memory.optimizer * 8 / 12) / GIB for memory in memories]
    logits = [32768 * vocabulary / GIB for vocabulary in (128256, 32768)]
    rest = [wide - before_adam[0], narrow - before_adam[1]]
    per_logit = (rest[0] - rest[1]) / (logits[0] - logits[1])

    expected = rest[1] - per_logit * logits[1]
    assert 4 < per_logit < 10
    assert (memories[1].activations + memories[1].deltas) / GIB == pytest.approx(expected, rel=0.1)
    frozen = detection_peak(run_of(32768, 32768), Recompute.none).activations  # which keeps 23 of 34 bytes
    assert frozen / GIB != pytest.approx(expected, rel=0.1)


def test_a_step_takes_about_as_long_as_was_measured():
    cluster = Cluster(**OmegaConf.load(ROOT / "conf/cluster/h200.yaml"), gpus=1)
    time = step_time(run_of(32768, 128256), cluster, Recompute.none)

    for estimate, key in ((time.total, "step_time"), (time.detection, "detection_time")):
        assert estimate == pytest.approx(sum(steps_at_32k(key)[1:]) / 3, rel=0.15)


@pytest.mark.parametrize(("gpu", "point"), POINTS)
def test_memory_is_within_a_tenth_of_a_measured_run(gpu, point):
    """``overrides`` of the recipe, and the peak of torch's allocations in its last step."""
    config = compose_planned([f"+cluster={gpu}", *point["overrides"]])
    policy, _ = detection_recompute(config, config.cluster.memory_bytes)
    expected = peak(config, policy) if point["steps"] > 1 else before_adam(config, policy)

    assert expected.allocated / GIB == pytest.approx(point["peak_memory_gib"], rel=0.1)
    without = replace(expected, activations=0.0, head=0.0, layer=0.0)
    long = config.data.seq_length > 8192  # what short rows hold is no tenth of what stays
    assert not long or without.allocated / GIB != pytest.approx(point["peak_memory_gib"], rel=0.1)


def test_there_are_measured_points():
    assert len(POINTS) >= 12


def before_adam(config: Planned, policy: Recompute) -> Memory:
    """The peak of a run's first step: both passes come before Adam's moments, which then stay."""
    passes = [training_peak(config), detection_peak(config, policy)]
    passes = [replace(memory, optimizer=memory.optimizer * 4 / 12) for memory in passes]
    return max(*passes, replace(training_peak(config), activations=0.0, deltas=0.0, head=0.0, layer=0.0), key=total)


def total(memory: Memory) -> float:
    return memory.allocated


def test_a_model_that_is_named_is_not_asked_for_again(tmp_path, monkeypatch):
    write_described(tmp_path / "model", compose_planned(["+cluster=h100", "model=llama31_8b"]).model)
    monkeypatch.chdir(tmp_path)
    request, found = planned("init.hf=model data=jsonl data.seq_length=8192")

    words = command(found[0], request)
    assert [word for word in words if word.startswith("init.hf=")] == ["init.hf=model"]
    assert "data.path=FILE" in words
