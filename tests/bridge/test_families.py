"""Each family's Hugging Face folder, as it trains on Megatron-Bridge: RoPE is ours, and Bridge's would be wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_cdt.config import Model
from tests import llama
from tests.bridge import jobs
from tests.families import FAMILIES
from tests.ranks import on_ranks
from tests.reference import ReferenceCDT, cosine
from tests.runs import VOCABULARY, small_run, write_documents


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_as_the_reference(family: str, tmp_path: Path) -> None:
    model: Model = FAMILIES[family]
    documents = write_documents(tmp_path / "d.jsonl", kind="sft", count=12, shortest=44, longest=60, seed=1)
    llama.random_hugging_face(model, VOCABULARY).save_pretrained(tmp_path / "hf")
    config = small_run(tmp_path / "run", tmp_path / "d.jsonl", steps=2, global_batch=2)
    config.model, config.init.hf = replace(model), str(tmp_path / "hf")

    [found] = on_ranks(jobs.train, 1, config)

    optim = config.optim
    expected = ReferenceCDT(
        llama.loaded(tmp_path / "hf"),
        cosine(optim.lr, optim.min_lr, 2),
        beta=1000.0,
        weight_decay=optim.weight_decay,
        clip_grad=optim.clip_grad,
        eps=optim.eps,
    )
    losses = [expected.step(documents[first : first + 2]).loss for first in (0, 2)]
    assert [row["loss"] for row in found["metrics"]] == pytest.approx(losses, rel=1e-6)
