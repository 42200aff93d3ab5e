"""Detection under Megatron's layouts: from the embedding's gradient on this rank to the shift of Eq. 3."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from nemo_cdt.megatron.groups import Groups
from nemo_cdt.megatron.marks import DENOISING
from nemo_cdt.megatron.microbatch import MicroBatch
from nemo_cdt.megatron.sums import StepSums
from nemo_cdt.objectives.cdt import denoise
from nemo_cdt.objectives.cdt.settings import ThresholdScope


@dataclass(kw_only=True, slots=True)
class Detection:
    """What detection found in one micro-batch, on this rank's positions; for pictures, analyses and tests."""

    batch: MicroBatch
    score_SB: Tensor
    noise_SB: Tensor
    threshold_N: Tensor
    shift_SBH: Tensor
    share: Callable[[Tensor], Tensor]  # cuts one of the batch's entries, sequence first, to the positions above


class Detector:
    """Makes shifts, and keeps in ``sums`` what describes a step.

    Args:
        how: how a gradient becomes a shift.
        scope: over what one threshold is the mean.
        step_size: called once a micro-batch; lr * beta as it is now.
        groups: the ranks that share a sequence.
        observer: is shown every detection, when set.
    """

    NAMES = (
        "tokens",
        "noise",
        "relative_shift",
        "changed",
        "threshold",
        "segments",
        "silent",
        "detection_loss",
        "labels",
    )

    def __init__(
        self,
        how: denoise.Denoising,
        scope: ThresholdScope,
        step_size: Callable[[], float],
        groups: Groups,
        observer: Callable[[Detection], None] | None = None,
    ) -> None:
        self.how = how
        self.scope = scope
        self.step_size = step_size
        self.groups = groups
        self.observer = observer
        self.sums = StepSums(self.NAMES)

    @record_function(DENOISING)
    @torch.no_grad()
    def shift(self, leaf_SBH: Tensor, batch: MicroBatch) -> Tensor:
        """E' - E in the embedding's dtype, from the gradient that detection left on the embedding's output."""
        grad_SBH = leaf_SBH.grad
        assert grad_SBH is not None
        embedding_SBH = leaf_SBH.detach()
        whole = segments_of(batch, self.scope)
        segments = denoise.Segments(
            index_SB=self.groups.share(whole.index_SB), real_SB=self.groups.share(whole.real_SB), count_N=whole.count_N
        )
        score_SB = denoise.scores(grad_SBH)
        threshold_N = denoise.thresholds(score_SB, segments, self.groups.all_reduce)
        noise_SB = denoise.noise_mask(score_SB, threshold_N, segments)
        shift_SBH = denoise.shift(grad_SBH, score_SB, noise_SB, embedding_SBH, self.step_size(), self.how)
        done = denoise.shift_statistics(embedding_SBH, shift_SBH, noise_SB, segments.real_SB)
        counted_N = segments.count_N > 0
        self.sums.add(
            tokens=done.tokens,
            noise=done.noise,
            relative_shift=done.relative_shift,
            changed=done.changed,
            threshold=threshold_N.sum(),
            segments=counted_N.sum(),
            silent=(counted_N & (threshold_N == 0)).sum(),
        )
        shift_SBH = shift_SBH.to(leaf_SBH.dtype)
        if self.observer is not None:
            self.observer(
                Detection(
                    batch=batch,
                    score_SB=score_SB,
                    noise_SB=noise_SB,
                    threshold_N=threshold_N,
                    shift_SBH=shift_SBH,
                    share=self.groups.share,
                )
            )
        return shift_SBH

    @torch.no_grad()
    def record_loss(self, loss_BS: Tensor, batch: MicroBatch) -> None:
        """Adds the cross-entropy of this rank's labelled tokens: each weighs the same, as in the ``loss`` of training.

        Only what is logged: the gradient of detection is that of each document's own mean.
        """
        labelled_BS = (batch["label_share"] > 0).float()
        self.sums.add(detection_loss=(loss_BS.float() * labelled_BS).sum(), labels=labelled_BS.sum())


def segments_of(batch: MicroBatch, scope: ThresholdScope) -> denoise.Segments:
    """Over what one threshold is the mean, in the embedding's layout (sequence first)."""
    documents_SB = batch["documents"].t()
    rows, per_row = batch["document_lengths"].shape
    row_B = torch.arange(rows, device=documents_SB.device)
    real_SB = documents_SB >= 0
    if scope is ThresholdScope.row:  # as the authors' trainer: padding counts, with its gradient of zero
        count_N = torch.full((rows,), float(batch.row_length), dtype=torch.float64, device=documents_SB.device)
        return denoise.Segments(index_SB=row_B.expand_as(documents_SB), real_SB=real_SB, count_N=count_N)
    count_N = batch["document_lengths"].flatten().double()
    index_SB = torch.where(real_SB, row_B * per_row + documents_SB, rows * per_row)
    return denoise.Segments(index_SB=index_SB, real_SB=real_SB, count_N=count_N)
