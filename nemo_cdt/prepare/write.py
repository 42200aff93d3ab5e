"""``nemo-cdt prepare``: from settings to a folder that is there whole or not at all."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from nemo_cdt.data.documents import IGNORE
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.prepare.files import FILE, LINE, find_files
from nemo_cdt.prepare.gather import Gathered, gather
from nemo_cdt.prepare.settings import Kind, Settings, prefix, sources
from nemo_cdt.prepare.work import Place, Worker
from nemo_cdt.prepared import SUMMARY, TRAIN, VALIDATION, fingerprint, read_summary
from nemo_cdt.utils.atomic_write import atomic_write, real
from nemo_cdt.utils.reading import blamed_on, entry, read_json

REJECTS = "rejects.jsonl"
IDENTITY = "identity.json"
"""In the folder of unfinished work: of which settings it is, and that it is ours."""
PACKAGES = ("nemo-cdt", "megatron-core", "transformers", "tokenizers", "pyarrow", "numpy")
BINS = [0, *(1 << bits for bits in range(10, 18))]
"""Edges of the histogram of lengths, in tokens: 1,024 to 131,072."""


def prepare(name: str, settings: Settings, command: str) -> Path:
    """Writes ``settings.output``, or goes on with what a killed one left; ``command`` is recorded.

    Raises:
        ValueError: for files or a tokenizer that cannot be used, or an output that is there already.
    """
    assert settings.output is not None
    assert settings.tokenizer is not None
    output = real(Path(settings.output))
    tokenizer = load_tokenizer(settings.tokenizer)
    asks = any(source.kind is Kind.questions for source in sources(name, settings).values())
    if asks and tokenizer.chat_template is None:
        raise ValueError(
            f"tokenizer={settings.tokenizer} has no chat template, which {name} needs: take that of an instruct model"
        )
    found = {key: find_files(Path(source.input or ""), source.kind) for key, source in sources(name, settings).items()}
    identity = _identity(name, settings, [file for files in found.values() for file in files])
    with _claimed(output, identity) as work:
        gathered = {
            key: gather(
                key,
                Worker(source, found[key], settings.tokenizer, settings.seed),
                folder=work,
                workers=settings.workers,
                prefix=prefix(key, settings),
            )
            for key, source in sources(name, settings).items()
        }
        final = work / "final"
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        _write(final, gathered, settings, len(tokenizer), identity, command)
        if output.exists():
            output.rmdir()  # empty, as was seen
        final.replace(output)
    return output


def describe(folder: Path) -> str:
    """What a prepared folder holds, in a few lines."""
    summary = read_summary(folder)
    with blamed_on(folder / SUMMARY):
        return "\n".join(_described(folder, summary))


def _described(folder: Path, summary: dict[str, Any]) -> list[str]:
    lines = [f"{folder}"]
    for split in (TRAIN, VALIDATION):
        counted = summary[split]
        if not counted["documents"]:
            continue
        lines.append(
            f"  {split}: {counted['documents']:,} documents of {counted['shortest']:,} to {counted['longest']:,} "
            f"tokens, {counted['tokens']:,} in all, {counted['labelled']:,} of them labelled"
        )
    for name, source in summary["sources"].items():
        dropped = ", ".join(f"{count:,} {kind}" for kind, count in source["dropped"].items()) or "none"
        lines.append(f"  {name}: {source['rows_read']:,} of {source['rows']:,} rows read; rejected: {dropped}")
        for trait in ("types", "languages", "supporting_passages"):
            if source.get(trait):  # a folder of an earlier version has fewer
                counts = ", ".join(f"{count:,} of {key}" for key, count in source[trait].items())
                lines.append(f"    documents by {trait.replace('_', ' ')}: {counts}")
        lines.append(f"    licence: {source['licence']}")
    return lines


def _identity(name: str, settings: Settings, files: list[Path]) -> dict[str, Any]:
    """What the tasks' results depend on."""
    values = {key: value for key, value in asdict(settings).items() if key not in ("workers", "output")}
    stats = {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    packages = {package: version(package) for package in PACKAGES}
    tokenizer = fingerprint(settings.tokenizer or "")
    return json.loads(
        json.dumps({"name": name, "settings": values, "tokenizer": tokenizer, "files": stats, "versions": packages})
    )


@contextmanager
def _claimed(output: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """The folder beside ``output`` to work in. A kill or a full disk leaves it, to go on with; when the block ends well
    it is gone, and after a mistake too, for another command follows."""
    work = output.with_name(f".{output.name}.partial")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        if (output / SUMMARY).exists() and (work / IDENTITY).exists():
            shutil.rmtree(work, ignore_errors=True)  # of a process that was killed between its last two steps
        raise ValueError(f"output={output} already exists and is not empty: set a new folder")
    work.mkdir(parents=True, exist_ok=True)
    _require_own(work)
    try:
        with FileLock(work / "lock", timeout=0):
            _require_same(work / IDENTITY, identity, output)
            try:
                yield work
            except ValueError:
                shutil.rmtree(work)
                raise
    except Timeout as error:
        raise ValueError(f"output={output}: another process is preparing it") from error
    shutil.rmtree(work)


def _require_own(work: Path) -> None:
    """A folder of somebody else's by this name must not be worked in, and so removed. Ours says first what it is of."""
    begun = ("lock", f".{IDENTITY}.")
    there = sorted(path.name for path in work.iterdir() if not path.name.startswith(begun))
    if there and not (work / IDENTITY).exists():
        raise ValueError(f"{work}, where work is kept until it is done, has {there[0]} and no {IDENTITY}: move it away")


def _require_same(file: Path, identity: dict[str, Any], output: Path) -> None:
    if not file.exists():
        return atomic_write(file, json.dumps(identity))
    earlier = read_json(file)
    changed = [key for key, value in identity.items() if earlier.get(key) != value]
    if "settings" in changed:
        before = entry(earlier, "settings", dict, file)
        changed = [key for key, value in identity["settings"].items() if before.get(key) != value]
    if changed:
        raise ValueError(
            f"output={output}: {file.parent} has the unfinished work of other settings ({', '.join(changed)}): "
            "repeat its command, remove it, or set another output"
        )


class _Split:
    """Documents to train on or to hold out, shuffled, and what is counted of them as they are loaded."""

    def __init__(self, places: list[Place], seed: int) -> None:
        self.places = [places[number] for number in np.random.default_rng(seed).permutation(len(places))]
        self.lengths: list[int] = []
        self.labelled, self.unprompted = 0, 0  # tokens; documents that are labelled throughout

    def load(self) -> Iterator[list[np.ndarray]]:
        for place in self.places:
            sequences = place.load()
            self.lengths.append(len(sequences[0]))
            self.unprompted += len(sequences) == 1
            self.labelled += int((sequences[-1][1:] != IGNORE).sum())
            yield sequences

    def summary(self) -> dict[str, Any]:
        counts = np.histogram(self.lengths, [*BINS, np.iinfo(np.int64).max])[0].tolist()
        names = [*(f"{low} to {high - 1}" for low, high in pairwise(BINS)), f"{BINS[-1]} and more"]
        return {
            "documents": len(self.lengths),
            "tokens": sum(self.lengths),
            "labelled": self.labelled,
            "unprompted": self.unprompted,
            "shortest": min(self.lengths, default=0),
            "longest": max(self.lengths, default=0),
            "lengths": {name: count for name, count in zip(names, counts, strict=True) if count},
        }


def _write(
    folder: Path,
    gathered: dict[str, Gathered],
    settings: Settings,
    size: int,
    identity: dict[str, Any],
    command: str,
) -> None:
    from nemo_cdt.megatron.indexed import write_indexed  # imports Megatron, which takes long

    splits = {
        TRAIN: _Split([place for part in gathered.values() for place in part.train], settings.seed),
        VALIDATION: _Split([place for part in gathered.values() for place in part.held_out], settings.seed),
    }
    for split, documents in splits.items():
        if documents.places:
            write_indexed(folder / split, documents.load())
    with (folder / REJECTS).open("w", encoding="utf-8") as file:
        for part in gathered.values():
            for row, _, reason in part.rejected:
                source, line = str(part.files[part.index[row, FILE]]), int(part.index[row, LINE])
                file.write(json.dumps({"source": source, "line": line, "reason": reason}, ensure_ascii=False) + "\n")
    summary = {
        **{name: split.summary() for name, split in splits.items()},
        "tokenizer": {"path": settings.tokenizer, "fingerprint": identity["tokenizer"], "size": size},
        "sources": {name: _of_source(part) for name, part in gathered.items()},
        "seed": settings.seed,
        "command": command,
        "versions": identity["versions"],
    }
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")


def _of_source(part: Gathered) -> dict[str, Any]:
    return {
        "hub": part.source.hub,
        "licence": part.source.licence or "none is known",
        "files": {str(file): file.stat().st_size for file in part.files},
        "rows": len(part.index),
        "rows_read": part.read,
        "dropped": dict(Counter(kind for _, kind, _ in part.rejected)),
        "train": len(part.train),
        "validation": len(part.held_out),
        "types": part.counted("type"),
        "languages": part.counted("language"),
        "supporting_passages": part.counted("supporting"),
        "settings": asdict(part.source),
    }
