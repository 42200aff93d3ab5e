"""A byte-pair tokenizer as Llama 3's works, trained on the default haystack: merges, a bos of its own, headers."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from nemo_cdt.data.haystack import load_haystack
from nemo_cdt.data.tokenizer import load_tokenizer

HEADERS_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|head|>' + message['role'] + '<|body|>\\n\\n' + message['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|body|>\\n\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def byte():
    return load_tokenizer("byte")


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory):
    special = ["<|bos|>", "<|eos|>", "<|head|>", "<|body|>", "<|eot|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        load_haystack(None),
        trainers.BpeTrainer(vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", backend.token_to_id("<|bos|>"))]
    )
    folder = tmp_path_factory.mktemp("bpe")
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|eos|>", chat_template=HEADERS_TEMPLATE
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bpe(bpe_folder):
    return load_tokenizer(str(bpe_folder))


@pytest.fixture(params=["byte", "bpe"])
def tokenizer(request):
    return request.getfixturevalue(request.param)
