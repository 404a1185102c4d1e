"""Errors that a person can correct. Each message says what is wrong and what to do."""


class TrainingError(Exception):
    """Base of all."""


class LockError(TrainingError):
    """The lock file is malformed."""


class DownloadFailed(TrainingError):
    """A file could not be fetched. The message holds no credentials."""


class ArchiveRefused(TrainingError):
    """An archive is damaged or unsafe."""


class WrongContent(TrainingError):
    """A file has another size or digest than its pin, or a result is not what was published."""


class FetchFailed(TrainingError):
    """No source had an input; the message has the answer of each."""
