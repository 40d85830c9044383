"""The requests of an installed service (`prebake.services`), which depend on the models that it says it has."""

from __future__ import annotations

from collections.abc import Sequence

from prebake.errors import PrebakeError
from prebake.telemetry.services import Service
from prebake.watching.questions import HttpQuestion, Question
from prebake.watching.readiness import Told


class Preset:
    """The request of a service whose readiness answers with JSON that has `models`, keyed by name."""

    def __init__(self, service: Service, name: str | None) -> None:
        """`name` is what the user named it by; None: a service that has no request for the models is not asked."""
        self._service, self._name = service, name

    def __call__(self, told: Told) -> Sequence[Question]:
        models = told.document.get("models") if isinstance(told.document, dict) else None
        request = self._service.request(models) if isinstance(models, dict) else None
        if request is not None:
            return [HttpQuestion(request)]
        if self._name is None:
            return []
        names = ", ".join(models) if isinstance(models, dict) else "it names none"
        raise PrebakeError(f"--service {self._name} has no request for its models ({names}): give one with --request")
