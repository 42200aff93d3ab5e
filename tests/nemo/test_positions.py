"""What an export says of its positions is what ``init`` said, unless a run says otherwise."""

import json
from pathlib import Path

import pytest

from nemo_cdt.config import Config
from nemo_cdt.config.compose import compose
from tests import jobs
from tests.nemo.test_convert import write_llama
from tests.ranks import on_ranks
from tests.runs import write_documents

POSITIONS = 2048


def run(folder: Path, name: str, *overrides: str) -> Config:
    rows = ("data=jsonl", f"data.path={folder}/rows.jsonl", "data.seq_length=64", "data.validation_samples=0")
    trainer = {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 1, "val_interval": 0, "accelerator": "cpu"}
    return compose(
        [
            f"output={folder}/{name}",
            f"export.hf={folder}/{name}/hf",
            "compare_to=null",
            "report=false",
            *rows,
            *(f"trainer.{key}={value}" for key, value in trainer.items()),
            "trainer.precision=fp32",
            *overrides,
        ]
    )


def positions(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["max_position_embeddings"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("positions")
    write_llama(folder / "hf", max_position_embeddings=POSITIONS, rope_scaling=None)
    write_documents(folder / "rows.jsonl", kind="sft", count=8, longest=60)
    on_ranks(jobs.converted, 1, folder / "hf", folder / "nemo")
    return folder


def test_an_export_has_the_positions_of_init_or_those_that_were_asked_for(folder):
    runs = {
        "of_hf": run(folder, "of_hf", f"init.hf={folder}/hf"),
        "of_nemo": run(folder, "of_nemo", f"init.nemo={folder}/nemo", "model.tokenizer=byte"),
        "asked": run(folder, "asked", f"init.hf={folder}/hf", "model.max_positions=4096"),
        "adapted": run(folder, "adapted", f"init.hf={folder}/hf", "lora=default"),
    }
    on_ranks(jobs.fit, 1, *runs.values())

    found = {name: positions(folder / name / "hf") for name in runs}

    assert found == dict.fromkeys(runs, POSITIONS) | {"asked": 4096}


def test_there_and_back_again_positions_are_the_same(folder):
    on_ranks(jobs.converted, 1, folder / "nemo", folder / "back")

    assert positions(folder / "back") == POSITIONS
