import numpy as np
import pytest

from nemo_cdt.data.documents import IGNORE, Document
from nemo_cdt.data.rows import PackedRows, Rows, row


def document(length: int, labelled: int, first: int = 1) -> Document:
    ids = np.arange(first, first + length)
    labels = ids.copy()
    labels[:-labelled] = IGNORE
    return Document(input_ids=ids, labels=labels)


class Listed(list[Document]):
    truncated = (0, 0)

    def length(self, index: int) -> int:
        return len(self[index].input_ids)


def test_a_row_feeds_all_but_the_last_token_and_predicts_all_but_the_first() -> None:
    entries = row([document(5, labelled=2)], seq_length=6)
    np.testing.assert_array_equal(entries["tokens"], [1, 2, 3, 4, 0, 0])
    np.testing.assert_array_equal(entries["labels"], [0, 0, 4, 5, 0, 0])
    np.testing.assert_array_equal(entries["loss_mask"], [0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(entries["documents"], [0, 0, 0, 0, -1, -1])
    np.testing.assert_array_equal(entries["document_lengths"], [4])


def test_the_shares_of_each_packed_document_sum_to_one() -> None:
    entries = row([document(5, labelled=2), document(4, labelled=3)], seq_length=8)
    for index in (0, 1):
        assert entries["label_share"][entries["documents"] == index].sum() == pytest.approx(1)


def test_packed_documents_start_at_multiples_and_position_zero() -> None:
    entries = row([document(6, labelled=1), document(4, labelled=1, first=50)], seq_length=16, multiple=4)
    np.testing.assert_array_equal(entries["cu_seqlens"], [0, 8, 12, 16])  # the last is padding, a document to attention
    np.testing.assert_array_equal(entries["tokens"][8:11], [50, 51, 52])
    np.testing.assert_array_equal(entries["position_ids"][8:11], [0, 1, 2])
    np.testing.assert_array_equal(entries["documents"][5:12], [-1, -1, -1, 1, 1, 1, -1])


def test_packing_keeps_every_document_once_and_in_order() -> None:
    documents = Listed(document(length, labelled=1, first=100 * i) for i, length in enumerate([5, 4, 8, 3, 3, 9, 2]))
    packed = PackedRows(documents, 8, count=4)
    tokens = [int(t) for r in range(len(packed)) for t in packed[r]["tokens"][packed[r]["documents"] >= 0]]
    assert tokens == [int(t) for d in documents[: packed.first[-1]] for t in d.input_ids[:-1]]
    assert packed.wasted == 4 * 8 - len(tokens)


def test_too_few_documents_to_pack_is_one_line() -> None:
    with pytest.raises(ValueError, match="2 documents fill 0 of the 5 rows"):
        PackedRows(Listed([document(3, 1), document(3, 1)]), 8, count=5)


NOTHING_LABELLED = Document(input_ids=np.arange(3), labels=np.full(3, IGNORE))


@pytest.mark.parametrize(
    ("bad", "message"), [(document(9, labelled=1), "set data.seq_length"), (NOTHING_LABELLED, "without a labelled")]
)
def test_a_document_that_does_not_fit_or_trains_nothing_is_refused(bad: Document, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rows([bad], 7)[0]
