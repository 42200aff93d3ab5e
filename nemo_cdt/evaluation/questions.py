"""Questions whose facts and answers are known, put to a model of transformers: is it right, and what is detected?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from nemo_cdt.data.documents import TokenType
from nemo_cdt.evaluation.answers import is_right
from nemo_cdt.evaluation.shares import counted, critical, shares
from nemo_cdt.objectives.cdt.denoise import scores


class Question(Protocol):
    """``input_ids`` and ``types`` of what is fed, [N]; ``answer``: the tokens that are predicted at ``rows``, [R]."""

    @property
    def input_ids(self) -> np.ndarray: ...
    @property
    def types(self) -> np.ndarray: ...
    @property
    def rows(self) -> np.ndarray: ...
    @property
    def answer(self) -> np.ndarray: ...


OneQuestion = TypeVar("OneQuestion", bound=Question)


@dataclass(kw_only=True, slots=True)
class Answer:
    """``loss``: the mean cross-entropy of the answer, nats.  ``score_N``: detection's, of each token that is fed."""

    loss: float
    right: bool
    score_N: np.ndarray


def answered(model: PreTrainedModel, questions: Sequence[Question]) -> list[Answer]:
    """The questions as one batch, forward and backward. The weights of ``model`` need no gradient."""
    ids = [torch.as_tensor(question.input_ids, device=model.device) for question in questions]
    # On the right, where causal attention sees no padding.
    embedding_BND = model.get_input_embeddings()(pad_sequence(ids, batch_first=True)).detach().requires_grad_(True)
    logits_BNV = model(inputs_embeds=embedding_BND, use_cache=False).logits.float()
    losses, rights = [], []
    for logits_NV, question in zip(logits_BNV, questions, strict=True):
        rows_R, answer_R = (torch.as_tensor(v, device=model.device) for v in (question.rows, question.answer))
        losses.append(cross_entropy(logits_NV[rows_R], answer_R))
        rights.append(is_right(logits_NV[rows_R], answer_R))
    torch.stack(losses).sum().backward()
    assert embedding_BND.grad is not None
    score_BN = scores(embedding_BND.grad).double().cpu().numpy()
    return [
        Answer(loss=loss.item(), right=bool(right), score_N=score_N[: len(question.input_ids)])
        for loss, right, score_N, question in zip(losses, rights, score_BN, questions, strict=True)
    ]


def judgement(model: PreTrainedModel, questions: Sequence[Question], batch: int) -> dict[str, float]:
    """``accuracy``, ``loss`` and the :func:`~nemo_cdt.evaluation.shares.shares` of all questions together.

    As a validation logs them, but for the eos after an answer, which is not asked for.
    """
    answers = []
    every_T, critical_T = np.zeros(len(TokenType)), np.zeros(len(TokenType))
    for members in _batches(questions, batch):
        for question, answer in zip(members, found := answered(model, members), strict=True):
            every_T += counted(question.types)
            critical_T += counted(question.types[critical(answer.score_N)])
        answers += found
    return {
        "accuracy": float(np.mean([answer.right for answer in answers])),
        "loss": float(np.mean([answer.loss for answer in answers])),
        **shares(critical_T.tolist(), every_T.tolist()),
    }


def _batches(questions: Sequence[OneQuestion], size: int) -> Iterator[Sequence[OneQuestion]]:
    return (questions[first : first + size] for first in range(0, len(questions), size))
