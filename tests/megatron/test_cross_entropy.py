"""The head at labelled positions, in chunks, equals the cross-entropy of all logits at once, however it is split."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_cdt.utils.cpu import cuda_on_cpu
from tests.ranks import on_ranks

LENGTH, ROWS, HIDDEN, VOCABULARY = 24, 2, 16, 40
CHUNK_ROWS = 5
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}  # of losses near 4 and gradients near 1


def tensors(dtype: torch.dtype, labelled: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, the head's weight, labels, and which positions have one; the same on every rank."""
    torch.manual_seed(0)
    hidden_SBH = torch.randn(LENGTH, ROWS, HIDDEN).to(dtype)
    weight_VH = (torch.randn(VOCABULARY, HIDDEN) * 0.3).to(dtype)  # logits of about 1
    return hidden_SBH, weight_VH, torch.randint(VOCABULARY, (ROWS, LENGTH)), torch.rand(ROWS, LENGTH) < labelled


def upstream() -> torch.Tensor:
    """Another weight for every position, as ``label_share`` gives."""
    return torch.linspace(0.5, 1.5, ROWS * LENGTH).view(ROWS, LENGTH)


def expected(dtype: torch.dtype, labelled: float) -> dict[str, np.ndarray]:
    hidden_SBH, weight_VH, labels_BS, mask_BS = tensors(dtype, labelled)
    hidden_SBH, weight_VH = hidden_SBH.double().requires_grad_(), weight_VH.double().requires_grad_()
    logits_BVS = (hidden_SBH @ weight_VH.t()).permute(1, 2, 0)
    loss_BS = F.cross_entropy(logits_BVS, labels_BS, reduction="none") * mask_BS
    (loss_BS * upstream()).sum().backward()
    assert hidden_SBH.grad is not None
    assert weight_VH.grad is not None
    found = {"loss": loss_BS.detach(), "hidden": hidden_SBH.grad, "weight": weight_VH.grad}
    return {name: tensor.numpy() for name, tensor in found.items()}


class Largest(TorchDispatchMode):
    """Remembers the most elements that any tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def split(dtype: torch.dtype, labelled: float, sequence_parallel: bool, frozen: bool = False) -> dict[str, Any]:
    """This rank's part of the vocabulary and, with sequence parallelism, of the positions."""
    with cuda_on_cpu():
        from nemo_cdt.megatron import cross_entropy
        from nemo_cdt.megatron.cross_entropy import Labelled, labelled_cross_entropy

        torch.distributed.init_process_group("gloo")
        group = torch.distributed.group.WORLD
        assert group is not None
        hidden_SBH, weight_VH, labels_BS, mask_BS = tensors(dtype, labelled)
        part = VOCABULARY // group.size()
        cross_entropy.CHUNK_BYTES = 4 * part * CHUNK_ROWS
        if sequence_parallel:
            hidden_SBH = hidden_SBH.chunk(group.size())[group.rank()]
        weight_VH = weight_VH.chunk(group.size())[group.rank()].clone().requires_grad_(not frozen)
        hidden_SBH = hidden_SBH.clone().requires_grad_()
        index_N = mask_BS.t().flatten().nonzero().flatten()
        what = Labelled(index_N=index_N, labels_N=labels_BS.t().flatten()[index_N], shape=(LENGTH, ROWS))
        with Largest() as largest:
            loss_BS = labelled_cross_entropy(
                hidden_SBH, weight_VH, what, group=group, sequence_parallel=sequence_parallel
            )
            (loss_BS * upstream()).sum().backward()
        assert hidden_SBH.grad is not None
        result = {
            "loss": loss_BS.detach().double().numpy(),
            "hidden": hidden_SBH.grad.double().numpy(),
            "weight": None if weight_VH.grad is None else weight_VH.grad.double().numpy(),
            "largest": largest.elements,
        }
        torch.distributed.destroy_process_group()
        return result


@pytest.mark.parametrize("labelled", [0.2, 1.1, -1.0], ids=["few", "all", "none"])
@pytest.mark.parametrize(
    ("ranks", "sequence_parallel"), [(1, False), (2, False), (2, True)], ids=["1", "TP2", "TP2+SP"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_and_gradients_equal_those_of_all_logits(
    dtype: torch.dtype, ranks: int, sequence_parallel: bool, labelled: float
) -> None:
    found = on_ranks(split, ranks, dtype, labelled, sequence_parallel)
    want = expected(dtype, labelled)
    tolerance = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    for rank in found:
        np.testing.assert_allclose(rank["loss"], want["loss"], **tolerance)
    hidden = np.concatenate([rank["hidden"] for rank in found]) if sequence_parallel else found[0]["hidden"]
    np.testing.assert_allclose(hidden, want["hidden"], **tolerance)
    np.testing.assert_allclose(np.concatenate([rank["weight"] for rank in found]), want["weight"], **tolerance)


def test_no_tensor_has_more_logits_than_a_chunk() -> None:
    largest = on_ranks(split, 1, torch.float32, 1.1, False)[0]["largest"]
    assert largest == max(CHUNK_ROWS * VOCABULARY, LENGTH * ROWS * HIDDEN, VOCABULARY * HIDDEN)
    assert largest < LENGTH * ROWS * VOCABULARY


def test_a_frozen_head_gets_no_gradient() -> None:
    found = on_ranks(split, 1, torch.float32, 0.2, False, True)[0]
    assert found["weight"] is None
    np.testing.assert_allclose(found["hidden"], expected(torch.float32, 0.2)["hidden"], atol=1e-6)
