"""A row that gives no document."""


class RejectedError(ValueError):
    """``kind`` is what is counted, the message is of this row."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
