"""A command's failure that its user can do something about: one line on stderr, and an exit code."""


class Failure(Exception):
    """``message`` is one line that says what is wrong and what to do; ``code`` is the process's exit code."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
