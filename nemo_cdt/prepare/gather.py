"""Which rows of a source become documents: in an order drawn from the seed, and no more of them than it takes."""

import math
import sys
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_cdt.prepare.files import FILE, LINE, SIZE, index_of, read_rows
from nemo_cdt.prepare.rows import check_fields
from nemo_cdt.prepare.settings import Kind, Source
from nemo_cdt.prepare.work import Place, Task, Worker, cut, run
from nemo_cdt.utils.atomic_write import new_file
from nemo_cdt.utils.reading import blamed_on

BYTES_A_TOKEN = 4
"""Of English text, about: how many books the first round reads rests on it, and nothing else."""
SHOWN = 3
"""Rejected rows that are told where nothing is written, and so no list of them all."""
_NONE = -1
"""The class of a row that is rejected before it is tokenized."""


@dataclass(kw_only=True)
class Gathered:
    """Documents of a source, and what became of its rows.

    rejected: row, kind and message.  read: rows that were looked at.
    """

    source: Source
    files: list[Path]
    index: np.ndarray
    train: list[Place]
    held_out: list[Place]
    rejected: list[tuple[int, str, str]]
    read: int

    def counted(self, trait: str) -> dict[Any, int]:
        """Documents to train on by what they have of :class:`~nemo_cdt.prepare.rows.Traits`, where it is told."""
        found = Counter(getattr(place.traits, trait) for place in self.train)
        return {value: found[value] for value in sorted(found) if value}


def gather(name: str, worker: Worker, *, folder: Path, workers: int, prefix: str = "") -> Gathered:
    """Documents of ``worker``'s source. Works in ``folder``, and goes on with what is there.

    prefix: of the source's keys on the command line.

    Raises:
        ValueError: where the files have less than is asked for, or other fields.
    """
    index = _index(name, worker.files, folder / f"{name}-index.npy")
    check_fields(next(read_rows(worker.files, index[:1])), worker.source, prefix)
    search = _Search(name, worker, index, folder, workers)
    while not search.satisfied():
        search.tokenize_more()
    return search.gathered()


def shares(total: float, rooms: Mapping[int, float]) -> dict[int, float]:
    """``total`` divided equally between classes, but to none more than it has room for."""
    found: dict[int, float] = {}
    for done, (key, room) in enumerate(sorted(rooms.items(), key=lambda item: (item[1], item[0]))):
        share = total / (len(rooms) - done)
        found[key] = min(room, math.ceil(share) if math.isfinite(share) else share)
        total -= found[key]
    return found


def _index(name: str, files: list[Path], cache: Path) -> np.ndarray:
    if not cache.exists():
        size = sum(file.stat().st_size for file in files)
        print(f"{name}: finding the rows of {len(files):,} files, {size:,} bytes", file=sys.stderr, flush=True)
        with new_file(cache) as partial:
            np.save(partial, index_of(files))
    with blamed_on(cache, f"it is damaged, remove {cache.parent}"):
        index = np.load(cache)
        if index.ndim != 2 or index.shape[1] != 4 or index.dtype != np.int64 or not len(index):
            raise ValueError(f"{index.dtype} {index.shape}")
    return index


class _Queue:
    """Rows of one class in the order in which they are tried; of the first ``tried`` it is known what they give."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows.tolist()
        self.tried = 0
        self.places: list[list[Place]] = []  # of each tried row

    @property
    def left(self) -> int:
        return len(self.rows) - self.tried

    @property
    def documents(self) -> int:
        return sum(map(len, self.places))

    def take(self, count: int) -> list[int]:
        taken = self.rows[self.tried : self.tried + count]
        self.tried += len(taken)
        return taken


class _Search:
    """Rounds of tokenizing. Each depends on what earlier ones found alone, so that they repeat after a kill."""

    def __init__(self, name: str, worker: Worker, index: np.ndarray, folder: Path, workers: int) -> None:
        self.name, self.worker, self.index, self.folder, self.workers = name, worker, index, folder, workers
        self.source = worker.source
        self.rejected: list[tuple[int, str, str]] = []
        self.rounds, self.slack = 0, 0
        classes = self._classes()
        order = np.random.default_rng([worker.seed, zlib.crc32(name.encode())]).permutation(len(index))
        self.queues = {key: _Queue(order[classes[order] == key]) for key in sorted({*classes.tolist()} - {_NONE})}

    def _classes(self) -> np.ndarray:
        """Of each row its number of supporting passages, where they are balanced; ``_NONE`` where it is rejected."""
        if not self.source.evidence:
            return np.zeros(len(self.index), dtype=np.int64)
        tasks = cut(self.folder, f"{self.name}-examined", np.arange(len(self.index)), self.index)
        self._run(tasks, "examine", f"{self.name}: reading {len(self.index):,} rows")
        classes = np.full(len(self.index), _NONE, dtype=np.int64)
        for task in tasks:
            for row, count in task.read("supporting", (int, int)):
                classes[row] = count
        return classes

    def _run(self, tasks: list[Task], method: str, label: str) -> None:
        run(tasks, method, self.worker, self.workers, label)
        for task in tasks:
            self.rejected += [(row, kind, message) for row, kind, message in task.read("rejected", (int, str, str))]

    def _wanted(self) -> dict[int, tuple[float, float]]:
        """Of each class, documents to hold out and to train on."""
        several = self.source.kind is Kind.books  # documents of one row
        rooms = {
            key: math.inf if several and queue.left else queue.documents + queue.left
            for key, queue in self.queues.items()
        }
        held_out = shares(self.source.validation_samples, rooms)
        asked = math.inf if self.source.samples is None else self.source.samples
        train = shares(asked, {key: room - held_out[key] for key, room in rooms.items()})
        return {key: (held_out[key], train[key]) for key in rooms}

    def _lacking(self) -> dict[int, float]:
        return {
            key: sum(wanted) + self.slack - self.queues[key].documents
            for key, wanted in self._wanted().items()
            if self.queues[key].left
        }

    def satisfied(self) -> bool:
        """Whether no more rows are needed."""
        if any(lacking > 0 for lacking in self._lacking().values()):
            return False
        train, held_out = self._divided()
        asked = self.source.samples or 1
        missing = max(asked - len(train), 0) + self.source.validation_samples - len(held_out)
        if missing and not any(queue.left for queue in self.queues.values()):
            raise ValueError(self._too_few(len(train) + len(held_out)))
        self.slack += missing
        return not missing

    def tokenize_more(self) -> None:
        """One round: of each class as many rows as may give what it lacks."""
        taken = {key: self.queues[key].take(self._rows_for(key, n)) for key, n in self._lacking().items() if n > 0}
        rows = np.array([row for some in taken.values() for row in some], dtype=np.int64)
        self.rounds += 1
        tasks = cut(self.folder, f"{self.name}-round{self.rounds}", rows, self.index)
        self._run(tasks, "tokenize", f"{self.name}: tokenizing {len(rows):,} rows")
        found: dict[int, list[Place]] = {}
        for task in tasks:
            for row, place in task.places():
                found.setdefault(row, []).append(place)
        for key, some in taken.items():
            self.queues[key].places += [found.get(row, []) for row in some]

    def _rows_for(self, key: int, documents: float) -> int:
        queue = self.queues[key]
        if queue.tried:
            each = max(queue.documents, 0.5) / queue.tried
        elif self.source.kind is Kind.books and self.source.seq_length:
            each = float(self.index[:, SIZE].mean()) / BYTES_A_TOKEN / self.source.seq_length
        else:
            each = 1.0
        return int(min(queue.left, math.ceil(1.05 * documents / each))) if math.isfinite(documents) else queue.left

    def _divided(self) -> tuple[list[Place], list[Place]]:
        """What is trained on and what is held out. No row gives to both: what is left of a book then is left out."""
        train: list[Place] = []
        held_out: list[Place] = []
        for key, (hold, use) in self._wanted().items():
            held: list[Place] = []
            used: list[Place] = []
            for places in self.queues[key].places:
                if len(held) < hold:
                    held += places[: int(hold) - len(held)]
                elif len(used) < use:
                    used += places if math.isinf(use) else places[: int(use) - len(used)]
            train, held_out = train + used, held_out + held
        return train, held_out

    def _too_few(self, found: int) -> str:
        source, counted = self.source, Counter(kind for _, kind, _ in self.rejected)
        why = ", ".join(f"{count:,} {kind}" for kind, count in counted.most_common())
        first = "".join(f"; {self._place(row)}: {message}" for row, _, message in sorted(self.rejected)[:SHOWN])
        wanted = "null" if source.samples is None else source.samples
        return (
            f"{self.name}: {found:,} documents in {len(self.index):,} rows, but samples={wanted} and "
            f"validation_samples={source.validation_samples} (rejected: {why or 'none'}{first}): "
            "set fewer, or other limits of what is taken"
        )

    def _place(self, row: int) -> str:
        return f"{self.worker.files[self.index[row, FILE]]}:{self.index[row, LINE]}"

    def gathered(self) -> Gathered:
        train, held_out = self._divided()
        return Gathered(
            source=self.source,
            files=self.worker.files,
            index=self.index,
            train=train,
            held_out=held_out,
            rejected=sorted(self.rejected),
            read=len(self.index) if self.source.evidence else sum(queue.tried for queue in self.queues.values()),
        )
