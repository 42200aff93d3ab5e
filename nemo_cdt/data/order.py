"""The order in which a run sees documents, as a function of the sample's number alone, so that a run can resume."""

import numpy as np

from nemo_cdt.data.documents import Document, Documents


class Shuffled:
    """``length`` samples of ``documents``, epoch after epoch, each epoch in an order of its own drawn from ``seed``.

    Sample i is the run's i-th: a run resumed after k samples goes on with ``[k]``. Without ``shuffle`` every epoch has
    the order of ``documents``.
    """

    def __init__(self, documents: Documents, *, seed: int, length: int, shuffle: bool = True):
        if length and not len(documents):
            raise ValueError("no documents to draw from")
        self._documents = documents
        self._seed = seed
        self._length = length
        self._shuffle = shuffle
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def truncated(self) -> tuple[int, int]:
        return self._documents.truncated

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Document:
        return self._documents[self._place(index)]

    def length(self, index: int) -> int:
        return self._documents.length(self._place(index))

    def _place(self, index: int) -> int:
        if not 0 <= index < self._length:
            raise IndexError(index)
        epoch, place = divmod(index, len(self._documents))
        return int(self._order_of(epoch)[place]) if self._shuffle else place

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._documents))
            self._epoch = epoch
        return self._order


class Subset:
    """The documents at ``indices``."""

    def __init__(self, documents: Documents, indices: np.ndarray):
        self._documents = documents
        self._indices = indices

    @property
    def truncated(self) -> tuple[int, int]:
        return self._documents.truncated

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Document:
        return self._documents[int(self._indices[index])]

    def length(self, index: int) -> int:
        return self._documents.length(int(self._indices[index]))
