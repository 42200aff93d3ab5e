"""Our peer: CDT as its authors wrote it, in Hugging Face transformers and plain autograd, on one device.

Written from the method, as a user would today. It shares widths, lengths and labels with ours and runs:

    detection   a whole backward pass, no weight frozen, for the embedding's gradient; then zero_grad()
    training    on the embedding less lr * beta * gradient where the gradient's norm is below its mean; AdamW

Nothing is held back: bf16 throughout, gradients and Adam's moments too (8 bytes a weight, where ours has 18: fp32
gradients, masters and moments), torch's fused AdamW, SDPA with its flash kernel pinned and grouped queries unrepeated,
non-reentrant checkpointing, no cache; no package beside torch and transformers (Liger, flash-attn). ``head`` is where
logits are computed: at every position, as the model does unless told otherwise, or from the first labelled one on
(``logits_to_keep``). A plain step alternates with the CDT step.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.ceilings import mfu, peak
from benchmarks.measured import SEARCH, Row, attempted, longest, on_gpu, repeated, shape, timed

LENGTHS = (8192, 32768, 65536, 131072) if on_gpu() else (256,)
FEW = 16
LR, BETA, CLIP = 1e-5, 5.0, 1.0


@dataclass
class Peer:
    """A model, its optimizer or None, and the two kinds of step on tokens and labels [1, S]."""

    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer | None
    keep: int = field(default=0)  # last positions at which logits are computed; 0: all

    def plain(self, tokens_1S: Tensor, labels_1S: Tensor) -> None:
        self._train(self._embedding(tokens_1S), labels_1S)

    def cdt(self, tokens_1S: Tensor, labels_1S: Tensor) -> None:
        leaf_1SH = self._embedding(tokens_1S).detach().requires_grad_()
        self._loss(leaf_1SH, labels_1S).backward()
        self.model.zero_grad()
        self._train(self._embedding(tokens_1S) - shift(leaf_1SH), labels_1S)

    def _train(self, embedding_1SH: Tensor, labels_1S: Tensor) -> None:
        self._loss(embedding_1SH, labels_1S).backward()
        if self.optimizer is not None:
            clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
        self.model.zero_grad()

    def _embedding(self, tokens_1S: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(tokens_1S)

    def _loss(self, embedding_1SH: Tensor, labels_1S: Tensor) -> Tensor:
        labels = labels_1S[:, -self.keep :] if self.keep else labels_1S
        # Without a mask transformers looks for packed documents and makes one, which no flash kernel takes.
        everything_1S = torch.ones_like(labels_1S)
        output = self.model(
            inputs_embeds=embedding_1SH,
            attention_mask=everything_1S,
            labels=labels,
            logits_to_keep=self.keep,
            use_cache=False,
        )
        return output.loss


@torch.no_grad()
def shift(leaf_1SH: Tensor) -> Tensor:
    grad_1SH = leaf_1SH.grad
    assert grad_1SH is not None
    norm_1S = torch.linalg.vector_norm(grad_1SH, dim=-1, dtype=torch.float32)
    return LR * BETA * grad_1SH * (norm_1S < norm_1S.mean()).unsqueeze(-1)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    peer = built(arguments.layers, arguments.no_optimizer)
    settings = {"layers": peer.model.config.num_hidden_layers, "labels": arguments.labels}
    heads = {"all": 0} | ({"labelled": FEW + 1} if arguments.labels == "few" else {})
    if arguments.longest:
        peer.model.gradient_checkpointing_enable({"use_reentrant": False})
        for head, peer.keep in heads.items():
            for row in longest(lambda n: attempted(trained, peer, n, arguments.labels), *SEARCH):
                yield settings | {"head": head, "checkpointing": "full"} | row
        return
    ceiling = peak()
    yield settings | {"ceiling_tflops": ceiling}
    for length in arguments.lengths or LENGTHS:
        for checkpointing in ("none", "full"):
            if checkpointing == "none":
                peer.model.gradient_checkpointing_disable()
            else:
                peer.model.gradient_checkpointing_enable({"use_reentrant": False})
            for head, peer.keep in heads.items():
                row = settings | {"seq_length": length, "checkpointing": checkpointing, "head": head}
                yield row | attempted(compared, peer, length, arguments, ceiling)


def built(num_layers: int | None, no_optimizer: bool) -> Peer:
    m = shape(num_layers)
    config = LlamaConfig(
        hidden_size=m.hidden_size,
        intermediate_size=m.ffn_hidden_size,
        num_hidden_layers=m.num_layers,
        num_attention_heads=m.num_attention_heads,
        num_key_value_heads=m.num_query_groups,
        vocab_size=m.vocab_size,
        max_position_embeddings=2**22,
    )
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.bfloat16 if on_gpu() else None
        ).train()
    fused = None if no_optimizer else torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), fused=True)
    return Peer(model, fused)


def compared(peer: Peer, length: int, arguments: argparse.Namespace, ceiling: float) -> Row:
    """Both kinds of step, one after the other, as often as asked for."""
    kinds: dict[str, Callable] = {"plain": peer.plain, "cdt": peer.cdt}
    peer.model.zero_grad()  # what an attempt without room for it left
    tokens, labels = document(peer, length, arguments.labels)
    found: dict[str, list[tuple[float, float | None]]] = {kind: [] for kind in kinds}
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for _ in range(1 + arguments.repetitions):  # the first warms up
            for kind, step in kinds.items():
                found[kind].append(timed(step, tokens, labels))
    labelled = peer.keep / length if peer.keep else 1.0
    row: Row = {f"{kind}_s": repeated([seconds for seconds, _ in steps[1:]]) for kind, steps in found.items()}
    median = {kind: row[f"{kind}_s"]["median"] for kind in kinds}
    row["ratio"] = median["cdt"] / median["plain"]
    for kind in kinds:
        row[f"{kind}_tokens_per_s"] = length / median[kind]
        row[f"{kind}_mfu"] = mfu(shape(arguments.layers), length, median[kind], kind, labelled, ceiling)
        row[f"{kind}_peak_gib"] = found[kind][-1][1]
    return row


def trained(peer: Peer, length: int, labels: str) -> Row:
    """Two steps: Adam's state comes with the first and weighs on the second."""
    peer.model.zero_grad()  # what an attempt without room for it left
    given = document(peer, length, labels)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        timed(peer.cdt, *given)
        seconds, memory = timed(peer.cdt, *given)
    return {"step_s": seconds, "peak_memory_gib": memory, "tokens_per_s": length / seconds}


def document(peer: Peer, length: int, labels: str) -> tuple[Tensor, Tensor]:
    tokens_1S = torch.randint(peer.model.config.vocab_size, (1, length), device=device())
    labels_1S = tokens_1S.clone()
    if labels == "few":
        labels_1S[:, :-FEW] = -100
    return tokens_1S, labels_1S


def device() -> str:
    return "cuda" if on_gpu() else "cpu"
