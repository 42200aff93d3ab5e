import os
import signal
import subprocess
import sys
import time
from copy import deepcopy

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from nemo_cdt.data import templates
from nemo_cdt.data.documents import IGNORE
from nemo_cdt.data.jsonl import chat_tokens
from nemo_cdt.data.templates import BrokenTemplateError, rendered

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the fox 🦊?"},
    {"role": "assistant", "content": "In the garden 🦊"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Gone."},
]
MARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{% endfor %}"
)


def with_template(tokenizer, template):
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 + messages[0]['content'] }}", "TypeError: unsupported operand"),
        ("{% include 'x' %}", "TypeError: no loader for this environment specified"),
        ("{% import 'x' as x %}", "TypeError: no loader"),
        ("{% extends '/etc/passwd' %}", "TypeError: no loader"),
        ("{{ messages[9]['content'] }}", "list object has no element 9"),
        ("{% for x in %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "access to attribute '__class__'"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ raise_exception('one\ntwo') }}", "one two$"),
    ],
)
def test_what_a_template_does_wrong_is_one_line(byte, template, reason):
    with pytest.raises(ValueError, match=rf"^the tokenizer's chat template refuses these messages: .*{reason}") as told:
        chat_tokens(with_template(byte, template), CHAT)
    assert "\n" not in str(told.value)
    assert not isinstance(told.value, BrokenTemplateError)
    assert rendered(byte, CHAT)[0].startswith("<|bos|>")


DOUBLED = "{% set x = namespace(y='x') %}{% for a in range(40) %}{% set x.y = x.y + x.y %}{% endfor %}{{ x.y }}"
FOR_EVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (FOR_EVER, "takes more than 1 seconds"),
        ("{{ 9 ** (9 ** 9) }}", "takes more than 1 seconds"),
        ("{{ 'x' * 10 ** 10 }}", "needs more than 1,024 MiB of memory"),
        (
            "{% set x = namespace(y='x') %}{% for a in range(40) %}{% set x.y = x.y + x.y %}{% endfor %}{{ x.y }}",
            "(needs|takes)",
        ),
        ("{{ 'x' * 2 * 10 ** 7 }}", "writes more than 16,777,216 characters"),
        ("{{ '%1000000000000s' % 'x' }}", "needs more than"),
    ],
)
def test_a_template_that_takes_more_than_it_may_is_ended(byte, monkeypatch, template, reason):
    monkeypatch.setattr(templates, "SECONDS", 1.0)
    with pytest.raises(BrokenTemplateError, match=rf"^the tokenizer's chat template {reason}.* for one chat$"):
        chat_tokens(with_template(byte, template), CHAT)
    assert rendered(byte, CHAT)[0].startswith("<|bos|>")


def test_tokens_are_those_of_transformers_and_labels_where_it_has_them(tokenizer):
    for template in (MARKED, tokenizer.chat_template):
        tokenizer = with_template(tokenizer, template)
        ids, labels = chat_tokens(tokenizer, CHAT)
        expected = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
        assert ids.tolist() == expected["input_ids"]
        if templates.marks(template):
            assert (labels != IGNORE).tolist() == [bool(mask) for mask in expected["assistant_masks"]]


SPACED = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": " hello there "},
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "hello 🦊"},
]


@pytest.mark.parametrize("template", [MARKED, None], ids=["marked", "by prefixes"])
def test_an_answer_that_begins_or_ends_with_a_space_is_labelled_wholly_and_later_ones_too(bpe, template):
    """The offsets of a byte-level tokenizer leave the spaces out."""
    plain = "{% for m in messages %}{{ '<|head|>' + m['role'] + '<|body|>' + m['content'] + '<|eot|>' }}{% endfor %}"
    prompt = "{% if add_generation_prompt %}<|head|>assistant<|body|>{% endif %}"
    tokenizer = with_template(bpe, template or plain + prompt)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    ids, labels = chat_tokens(tokenizer, SPACED)
    end = "<|eos|>" if template else "<|eot|>"
    answers = [message["content"] + end for message in SPACED if message["role"] == "assistant"]
    assert tokenizer.decode(labels[labels != IGNORE]) == "".join(answers)
    np.testing.assert_array_equal(labels[labels != IGNORE], ids[labels != IGNORE])


def test_transformers_own_mask_would_lose_them(bpe):
    """The twin: what this replaces."""
    tokenizer = with_template(bpe, MARKED)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    found = tokenizer.apply_chat_template(SPACED, return_dict=True, return_assistant_tokens_mask=True)
    assert sum(found["assistant_masks"]) < (chat_tokens(tokenizer, SPACED)[1] != IGNORE).sum()


def test_a_text_that_the_tokenizer_has_no_tokens_for_is_one_line():
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=MARKED)
    with pytest.raises(ValueError, match=r"^the tokenizer: it has no tokens for this text \(.*UNK"):
        chat_tokens(tokenizer, CHAT)


@pytest.mark.parametrize("template", [7, ["x"], {"rag": "x"}], ids=["number", "list", "none by default"])
def test_a_template_that_is_none_is_one_line(byte, template):
    with pytest.raises(ValueError, match="chat template"):
        chat_tokens(with_template(byte, template), CHAT)


def test_of_several_templates_the_default_one_is_taken(byte):
    several = with_template(byte, {"rag": "{{ 1 // 0 }}", "default": byte.chat_template})
    np.testing.assert_array_equal(chat_tokens(several, CHAT), chat_tokens(byte, CHAT))


def test_a_forked_process_starts_a_renderer_of_its_own(byte):
    expected, before = rendered(byte, CHAT), templates._renderer.pid
    reader, writer = os.pipe()
    if (forked := os.fork()) == 0:
        same = rendered(byte, CHAT) == expected
        os.write(writer, f"{same} {templates._renderer.pid}".encode())
        os._exit(0)
    os.waitpid(forked, 0)
    same, pid = os.read(reader, 100).decode().split()
    assert same == "True"
    assert int(pid) != before
    assert rendered(byte, CHAT) == expected
    assert templates._renderer.pid == before
    gone(int(pid))


def gone(pid):
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


PARENT = """
import sys, time
from nemo_cdt.data import templates
from nemo_cdt.data.tokenizer import load_tokenizer
byte = load_tokenizer("byte")
templates.rendered(byte, [{"role": "assistant", "content": "x"}])
print(templates._renderer.pid, flush=True)
byte.chat_template, templates.SECONDS = sys.argv[1], 2.0
templates.rendered(byte, [{"role": "assistant", "content": "x"}])
time.sleep(60)
"""


@pytest.mark.parametrize("template", ["x", FOR_EVER], ids=["idle", "at work"])
def test_the_renderer_ends_with_its_parent_however_that_ends(template):
    parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", PARENT, template], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    gone(pid)


def test_a_renderer_that_was_killed_between_two_chats_is_started_anew(byte):
    expected = rendered(byte, CHAT)
    os.kill(templates._renderer.pid, signal.SIGKILL)
    templates._renderer.wait()
    assert rendered(byte, CHAT) == expected


def test_a_signal_to_the_whole_job_is_for_its_parent(byte):
    rendered(byte, CHAT)
    before = templates._renderer.pid
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(before, name)
    rendered(byte, CHAT)
    assert templates._renderer.pid == before


def test_nothing_of_the_working_directory_is_imported(byte, tmp_path, monkeypatch):
    for name in ("jinja2", "json", "transformers", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    templates._end()
    rendered(byte, CHAT)
    assert not (tmp_path / "executed").exists()


def test_the_date_in_a_chat_is_the_same_every_day(byte):
    template = byte.chat_template
    try:
        byte.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}"
        assert rendered(byte, [{"role": "user", "content": "Hello."}])[0] == "26 Jul 2024: Hello."
    finally:
        byte.chat_template = template
