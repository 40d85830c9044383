"""The exceptions that Prebake raises.

::

    PrebakeError                 exit code 1: a finding, or work that failed
    ├── ConfigError              exit code 2: wrong use or wrong configuration
    │   └── UnknownModelError    no manifest (and no `models.toml`) has this model name; also a KeyError
    ├── DocumentError            a manifest, lock or budget is malformed
    │   └── NewerFormatError     the document was written by a newer Prebake
    ├── IntegrityError           a file's bytes differ from those recorded
    │   └── TensorFileError      a file is not valid safetensors, or its header disagrees with its size
    ├── LoadError                no tier could load the model
    │   └── LoadTimeoutError     the model was not loaded within its timeout; also a TimeoutError
    ├── SnapshotError            a process can't be dumped, or a restored one does not fit its start
    └── SourceError              a checkpoint could not be fetched (raised by the build half)

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
    "SnapshotError",
    "SourceError",
    "TensorFileError",
    "UnknownModelError",
]


class PrebakeError(Exception):
    """Base of all exceptions; `exit_code` is the exit code of the command that raised it."""

    exit_code = 1


class ConfigError(PrebakeError):
    """Wrong use or wrong configuration; the user can fix it without a new build."""

    exit_code = 2


class UnknownModelError(ConfigError, KeyError):
    """No model has this name; the message lists the names that exist."""

    __str__ = Exception.__str__  # KeyError would print the repr of the message


class DocumentError(PrebakeError):
    """A malformed JSON or TOML document; the message names the path inside it."""


class NewerFormatError(DocumentError):
    """The document's format number is higher than this version supports."""


class IntegrityError(PrebakeError):
    """A file is missing, or its size or hash differs from its manifest or lock."""


class TensorFileError(IntegrityError):
    """A safetensors file that is unsafe to map: truncated, with overlapping tensors, or not safetensors at all."""


class LoadError(PrebakeError):
    """No tier could load the model; `__cause__` is the last tier's error."""


class LoadTimeoutError(LoadError, TimeoutError):
    """The model was not loaded in time. The load continues in its thread, so a later call may succeed."""


class SnapshotError(PrebakeError):
    """A process holds what a snapshot cannot, or its restored state does not fit the container."""


class SourceError(PrebakeError):
    """A checkpoint could not be resolved or fetched: unreachable, unknown, forbidden or damaged."""
