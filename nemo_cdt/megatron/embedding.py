"""A tap on Megatron's embedding: read the gradient of its output, or shift its output."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from torch import Tensor, nn


def find_embedding(chunks: Iterable[nn.Module]) -> LanguageModelEmbedding | None:
    """The input embedding among these model chunks, or None on pipeline stages that hold none."""
    found = [m for chunk in chunks for m in chunk.modules() if isinstance(m, LanguageModelEmbedding)]
    assert len(found) <= 1, f"{len(found)} input embeddings in one pipeline stage"
    return found[0] if found else None


@contextmanager
def watched(embedding: LanguageModelEmbedding | None, seen: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Makes each output of the embedding a leaf, and calls ``seen(i, leaf)`` when the i-th has its ``.grad``.

    Then the gradient is dropped, and with it the leaf: in a pipeline a whole batch of them would wait for the last.
    """
    count = itertools.count()

    def as_leaf(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        leaf, index = output.detach().requires_grad_(), next(count)

        def tell(leaf: Tensor) -> None:
            seen(index, leaf)
            leaf.grad = None

        leaf.register_post_accumulate_grad_hook(tell)
        return leaf

    with _hooked(embedding, as_leaf):
        yield


@contextmanager
def shifted(embedding: LanguageModelEmbedding | None, shifts: Iterable[Tensor]) -> Iterator[None]:
    """Adds one shift to each output of the embedding, in order; the table itself goes on learning."""
    remaining = iter(shifts)

    def add(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output + next(remaining)

    with _hooked(embedding, add):
        yield


@contextmanager
def _hooked(embedding: LanguageModelEmbedding | None, hook: object) -> Iterator[None]:
    if embedding is None:
        yield
        return
    handle = embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
