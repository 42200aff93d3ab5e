import json

import pytest
from transformers import AutoTokenizer

from nemo_cdt.checkpoint.huggingface import copy_tokenizer
from nemo_cdt.data.tokenizer import load_tokenizer, token_texts

TEXTS = [
    "",
    "plain",
    "  two  spaces \n\t.",
    "naïve 東京 🦊👩‍👩‍👧 \u0000\u00ad",
    "<|eos|> and <|user|>",
    "a ,b 's n't .",
]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_decode_to_the_text_they_encode(byte, text):
    assert byte.decode(byte.encode(text)) == text


def test_a_byte_is_its_own_token(byte):
    expected = list("é🦊 a".encode())
    assert byte.encode("é🦊 a") == expected
    assert byte.encode("<|bos|><|eos|><|pad|>") == [256, 257, 258]
    assert (byte.bos_token_id, byte.eos_token_id, byte.pad_token_id, len(byte)) == (256, 257, 258, 262)


def test_every_byte_of_an_emoji_has_the_emojis_character_span(byte):
    expected = [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert byte("a🦊b", return_offsets_mapping=True)["offset_mapping"] == expected


def test_the_byte_tokenizer_survives_a_hugging_face_folder(byte, tmp_path):
    byte.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.get_vocab() == byte.get_vocab()
    assert again.chat_template == byte.chat_template
    assert again.encode("A 🦊<|eos|>") == byte.encode("A 🦊<|eos|>")


def test_the_chat_template_masks_the_assistants_turns(byte):
    messages = [{"role": "user", "content": "Hi 🦊"}, {"role": "assistant", "content": "é"}]
    chat = byte.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert byte.decode(chat["input_ids"]) == "<|bos|><|user|>Hi 🦊<|eos|><|assistant|>é<|eos|>"
    said = [token for token, mask in zip(chat["input_ids"], chat["assistant_masks"], strict=True) if mask]
    assert byte.decode(said) == "é<|eos|>"
    prompt = byte.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|bos|><|user|>Hi 🦊<|eos|><|assistant|>"


def test_a_hugging_face_folder_is_loaded(bpe):
    assert bpe.decode(bpe.encode("The apple 🦊."), skip_special_tokens=True) == "The apple 🦊."
    assert bpe.encode("The")[0] == bpe.bos_token_id


def test_a_missing_folder_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match=r"model\.tokenizer=.*nowhere: no such folder; set 'byte' or"):
        load_tokenizer(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": {"model_type": "llama"}},
        {"config.json": {"model_type": "llama"}, "tokenizer.json": {"model": "broken"}},
        {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "T"}},
    ],
    ids=["empty", "no tokenizer", "damaged", "code of its own"],
)
def test_a_folder_without_a_usable_tokenizer_is_one_clear_line(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^model\.tokenizer=.*: no Hugging Face tokenizer folder") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", TEXTS)
def test_the_texts_of_tokens_joined_are_the_text(tokenizer, text):
    texts = token_texts(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert "".join(texts).encode("utf-8", "surrogateescape") == text.encode()


def test_a_token_of_no_text_writes_nothing(byte):
    assert token_texts(byte, [97, 300]) == ["a", ""]


def as_transformers_5_writes_it(folder, **changes):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_tokenizer_of_transformers_5_is_the_same(byte, tmp_path):
    byte.save_pretrained(tmp_path)
    expected = load_tokenizer(str(tmp_path))
    extra = ["<|user|>", "<|assistant|>", "<|system|>"]
    as_transformers_5_writes_it(tmp_path, tokenizer_class="TokenizersBackend", extra_special_tokens=extra)
    as_transformers_5_writes_it(tmp_path, additional_special_tokens=None)

    found = load_tokenizer(str(tmp_path))

    assert found.get_vocab() == expected.get_vocab()
    assert found.encode("A 🦊<|eos|>") == expected.encode("A 🦊<|eos|>")
    assert set(found.all_special_tokens) == set(expected.all_special_tokens)
    assert (found.bos_token, found.eos_token, found.pad_token) == ("<|bos|>", "<|eos|>", "<|pad|>")
    assert found.chat_template == expected.chat_template


def test_a_copy_of_a_tokenizer_speaks_as_transformers_4_does_and_has_every_template(byte, tmp_path):
    source, copy = tmp_path / "source", tmp_path / "copy"
    byte.save_pretrained(source)
    as_transformers_5_writes_it(source, tokenizer_class="TokenizersBackend", extra_special_tokens=["<|user|>"])
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool_use.jinja").write_text("tools")

    copy_tokenizer(source, copy)

    assert all(path.is_file() for path in copy.iterdir())
    found = AutoTokenizer.from_pretrained(copy)
    assert found.chat_template == {"default": byte.chat_template, "tool_use": "tools"}
    assert found.encode("<|user|>A") == byte.encode("<|user|>A")
