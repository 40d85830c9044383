"""`prebake run` in processes: the command is as without it, and every Python process below it is prepared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from helpers.adopted import RUN, clean, python, run
from prebake.adopt.launch import SITE

PREPARED = "import sys; print('prebake.adopt.process' in sys.modules)"


def test_no_command_is_wrong_use() -> None:
    done = subprocess.run([*RUN, "--"], env=clean(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "prebake: error: run: no command: write it after --, as in `prebake run -- uvicorn app:app`\n"
    )


def test_a_command_that_is_not_found() -> None:
    done = run("no-such-command", "--flag")
    assert (done.returncode, done.stdout, done.stderr) == (
        127, "", "prebake: error: no-such-command: command not found: install what brings it into this environment, or "
        "give its path\n"
    )  # fmt: skip


def test_a_command_that_cannot_be_executed(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("text\n")
    done = run(tmp_path / "data")
    assert (done.returncode, done.stderr) == (
        126, f"prebake: error: {tmp_path}/data: cannot be executed: the file has no permission for it: chmod +x "
        f"{tmp_path}/data\n"
    )  # fmt: skip


def test_a_script_without_its_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/nonexistent/python\n")
    script.chmod(0o755)
    done = run(script)
    assert (done.returncode, done.stderr) == (
        127, f'prebake: error: {script}: the program that its first line names is not found\n'
    )  # fmt: skip


@pytest.mark.parametrize("code", [0, 3, 255])
def test_the_exit_code_is_the_command_s(code: int) -> None:
    assert run("sh", "-c", f"exit {code}").returncode == code


def test_arguments_arrive_as_they_are() -> None:
    words = ["--strict", "--", "-c", "a b", "", "--root", "$HOME", "*"]
    done = run(sys.executable, "-c", "import sys; print(sys.argv[1:])", *words)
    assert done.stdout == f"{words}\n"


def test_the_two_dashes_may_be_left_out() -> None:
    done = subprocess.run([*RUN, "echo", "--strict", "a"], env=clean(PREBAKE_ROOT="/x"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "--strict a\n")


def test_streams_and_process_id_are_the_command_s() -> None:
    words = [*RUN, "--", "sh", "-c", "echo $$; cat; echo error >&2"]
    with subprocess.Popen(
        words, env=clean(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        out, err = process.communicate("input\n", timeout=60)
    assert (out, err) == (f"{process.pid}\ninput\n", "error\n")


def test_a_signal_ends_the_command() -> None:
    code = "import time; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([*RUN, "--", sys.executable, "-c", code], env=clean(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


def test_no_signal_is_left_ignored() -> None:
    done = run("sh", "-c", "grep SigIgn /proc/self/status")
    plain = subprocess.run(["grep", "SigIgn", "/proc/self/status"], env=clean(), capture_output=True, text=True)
    assert done.stdout == plain.stdout


def test_the_locale_is_the_command_s() -> None:
    given = {"LC_ALL": "", "LC_CTYPE": "", "LANG": "C"}
    words = [*RUN, "--", "sh", "-c", "env | grep LC_CTYPE"]
    env = {name: value for name, value in clean(**given).items() if value}
    assert subprocess.run(words, env=env, capture_output=True, text=True).stdout == ""


# --- processes below ---------------------------------------------------------------------------------------------


def test_python_is_prepared_by_four_modules() -> None:
    code = "import sys; print(sorted(name for name in sys.modules if name.startswith('prebake')))"
    names = ["prebake", "prebake.adopt", "prebake.adopt.imports", "prebake.adopt.process"]
    assert python(code) == f"{names}\n"


def test_nothing_else_is_imported() -> None:
    code = "import sys; print(*sorted(sys.modules))"
    plain = subprocess.run([sys.executable, "-c", code], env=clean(), capture_output=True, text=True).stdout.split()
    more = set(python(code).split()) - set(plain)
    ours = {name for name in more if name.startswith("prebake")}
    assert more - ours <= {"__future__", "sitecustomize"}


def test_the_path_is_as_without_it() -> None:
    code = "import sys; print(sys.path)"
    plain = subprocess.run([sys.executable, "-c", code], env=clean(), capture_output=True, text=True).stdout
    assert python(code) == plain


def test_off_prepares_nothing() -> None:
    assert python(PREPARED, PREBAKE="0") == "False\n"
    code = "import os; print(os.environ.get('PYTHONPATH', ''), os.environ.get('PREBAKE_SERVICE'))"
    assert python(code, PREBAKE="0", PYTHONPATH=os.environ.get("PYTHONPATH", "")) == (
        f"{os.environ.get('PYTHONPATH', '')} None\n"
    )


def test_off_later_prepares_nothing() -> None:
    """`PREBAKE=0` for one process below the prefix."""
    done = run("sh", "-c", f'PREBAKE=0 {sys.executable} -c "{PREPARED}"')
    assert done.stdout == "False\n"


def test_modules_and_scripts_are_prepared(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(PREPARED)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert run(sys.executable, "-m", "module", PYTHONPATH=path).stdout == "True\n"
    script = tmp_path / "console-script"
    script.write_text(f"#!{sys.executable}\n{PREPARED}\n")
    script.chmod(0o755)
    assert run("console-script", PATH=f"{tmp_path}:{os.environ['PATH']}").stdout == "True\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore")
def test_workers_are_prepared(tmp_path: Path, method: str) -> None:
    (tmp_path / "workers.py").write_text(
        "import multiprocessing, sys\n"
        "def work(_):\n    return 'prebake.adopt.process' in sys.modules\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:\n"
        "        print(pool.map(work, range(2)))\n"
    )
    assert run(sys.executable, tmp_path / "workers.py", method).stdout == "[True, True]\n"


def test_a_program_that_executes_itself_again_stays_prepared() -> None:
    code = (
        "import os, sys\n"
        "if len(sys.argv) == 1: os.execv(sys.executable, [sys.executable, '-c', sys.orig_argv[2], 'again'])\n"
        + PREPARED
    )  # fmt: skip
    assert python(code) == "True\n"


def test_isolated_interpreters_are_left_alone() -> None:
    for options in (["-I"], ["-SEB"]):
        done = run(sys.executable, *options, "-c", PREPARED)
        assert (done.returncode, done.stdout) == (0, "False\n")


def test_safe_path_is_prepared() -> None:
    assert python(PREPARED, PYTHONSAFEPATH="1") == "True\n"


def test_an_interpreter_without_prebake_does_nothing() -> None:
    base = Path(sys.base_prefix, "bin", f"python{sysconfig.get_python_version()}")
    if not base.exists():
        pytest.skip(f"there is no {base}")
    env = clean(PYTHONPATH=str(SITE))
    code = "import sys, importlib.util; print('prebake' in sys.modules, importlib.util.find_spec('prebake'))"
    done = subprocess.run([base, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False None\n", "")


# --- the sitecustomize that is hidden ------------------------------------------------------------------------------


def hidden(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(text)
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def test_a_hidden_sitecustomize_runs_too(tmp_path: Path) -> None:
    path = hidden(tmp_path / "own", "import sys\nsys.own = __file__\n")
    code = "import sys, sitecustomize; print(sys.own, sitecustomize.__file__, 'prebake.adopt.process' in sys.modules)"
    file = tmp_path / "own" / "sitecustomize.py"
    assert python(code, PYTHONPATH=path) == f"{file} {file} True\n"


def test_a_hidden_sitecustomize_that_fails_is_told_by_python(tmp_path: Path) -> None:
    path = hidden(tmp_path / "own", "raise ValueError('its own')\n")
    done = run(sys.executable, "-c", "print('goes on')", PYTHONPATH=path)
    plain = subprocess.run(
        [sys.executable, "-c", "print('goes on')"], env=clean(PYTHONPATH=path), capture_output=True, text=True
    )
    assert (done.stdout, plain.stdout) == ("goes on\n", "goes on\n")
    assert "ValueError: its own" in plain.stderr
    assert done.stderr == plain.stderr * 2  # `prebake run` is a Python process too


def test_a_run_inside_a_run_chains_once(tmp_path: Path) -> None:
    path = hidden(tmp_path / "own", "print('own')\n")
    done = run(*RUN, "--", sys.executable, "-c", PREPARED, PYTHONPATH=path)
    assert done.stdout.splitlines()[-2:] == ["own", "True"]
