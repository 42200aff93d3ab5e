"""Preferences of a JSON-lines file: a prompt, the answer to give and those not to give."""

from typing import Any

from nemo_cdt.data.documents import Document, Documents
from nemo_cdt.data.jsonl import JsonlDocuments, Tokens, chat_tokens, check_messages
from nemo_cdt.data.rows import Row, row

REJECTED = 2
"""Answers of each preference that are not to be given, as in LOGO."""


class PreferenceDocuments(JsonlDocuments):
    """``Documents`` of chosen answers, each with its ``rejected`` ones; prompt and answer by the chat template.

    A row has ``prompt`` (a user's text) or ``messages`` (a chat that ends before the answer), ``chosen`` (a text) and
    ``rejected`` (a list of two). No answer may exceed ``seq_length + 1`` tokens with its prompt.
    """

    def _check(self, row: dict[str, Any]) -> int:
        chosen, rejected = row.get("chosen"), row.get("rejected")
        if not (isinstance(rejected, list) and len(rejected) == REJECTED):
            raise ValueError(f"'rejected' must be a list of {REJECTED} texts")
        for turns in (_chat(row, answer) for answer in (chosen, *rejected)):
            check_messages(self._tokenizer, turns)
        return 0

    def _load(self, index: int) -> tuple[Document, int]:
        with self._blamed_on(self._lines[index]):
            row = self._row(index)
            answers = (row["chosen"], *row["rejected"])
            chosen, *rejected = (self._document(chat_tokens(self._tokenizer, _chat(row, a))) for a in answers)
        chosen.rejected = tuple(rejected)
        return chosen, 0

    def _document(self, tokens: Tokens) -> Document:
        if len(tokens[0]) > self._limit:
            raise ValueError(
                f"{len(tokens[0])} tokens of prompt and answer are more than {self._limit}, of which {1 + REJECTED} "
                "fit in a row: raise data.seq_length, or leave the row out"
            )
        return super()._document(tokens)


class PreferenceRows:
    """A preference a row, its answers packed side by side: the chosen one first.

    ``multiple``: each answer is padded to a multiple of it, 2 * context-parallel size where that is above 1.
    """

    def __init__(self, documents: Documents, seq_length: int, *, multiple: int = 1) -> None:
        self.documents = documents
        self.seq_length = seq_length
        self.multiple = multiple

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Row:
        chosen = self.documents[index]
        return row([chosen, *chosen.rejected], self.seq_length, self.multiple)


def _chat(row: dict[str, Any], answer: Any) -> list[dict[str, Any]]:
    prompt = row.get("messages", [{"role": "user", "content": row.get("prompt")}])
    if not isinstance(prompt, list):
        raise ValueError("'messages' must be a list of objects with the valid strings 'role' and 'content'")
    if any(isinstance(message, dict) and message.get("role") == "assistant" for message in prompt):
        raise ValueError("'messages' of a preference must end before any answer: a turn of the assistant's is in them")
    return [*prompt, {"role": "assistant", "content": answer}]
