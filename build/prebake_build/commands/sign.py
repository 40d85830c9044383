"""`prebake sign`: signs the manifests of baked models."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.baked import layout
from prebake.commands.arguments import HelpFormatter
from prebake_build.trust.signing import models_to_sign, sign

if TYPE_CHECKING:
    from prebake_build.commands import Commands

PASSWORD = "PREBAKE_KEY_PASSWORD"  # noqa: S105  # the name of a variable
_EPILOG = """\
examples:
  openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub
  prebake sign models --key key.pem
  prebake verify models --key key.pub
  PREBAKE_VERIFY_KEY=key.pub prebake serve --root models        refuses models that this key did not sign

PREBAKE_KEY_PASSWORD is the password of an encrypted key. Needs the extra prebake-build[trust].

exit codes: 0 signed; 1 a model that cannot be read; 2 wrong use
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "sign", help="sign baked models with a key", epilog=_EPILOG,
        description="Sign the manifests of all models under a root (OpenSSF model-signing), offline, with an "
        f"elliptic-curve key. Writes DIR/{layout.SIGNATURE}. Verify the files first: what is signed are their hashes.",
        formatter_class=HelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", type=Path, metavar="DIR", help="root of baked models")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key in PEM form")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    models = models_to_sign(options.folder)
    for baked in models:
        baked.manifest.check_sizes(baked.folder)
    print(sign(options.folder, models, options.key, os.environ.get(PASSWORD)))
    return 0
