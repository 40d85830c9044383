"""Rules about credentials: in variables, in the history, and in files. Their values are never shown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from prebake_build.images.checks.data import Rules, matches
from prebake_build.images.checks.findings import Finding, Subject

_ARGUMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(\"[^\"]*\"|'[^']*'|\S*)")
_MOUNTED = "pass it as a build secret (RUN --mount=type=secret,id=token,env=TOKEN …), and revoke this one"
_AT_RUN = "set it where the container is started (secretKeyRef, --env-file), and revoke this one"


def wanted(rules: Rules, path: str) -> bool:
    """Whether the text of a small file is looked at."""
    return matches(path, rules.secret_files) or not matches(path, rules.skipped)


def in_environment(subject: Subject) -> Iterator[Finding]:
    """Variables that every container gets, and everybody who has the image can read."""
    for name, value in sorted(subject.image.config.environment.items()):
        if what := _secret(subject.rules, name, value):
            yield Finding(rule="secret", message=f"the variable {name} holds {what}", mend=_AT_RUN)


def in_labels(subject: Subject) -> Iterator[Finding]:
    """Labels and annotations: registries show them to everybody."""
    image = subject.image
    for name, value in sorted({**image.config.labels, **image.annotations}.items()):
        if what := _form(subject.rules, value):
            yield Finding(rule="secret", message=f"the label or annotation {name} holds {what}", mend=_MOUNTED)


def in_history(subject: Subject) -> Iterator[Finding]:
    """Build arguments and commands, which the image keeps."""
    for step, layer in subject.image.config.steps():
        if (what := _in_command(subject.rules, step.created_by)) and not step.created_by.startswith("ENV "):
            yield Finding(rule="secret", layer=layer, message=f"the history holds {what}", mend=_MOUNTED)


def _in_command(rules: Rules, command: str) -> str | None:
    if what := _form(rules, command):
        return what
    for name, value in _ARGUMENT.findall(command):
        # `$TOKEN` and `$(cat …)` name a secret and do not hold it
        if not value.startswith(("$", '"$', "'$")) and _secret(rules, name, value.strip("\"'")):
            return f"a value of {name}"
    return None


def in_files(subject: Subject) -> Iterator[Finding]:
    """Files of all layers, also those that a later layer deletes."""
    for number, entries in enumerate(subject.contents.layers):
        for entry in entries:
            if not entry.text:
                continue
            text = entry.text.decode("utf-8", "replace")
            what = _form(subject.rules, text)
            if what is None and matches(entry.path, subject.rules.secret_files) and _has_value(subject.rules, text):
                what = "credentials, as its name says"
            if what:
                gone = "" if subject.contents.files.get(entry.path) is entry else " (deleted later, but still there)"
                yield Finding(
                    rule="secret", layer=number, bytes=entry.size, paths=(f"/{entry.path}",),
                    message=f"a file holds {what}{gone}",
                    mend="mount it for the step that needs it (RUN --mount=type=secret,id=…,target=…), list it in "
                    ".dockerignore, and revoke it",
                )  # fmt: skip


def _has_value(rules: Rules, text: str) -> bool:
    """Whether a file that is called after credentials has more than comments and empty values."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    assigned = [_ARGUMENT.match(line) for line in lines]
    if lines and all(assigned):  # `.env`: names decide
        return any(found and _secret(rules, found[1], found[2].strip("\"'")) for found in assigned)
    return bool(lines) and text.strip() not in ("{}", "[]")


def _secret(rules: Rules, name: str, value: str) -> str | None:
    if what := _form(rules, value):
        return what
    if rules.secret_names.search(name) and not rules.harmless.fullmatch(value):
        return "a credential, as its name says"
    return None


def _form(rules: Rules, text: str) -> str | None:
    return next((name for name, form in rules.secret_forms.items() if form.search(text)), None)
