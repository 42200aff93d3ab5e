"""A run of two ranks, and what it becomes when it is resumed, read back as each logger's own reader has it."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from nemo_cdt.config import Config, save
from nemo_cdt.config.loggers import Loggers, MLflow, TensorBoard, Wandb
from nemo_cdt.report import write_report
from nemo_cdt.tracking import known_ids, mlflow_uri, send_report
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import small_run, write_documents


@dataclass
class Logged:
    """A run of 2 steps that was resumed for a third, and sent its report."""

    config: Config
    first_ids: dict[str, str]
    rows: list[dict[str, float]]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    folder = tmp_path_factory.mktemp("loggers")
    write_documents(folder / "d.jsonl", kind="lm", count=16, longest=60)
    config = small_run(folder / "run", folder / "d.jsonl", steps=2)
    config.trainer.devices = 2
    config.logger = Loggers(
        tensorboard=TensorBoard(use=True),
        wandb=Wandb(use=True, offline=True, group="tests", tags=["small"]),
        mlflow=MLflow(use=True, tags={"of": "tests"}),
    )
    on_ranks(jobs.fit, 2, config)
    first = known_ids(Path(config.output))
    config = replace(config, resume=True, trainer=replace(config.trainer, max_steps=3))
    on_ranks(jobs.fit, 2, config)
    save(config, Path(config.output, "config.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        send_report(config, write_report(Path(config.output)))
    rows = map(json.loads, Path(config.output, "metrics.jsonl").read_text().splitlines())
    return Logged(config, first, [row for row in rows if "loss" in row])


def test_a_resumed_run_is_the_same_run_everywhere(logged: Logged) -> None:
    assert {*logged.first_ids} == {"wandb", "mlflow"}
    assert known_ids(Path(logged.config.output)) == logged.first_ids
    assert [row["step"] for row in logged.rows] == [1, 2, 3]


def test_tensorboard_has_each_step_once_by_the_names_of_the_metrics(logged: Logged) -> None:
    found = EventAccumulator(str(Path(logged.config.output, "tensorboard")))
    found.Reload()
    for name in ("loss", "detection_loss", "grad_norm"):
        events = found.Scalars(name)
        assert [event.step for event in events] == [1, 2, 3]
        assert [event.value for event in events] == pytest.approx([row[name] for row in logged.rows])
    assert b"optim.lr" in found.PluginTagToContent("hparams")["_hparams_/session_start_info"]


def wandb_records(file: Path) -> Iterator[Record]:
    """Of its log, laid out as LevelDB's: blocks of 32 KiB, and pieces that do not cross them."""
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its last piece
            yield Record.FromString(whole)
            whole = b""


def test_wandb_has_each_step_the_configuration_and_the_report(logged: Logged) -> None:
    files = sorted(Path(logged.config.output, "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 3  # of one rank: each attempt, and the report
    assert {file.stem for file in files} == {f"run-{logged.first_ids['wandb']}"}
    records = [record for file in files for record in wandb_records(file)]
    rows = []
    for record in records:
        items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        if "loss" in items:
            rows.append((json.loads(items["trainer/global_step"]), json.loads(items["loss"])))
    assert rows == [(row["step"], pytest.approx(row["loss"])) for row in logged.rows]
    runs = [record.run for record in records if record.HasField("run")]
    assert (runs[0].project, runs[0].run_group, [*runs[0].tags]) == ("nemo-cdt", "tests", ["small"])
    settings = {
        update.key or "/".join(update.nested_key): update.value_json for r in records for update in r.config.update
    }
    assert json.loads(settings["optim.lr"]) == logged.config.optim.lr
    artifacts = [record.request.log_artifact.artifact for record in records if record.HasField("request")]
    artifacts += [record.artifact for record in records if record.HasField("artifact")]
    assert any(entry.path == "report.html" for each in artifacts for entry in each.manifest.contents)


def test_mlflow_has_each_step_the_configuration_and_the_report(logged: Logged) -> None:
    client, run_id = MlflowClient(mlflow_uri(logged.config)), logged.first_ids["mlflow"]
    run = client.get_run(run_id)
    assert [each.info.run_id for each in client.search_runs([run.info.experiment_id])] == [run_id]  # of one rank
    found = [(each.step, each.value) for each in client.get_metric_history(run_id, "loss")]
    assert found == [(row["step"], pytest.approx(row["loss"])) for row in logged.rows]
    assert (run.data.params["optim.lr"], run.data.tags["of"]) == (str(logged.config.optim.lr), "tests")
    assert run.info.status == "FINISHED"
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["report.html"]


def test_a_server_that_is_none_is_one_line_before_anything_is_loaded(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl", kind="lm", count=4, longest=60)
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=1)
    config.logger.mlflow = MLflow(use=True, tracking_uri="nowhere://host")
    with pytest.raises(
        RuntimeError, match=r"ValueError: logger=mlflow cannot begin: .*; leave mlflow out of logger, or"
    ):
        on_ranks(jobs.fit, 1, config)
    assert [*Path(config.output).iterdir()] == []
