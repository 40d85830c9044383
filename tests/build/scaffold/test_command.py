"""What a command tells: its port, whether it serves, and what makes it reachable."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebake.errors import ConfigError
from prebake_build.scaffold.command import Command, examine, from_application, from_procfile

HOW = "write it after --: prebake init -- uvicorn app:app"


def examined(command: str, *requirements: str, port: int | None = None) -> Command:
    return examine(command.split(), port=port, requirements=requirements)


@pytest.mark.parametrize(
    ("command", "port"),
    [
        ("uvicorn app:app", 8000),
        ("uvicorn app:app --port 9000", 9000),
        ("uvicorn app:app --port=9000", 9000),
        ("python -m uvicorn app:app --port 9000", 9000),
        ("gunicorn app:app -b 0.0.0.0:9000", 9000),
        ("gunicorn app:app --bind=[::]:9000", 9000),
        ("gunicorn app:app --bind unix:/run/app.sock", 8000),
        ("flask run", 5000),
        ("streamlit run app.py", 8501),
        ("prebake serve", 8000),
        ("python worker.py", None),
        ("python worker.py --port 7000", 7000),
        ("./start.sh", None),
    ],
)
def test_the_port_is_the_one_of_the_options_or_the_usual_one(command: str, port: int | None) -> None:
    assert examined(command).port == port


def test_a_given_port_comes_first() -> None:
    assert examined("uvicorn app:app --port 9000", port=9100).port == 9100


@pytest.mark.parametrize(
    ("requirements", "port"), [(("fastapi", "gradio"), 7860), (("litserve",), 8000), (("transformers",), None)]
)
def test_a_script_serves_if_the_project_requires_a_server(requirements: tuple[str, ...], port: int | None) -> None:
    assert examined("python app.py", *requirements).port == port


@pytest.mark.parametrize(
    ("command", "added"),
    [
        ("uvicorn app:app", "--host 0.0.0.0"),
        ("gunicorn app:app", "--bind 0.0.0.0:8000"),
        ("uvicorn app:app --host 0.0.0.0", ""),
        ("uvicorn app:app --uds /run/app.sock", ""),
        ("gunicorn -c conf.py app:app", ""),
        ("python app.py", ""),
        ("waitress-serve app:app", ""),
    ],
)
def test_what_listens_on_the_loopback_interface_is_made_reachable_and_it_is_said(command: str, added: str) -> None:
    found = examined(command)
    assert " ".join(found.words) == f"{command} {added}".rstrip()
    program = command.partition(" ")[0]
    assert found.notes == ((f"added {added}: by default, {program} can't be reached from outside",) if added else ())


def test_an_address_that_was_chosen_stays_with_a_note() -> None:
    found = examined("uvicorn app:app --host 127.0.0.1")
    assert found.words == ("uvicorn", "app:app", "--host", "127.0.0.1")
    assert found.notes == ("--host 127.0.0.1 can't be reached from outside the container: 0.0.0.0 can",)


def test_the_reference_service_is_ready_where_it_says() -> None:
    assert (examined("prebake serve").ready, examined("uvicorn app:app").ready) == ("/readyz", None)


def test_a_port_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        examined("uvicorn app:app --port 70000")
    assert str(error.value) == "--port 70000: 70000 is not a port between 1 and 65535"


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("web: uvicorn app:app --port $PORT", "uvicorn app:app --port 8000"),
        (
            "release: ./migrate\nweb: gunicorn app:app --bind 0.0.0.0:${PORT:-9000}",
            "gunicorn app:app --bind 0.0.0.0:9000",
        ),
        ("# one process\nworker: python worker.py", "python worker.py"),
    ],
)
def test_a_procfile_has_the_command(tmp_path: Path, text: str, command: str) -> None:
    (tmp_path / "Procfile").write_text(text)
    assert from_procfile(tmp_path / "Procfile") == tuple(command.split())


def test_no_procfile_has_none(tmp_path: Path) -> None:
    assert from_procfile(tmp_path / "Procfile") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: x\nb: y", f"has no process `web` to start in the image (it has a, b): {HOW}"),
        ("", f"has no process `web` to start in the image (it has none): {HOW}"),
        ("web: cd src && python app.py", 'web: "cd src && python app.py" needs a shell, which the image does not '
                                         f"start: {HOW}"),
        ("web: python $APP", f'web: "python $APP" needs a shell, which the image does not start: {HOW}'),
    ],
)  # fmt: skip
def test_a_procfile_that_needs_more_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "Procfile").write_text(text)
    with pytest.raises(ConfigError) as error:
        from_procfile(tmp_path / "Procfile")
    assert str(error.value) == f"{tmp_path}/Procfile: {message}"


ASGI = "from fastapi import FastAPI\napi = FastAPI()\n"
SCRIPT = "if __name__ == '__main__':\n    print(1)\n"


@pytest.mark.parametrize(
    ("name", "text", "requirements", "command"),
    [
        ("app", ASGI, ["uvicorn"], ("uvicorn", "app:api")),
        ("main", SCRIPT, [], ("python", "main.py")),
        ("main", ASGI + SCRIPT, ["fastapi"], ("python", "main.py")),
    ],
)
def test_the_only_application_file_tells_its_command(
    tmp_path: Path, name: str, text: str, requirements: list[str], command: tuple[str, ...]
) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    assert from_application(tmp_path, requirements) == command


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        ({}, "found no app.py, main.py or Procfile"),
        ({"app": ASGI, "main": SCRIPT}, "found app.py, main.py"),
        ({"app": "x = 1\n"}, "found app.py"),
        ({"app": ASGI}, "found app.py"),  # and nothing that serves it
    ],
)
def test_what_is_not_certain_is_asked_for(tmp_path: Path, files: dict[str, str], seen: str) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(ConfigError) as error:
        from_application(tmp_path, [])
    assert str(error.value) == (
        f"{tmp_path}: which command starts the service? ({seen}) Write it after --: prebake init -- uvicorn app:app, "
        'or as `command = "…"` in prebake.toml'
    )


def test_a_program_that_does_not_parse_is_refused(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=r"app\.py: cannot read this program: invalid syntax"):
        from_application(tmp_path, [])
