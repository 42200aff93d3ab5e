"""The progress of a conversion."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from torch import Tensor
from tqdm import tqdm

from nemo_cdt.checkpoint.weights import Weights


@contextmanager
def shown(weights: Weights, label: str) -> Iterator[Weights]:
    """Within it, the same weights, which are counted as they are read: by a bar in a terminal, and a line at each end.

    On whichever rank: a conversion is of the one that comes first.
    """
    total, start, lock = sum(tensor.nbytes for tensor in weights.like.values()), time.perf_counter(), Lock()
    print(f"{label}: {len(weights)} tensors, {total / 2**30:.2f} GiB", file=sys.stderr, flush=True)
    hidden = not sys.stderr.isatty()
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, leave=False, disable=hidden) as bar:

        def read(name: str) -> Tensor:
            tensor = weights[name]
            with lock:
                bar.update(tensor.nbytes)
            return tensor

        yield Weights(weights.like, read)
    print(f"{label}: done in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
