"""FLOPs of a training step, a token at a time, and the floor of a CDT step against a plain one.

F is the forward of all linears of the layers, H that of the head, A that of causal attention at this length, half a
square on average or a sliding window. A linear's dgrad and wgrad cost F each; flash attention's backward 2.5 A (five
products beside two).

    training              3 F + 3.5 A + 3 H        detection, frozen     2 F + 3.5 A + 2 H
    full recompute        adds F + A               mlp recompute         adds the MLP's share of F
    an objective's own    what its `cost` says
"""

from dataclasses import dataclass

from nemo_cdt.config import Config, DataName, Model, Recompute

VOCABULARY = 128256
"""Assumed where the tokenizer decides the vocabulary: Llama 3's."""
FLASH_BACKWARD = 2.5
OF_LONGEST = 0.66
"""How long a packed document is to its average token, as a share of the longest: the sum of squared lengths over the
sum of lengths, for those of the alignment set (seven of eight uniform from an eighth of the longest, one an eighth)."""


@dataclass(kw_only=True, slots=True)
class Work:
    """FLOPs of one token, by the kernels that do them: they run at different rates."""

    linears: float
    attention_forward: float
    attention_backward: float
    head: float

    @property
    def total(self) -> float:
        return self.linears + self.attention_forward + self.attention_backward + self.head


def vocabulary(model: Model) -> int:
    return model.vocab_size or VOCABULARY


def mlp_weights(model: Model) -> int:
    """Weights of one layer's gated MLP."""
    return 3 * model.hidden_size * model.ffn_hidden_size


def attention_weights(model: Model) -> int:
    """Weights of one layer's four projections."""
    return 2 * model.hidden_size * (model.query_size + model.key_size)


def biases(model: Model) -> int:
    """Of one layer, split as the rows of its projections are."""
    return (model.query_size + 2 * model.key_size) * model.qkv_bias


def norm_weights(model: Model) -> int:
    """Of one layer, on every rank."""
    return 2 * model.hidden_size + 2 * model.head_size * model.qk_norm


def head_weights(model: Model) -> int:
    return vocabulary(model) * model.hidden_size


def work(
    model: Model,
    seq_length: int,
    recompute: Recompute = Recompute.none,
    *,
    frozen: bool = False,
    labelled: float = 1.0,
    head_recompute: bool = False,
    mlp_recompute: bool = False,
) -> Work:
    """A forward and backward of one token.

    frozen: no weight gradients, as in detection.  labelled: the share of the tokens at which logits are computed.
    head_recompute: logits are computed again in backward.  mlp_recompute: so are MLPs that are recomputed already.
    """
    mlp = 2 * model.num_layers * mlp_weights(model)
    forward = mlp + 2 * model.num_layers * attention_weights(model)
    again = {Recompute.none: 0, Recompute.selective: mlp, Recompute.full: forward + mlp_recompute * mlp}[recompute]
    attention = 4 * model.num_layers * model.query_size * keys(model, seq_length)
    products = 2 if frozen else 3
    return Work(
        linears=products * forward + again,
        attention_forward=attention * (2 if recompute is Recompute.full else 1),
        attention_backward=FLASH_BACKWARD * attention,
        head=(products + head_recompute) * 2 * head_weights(model) * labelled,
    )


def of_config(config: Config, recompute: Recompute, *, frozen: bool) -> Work:
    """As this code trains: every token labelled, logits made again in backward, attention within packed documents,
    whose lengths vary as the alignment set's do."""
    return work(
        config.model,
        attended(config),
        recompute,
        frozen=frozen,
        head_recompute=True,
        mlp_recompute=config.trainer.mlp_chunks > 1,
    )


def keys(model: Model, seq_length: int) -> float:
    """To how many positions one attends, on average over a document of this length."""
    window = min(model.sliding_window or seq_length, seq_length)
    return window - window**2 / (2 * seq_length)


def attended(config: Config) -> int:
    """Positions of the document that a token is in, on average over tokens: that decides what attention costs."""
    data = config.data
    if data.name is DataName.preferences:
        return data.seq_length // 3  # a chosen and two rejected answers a row
    longest = data.document_length or data.seq_length
    return int(longest * OF_LONGEST) if data.pack else data.seq_length


def useful(model: Model, seq_length: int, *, frozen: bool = False, labelled: float = 1.0) -> float:
    """FLOPs of one token that an MFU counts: nothing twice, and attention's backward as two forwards."""
    once = work(model, seq_length, frozen=frozen, labelled=labelled)
    return once.total - (FLASH_BACKWARD - 2) * once.attention_forward


def floor(training: Work, detection: Work, plain: Work | None = None) -> float:
    """The least a CDT step can cost, as a multiple of a plain step (``training`` itself, unless given)."""
    return (training.total + detection.total) / (plain or training).total
