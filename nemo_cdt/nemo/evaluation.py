"""What a validation finds beside its loss: perplexity, right answers, and how well detection tells the tokens apart."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MegatronStep
from torch import Tensor

from nemo_cdt.config import Recompute
from nemo_cdt.data.documents import TokenType
from nemo_cdt.evaluation.answers import wrong_tokens
from nemo_cdt.evaluation.perplexity import perplexity
from nemo_cdt.evaluation.shares import shares
from nemo_cdt.megatron.groups import Groups
from nemo_cdt.megatron.microbatch import MicroBatch, take
from nemo_cdt.nemo.callback import wrapped
from nemo_cdt.objectives.cdt.denoise import Denoising
from nemo_cdt.objectives.cdt.detection import Detection, Detector
from nemo_cdt.objectives.cdt.settings import ThresholdScope
from nemo_cdt.objectives.cdt.validation_schedule import ValidationSchedule

NONE_RIGHT = (
    "note: None of the {documents} answers of validation is what greedy decoding writes: val_loss and what is detected "
    "may be surprise at the format of the answers, and not what the model makes of the context."
)


class ValidationMetrics(L.Callback):
    """Logs, for all validation documents together:

    val_perplexity: exp of the mean cross-entropy of their labelled tokens.
    val_accuracy: the share of documents all of whose labelled tokens are the likeliest, given those before: so many
        answers greedy decoding gets right. Only where the data knows token types, as ``multihop`` does.
    val_critical_TYPE, val_base_TYPE: the share of a type among the critical tokens (the scores of which are not below
        the threshold, Eq. 2), and among all: detection tells something where the first is larger.

    val_longppl: the perplexity of their labelled key tokens alone, where an evaluator has said which those are.

    typed: whether the data knows token types; then validation detects too, whatever the objective.
    fp8: whether that is in FP8, as training's detection.
    """

    def __init__(self, *, typed: bool, scope: ThresholdScope, recompute: Recompute | None, fp8: bool = False) -> None:
        self.typed = typed
        self.scope = scope
        self.recompute = recompute
        self.fp8 = fp8
        self._sums: dict[str, Tensor] = {}
        self._validated = False

    def on_validation_epoch_start(self, *_: Any) -> None:
        self._sums = {}

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        if not (step.forward_only and self.typed):
            return step
        return wrapped(step, functools.partial(self._detecting, step.pl_module.config.sequence_parallel))

    def _detecting(self, sequence_parallel: bool, schedule: Callable) -> ValidationSchedule:
        groups = Groups.of_megatron(sequence_parallel)
        counted = groups.tensor is not None or parallel_state.get_tensor_model_parallel_rank() == 0
        observer = self._count_types if counted else None  # else each tensor-parallel rank sees the same tokens
        detector = Detector(Denoising(), self.scope, lambda: 0.0, groups, observer)
        pipelined = parallel_state.get_pipeline_model_parallel_world_size() > 1
        return ValidationSchedule(schedule, detector, take, pipelined=pipelined, recompute=self.recompute, fp8=self.fp8)

    def _count_types(self, detection: Detection) -> None:
        real_SB = detection.share(detection.batch["documents"].t()) >= 0
        types_SB = detection.share(detection.batch["types"].t())
        self._add("all", torch.bincount(types_SB[real_SB], minlength=len(TokenType)))
        critical_SB = real_SB & ~detection.noise_SB
        self._add("critical", torch.bincount(types_SB[critical_SB], minlength=len(TokenType)))

    def on_megatron_microbatch_end(self, step: MegatronStep, batch: MicroBatch, output: Tensor, **_: Any) -> None:
        """Sums what the model's last chunk found; its forward in detection, with gradients, is no validation."""
        last_stage = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        losses = (
            last_stage and output.dim() == 2
        )  # [b, s]; of another chunk of an interleaved stage it is hidden states
        if not step.forward_only or torch.is_grad_enabled() or not losses:
            return
        if parallel_state.get_tensor_model_parallel_rank() == 0:
            self._add("loss", torch.stack([(output * batch["loss_mask"]).sum(), batch["loss_mask"].sum()]))
            if "key" in batch:
                key = batch["key"] * batch["loss_mask"]
                self._add("key", torch.stack([(output * key).sum(), key.sum()]))
        if self.typed:
            self._count_right(batch)

    def _count_right(self, batch: MicroBatch) -> None:
        labelled, rows = batch.labels(), len(batch["tokens"])
        assert labelled.correct_N is not None, "the head was not asked"
        wrong_B = wrong_tokens(labelled.correct_N, labelled.index_N, rows)
        torch.distributed.all_reduce(wrong_B, group=parallel_state.get_context_parallel_group())
        if parallel_state.get_tensor_model_parallel_rank() == parallel_state.get_context_parallel_rank() == 0:
            self._add("documents", torch.stack([(wrong_B == 0).sum(), wrong_B.new_tensor(rows)]))

    def _add(self, name: str, sums: Tensor) -> None:
        sums = sums.double()
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        whole = self._whole()
        for name, value in (metrics := _metrics(whole, self.typed)).items():
            pl_module.log(name, value, batch_size=1, prog_bar=name == "val_accuracy")
        if not self._validated and metrics.get("val_accuracy") == 0 and trainer.is_global_zero:
            print(NONE_RIGHT.format(documents=int(whole["documents"][1])), file=sys.stderr, flush=True)
        self._validated = True

    def _whole(self) -> dict[str, list[float]]:
        """The sums over all ranks: each has counted what it alone has."""
        sizes = {"loss": 2, "key": 2, "documents": 2, "all": len(TokenType), "critical": len(TokenType)}
        device = torch.cuda.current_device()
        mine = [self._sums.get(name, torch.zeros(size, dtype=torch.float64)).to(device) for name, size in sizes.items()]
        total = torch.cat(mine)
        torch.distributed.all_reduce(total)
        return dict(zip(sizes, (part.tolist() for part in total.split([*sizes.values()])), strict=True))


def _metrics(sums: dict[str, list[float]], typed: bool) -> dict[str, float]:
    perplexities = {"val_perplexity": sums["loss"], "val_longppl": sums["key"]}
    metrics = {name: perplexity(*parts) for name, parts in perplexities.items() if parts[1]}
    if typed:
        right, documents = sums["documents"]
        metrics["val_accuracy"] = right / documents
        metrics |= {f"val_{name}": share for name, share in shares(sums["critical"], sums["all"]).items()}
    return metrics
