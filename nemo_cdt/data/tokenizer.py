"""Tokenizers: any Hugging Face folder, and a byte-level one that is built here and needs no download."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from nemo_cdt.utils.reading import FileError, blamed_on, read_json

SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CONFIG = "tokenizer_config.json"
JSON_FILES = ("tokenizer.json", CONFIG, "special_tokens_map.json", "added_tokens.json")

# Every turn ends with eos, so that a reply ends as a document does.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|' + message['role'] + '|>' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + eos_token -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """``"byte"``, or the path of a folder that holds a Hugging Face tokenizer with a ``tokenizer.json``."""
    return byte_tokenizer() if name == "byte" else _from_folder(Path(name))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, its id the byte's value; the special tokens follow from 256 on."""
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    bos, eos, pad, *roles = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=roles,
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],  # a Llama's generate() refuses token_type_ids
        clean_up_tokenization_spaces=False,
    )


def _from_folder(folder: Path) -> PreTrainedTokenizerFast:
    if not folder.is_dir():
        raise ValueError(f"model.tokenizer={folder}: no such folder; set 'byte' or a Hugging Face tokenizer folder")
    _require_sound_files(folder)
    with blamed_on(f"model.tokenizer={folder}", "no Hugging Face tokenizer folder", whatever=True):
        tokenizer = read_tokenizer(folder)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"model.tokenizer={folder}: a slow tokenizer; save it with a tokenizer.json beside it")
    return tokenizer


def read_tokenizer(folder: Path) -> Any:
    """A folder's tokenizer, of transformers 4 or 5; no code of the folder's is run."""
    said = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    now = of_transformers_4(said)
    how: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if now == said:
        return AutoTokenizer.from_pretrained(folder, **how)
    changed = {key: value for key, value in now.items() if said.get(key) != value and key != "tokenizer_class"}
    return PreTrainedTokenizerFast.from_pretrained(folder, **how, **changed)


def of_transformers_4(said: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json`` in the words of transformers 4, where it is in those of 5.

    Version 5 has one class for what a ``tokenizer.json`` holds, and lists further special tokens without names.
    """
    now = dict(said)
    if now.get("tokenizer_class") in ("TokenizersBackend", "TokenizersBackendFast"):
        now["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := now.get("extra_special_tokens"), list):
        more = now.get("additional_special_tokens") or []
        now |= {"extra_special_tokens": {}, "additional_special_tokens": [*more, *(t for t in extra if t not in more)]}
    return now


def _require_sound_files(folder: Path) -> None:
    """transformers would wait for a named pipe, and names no file of which it makes nothing."""
    for name in JSON_FILES:
        if (folder / name).exists():
            read_json(folder / name)


def encode(tokenizer: PreTrainedTokenizerFast, text: str, **how: bool) -> Any:
    """What ``tokenizer(text)`` returns, without a word on long texts.

    Raises:
        ValueError: where the tokenizer has no tokens for it.
    """
    try:
        with blamed_on("the tokenizer", "it has no tokens for this text", whatever=True):
            return tokenizer(text, verbose=False, **how)
    except FileError as error:
        raise ValueError(str(error)) from error  # the file that the text is in is not named yet


def token_texts(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    """What each token writes. Joined and encoded with "surrogateescape", they are the bytes of the whole text.

    A token may hold a part of a character only: its bytes are lone surrogates, as ``bytes.decode`` makes them.
    """
    if not isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return [tokenizer.decode([token]) for token in ids]
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    added = tokenizer.added_tokens_decoder
    written = (str(tokenizer.convert_ids_to_tokens(token) or "") for token in ids)  # a padded vocabulary has more ids
    return [
        # A vocabulary may hold what the tokenizer never writes: characters that stand for no byte.
        text if token in added or not byte_of.keys() >= {*text} else _of_bytes(map(byte_of.__getitem__, text))
        for token, text in zip(ids, written, strict=True)
    ]


def _of_bytes(values: Iterable[int]) -> str:
    return bytes(values).decode("utf-8", "surrogateescape")
