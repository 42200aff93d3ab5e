"""Which tokens of the validation documents are LongPPL's key tokens, by the word of an evaluator model."""

import logging
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from transformers import PreTrainedTokenizerFast

from nemo_cdt.config import Config
from nemo_cdt.data.documents import IGNORE, Documents
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.evaluation.longppl import key_tokens
from nemo_cdt.evaluation.model import EvaluatedModel, read_config, read_model
from nemo_cdt.utils.atomic_write import new_file
from nemo_cdt.utils.reading import blamed_on

logger = logging.getLogger("nemo_cdt")


def judged(
    config: Config, tokenizer: PreTrainedTokenizerFast, documents: Documents, on_gpu: bool
) -> list[np.ndarray] | None:
    """Of each document, bool [n]; None where no evaluator is named.

    One rank asks the evaluator, before training needs the device; OUTPUT/key_tokens.npz holds what it said, for the
    others and for a run that goes on.

    Raises:
        ValueError: where the evaluator is no model of transformers, has another tokenizer, or no token is key.
    """
    if config.longppl.evaluator is None:
        return None
    file = Path(config.output, "key_tokens.npz")
    with FileLock(file.with_name(".key_tokens.lock")):
        if not file.exists():
            found = _asked(config, tokenizer, documents, on_gpu)
            with new_file(file) as partial:
                np.savez(partial, **{str(index): key for index, key in enumerate(found)})
    with blamed_on(file, "it is damaged, remove it", whatever=True), np.load(file, allow_pickle=False) as saved:
        return [saved[str(index)] for index in range(len(documents))]


def _asked(config: Config, tokenizer: PreTrainedTokenizerFast, documents: Documents, on_gpu: bool) -> list[np.ndarray]:
    how, folder = config.longppl, Path(str(config.longppl.evaluator))
    try:
        its_own = load_tokenizer(str(folder))
    except ValueError as error:
        raise ValueError(str(error).replace("model.tokenizer", "longppl.evaluator")) from error
    if its_own.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"longppl.evaluator={folder} has another tokenizer than this run: set one of the same family, or null"
        )
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    judge = EvaluatedModel(read_model(folder, read_config(folder), config.trainer.precision).to(device))
    judge.require_plain_head()
    members = [documents[index] for index in range(len(documents))]
    found = [key_tokens(judge.log_probabilities, one.input_ids, how, device).key_N for one in members]
    key = sum(int((one.labels != IGNORE)[1:] @ key[1:]) for one, key in zip(members, found, strict=True))
    if not key:
        raise ValueError(
            f"longppl.evaluator={folder} finds no key token among the labelled ones of {len(members)} validation "
            f"documents: set a shorter longppl.context than {how.context}, longer documents, or longppl.evaluator=null"
        )
    logger.info("LongPPL: %d key tokens in %d validation documents, by %s", key, len(members), folder)
    return found
