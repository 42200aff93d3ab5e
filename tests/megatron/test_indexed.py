import numpy as np
import pytest

from nemo_cdt.data.documents import IGNORE
from nemo_cdt.megatron.indexed import IndexedDocuments, write_indexed


def test_documents_are_read_as_they_were_written_with_labels_of_their_own_or_without(tmp_path):
    ids, labels = np.array([5, 128_255, 7]), np.array([IGNORE, IGNORE, 9])
    write_indexed(tmp_path / "d", [[ids, labels], [ids[:2]]])

    documents = IndexedDocuments(tmp_path / "d")

    assert [documents.length(index) for index in range(len(documents))] == [3, 2]
    np.testing.assert_array_equal([documents[0].input_ids, documents[0].labels], [ids, labels])
    np.testing.assert_array_equal([documents[1].input_ids, documents[1].labels], [ids[:2], ids[:2]])
    assert documents[0].input_ids.dtype == documents[0].labels.dtype == np.int64
    assert documents.truncated == (0, 0)
    with pytest.raises(IndexError):
        documents[2]


def test_documents_of_more_sequences_are_not_ours(tmp_path):
    write_indexed(tmp_path / "d", [[np.arange(2)] * 3])

    with pytest.raises(ValueError, match=r"d\.idx: a document must be its tokens, or its tokens and its labels"):
        IndexedDocuments(tmp_path / "d")
