"""What the first save or the export would stumble over is one line before the first step."""

from pathlib import Path

import pytest

from nemo_cdt.config import Export
from nemo_cdt.cost.memory import checkpoint_bytes
from tests import jobs
from tests.ranks import on_ranks
from tests.runs import small_run, write_documents


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    write_documents(tmp_path / "d.jsonl", kind="sft", count=12, longest=60)
    return tmp_path / "d.jsonl"


def unwritable(output: Path) -> None:
    output.mkdir()
    (output / "checkpoints").symlink_to("/proc")  # not even root may write there


def damaged_tokenizer(output: Path) -> None:
    (output / "tokenizer").mkdir(parents=True)
    (output / "tokenizer/tokenizer_config.json").write_text("{")


@pytest.mark.parametrize(
    ("prepare", "export", "mutate", "expected"),
    [
        (unwritable, None, None, "output: /proc cannot be written to, .*: set output to another folder"),
        (damaged_tokenizer, None, None, "run/tokenizer: it is no whole tokenizer: remove it, and the run writes it"),
        (Path.mkdir, "/proc/hf", None, "export.hf: /proc cannot be written to, .*: set export.hf to another folder"),
        (Path.mkdir, None, "disk_is_full", "output: .*/run/checkpoints has 0.0 GiB free, and a checkpoint takes"),
    ],
)
def test_a_save_that_would_fail_is_told_before_training_and_leaves_nothing(
    documents, tmp_path, prepare, export, mutate, expected
):
    output = tmp_path / "run"
    prepare(output)
    config = small_run(output, documents, export=Export(hf=export))

    with pytest.raises(RuntimeError, match=f"(ValueError|FileError): .*{expected}"):
        on_ranks(jobs.train, 1, config, mutate)

    assert not (output / "metrics.jsonl").exists()
    assert not list(tmp_path.rglob(".rehearsal*"))


def test_a_checkpoint_takes_what_is_asked_for_and_nothing_is_left_of_the_rehearsal(documents, tmp_path):
    config = small_run(tmp_path / "run", documents, steps=1, export=Export(hf=str(tmp_path / "hf")))
    config.model.hidden_size, config.model.ffn_hidden_size = 256, 1024  # beside which its names are few

    on_ranks(jobs.fit, 1, config)

    sizes = [file.stat().st_size for file in (tmp_path / "run/checkpoints/step=1/weights").iterdir()]
    assert checkpoint_bytes(config) <= sum(sizes) < 1.5 * checkpoint_bytes(config)
    weights = (tmp_path / "hf/model.safetensors").stat().st_size
    assert weights == pytest.approx(checkpoint_bytes(config, optimizer=False), rel=0.01)
    assert not list(tmp_path.rglob(".rehearsal*"))
