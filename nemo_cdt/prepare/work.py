"""Tasks whose results are files, there whole or not at all: what was killed goes on with those that are missing."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nemo_cdt.data.jsonl import Tokens
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.prepare.files import SIZE, read_rows
from nemo_cdt.prepare.rejected import RejectedError
from nemo_cdt.prepare.rows import NONE_TOLD, Traits, documents, parsed, supporting, traits
from nemo_cdt.prepare.settings import Kind, Source
from nemo_cdt.utils.atomic_write import atomic_write, new_file
from nemo_cdt.utils.parent_watchdog import end_with_parent
from nemo_cdt.utils.reading import FileError, blamed_on, entry, read_json
from nemo_cdt.utils.user_errors import is_ours

TASK_BYTES, TASK_ROWS = 1 << 22, 4096
"""Of a task at most, but for a row that is larger: what a worker holds is a few times that."""
LINES = 20
"""About so many a stage prints where there is no terminal."""


@dataclass(frozen=True)
class Place:
    """Where a document's tokens are, and behind them its labels where they are others."""

    file: Path
    start: int  # in int32
    length: int
    sequences: int
    traits: Traits = NONE_TOLD

    def load(self) -> list[np.ndarray]:
        """Its tokens; or its tokens and its labels."""
        count = self.length * self.sequences
        with blamed_on(self.file, f"it is damaged, remove {self.file.parent}"):
            # Of a file that ends early numpy reads what there is.
            values = np.fromfile(self.file, np.int32, count, offset=4 * self.start)
            return list(values.reshape(self.sequences, self.length))


@dataclass(frozen=True)
class Task:
    """Rows of a source, by number, and their places in its files. The result is FOLDER/NAME.json, last of all."""

    folder: Path
    name: str
    rows: np.ndarray
    index: np.ndarray

    @property
    def bytes(self) -> int:
        return int(self.index[:, SIZE].sum())

    @property
    def done(self) -> bool:
        return self._result.exists()

    @property
    def _result(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def _tokens(self) -> Path:
        return self.folder / f"{self.name}.int32"

    def read(self, what: str, kinds: tuple[type, ...]) -> list[Any]:
        """Rows of the result, each of values of these kinds; the first is the number of a row of the source.

        Raises:
            FileError: where the result is damaged.
        """
        found = entry(read_json(self._result), what, list, self._result)
        rows = {*self.rows.tolist()}
        for row in found:
            if not isinstance(row, list) or (*map(type, row),) != kinds or row[0] not in rows:
                raise FileError(f"{self._result}: it is damaged ({what}: {str(row)[:60]}): remove {self.folder}")
        return found

    def places(self) -> Iterator[tuple[int, Place]]:
        """Each document and its row."""
        start = 0
        for row, length, sequences, *told in self.read("documents", (int, int, int, str, str, int)):
            found = Traits(type=told[0], language=told[1], supporting=told[2])
            yield row, Place(self._tokens, start, length, sequences, found)
            start += length * sequences

    def examine(self, worker: "Worker") -> None:
        """Result: how many supporting passages each row has, and the rows that are rejected."""
        found, rejected = [], []
        for row, content in zip(self.rows.tolist(), read_rows(worker.files, self.index), strict=True):
            try:
                found.append([row, supporting(content, worker.source)])
            except RejectedError as error:
                rejected.append([row, error.kind, str(error)])
        atomic_write(self._result, json.dumps({"supporting": found, "rejected": rejected}))

    def tokenize(self, worker: "Worker") -> None:
        """Result: the length and traits of each row's documents, and the rows rejected; beside it, the tokens."""
        sequences: list[np.ndarray] = []
        made, rejected = [], []
        for row, content in zip(self.rows.tolist(), read_rows(worker.files, self.index), strict=True):
            try:
                for found, (ids, labels) in worker.documents(row, content):
                    own = [ids] if ids is labels else [ids, labels]
                    sequences += [values.astype(np.int32) for values in own]
                    made.append([row, len(ids), len(own), found.type, found.language, found.supporting])
            except RejectedError as error:
                rejected.append([row, error.kind, str(error)])
        with new_file(self._tokens) as partial:
            np.concatenate([np.empty(0, np.int32), *sequences]).tofile(partial)
        atomic_write(self._result, json.dumps({"documents": made, "rejected": rejected}))


class Worker:
    """What a process needs to work on the tasks of a source."""

    def __init__(self, source: Source, files: list[Path], tokenizer: str, seed: int = 0) -> None:
        self.made_of = source, files, tokenizer, seed
        self.source = source
        self.files = files
        self.tokenizer = load_tokenizer(tokenizer)
        self.seed = seed

    def documents(self, row: int, content: Any) -> list[tuple[Traits, Tokens]]:
        """Those of the row of this number; raises what :func:`~nemo_cdt.prepare.rows.documents` raises."""
        asks = self.source.kind is Kind.questions
        content = parsed(content) if asks else content  # once
        made = documents(content, self.source, self.tokenizer, (self.seed, row))
        return [(traits(content, self.source) if asks else NONE_TOLD, tokens) for tokens in made]


def cut(folder: Path, stage: str, rows: np.ndarray, index: np.ndarray) -> list[Task]:
    """Tasks of these rows, in the order of the files."""
    rows = np.sort(rows)
    tasks: list[Task] = []
    first, size = 0, 0
    sizes = index[rows, SIZE].tolist()
    for end, more in enumerate([*sizes, TASK_BYTES]):
        if end > first and (size + more > TASK_BYTES or end - first == TASK_ROWS or end == len(rows)):
            mine = rows[first:end]
            tasks.append(Task(folder, f"{stage}-{len(tasks):06d}", mine, index[mine]))
            first, size = end, 0
        size += more
    return tasks


def run(tasks: list[Task], method: str, worker: Worker, workers: int, label: str) -> None:
    """Does what is not done yet of ``tasks``, by ``method`` of :class:`Task`, in so many processes.

    Raises:
        OSError: where a process was killed, as for want of memory.
    """
    left = [task for task in tasks if not task.done]
    progress = _Progress(label, sum(task.bytes for task in tasks), sum(task.bytes for task in tasks if task.done))
    with progress:
        for task in _done(left, method, worker, min(workers, len(left))):
            progress.add(task.bytes)


def _done(tasks: list[Task], method: str, worker: Worker, workers: int) -> Iterator[Task]:
    """Each task, once it is done."""
    if workers <= 1:
        for task in tasks:
            getattr(task, method)(worker)
            yield task
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=worker.made_of) as pool:
        futures = {pool.submit(_work, task, method): task for task in tasks}
        try:
            for future in as_completed(futures):
                if mistake := future.result():
                    raise ValueError(mistake)
                yield futures[future]
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"one of workers={workers} was killed, perhaps for want of memory: the same command with fewer goes on"
            ) from error
        except BaseException:  # Ctrl-C does not wait for tasks, which are done again
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


_worker: Worker | None = None


def _start(source: Source, files: list[Path], tokenizer: str, seed: int) -> None:
    global _worker
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process is one of several already
    _worker = Worker(source, files, tokenizer, seed)


def _work(task: Task, method: str) -> str | None:
    """The line that says what is wrong with the files, where something is. Raised here it would be a traceback."""
    assert _worker is not None
    try:
        getattr(task, method)(_worker)
    except ValueError as error:
        if not is_ours(error):
            raise
        return str(error)
    return None


class _Progress:
    """A bar in a terminal, a line now and then elsewhere."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self._label, self._total, self._first, self._done = label, total, done, done
        self._start, self._told = time.perf_counter(), 0
        self._bar: tqdm | None = None

    def __enter__(self) -> None:
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total, initial=self._done, desc=self._label, unit="B", unit_scale=True, leave=False
            )

    def add(self, size: int) -> None:
        self._done += size
        if self._bar is not None:
            self._bar.update(size)
        elif self._done * LINES // max(1, self._total) > self._told:
            self._told = self._done * LINES // self._total
            seconds = time.perf_counter() - self._start
            left = (self._total - self._done) * seconds / (self._done - self._first)
            share = 100 * self._done / self._total
            print(f"{self._label}: {share:.0f} %  ETA {tqdm.format_interval(left)}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
