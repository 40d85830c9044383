"""Serves one load: from the map, by the library from the baked folder, or by the library as without Prebake.

A hook describes the load and hands over the three ways; what was done is recorded.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from prebake.adopt import ENV_OBSERVE, ENV_STRICT, frameworks
from prebake.adopt.catalogue import catalogue
from prebake.adopt.loads import FAILED, FOLDER, MAPPED, ORIGINAL, Load, inside, is_inside, record
from prebake.baked import hub, layout
from prebake.documents.messages import one_line
from prebake.errors import ConfigError
from prebake.loading.prefetch import Prefetch
from prebake.startup.quickstart import collector
from prebake.telemetry import timeline
from prebake.tiers.loader import TIERS, Loader, check_tiers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from prebake.baked.model import BakedModel

T = TypeVar("T")


class NotMappedError(Exception):
    """Raised by a hook's `mapped` if the map cannot serve the load; its text is the reason."""


class NotBakedError(ConfigError, OSError):
    """Refuses a repository in the middle of a library's load: an OSError, since libraries hide other errors there."""


def applies(depth: int = 1) -> bool:
    """Whether a hooked function was called for a load of its own: not inside another load, and not by Prebake.

    `depth` is the number of frames between the caller of this function and that of the hooked function.
    """
    if is_inside():
        return False
    return caller(depth + 1) not in ("prebake", "prebake_build")


def caller(depth: int = 1) -> str:
    """The top-level package of the code `depth` frames above the caller of this function."""
    name = sys._getframe(depth + 1).f_globals.get("__name__")
    return name.partition(".")[0] if isinstance(name, str) else ""


def observing() -> bool:
    """Whether loads are only recorded (`prebake scan`)."""
    return bool(os.environ.get(ENV_OBSERVE))


def strict() -> bool:
    """Whether loads of models that are not baked are refused."""
    return os.environ.get(ENV_STRICT) == "1"


def find(load: Load) -> BakedModel | None:
    """The baked model that serves the load of a network, or None; always None while observing."""
    return choose(load, lambda _: None)[0]


def choose(load: Load, unfit: Callable[[BakedModel], str | None]) -> tuple[BakedModel | None, str | None]:
    """The baked model for the load of a network, and why the map cannot serve the load from it, or None.

    Of several models of one source, with other dtypes or arguments, the first that the map can serve, else the first.
    """
    if observing() or load.uri is None or load.obstacle is not None:
        return None, None
    found = catalogue().candidates(load.uri, load.class_ or "")  # of whatever class, but no single file
    reasons = [(baked, unfit(baked)) for baked in found]
    return next((each for each in reasons if each[1] is None), reasons[0] if reasons else (None, None))


def serve(
    load: Load,
    *,
    original: Callable[[], T],
    baked: BakedModel | None = None,
    unfit: str | None = None,
    mapped: Callable[[BakedModel], T] | None = None,
    folder: Callable[[BakedModel], T] | None = None,
    complete: Callable[[Load, T], Load] | None = None,
) -> T:
    """Serve the load and record it; returns what one of the three functions returns.

    `baked` is the model (`find(load)`), `unfit` why the map cannot serve this load, or None; `mapped` may raise
    NotMappedError or anything else, and `folder` is tried then. Without `folder`, the load is then as if the model was
    not baked. `complete` adds to the load what only its result tells; it is used for loads by `original` alone.

    Raises ConfigError if `original` would have to load it and `PREBAKE_STRICT=1`.
    """
    began = time.monotonic()
    if baked is None:
        return _by_itself(load, original, complete, began)
    load = replace(load, model=baked.name)
    if unfit is None and mapped is not None:
        try:
            with inside(), _paused(load):
                result = mapped(baked)
        except Exception as error:  # the library's own function may still succeed
            unfit = str(error) if isinstance(error, NotMappedError) else one_line(error)
        else:
            _done(replace(load, outcome=MAPPED), began)
            return result
    if folder is None:
        return _by_itself(replace(load, model=None, reason=unfit), original, complete, began)
    with _recorded(load, began), inside(), _paused(load):
        result = folder(baked)
    _done(replace(load, outcome=FOLDER, reason=unfit), began)
    return result


def module_of(baked: BakedModel) -> nn.Module:
    """A new module of the baked model, mapped; its weights are read into the page cache meanwhile.

    Raises NotMappedError if `PREBAKE_TIERS` allows the ordinary tier alone, and what `Loader.module` raises.
    """
    declared = os.environ.get(layout.ENV_TIERS)
    tiers = [tier for tier in check_tiers(declared.split(",") if declared else TIERS) if tier != "ordinary"]
    if not tiers:
        raise NotMappedError(f"{layout.ENV_TIERS} allows the tier ordinary alone")
    module, tier, _ = Loader(tiers=tiers, span=timeline.span).module(baked)
    if tier == "mapped":
        prefetch.add(baked.weights)
    return module


prefetch = Prefetch()

under_way: dict[object, str] = {}
"""Loads that have begun and not ended, by what is loaded."""


def missing(load: Load, error: Exception) -> None:
    """Record a load that a library could not begin, since the repository cannot be had: once for each source.

    Raises NotBakedError if `PREBAKE_STRICT=1`.
    """
    if load.uri not in _missing:
        _missing.add(load.uri)
        record(replace(load, outcome=FAILED, reason=_failed(load, error)))
    if strict() and not observing():
        raise NotBakedError(_refusal(load)) from error


_missing: set[str | None] = set()


def _why(load: Load) -> str:
    """Why no baked model serves the load."""
    models = () if observing() else catalogue().models
    return load.obstacle or load.reason or f"baked: {catalogue().described}" if models else "no model is baked"


def _refusal(load: Load) -> str:
    return (
        f"{load.subject}: is not baked, and {ENV_STRICT}=1 refuses it ({_why(load)}): add it to models.toml and bake it"
    )


def _failed(load: Load, error: Exception) -> str:
    """The error of a load as without Prebake; of a repository also why it is not baked, since that may be the cause."""
    of_repository = load.uri is not None and load.uri.startswith(hub.URI) and not observing()
    return f"{one_line(error)}; not baked ({_why(load)})" if of_repository else one_line(error)


def _by_itself(load: Load, original: Callable[[], T], complete: Callable[[Load, T], Load] | None, began: float) -> T:
    models, why = () if observing() else catalogue().models, _why(load)
    if strict() and not observing():
        with _recorded(load, began):
            raise ConfigError(_refusal(load))
    with _recorded(load, began, _failed), inside(), _paused(load):
        result = original()
    if complete is not None:
        with suppress(Exception):  # a result of an unknown kind must not break the application
            load, asked = complete(load, result), load.uri
            load = _asked_as(asked, load)
            if models and load.obstacle is None and load.reason is None:
                why = _other_name(load) or why
    _done(replace(load, outcome=ORIGINAL, reason=load.reason or why), began)
    return result


def _asked_as(asked: str | None, load: Load) -> Load:
    """The load with the branch or tag that was asked for, if its source has the commit now."""
    if asked is None or load.uri in (None, asked) or not asked.startswith(hub.URI):
        return load
    return replace(load, detail={**load.detail, "revision": hub.split(asked)[1] or hub.DEFAULT_BRANCH})


def _other_name(load: Load) -> str | None:
    """What to declare if this commit is baked, and only the name differs by which the service asks for it."""
    name = load.detail.get("revision")
    if name is None or load.uri is None or (same := catalogue().find(load.uri, load.class_)) is None:
        return None
    repo, commit = hub.split(load.uri)
    return (
        f"{same.name} is this commit, and does not know the name {name}: declare it with "
        f'source = "{hub.URI}{repo}@{name}@{commit}"'
    )


def _done(load: Load, began: float) -> None:
    record(replace(load, seconds=time.monotonic() - began))
    frameworks.loaded()


@contextmanager
def _recorded(
    load: Load, began: float, reason: Callable[[Load, Exception], str] = lambda _, error: one_line(error)
) -> Iterator[None]:
    """Record the load as failed if the block raises: an application that catches it would not be explained."""
    try:
        yield
    except Exception as error:
        _done(replace(load, outcome=FAILED, reason=reason(load, error)), began)
        raise


@contextmanager
def _paused(load: Load) -> Iterator[None]:
    """Pause the collector and record the span, for one load."""
    token = object()
    under_way[token] = load.model or load.subject
    collector.pause(token)
    try:
        with timeline.span("load", load.model or load.subject):
            yield
    finally:
        collector.resume(token)
        under_way.pop(token, None)


def _after_fork_in_child() -> None:
    global prefetch  # its thread is not in the child
    prefetch = Prefetch()
    under_way.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
