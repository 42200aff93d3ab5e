"""A tap on Megatron's embedding: read the gradient of its output, or shift its output."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from torch import Tensor, nn


def find_embedding(chunks: Iterable[nn.Module]) -> LanguageModelEmbedding | None:
    """The input embedding among these model chunks, or None on pipeline stages that hold none."""
    found = [m for chunk in chunks for m in chunk.modules() if isinstance(m, LanguageModelEmbedding)]
    assert len(found) <= 1, f"{len(found)} input embeddings in one pipeline stage"
    return found[0] if found else None


@contextmanager
def watched(embedding: LanguageModelEmbedding | None) -> Iterator[list[Tensor]]:
    """Makes each output of the embedding a leaf, and collects the leaves, one a forward, for their ``.grad``."""
    leaves: list[Tensor] = []

    def as_leaf(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    with _hooked(embedding, as_leaf):
        yield leaves


@contextmanager
def shifted(embedding: LanguageModelEmbedding | None, deltas: Iterable[Tensor]) -> Iterator[None]:
    """Adds one delta to each output of the embedding, in order; the table itself goes on learning."""
    remaining = iter(deltas)

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
