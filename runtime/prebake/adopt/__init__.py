"""Prepares a foreign process: `prebake run -- COMMAND` starts any service with its models mapped, and no changed line.

`launch` sets the environment and executes the command. Python imports `site/sitecustomize.py` in every process below
it, which calls `process.prepare`; `imports` calls `frameworks` and the `hooks` once a framework is imported. A hook
asks the `catalogue` for the baked model of a load, and `redirect` serves it; `loads` has what was loaded, and `report`
tells it. `view` gives libraries that read the Hugging Face cache a folder in its layout.
"""

ENV_OFF = "PREBAKE"
"""`0`: nothing is prepared, and nothing redirected."""
ENV_STRICT = "PREBAKE_STRICT"
"""`1`: loads of models that are not baked are refused."""
ENV_OBSERVE = "PREBAKE_OBSERVE"
"""The file that loads are written to; then nothing is redirected."""
ENV_REPORT = "PREBAKE_REPORT"
"""Where the report goes: a file, `unix:PATH` or `127.0.0.1:PORT`."""
ENV_SERVICE = "PREBAKE_SERVICE"
"""Names the service that a process belongs to: `prebake run` sets it to a new value each time."""
ENV_CHECK = "PREBAKE_CHECK"
"""The folder in which processes tell `prebake check -- COMMAND` what they did."""
ENV_DUMP = "PREBAKE_SNAPSHOT_DUMP"
"""Set by `prebake snapshot`: the process is to be dumped (`prebake.snapshot.point`)."""
