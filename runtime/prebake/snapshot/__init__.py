"""Tier 0: a started process, written to the image at the build, comes back at `docker run` without a privilege.

::

    from prebake import snapshot

    models = load_everything()
    snapshot.here()          # no threads, sockets or files are open; the process goes on from here in each container
    serve(models)

`prebake snapshot --output DIR -- COMMAND` starts the command, which writes the snapshot where it calls `here()` and
ends. `prebake-restore DIR COMMAND` restores it, or executes the command where the snapshot can't be used.
docs/snapshot.md has the conditions.
"""

from __future__ import annotations

from prebake.snapshot.point import after_restore, before_snapshot, here, wanted

__all__ = ["after_restore", "before_snapshot", "here", "wanted"]
