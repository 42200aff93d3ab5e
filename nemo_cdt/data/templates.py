"""Chats as a tokenizer's template writes them. It is somebody else's program, and runs in a process of its own.

That process (:mod:`nemo_cdt.data.renderer`) has limits of time and memory. It is started with the first chat and serves
until its parent ends; a process that is forked, as a DataLoader's worker is, starts another.
"""

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
from typing import IO, Any

from transformers import PreTrainedTokenizerFast

SECONDS = 10.0
"""Of processor time that a template has for a chat. One of 128K tokens takes hundredths of one."""
CHARACTERS = 1 << 24
"""Of a rendered chat at most: about four million tokens of English."""
MEMORY = 1 << 30
"""Bytes that rendering may take."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CODE = "import sys; sys.path[:] = sys.argv[1:]; from nemo_cdt.data import renderer; renderer.serve()"
_LIGHT = {"USE_TORCH": "0", "USE_TF": "0", "USE_JAX": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""transformers imports torch where it may: seven seconds, and 300 MB."""


class BrokenTemplateError(ValueError):
    """A template that takes more time or room than it may: no other chat will fare better."""


def template_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """The one that chats are written with.

    Raises:
        ValueError: where there is none.
    """
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if found is None:
        raise ValueError("'messages' need a tokenizer with a chat template; this one has none")
    if not isinstance(found, str):
        raise ValueError("the tokenizer's chat template is no text")
    return found


def marks(template: str) -> bool:
    """Whether it says itself what the assistant's turns are."""
    return _GENERATION.search(template) is not None


def rendered(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """A chat, and where in it the assistant's turns are, in characters.

    Raises:
        ValueError: where the template refuses the messages, or would not end.
        BrokenTemplateError: of these, where it is the template's fault.
    """
    template = template_of(tokenizer)
    request = {"template": template, "marked": marks(template), "messages": messages}
    limits = {"seconds": SECONDS, "memory": MEMORY, "characters": CHARACTERS}
    with _lock:
        reply = _ask(request | limits | {"tokens": tokenizer.special_tokens_map})
    of = f" ({tokenizer.name_or_path})" if tokenizer.name_or_path else ""
    if "refused" in reply:
        reason = " ".join(reply["refused"].split())
        raise ValueError(f"the tokenizer's chat template{of} refuses these messages: {reason[:300]}")
    if "broken" in reply:
        raise BrokenTemplateError(f"the tokenizer's chat template{of} {reply['broken']} for one chat")
    return reply["text"], [(start, stop) for start, stop in reply["spans"]]


def placed(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]
) -> tuple[str, list[tuple[int, int]], list[int]]:
    """:func:`rendered`, and where in it each message's content begins, the blanks that a template cuts off included.

    Fewer of these than there are messages where the next one is not written as it stands. What stands around contents
    is seen where others, which occur nowhere else, stand in their place.
    """
    text, turns = rendered(tokenizer, messages)
    marked, _ = rendered(tokenizer, [{**m, "content": f"\ue000{number}\ue001"} for number, m in enumerate(messages)])
    around = re.split("\ue000(\\d+)\ue001", marked)
    begins, position = [], len(around[0])
    known = around[1::2] == [str(number) for number in range(len(messages))] and text.startswith(around[0])
    for message, behind in zip(messages, around[2::2], strict=False):
        contents = (message["content"], message["content"].strip())
        written = next((one for one in contents if text.startswith(one + behind, position)), None)
        if not known or written is None:
            break
        begins.append(position - message["content"].index(written))
        position += len(written) + len(behind)
    return text, turns, begins if position == len(text) else begins[:-1]


_lock = threading.Lock()
_renderer: subprocess.Popen | None = None


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    line = json.dumps(request).encode() + b"\n"
    process = _running()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _write(process.stdin, line)
        reply = _line(process.stdout)
    except OSError:  # it has ended, which its exit code explains
        reply = b""
    except BaseException:  # a reply that nobody reads would be taken for the next one's
        _end()
        raise
    if reply.endswith(b"\n"):
        return json.loads(reply.decode("utf-8", "surrogatepass"))
    _end()
    if process.returncode == -signal.SIGPROF:
        return {"broken": f"takes more than {SECONDS:g} seconds"}
    return {"broken": f"ends the process that it runs in (exit code {process.returncode})"}


def _write(pipe: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[pipe.write(left) :]


def _line(pipe: IO[bytes]) -> bytes:
    """Up to the end of a line, behind which nothing comes unasked; or of the pipe."""
    parts = [pipe.read(1 << 16)]
    while parts[-1] and not parts[-1].endswith(b"\n"):
        parts.append(pipe.read(1 << 16))
    return b"".join(parts)


def _running() -> subprocess.Popen:
    global _renderer
    if _renderer is None or _renderer.poll() is not None:
        _renderer = subprocess.Popen(
            # Isolated, but for where this process finds its modules: nothing of the working directory is imported.
            [sys.executable, "-I", "-W", "ignore", "-c", _CODE, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | _LIGHT,
        )
    return _renderer


def _end() -> None:
    global _renderer
    process, _renderer = _renderer, None
    if process is not None:
        _close(process)
        process.kill()
        process.wait()


def _close(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()


def _forget() -> None:
    """In a forked process: the pipes are its parent's, and would stay open when that has ended."""
    global _lock, _renderer
    process, _lock, _renderer = _renderer, threading.Lock(), None
    if process is not None:
        _close(process)
        process.returncode = 0  # not a child of this process: there is nothing to wait for


atexit.register(_end)
os.register_at_fork(after_in_child=_forget)
