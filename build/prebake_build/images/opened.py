"""Images by what users call them: the folder of an OCI image layout, or the name of an image of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prebake.errors import ConfigError, PrebakeError
from prebake_build.images.models import PlacedModel, models_in_folder, models_in_image
from prebake_build.images.oci_layout import Image, Layout, is_part


@contextmanager
def opened_image(
    name: str, *, tag: str | None = None, wanted: str | None = None, check: bool = True
) -> Iterator[Image]:
    """The image, while the block runs. `tag` and `wanted` (a platform) choose one of a layout.

    `check` hashes the layers of a layout; an engine checks its own. Raises ConfigError if there is no such image in a
    layout, PrebakeError if the engine has none or does not answer, and IntegrityError and DocumentError.
    """
    folder = Path(name)
    if folder.is_dir():
        layout = Layout.open(folder)
        image = layout.image(name=tag, wanted=wanted)
        if check:
            layout.check_layers([image])
        yield image
        return
    from prebake_build.images.engine import open_engine
    from prebake_build.images.saved import saved_image

    if name.startswith(("/", ".")) or name.endswith("/"):
        raise ConfigError(f"{name}: there is no such folder")
    if folder.exists():
        raise ConfigError(f"{name}: is no folder (expected an OCI image layout, or the name of an engine's image)")
    try:
        client = open_engine()
    except PrebakeError as error:
        raise PrebakeError(f"{name}: there is no such folder, and {error}") from error
    try:
        with saved_image(client, name) as image:
            yield image
    finally:
        client.close()


@contextmanager
def opened_models(name: str, *, wanted: str | None = None, check: bool = True) -> Iterator[dict[str, PlacedModel]]:
    """Name → model, of a root of baked models, of one model's folder, or of an image as in `opened_image`.

    Raises ConfigError if there is no model, and what `opened_image` raises.
    """
    folder = Path(name)
    if folder.is_dir() and not is_part(folder):
        yield models_in_folder(folder)
        return
    with opened_image(name, wanted=wanted, check=check) as image:
        yield models_in_image(image, name)
