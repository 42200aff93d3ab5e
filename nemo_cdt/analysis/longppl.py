"""LongPPL's key tokens by type: which tokens can be predicted only with the long context?"""

from collections.abc import Sequence

import numpy as np

from nemo_cdt.analysis.analyzed_model import AnalyzedModel
from nemo_cdt.analysis.estimate import estimate
from nemo_cdt.analysis.groups import as_json, estimates, groups, mean_by_type, type_table
from nemo_cdt.analysis.observe import Observation, shown
from nemo_cdt.analysis.result import Result
from nemo_cdt.analysis.scores import bars
from nemo_cdt.config import KeyTokenRule
from nemo_cdt.evaluation.longppl import key_tokens
from nemo_cdt.evaluation.perplexity import perplexity_of


def longppl(analyzed: AnalyzedModel, observations: Sequence[Observation], settings: KeyTokenRule) -> Result:
    analyzed.require_plain_head()
    found = {
        id(one): key_tokens(analyzed.log_probabilities, one.sample.input_ids, settings, analyzed.device)
        for one in shown(observations, "long and short context", len(observations))
    }
    by_group = groups(observations)
    key = estimates(by_group, lambda one: mean_by_type(found[id(one)].key_N.astype(float), one.sample.types))
    gain = estimates(by_group, lambda one: mean_by_type(found[id(one)].gain_N, one.sample.types))
    base = estimate([float(found[id(one)].key_N.mean()) for one in observations])
    perplexity = estimate(
        [perplexity_of(found[id(one)].log_p_N, np.ones(len(one.sample), bool)) for one in observations]
    )
    long = estimate([perplexity_of(found[id(one)].log_p_N, found[id(one)].key_N) for one in observations])
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
