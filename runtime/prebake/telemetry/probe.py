"""Checks whether a running service is live or ready, for Docker's HEALTHCHECK and Kubernetes' exec probes.

    python -SEB /opt/prebake/probe.py ready --url http://127.0.0.1:8000
    python -SEB /opt/prebake/probe.py ready --url http://127.0.0.1:8000/health
    python -SEB /opt/prebake/probe.py open --url http://127.0.0.1:8000

It runs every few seconds next to the service, so it imports only `sys` and `_socket`, not even `site` (`-S`) or this
package: about 10 ms of interpreter start and almost no memory. Exit code 0: yes; 1: no, with the reason on standard
error; 2: wrong use.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing `typing` for its constant would cost time
if TYPE_CHECKING:
    import _socket

PATHS = {"live": "/livez", "ready": "/readyz"}
"""Question → path that answers it with status 200."""
OPEN = "open"
"""The question that a connection answers."""
URL = "http://127.0.0.1:8000"
TIMEOUT = 2.0
"""Seconds for the whole request."""

HELP = f"""\
usage: probe.py {{live,ready,open}} [--url URL] [--timeout SECONDS]

Ask a running service whether it is live (it answers), ready (its models are loaded), or open (it accepts connections).

  --url URL          default: {URL}; with a path, that path is asked, and a status below 400 is a yes
  --timeout SECONDS  default: {TIMEOUT:g}

example:
  python -SEB /opt/prebake/probe.py ready --url {URL}

Exit codes: 0 yes; 1 no, or no answer; 2 wrong use.
"""


class _UsageError(Exception):
    """The arguments are wrong."""


def main(argv: list[str]) -> int:
    """Send one request and return the exit code."""
    if "--help" in argv or "-h" in argv:
        print(HELP, end="")
        return 0
    try:
        question, host, port, path, timeout = _arguments(argv)
    except _UsageError as error:
        print(f"probe: {error}\n{HELP.partition(chr(10))[0]}", file=sys.stderr)
        return 2
    asked = path or PATHS.get(question, "")
    try:
        if question == OPEN:
            _connected(host, port, timeout).close()
            return 0
        status = _status(host, port, asked, timeout)
    except OSError as error:
        print(f"probe: {host}:{port} does not answer: {error.strerror or error}", file=sys.stderr)
        return 1
    if status == 200 or (path and 200 <= status < 400):
        return 0
    print(f"probe: not {question}: {host}:{port}{asked} answered {status or 'no HTTP'}", file=sys.stderr)
    return 1


def _arguments(argv: list[str]) -> tuple[str, str, int, str, float]:
    """Question, host, port, path (or empty), timeout. Importing argparse would take longer than the whole probe."""
    questions, options = [], {"--url": URL, "--timeout": f"{TIMEOUT:g}"}
    rest = iter(argv)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in options:
            options[name] = value if equals else next(rest, "")
        elif argument.startswith("-"):
            raise _UsageError(f"unknown option {argument}")
        else:
            questions.append(argument)
    if len(questions) != 1 or questions[0] not in (*PATHS, OPEN):
        raise _UsageError(f"expected one of {', '.join([*PATHS, OPEN])}, found {' '.join(questions) or 'nothing'}")
    host, port, path = _address(options["--url"])
    try:
        timeout = float(options["--timeout"])
    except ValueError:
        timeout = 0.0
    if not 0 < timeout < float("inf"):
        raise _UsageError(f"--timeout: {options['--timeout']} is not a number of seconds above 0")
    return questions[0], host, port, path, timeout


def _address(url: str) -> tuple[str, int, str]:
    scheme, _, rest = url.partition("://")
    rest, slash, path = rest.partition("/")
    host, colon, port = rest.rpartition(":")
    if not colon:
        host, port = rest, "80"
    if (
        scheme != "http"
        or not host
        or not url.isascii()
        or not url.isprintable()
        or " " in url
        or not port.isdecimal()
        or not 0 < int(port) < 65536
    ):
        raise _UsageError(f"--url: {url} is not of the form {URL}")
    return host.strip("[]"), int(port), slash + path if path else ""


def _status(host: str, port: int, path: str, timeout: float) -> int:
    """The status code of `GET path`, or 0 if the answer is not HTTP. Raises OSError."""
    from time import monotonic

    end = monotonic() + timeout
    asking = _connected(host, port, timeout)
    try:
        asking.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii"))
        line = b""
        while b"\n" not in line and len(line) < 1024:
            left = end - monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            asking.settimeout(left)
            received = asking.recv(1024)
            if not received:
                break
            line += received
    finally:
        asking.close()
    words = line.split(None, 2)
    return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit() else 0


def _connected(host: str, port: int, timeout: float) -> _socket.socket:
    """A connection to the first of the host's addresses that accepts it. Raises OSError."""
    import _socket

    failure = OSError("has no address")
    # the name as bytes: text would use the IDNA codec, which imports `re`
    for family, kind, protocol, _, address in _socket.getaddrinfo(host.encode(), port, 0, _socket.SOCK_STREAM):
        connecting = _socket.socket(family, kind, protocol)
        try:
            connecting.settimeout(timeout)
            connecting.connect(address)
        except OSError as error:
            connecting.close()
            failure = error
        else:
            return connecting
    raise failure


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
