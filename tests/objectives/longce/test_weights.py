import pytest
import torch

from nemo_cdt.objectives.longce.weights import UNMEASURED, Window, weighted, weights, windows


@pytest.mark.parametrize(("tokens", "count"), [(32768, 28), (131072, 124), (4097, 1), (4096, 0), (100, 0)])
def test_windows_are_as_many_as_the_authors_trainer_has(tokens, count):
    assert len(list(windows(tokens - 1, window=4096, stride=1024))) == count


def test_every_target_behind_the_first_window_is_measured_once_after_k_to_k_plus_d_tokens():
    tokens = torch.arange(23)
    found = list(windows(len(tokens) - 1, window=8, stride=3))

    assert found[0] == Window(start=0, measured=7, end=10)
    assert found[-1] == Window(start=12, measured=19, end=22)
    targets = [position + 1 for each in found for position in range(each.measured, each.end)]
    assert targets == list(range(8, 23))
    for each in found:
        assert each.end - each.start <= 8 + 3 - 1
        assert each.measured + 1 - each.start == 8  # tokens before the first target


def test_a_weight_is_the_ratio_of_probabilities_up_to_gamma_and_one_without_a_window():
    short, full = torch.tensor([2.0, 1.0, 9.0, UNMEASURED]), torch.tensor([1.0, 2.0, 1.0, 3.0], requires_grad=True)

    weight = weights(short, full, 5.0)

    assert weight.tolist() == pytest.approx([2.71828, 0.36788, 5.0, 1.0], rel=1e-5)
    loss = weighted(full * 1.0, weight)
    assert loss.tolist() == full.tolist()
    loss.sum().backward()
    assert full.grad.tolist() == weight.tolist()
