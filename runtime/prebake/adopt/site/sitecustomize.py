"""Prepares this process for Prebake, then runs the `sitecustomize` that this one hides.

Python imports it before anything else where `prebake run` has put this folder on `PYTHONPATH`, also in interpreters
that have no Prebake or are too old for it: then it only does the second. It adds no module that the process would not
import by itself, other than the small ones of `prebake.adopt.process`.
"""

import os
import sys


def _prepare():  # type: ignore[no-untyped-def]  # annotations would not compile on every Python
    if os.environ.get("PREBAKE") == "0":
        return
    try:
        from prebake.adopt.process import prepare
    except (ImportError, SyntaxError):
        return
    try:
        prepare()
    except Exception as error:  # the process can do without
        sys.stderr.write("prebake: this process is not prepared: %r\n" % (error,))  # noqa: UP031


def _chain():  # type: ignore[no-untyped-def]
    """Remove this folder from the path, then import the next `sitecustomize`, if there is one."""
    import _frozen_importlib_external as external

    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [place for place in sys.path if place != here]
    if external.PathFinder.find_spec("sitecustomize") is not None:
        del sys.modules["sitecustomize"]
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401  # replaces this module


_prepare()  # type: ignore[no-untyped-call]
_chain()  # type: ignore[no-untyped-call]
