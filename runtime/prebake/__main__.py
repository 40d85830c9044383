"""The command `prebake`: check, inspect, run and snapshot; other distributions add theirs (`prebake.commands.parsing`).

`prebake run -- COMMAND` stands in front of every start of a service, so it imports as little as it can.
"""

from __future__ import annotations

import sys

if sys.argv[1:2] not in (["inspect"], ["run"], ["snapshot"]):
    from prebake.startup import readahead

    readahead.begin()  # before the imports below: they take longer than the reader thread takes to start

import os

from prebake.errors import PrebakeError

TYPE_CHECKING = False  # importing `typing` for its constant would cost time
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 success, 1 a finding, 2 wrong use or configuration."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:2] == ["run", "--"]:  # without options there is nothing to parse
            from prebake.commands.run import start

            return start(arguments[2:])
        return _parsed(arguments)
    except PrebakeError as error:
        print(f"prebake: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of stdout closed the pipe (`| head`). Without this, Python reports the error again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _tell(error, arguments[0])
        return 1
    except KeyboardInterrupt:
        return 130


def _tell(error: OSError, command: str) -> None:
    import errno

    from prebake.documents.messages import reason

    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        temporary = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  # only named
        hint = f": free some space there, or in the temporary folder ({temporary})"
    print(f"prebake: error: {error.filename or command}: {reason(error)}{hint}", file=sys.stderr)


def _parsed(arguments: list[str]) -> int:
    from prebake.commands.parsing import parser

    options = parser(arguments[0] if arguments else None).parse_args(arguments)
    if options.command != "run":  # it gives way to another program at once, and logs nothing
        _log_to_stderr()
    code = int(options.run(options))
    if (restored := sys.modules.get("prebake.telemetry.restored")) and restored.was_restored():
        from prebake.snapshot.leaving import leave

        leave(code)
    return code


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for client in ("httpx", "httpx2"):  # they log every request of the hub's client
        logging.getLogger(client).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
