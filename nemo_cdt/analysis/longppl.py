"""LongPPL's key tokens: those that the model predicts well, and only because of what stands far back.

    log p(x_i | all before) - log p(x_i | short context) > alpha     and     log p(x_i | all before) > beta

The short context of a token begins at the last multiple of ``window`` that is at least ``context`` tokens back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nemo_cdt.analysis.analyzed_model import AnalyzedModel
from nemo_cdt.analysis.estimate import estimate
from nemo_cdt.analysis.groups import as_json, estimates, groups, mean_by_type, type_table
from nemo_cdt.analysis.observe import Observation, shown
from nemo_cdt.analysis.result import Result
from nemo_cdt.analysis.samples import Sample
from nemo_cdt.analysis.scores import bars
from nemo_cdt.analysis.settings import LongPPL


@dataclass(kw_only=True, slots=True)
class KeyTokens:
    """Of the fed tokens. ``gain_N``: how much the long context helps, nats; 0 where it is the short one.

    key_N: bool.  log_p_N: with the whole context; 0 for the first token, which nothing predicts.
    """

    gain_N: np.ndarray
    key_N: np.ndarray
    log_p_N: np.ndarray


def key_tokens(analyzed: AnalyzedModel, sample: Sample, settings: LongPPL) -> KeyTokens:
    ids_N = torch.as_tensor(sample.input_ids, device=analyzed.device)
    with torch.no_grad():
        log_p_N = torch.zeros(len(ids_N), device=analyzed.device)
        log_p_N[1:] = analyzed.log_probabilities(ids_N[None], len(ids_N) - 1)[0]
        gain_N = torch.zeros_like(log_p_N)
        for starts, length in _windows(len(ids_N), settings):
            judged = length - settings.context
            short = analyzed.log_probabilities(torch.stack([ids_N[s : s + length] for s in starts]), judged)
            for start, log_p in zip(starts, short, strict=True):
                at = slice(start + settings.context, start + length)
                gain_N[at] = log_p_N[at] - log_p
    key_N = (gain_N > settings.alpha) & (log_p_N > settings.beta)
    return KeyTokens(
        gain_N=gain_N.double().cpu().numpy(), key_N=key_N.cpu().numpy(), log_p_N=log_p_N.double().cpu().numpy()
    )


def _windows(tokens: int, settings: LongPPL) -> list[tuple[list[int], int]]:
    """(where windows start, their length): batches of whole ones, then one of what is left."""
    whole = settings.context + settings.window
    starts = list(range(0, max(0, tokens - settings.context), settings.window))
    full = [start for start in starts if start + whole <= tokens]
    batches = [(full[i : i + settings.batch], whole) for i in range(0, len(full), settings.batch)]
    return batches + [([start], tokens - start) for start in starts[len(full) :]]


def longppl(analyzed: AnalyzedModel, observations: Sequence[Observation], settings: LongPPL) -> Result:
    analyzed.require_plain_head()
    found = {
        id(one): key_tokens(analyzed, one.sample, settings)
        for one in shown(observations, "long and short context", len(observations))
    }
    by_group = groups(observations)
    key = estimates(by_group, lambda one: mean_by_type(found[id(one)].key_N.astype(float), one.sample.types))
    gain = estimates(by_group, lambda one: mean_by_type(found[id(one)].gain_N, one.sample.types))
    base = estimate([float(found[id(one)].key_N.mean()) for one in observations])
    perplexity = estimate([_perplexity(found[id(one)], np.ones(len(one.sample), bool)) for one in observations])
    long = estimate([_perplexity(found[id(one)], found[id(one)].key_N) for one in observations])
    result = Result(
        title="Which tokens can be predicted only with the long context?",
        explanation=(
            "LongPPL calls a token a key token where the whole context makes it more likely, by more than "
            f"{settings.alpha:g} nats, than the {settings.context:,} to {settings.context + settings.window - 1:,} "
            f"tokens before it, and likely at all (log-probability above {settings.beta:g}). The model itself is the "
            "judge. Unlike the other methods it judges a token by how it is predicted, not by what it contributes to "
            "the answer."
        ),
        headline=[(str(base), "share of tokens that are key"), (str(long), "LongPPL"), (str(perplexity), "perplexity")],
        tables=[
            type_table("Share of key tokens", f"The base rate, over all tokens, is {base}.", key),
            type_table("What the long context adds", "Log-probability with it, less without it, nats.", gain),
        ],
        numbers={
            "key": as_json(key),
            "gain": as_json(gain),
            "base_rate": base.json(),
            "perplexity": perplexity.json(),
            "longppl": long.json(),
        },
    )
    if base.mean > 0:
        caption = f"How many tokens of a type are key; {base.percent()} of all, the grey line. Thin: 95 % intervals."
        title, share = "Share of key tokens, answers right and wrong", "key tokens, of a type's tokens (%)"
        result.drawings.append(bars("longppl_by_type", title, caption, share, key, blind=100 * base.mean))
    else:
        result.notices.append(
            "No token of any sample is a key token, so there is no picture: every share is 0, and LongPPL has no "
            "value. Either the long context makes nothing likelier, or "
            f"longppl.alpha={settings.alpha:g} and longppl.beta={settings.beta:g} ask too much of this model."
        )
    if short := [one for one in observations if len(one.sample) <= settings.context]:
        result.notices.append(
            f"{len(short)} of {len(observations)} samples are no longer than longppl.context={settings.context}, so "
            "that none of their tokens can be key: set a shorter longppl.context, or longer samples."
        )
    return result


def _perplexity(found: KeyTokens, chosen_N: np.ndarray) -> float:
    chosen_N = chosen_N & (np.arange(len(chosen_N)) > 0)
    return float(np.exp(-found.log_p_N[chosen_N].mean())) if chosen_N.any() else np.nan
