"""The small runs that the parity tests share: a tiny Llama, a file of documents, a few steps."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_cdt import config as c
from nemo_cdt.objectives import Settings, objective_class
from nemo_cdt.prepared import fingerprint

VOCABULARY = 128
ADAM_EPS = 1e-6
"""Above the rounding of a gradient: with Adam's 1e-8 an element whose gradient is nothing but rounding moves by lr."""
TINY = c.Model(
    name="test",
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=128,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=VOCABULARY,
    init_std=0.1,  # large enough for embedding gradients that differ between tokens
)


def write_documents(
    path: Path, *, kind: str, count: int, longest: int, shortest: int | None = None, seed: int = 0
) -> list[tuple]:
    """Random documents of uneven length: ``sft`` labels 1 to 5 tokens of each at its end, ``lm`` all. Returns them."""
    rng = np.random.default_rng(seed)
    documents = []
    with path.open("w") as file:
        for _ in range(count):
            ids = rng.integers(0, VOCABULARY, size=rng.integers(shortest or longest // 2, longest + 1))
            labels = ids.copy()
            if kind == "sft":
                labels[: -rng.integers(1, 6)] = -100
            file.write(json.dumps({"input_ids": ids.tolist(), "labels": labels.tolist()}) + "\n")
            documents.append((torch.tensor(ids), torch.tensor(labels)))
    return documents


def small_run(
    output: Path,
    documents: Path,
    *,
    steps: int = 3,
    global_batch: int = 4,
    micro_batch: int = 1,
    beta: float = 1000.0,
    name: str = "cdt",
    **changes: object,
) -> c.Config:
    """fp32, one process. ``lr * beta`` is 0.2 at the start: large, so that a wrong delta moves the weights visibly."""
    fields: dict = {
        "name": "test",
        "output": str(output),
        "report": False,
        "model": TINY,
        "objective": settings_of(name, beta=beta),
        "data": c.Data(name=c.DataName.jsonl, path=str(documents), seq_length=64, validation_samples=4, shuffle=False),
        "trainer": c.Trainer(
            max_steps=steps,
            global_batch_size=global_batch,
            micro_batch_size=micro_batch,
            precision=c.Precision.fp32,
            accelerator=c.Accelerator.cpu,
        ),
        "optim": c.Optim(lr=2e-4, min_lr=2e-5, weight_decay=0.1, clip_grad=1.0, eps=ADAM_EPS),
    }
    return c.Config(**(fields | changes))


def settings_of(name: str = "cdt", **values: Any) -> Settings:
    """Its settings: those of ``values`` that it has."""
    kind = objective_class(name).settings_class
    return kind(**{key: value for key, value in values.items() if key in {field.name for field in fields(kind)}})


def write_stub_of_prepared(folder: Path, *, tokens: int, tokenizer: str) -> None:
    """What validation reads of a folder of `nemo-cdt prepare`: documents of so many tokens."""
    folder.mkdir(parents=True)
    for name in ("train.bin", "train.idx", "validation.bin", "validation.idx"):
        (folder / name).touch()
    split = {"documents": 64, "shortest": tokens, "longest": tokens, "unprompted": 0}
    about = {"path": tokenizer, "fingerprint": fingerprint(tokenizer), "size": 262}
    (folder / "summary.json").write_text(json.dumps({"train": split, "validation": split, "tokenizer": about}))
