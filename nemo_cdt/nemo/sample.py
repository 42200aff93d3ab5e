"""``sample.json``: what detection made of one document of the last step, for the report's heat map."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from megatron.core import parallel_state
from transformers import PreTrainedTokenizerFast

from nemo_cdt.data.tokenizer import token_texts
from nemo_cdt.objectives.cdt.detection import Detection
from nemo_cdt.utils.atomic_write import atomic_write


class SampleWriter(L.Callback):
    """Remembers the last detection, and writes its first row's first document when training ends.

    Each rank knows its own positions of it; rank 0 puts them together.
    """

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.path = path
        self.tokenizer = tokenizer
        self._last: Detection | None = None

    def observe(self, detection: Detection) -> None:
        # without the shift, which is as large as the embedding
        self._last = replace(detection, shift_SBH=detection.shift_SBH.new_empty(0))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        mine = self._tokens() if self._last and parallel_state.get_data_parallel_rank() == 0 else {}
        everyone: list[dict[int, dict]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, mine)
        merged = {position: token for tokens in everyone for position, token in tokens.items()}
        if trainer.is_global_zero and merged:
            atomic_write(self.path, json.dumps(self._sample(trainer.global_step, merged)))

    def _tokens(self) -> dict[int, dict[str, Any]]:
        """This rank's tokens of the document, by their position in the row."""
        assert self._last is not None
        batch, score_SB, noise_SB = self._last.batch, self._last.score_SB, self._last.noise_SB
        present = [k for k in ("positions", "documents", "tokens", "loss_mask", "types") if k in batch]
        columns = {k: self._last.share(batch[k][:1].t())[:, 0].tolist() for k in present}
        columns |= {"scores": score_SB[:, 0].tolist(), "noise": noise_SB[:, 0].tolist()}
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        threshold = float(self._last.threshold_N[0])
        return {row["positions"]: row | {"threshold": threshold} for row in rows if row["documents"] == 0}

    def _sample(self, step: int, by_position: dict[int, dict[str, Any]]) -> dict[str, Any]:
        rows = [by_position[position] for position in sorted(by_position)]
        return {
            "step": step,
            "tokens": token_texts(self.tokenizer, [row["tokens"] for row in rows]),
            "types": [row["types"] for row in rows] if "types" in rows[0] else None,
            "scores": [row["scores"] for row in rows],
            "threshold": rows[0]["threshold"],
            "noise": [row["noise"] for row in rows],
            "labels": [bool(row["loss_mask"]) for row in rows],
        }
