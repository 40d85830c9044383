"""Everything Prebake raises on purpose.

::

    PrebakeError                 exit code 1: a finding, or work that could not be done
    ├── ConfigError              exit code 2: wrong use or wrong configuration
    │   └── UnknownModelError    a name that no manifest (or `models.toml`) carries; also a KeyError
    ├── DocumentError            a manifest, lock or budget that cannot be read as what it claims to be
    │   └── NewerFormatError     written by a newer Prebake than this one
    ├── IntegrityError           bytes that are not the bytes that were promised
    │   └── TensorFileError      a safetensors file whose header and size disagree, or that is none
    ├── LoadError                a model that could not be loaded by any tier
    │   └── LoadTimeoutError     a model that took longer than it may; also a TimeoutError
    └── SourceError              a checkpoint that could not be fetched (raised by the build half)

A message says what was expected, what was found, where, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DocumentError",
    "IntegrityError",
    "LoadError",
    "LoadTimeoutError",
    "NewerFormatError",
    "PrebakeError",
    "SourceError",
    "TensorFileError",
    "UnknownModelError",
]


class PrebakeError(Exception):
    """The root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(PrebakeError):
    """Wrong use or wrong configuration: the user can mend it without a new build."""

    exit_code = 2


class UnknownModelError(ConfigError, KeyError):
    """A model name that is not there; the message lists those that are."""

    __str__ = Exception.__str__  # KeyError would print the repr of the message


class DocumentError(PrebakeError):
    """A JSON or TOML document that is not what it should be; the message carries the path in it."""


class NewerFormatError(DocumentError):
    """The document's format number is above the one this version reads."""


class IntegrityError(PrebakeError):
    """Size, hash or presence of a file differs from what its manifest or lock says."""


class TensorFileError(IntegrityError):
    """A safetensors file that must not be mapped: truncated, overlapping, or not safetensors."""


class LoadError(PrebakeError):
    """No tier could load the model; `__cause__` is the last tier's error."""


class LoadTimeoutError(LoadError, TimeoutError):
    """The model was not ready in time. The load goes on in its thread: a later call may find it done."""


class SourceError(PrebakeError):
    """A checkpoint could not be resolved or fetched: unreachable, unknown, forbidden or damaged."""
