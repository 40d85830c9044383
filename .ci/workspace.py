"""The build backend of the root: builds nothing, and tells the user what to install instead."""

from __future__ import annotations

_MESSAGE = """
This folder is Prebake's workspace, not a package. Install what you need of it:

    pip install ./runtime ./build       # prebake and prebake-build: the command line, bake, measure
    pip install ./service               # the reference service, which brings transformers and easyocr

or run `make test`, which sets up .venv with everything for development.
"""


def _refuse(*_: object, **__: object) -> str:
    raise SystemExit(_MESSAGE)


build_wheel = build_sdist = build_editable = _refuse
prepare_metadata_for_build_wheel = prepare_metadata_for_build_editable = _refuse
