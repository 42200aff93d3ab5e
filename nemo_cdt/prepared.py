"""What a folder of ``nemo-cdt prepare`` says of itself; read before anything heavy is imported."""

import hashlib
import json
from pathlib import Path
from typing import Any

SUMMARY = "summary.json"
TRAIN, VALIDATION = "train", "validation"
"""Of ``train.bin`` and ``train.idx``, Megatron's format; there is no ``validation`` where nothing is held out."""


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a prepared folder.

    Raises:
        ValueError: where the folder is none, or lacks a file.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no folder of `nemo-cdt prepare`: it has no readable {SUMMARY}") from error
    for split in (TRAIN, VALIDATION):
        for file in (folder / f"{split}.bin", folder / f"{split}.idx"):
            if summary[split]["documents"] and not file.is_file():
                raise ValueError(f"{folder} has no {file.name}: prepare it again")
    return summary


def require_there(data: str) -> None:
    """Raises ValueError where ``data`` of `nemo-cdt inspect` is neither ``multihop`` nor a path."""
    if data != "multihop" and not Path(data).exists():
        raise ValueError(f"{data} does not exist: name a folder with {SUMMARY}, a file of JSON lines, or multihop")


def fingerprint(tokenizer: str) -> str:
    """What decides how a tokenizer writes a text or a chat, as a hash: its ``tokenizer.json``, chat template and size.

    tokenizer: ``"byte"``, or a Hugging Face folder. What a folder was last asked to pad or truncate does not count.
    """
    if tokenizer == "byte":
        return "byte"
    folder = Path(tokenizer)
    try:
        backend = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        counted = {name: value for name, value in backend.items() if name not in ("padding", "truncation")}
        what = [counted, _chat_template(folder), _size(backend)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{folder} is no Hugging Face tokenizer: it has no readable tokenizer.json") from error
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _chat_template(folder: Path) -> Any:
    """From where transformers takes it, newest first."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            return json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
    return None


def _size(backend: dict[str, Any]) -> int:
    vocabulary = backend["model"]["vocab"]
    pieces = vocabulary if isinstance(vocabulary, dict) else (piece for piece, *_ in vocabulary)
    return len({*pieces, *(token["content"] for token in backend["added_tokens"])})
