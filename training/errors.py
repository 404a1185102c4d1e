"""What can go wrong here in ways that a person can mend; the messages say what it is and what to do.

TrainingError
├── LockError        the lock file is malformed
├── DownloadFailed   a file could not be got
├── CarrierRefused   an archive is not what it should be
├── WrongContent     a file has another size or digest than its pin
└── FetchFailed      no source had an input
"""


class TrainingError(Exception):
    """Base of all."""


class LockError(TrainingError):
    """The lock file is malformed; the message says where."""


class DownloadFailed(TrainingError):
    """The file could not be got; the message says why, without credentials."""


class CarrierRefused(TrainingError):
    """The archive is not what it should be; the message says what is wrong."""


class WrongContent(TrainingError):
    """A file has not the size or digest of its pin."""


class FetchFailed(TrainingError):
    """No source had the input; the message says what each of them answered, and what to do."""
