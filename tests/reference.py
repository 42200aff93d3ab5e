"""The independent reference: CDT and what it is compared to, on one Hugging Face model in fp32, with plain autograd and
torch's AdamW.

Written from the papers; it shares no code with nemo_cdt.
"""

import math
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel


@dataclass
class ReferenceStep:
    loss: float  # plain cross-entropy
    masks: list[torch.Tensor]  # bool [n - 1] a document
    deltas: list[torch.Tensor]  # [n - 1, hidden] a document
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: list[torch.Tensor] = field(default_factory=list)  # [labels] a document


def cosine(lr: float, min_lr: float, max_steps: int):
    return lambda step: min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * step / max_steps))


class ReferenceCDT:
    """beta=None trains without denoising, longce=None without weights; else it is (window, internal, gamma)."""

    def __init__(
        self,
        model: PreTrainedModel,
        lr,
        *,
        beta,
        weight_decay,
        clip_grad,
        eps,
        normalization="gradient",
        rho=0.0,
        longce=None,
    ):
        self.longce = longce
        self.grad_norm = 0.0  # of the last step, before it is clipped: Adam hides what a gradient is divided by
        self.model, self.lr, self.beta, self.clip_grad, self.steps = model, lr, beta, clip_grad, 0
        self.normalization, self.rho = normalization, rho
        trained = [p for p in model.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.dim() > 1]
        kept = [p for p in trained if p.dim() == 1]
        self.adam = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}],
            lr=lr(0),
            betas=(0.9, 0.95),
            eps=eps,
        )

    def losses(self, embeddings, labels):
        """Cross-entropy of every labelled position, in order."""
        logits = self.model(inputs_embeds=embeddings[None]).logits[0]
        known = labels != -100
        return torch.nn.functional.cross_entropy(logits[known].float(), labels[known], reduction="none")

    def detect(self, tokens, labels, lr):
        table = self.model.get_input_embeddings()
        embeddings = table(tokens).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.losses(embeddings, labels).mean(), embeddings)
        norms = gradient.norm(dim=-1)
        noise = norms < norms.mean()
        if self.normalization == "relative":
            step = self.rho * embeddings.detach().norm(dim=-1, keepdim=True) * gradient / norms[:, None]
        else:
            step = lr * self.beta * gradient
        return noise, torch.where(noise[:, None], -step, 0.0)

    def weights(self, input_ids, labels, full):
        """LongCE's, of every labelled target: one window after another, as its authors run them."""
        known = labels[1:] != -100
        if self.longce is None:
            return torch.ones(int(known.sum()))
        window, internal, gamma = self.longce
        weight = torch.ones(len(input_ids))
        full_of = torch.zeros(len(input_ids))
        full_of[1:][known] = full.detach()
        for start in range(0, len(input_ids) - window, internal):
            ids = input_ids[start : start + window + internal]
            with torch.no_grad():
                logits = self.model(ids[None]).logits[0]
            short = torch.nn.functional.cross_entropy(logits[window - 1 : -1], ids[window:], reduction="none")
            measured = slice(start + window, start + len(ids))
            weight[measured] = torch.exp(short - full_of[measured])
        return weight.clamp(max=gamma)[1:][known]

    def step(self, documents) -> ReferenceStep:
        """documents: (input_ids, labels) of n tokens each, Hugging Face's convention."""
        lr = self.lr(self.steps)
        masks, deltas, weights, plain, total, count = [], [], [], 0.0, 0.0, 0
        for input_ids, all_labels in documents:
            tokens, labels = input_ids[:-1], all_labels[1:]
            noise, delta = torch.zeros(len(tokens), dtype=torch.bool), torch.zeros(1)
            if self.beta is not None:
                noise, delta = self.detect(tokens, labels, lr)
            masks.append(noise)
            deltas.append(delta)
            losses = self.losses(self.model.get_input_embeddings()(tokens) + delta, labels)
            weights.append(self.weights(input_ids, all_labels, losses))
            plain += losses.sum().item()
            total, count = total + (weights[-1] * losses).sum(), count + len(losses)
        loss = total / count
        self.adam.zero_grad()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.requires_grad}
        self.grad_norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad))
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.steps += 1
        return ReferenceStep(plain / count, masks, deltas, gradients, weights)


class ReferenceLOGO(ReferenceCDT):
    """LOGO's loss: its batches are preferences, (chosen, rejected, rejected) of (input_ids, labels) each."""

    def __init__(self, model, lr, *, preference_beta, margin, sft_weight, **how):
        super().__init__(model, lr, beta=None, **how)
        self.preference_beta, self.margin, self.sft_weight = preference_beta, margin, sft_weight

    def mean_log_probability(self, input_ids, labels):
        return -self.losses(self.model.get_input_embeddings()(input_ids[:-1]), labels[1:]).mean()

    def step(self, preferences) -> float:
        total = 0.0
        for answers in preferences:
            chosen, first, second = (self.mean_log_probability(*answer) for answer in answers)
            margin = chosen - (first + second) / 2 - self.margin
            total += -torch.log(torch.sigmoid(self.preference_beta * margin)) - self.sft_weight * chosen
        loss = total / len(preferences)
        lr = self.lr(self.steps)
        self.adam.zero_grad()
        loss.backward()
        self.grad_norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad))
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.steps += 1
        return loss.item()
