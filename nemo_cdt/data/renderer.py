"""The process in which chat templates run: a chat a line comes in, a line goes out. See :mod:`nemo_cdt.data.templates`.

Run as a program alone, with no torch: it starts in a second and has 70 MB.
"""

import json
import resource
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

Span = tuple[int, int]
TODAY = datetime(2024, 7, 26)
"""What templates that ask for the date are told: Llama 3.1's own default. Else a chat's tokens would change overnight,
and a run that is resumed, or a preparation that goes on, would not be the one that was begun."""


class _Clock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return TODAY


setattr(chat_template_utils, "datetime", _Clock)  # noqa: B010  (mypy: no name may be another class)


def serve() -> None:
    """Until stdin ends. A signal to the whole job is its parent's, which ends this process when it ends itself."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for line in sys.stdin.buffer:
        request = json.loads(line.decode("utf-8", "surrogatepass"))
        resource.setrlimit(resource.RLIMIT_AS, (used + request["memory"], resource.RLIM_INFINITY))
        # By default the signal ends a process within any loop, also of C. Time that others have does not count.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        reply = _answered(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        data = json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
        sys.stdout.buffer.write(data + b"\n")
        sys.stdout.buffer.flush()


def _answered(request: dict[str, Any]) -> dict[str, Any]:
    try:
        text, spans = _marked(request) if request["marked"] else _by_prefixes(request)
    except MemoryError:
        return {"broken": f"needs more than {request['memory'] >> 20:,} MiB of memory"}
    except TemplateError as error:
        return {"refused": str(error)}
    except Exception as error:  # of whatever the template does
        return {"refused": f"{type(error).__name__}: {error}"}
    if len(text) > request["characters"]:
        return {"broken": f"writes more than {request['characters']:,} characters"}
    return {"text": text, "spans": spans}


def _marked(request: dict[str, Any]) -> tuple[str, list[Span]]:
    texts, spans = _render(request, len(request["messages"]), return_assistant_tokens_mask=True)
    return texts[0], spans[0]


def _by_prefixes(request: dict[str, Any]) -> tuple[str, list[Span]]:
    """A turn is what a chat has more with it than with what comes before it and the prompt to answer."""
    messages, spans = request["messages"], []
    (text,), _ = _render(request, len(messages))
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            (before,), _ = _render(request, turn, add_generation_prompt=True)
            (after,), _ = _render(request, turn + 1)
            if not (text.startswith(after) and after.startswith(before)):
                raise TemplateError(
                    f"it renders messages 1 to {turn + 1} otherwise when more follow, so the assistant's turns cannot "
                    "be told; mark them in it with {% generation %}"
                )
            spans.append((len(before), len(after)))
    return text, spans


def _render(request: dict[str, Any], count: int, **how: Any) -> Any:
    """As transformers does it for ``apply_chat_template``: the texts, and of each what the template marks."""
    return render_jinja_template(
        conversations=[request["messages"][:count]], chat_template=request["template"], **request["tokens"], **how
    )
