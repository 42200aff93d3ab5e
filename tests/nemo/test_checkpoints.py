"""What a run starts from, beside what it asks for."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_cdt.config import Config, Init, Model, Parallel, RopeScaling, RopeType
from nemo_cdt.nemo.checkpoints import initial_checkpoint
from tests import jobs
from tests.families import FAMILIES
from tests.ranks import on_ranks

QWEN3 = FAMILIES["qwen3"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3's folder, and the run that has converted it already."""
    folder = tmp_path_factory.mktemp("converted")
    on_ranks(jobs.initial, 1, QWEN3, 128, folder / "hf", folder / "run/init")
    return folder


@pytest.fixture
def start(converted: Path, tmp_path: Path):
    """The vocabulary that a run with this model finds in that folder."""
    shutil.copytree(converted, tmp_path, dirs_exist_ok=True)

    def with_model(model: Model, tensor: int = 1) -> int | None:
        init, parallel = Init(hf=str(tmp_path / "hf")), Parallel(tensor=tensor)
        run = Config(output=str(tmp_path / "run"), model=model, init=init, parallel=parallel)
        return initial_checkpoint(run)[1]

    return with_model


def test_the_same_architecture_says_nothing(start, caplog):
    assert start(replace(QWEN3, vocab_size=None, max_positions=64, tokenizer="byte", hidden_dropout=0.1)) == 128
    assert caplog.messages == []


def test_another_head_size_in_other_words_is_the_same(start):
    assert start(replace(QWEN3, head_dim=24)) == 128
    with pytest.raises(ValueError, match=r"model\.head_dim=16, but .* has model\.head_dim=24: leave them out"):
        start(replace(QWEN3, head_dim=None))


def test_another_rope_is_allowed_and_told(start, caplog):
    scaling = RopeScaling(rope_type=RopeType.yarn, factor=4.0)
    assert start(replace(QWEN3, rotary_base=2e7, rope_scaling=scaling)) == 128

    base, yarn = caplog.messages
    assert base.startswith("model.rotary_base=20000000.0, where init.hf=")
    assert "has model.rotary_base=1000000.0: its context is extended, or this is a mistake" in base
    assert yarn.startswith("model.rope_scaling={rope_type:yarn,factor:4.0,original_max_position_embeddings:8192,")
    assert "has model.rope_scaling={rope_type:none," in yarn


def test_every_difference_is_in_one_line_with_the_way_out(start):
    with pytest.raises(ValueError, match="leave them out") as raised:
        start(replace(QWEN3, num_layers=4, sliding_window=16, tied_embeddings=True))

    asked, right = str(raised.value).split(", but ")
    assert asked == "model.num_layers=4, model.sliding_window=16, model.tied_embeddings=true"
    right = right.partition(": leave")[0]
    assert right.endswith("hf has model.num_layers=2 model.sliding_window=null model.tied_embeddings=false")


def test_a_vocabulary_that_cannot_be_split_is_refused(start):
    with pytest.raises(ValueError, match=r"has a vocabulary of 128, which parallel\.tensor=3 does not divide"):
        start(QWEN3, tensor=3)
