"""Every error this project raises on purpose, and the exit code each one ends a process with.

DualstreamError                      exit 1
├── SettingsError                    2   a setting is unknown, mistyped or impossible
├── DataError                        3   a data file is missing, cut short or of the wrong format
├── LogError                         4   the event log cannot be used
│   ├── MissingTopicError            5   a configured topic does not exist
│   ├── OffsetLostError              6   retention deleted records that were not learned
│   └── TopicRecreatedError          7   the topic is not the one the stored offsets belong to
├── StoreError                       8   the feature store cannot be used
│   ├── StoreLockedError             9   another trainer holds the store
│   ├── StoreCorruptError            10  a stored value does not parse
│   └── StoreMismatchError           11  the store was made with settings that cannot be mixed with these
├── GenerationError                  12  a generation is missing, corrupt or failed its checks
├── AddressError                     13  an address to serve at cannot be had, now
└── DecodeError                      -   one message is bad: it goes to the dead-letter topic, nothing stops
"""

from enum import StrEnum


class DualstreamError(Exception):
    """The root: catch it to catch everything this project raises on purpose."""

    exit_code = 1


class SettingsError(DualstreamError):
    """A setting is unknown, mistyped or impossible; the message names the key and where it came from."""

    exit_code = 2


class DataError(DualstreamError):
    """A data file cannot be read; the message names the file and the line."""

    exit_code = 3


class LogError(DualstreamError):
    """The event log cannot be used."""

    exit_code = 4


class MissingTopicError(LogError):
    """A configured topic does not exist."""

    exit_code = 5


class OffsetLostError(LogError):
    """The log no longer holds records that were not yet learned; the message says how many."""

    exit_code = 6


class TopicRecreatedError(LogError):
    """The topic was deleted and made again, so the stored offsets name other records."""

    exit_code = 7


class StoreError(DualstreamError):
    """The feature store cannot be used."""

    exit_code = 8


class StoreLockedError(StoreError):
    """Another trainer holds the store."""

    exit_code = 9


class StoreCorruptError(StoreError):
    """A stored value does not parse, or column families disagree about the commit."""

    exit_code = 10


class StoreMismatchError(StoreError):
    """The store was made with settings that these cannot continue."""

    exit_code = 11


class GenerationError(DualstreamError):
    """A generation is missing, corrupt or failed its checks."""

    exit_code = 12


class AddressError(DualstreamError):
    """An address to serve at cannot be had: whoever has it may be ending."""

    exit_code = 13


class DecodeReason(StrEnum):
    """Why a message was not accepted: the `reason` label of the dead-letter counter and header."""

    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    TOO_DEEP = "too_deep"
    WRONG_TYPE = "wrong_type"
    OUT_OF_BOUNDS = "out_of_bounds"
    NOT_FINITE = "not_finite"
    UNKNOWN_VERSION = "unknown_version"
    KEY_MISMATCH = "key_mismatch"
    AHEAD_OF_TIME = "ahead_of_time"


class DecodeError(DualstreamError):
    """One message is bad. `reason` is for counting, the text for the person who sent it."""

    def __init__(self, reason: DecodeReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
