"""What a folder of ``nemo-cdt prepare`` says of itself; read before anything heavy is imported."""

import hashlib
import json
from pathlib import Path
from typing import Any

from nemo_cdt.utils.reading import FileError, blamed_on, entry, read_json, read_text

SUMMARY = "summary.json"
TRAIN, VALIDATION = "train", "validation"
"""Of ``train.bin`` and ``train.idx``, Megatron's format; there is no ``validation`` where nothing is held out."""
COUNTS = ("documents", "shortest", "longest", "unprompted")
"""What training asks of each."""


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a prepared folder.

    Raises:
        ValueError: where the folder is none, or lacks a file.
    """
    file = folder / SUMMARY
    try:
        summary = read_json(file)
    except FileError as error:
        raise FileError(
            f"{folder} is no folder of `nemo-cdt prepare`: it has no readable {SUMMARY} ({error})"
        ) from error
    for split in (TRAIN, VALIDATION):
        _require_counts(entry(summary, split, dict, file), COUNTS, f"{file}: {split}")
        for part in (folder / f"{split}.bin", folder / f"{split}.idx"):
            if summary[split]["documents"] and not part.is_file():
                raise ValueError(f"{folder} has no {part.name}: prepare it again")
    tokenizer = entry(summary, "tokenizer", dict, file)
    _require_counts(tokenizer, ("size",), f"{file}: tokenizer")
    for name in ("path", "fingerprint"):
        entry(tokenizer, name, str, f"{file}: tokenizer")
    return summary


def _require_counts(found: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in names:
        if not 0 <= entry(found, name, int, where) < 1 << 63:
            raise FileError(f"{where}: its {name} must be a count, not {found[name]}")


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
    with blamed_on(folder / "tokenizer.json", "it is no Hugging Face tokenizer"):
        backend = read_json(folder / "tokenizer.json")
        counted = {name: value for name, value in backend.items() if name not in ("padding", "truncation")}
        what = [counted, _chat_template(folder), _size(backend)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _chat_template(folder: Path) -> Any:
    """From where transformers takes it, newest first."""
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            return read_json(folder / name).get("chat_template")
    return None


def _size(backend: dict[str, Any]) -> int:
    vocabulary = backend["model"]["vocab"]
    pieces = vocabulary if isinstance(vocabulary, dict) else (piece for piece, *_ in vocabulary)
    return len({*pieces, *(token["content"] for token in backend["added_tokens"])})
