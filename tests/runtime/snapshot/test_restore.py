"""A program that dumps itself goes on in new processes, with what it had in memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from helpers.snapshots import Program

PLAIN = """
    import json, os, random, sys
    from prebake import snapshot
    learned = {"numbers": list(range(1000))}
    restored = snapshot.here()
    print(json.dumps({"restored": restored, "sum": sum(learned["numbers"]), "arguments": sys.argv[1:],
                      "greeting": os.environ.get("GREETING"), "random": random.random(), "pid": os.getpid()}))
"""


def dumped(program: Program, source: str, *arguments: str) -> None:
    program.write(source)
    done = program.dump(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("snapshot: ")


def test_the_process_goes_on_with_the_arguments_and_environment_of_its_new_start(program: Program) -> None:
    dumped(program, PLAIN, "at", "dump")
    done = program.restore("at", "start", environment={"GREETING": "hello"})
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    del told["random"], told["pid"]
    assert told == {"restored": True, "sum": 499500, "arguments": ["at", "start"], "greeting": "hello"}


def test_many_restores_draw_different_numbers(program: Program) -> None:
    dumped(program, """
        import hashlib, random, ssl, tempfile, uuid
        from prebake import snapshot
        ssl.RAND_bytes(1), random.random(), uuid.uuid1(), next(tempfile._get_candidate_names())
        snapshot.here()
        print(random.random(), ssl.RAND_bytes(8).hex(), uuid.uuid1(), next(tempfile._get_candidate_names()))
    """)  # fmt: skip
    lines = [program.restore().stdout.split() for _ in range(20)]
    for drawn in zip(*lines, strict=True):
        assert len(set(drawn)) == 20


def test_a_command_that_is_not_told_to_dump_is_not_changed(program: Program) -> None:
    program.write(PLAIN)
    done = subprocess.run(
        program.command("x"), env=program.variables(), capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout)["restored"] is False


def test_threads_forks_and_subprocesses_work_after_the_restore(program: Program) -> None:
    dumped(program, """
        import os, subprocess, sys, threading
        from prebake import snapshot
        snapshot.here()
        seen = []
        threads = [threading.Thread(target=seen.append, args=(n,)) for n in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        child = os.fork()
        if child == 0:
            os._exit(7)
        _, status = os.waitpid(child, 0)
        print(sorted(seen), os.waitstatus_to_exitcode(status), threading.main_thread().native_id == os.getpid())
        print(subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout.strip())
        def deep(n): return n and 1 + deep(n - 1)
        sys.setrecursionlimit(50000)
        print(deep(20000))
    """)  # fmt: skip
    done = program.restore()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[0, 1, 2, 3, 4, 5, 6, 7] 7 True", "hello", "20000"]


def test_the_folder_for_temporary_files_is_looked_for_again(program: Program, tmp_path: Path) -> None:
    dumped(program, """
        import tempfile
        from prebake import snapshot
        tempfile.gettempdir()
        snapshot.here()
        print(tempfile.gettempdir())
    """)  # fmt: skip
    assert program.restore(environment={"TMPDIR": str(tmp_path)}).stdout == f"{tmp_path}\n"


HEAPS = """
    import ctypes, os, sys, threading
    from prebake import snapshot
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.calloc.restype = libc.realloc.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.calloc.argtypes = [ctypes.c_size_t], [ctypes.c_size_t, ctypes.c_size_t]
    libc.realloc.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_size_t], [ctypes.c_void_p]
    small, large = [], []
    def fill():
        for size, kept in ((100_000, small), (3_000_000, large)):
            for _ in range(20):
                kept.append(libc.malloc(size))
                ctypes.memset(kept[-1], 0x5A, size)
    for work in (fill, fill):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    fill()
    snapshot.here()
    assert all(ctypes.string_at(block, 100_000) == b"Z" * 100_000 for block in small)
    dirty = 0
    for number, block in enumerate(large):  # enlarged: what follows in memory.img must not appear, nor SIGBUS
        assert ctypes.string_at(block, 3_000_000) == b"Z" * 3_000_000
        grown = libc.realloc(block, 200_000_000 if number % 10 == 0 else 9_000_000)
        ctypes.memset(grown + 3_000_000, 1, 6_000_000)
        libc.free(grown)
    for block in small:
        libc.free(block)
    libc.malloc_trim(ctypes.c_size_t(0))
    def again():
        global dirty
        for size in (1000, 60_000, 100_000, 120_000, 1_000_000, 40_000_000):
            for _ in range(50 if size < 200_000 else 3):
                block = libc.calloc(1, size)
                dirty += ctypes.string_at(block, size) != bytes(size)
                ctypes.memset(block, 0x77, size)
                libc.free(block)
            libc.malloc_trim(ctypes.c_size_t(0))
    threads = [threading.Thread(target=again) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    again()
    print("dirty", dirty)
"""


def test_freed_memory_comes_back_as_zeros(program: Program) -> None:
    dumped(program, HEAPS)
    done = program.restore()
    assert (done.returncode, done.stdout, done.stderr) == (0, "dirty 0\n", "")


def test_heaps_of_threads_and_blocks_with_their_own_mapping_are_copied(program: Program) -> None:
    """Without the settings of `prebake snapshot`, as a program may undo them."""
    undone = "import ctypes\nfor what, value in ((-8, 8), (-4, 65536)): ctypes.CDLL(None).mallopt(what, value)\n"
    program.folder.mkdir(parents=True)
    program.write(HEAPS)
    path = program.folder / "program.py"
    path.write_text(undone + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert "(0.1 MB of them copied" not in program.dump().stderr
    done = program.restore()
    assert (done.returncode, done.stdout, done.stderr) == (0, "dirty 0\n", "")


def test_another_kernels_vdso_is_replaced(program: Program) -> None:
    dumped(program, """
        import json, time
        from prebake import snapshot
        from prebake.telemetry import restored
        snapshot.here()
        first = time.monotonic()
        print(restored.document()["vdso"], first <= time.monotonic(), time.gmtime().tm_year > 2000)
    """)  # fmt: skip
    assert program.restore().stdout == "moved True True\n"
    assert program.restore(environment={"PREBAKE_SNAPSHOT_VDSO": "stubs"}).stdout == "replaced True True\n"


def test_functions_are_bound_when_a_library_is_loaded(program: Program) -> None:
    """Bound at their first call, they would save more registers on a newer processor than there is room for."""
    source, library = program.folder / "unbound.c", program.folder / "unbound.so"
    dumped(program, f"""
        import ctypes, os
        from prebake import snapshot
        snapshot.here()
        load = ctypes.CDLL(None).dlopen
        load.restype = ctypes.c_void_p
        print(load({os.fsencode(library)!r}, os.RTLD_LAZY), os.environ.get("LD_BIND_NOW"))
    """)  # fmt: skip
    source.write_text("int absent(void); int present(void) { return absent(); }\n", encoding="ascii")
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))))
    subprocess.run([compiler, "-shared", "-fPIC", "-Wl,-z,lazy", "-o", library, source], check=True)
    assert program.restore().stdout == "None None\n"
    ordinary = program.restore(environment={"PREBAKE_SNAPSHOT": "0"}).stdout.split()
    assert ordinary[0] != "None"


def test_settings_of_glibc_hold_for_the_dump_and_are_required_later(program: Program) -> None:
    mine = {"GLIBC_TUNABLES": "glibc.malloc.perturb=255"}
    program.write("""
        import os
        from prebake import snapshot
        print(os.environ["GLIBC_TUNABLES"], flush=True)
        snapshot.here()
        print(os.environ["GLIBC_TUNABLES"])
    """)
    both = "glibc.malloc.perturb=255:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0"
    assert program.dump(environment=mine).stdout == f"{both}\n"
    assert program.restore(environment=mine).stdout == "glibc.malloc.perturb=255\n"
    refused = "prebake: the snapshot is not used: GLIBC_TUNABLES is not set, as it was for the snapshot\n"
    assert program.restore(environment={"PREBAKE_SNAPSHOT_VDSO": "m"}).stderr.startswith(refused)


def test_logging_writes_to_the_new_streams(program: Program) -> None:
    dumped(program, """
        import logging, sys
        from prebake import snapshot
        logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
        snapshot.here()
        logging.info("hello")
        print("printed", file=sys.stderr)
    """)  # fmt: skip
    done = program.restore()
    assert (done.stdout, done.stderr) == ("hello\n", "printed\n")


WAITING = """
    import os, signal, sys, time
    from prebake import snapshot
    snapshot.here()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    os.write(1, b"running\\n")  # no print: the signal may come before it returns
    time.sleep(60)
"""


def test_the_supervisor_forwards_signals_and_ends_with_the_status(program: Program) -> None:
    dumped(program, WAITING)
    for number, expected in ((signal.SIGTERM, 3), (signal.SIGUSR1, 128 + signal.SIGUSR1)):
        with subprocess.Popen(
            [*program.restorer, *program.command()], env=program.variables(), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            process.send_signal(number)
            assert process.wait(30) == expected


def test_a_process_that_dies_after_it_ran_is_not_started_again(program: Program) -> None:
    dumped(program, """
        import os, sys
        from prebake import snapshot
        snapshot.here()
        os.kill(os.getpid(), int(sys.argv[1]))
    """)  # fmt: skip
    killed = "prebake: the restored service was killed by signal"
    for number, told in (
        (signal.SIGKILL, f"{killed} 9, as where the memory limit is reached\n"),
        (signal.SIGABRT, f"{killed} 6\n"),
        (signal.SIGTERM, ""),
    ):
        done = program.restore(str(int(number)))
        assert (done.returncode, done.stdout) == (128 + number, "")
        assert done.stderr.endswith(told) and (told or not done.stderr)


def test_a_killed_supervisor_takes_its_process_along(program: Program) -> None:
    dumped(program, WAITING)
    with subprocess.Popen(
        [*program.restorer, *program.command()], env=program.variables(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.kill()
        assert process.stdout.read() == ""  # the pipe has ended: no process holds it


def test_killed_during_the_restore_it_starts_the_ordinary_way(program: Program) -> None:
    dumped(program, """
        import os, time
        from prebake import snapshot
        from prebake.telemetry import restored
        snapshot.after_restore(lambda: time.sleep(30) if os.environ.get("SLOW") else None)
        snapshot.here()
        print(restored.document()["reason"])
    """)  # fmt: skip
    with subprocess.Popen(
        [*program.restorer, *program.command()], env=program.variables({"SLOW": "1"}), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        os.kill(_child(process.pid), signal.SIGKILL)
        out, error = process.communicate(timeout=30)
    reason = "the restored process ended before it was ready, by signal 9"
    assert (process.returncode, out, error) == (0, f"{reason}\n", f"prebake: the snapshot is not used: {reason}\n")


def _child(pid: int) -> int:
    """The process's child, once it exists."""
    for _ in range(1000):
        if numbers := Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            return int(numbers[0])
        time.sleep(0.01)
    raise AssertionError("no child was started")


def test_no_secret_of_the_build_is_in_the_snapshot(program: Program) -> None:
    program.write(PLAIN)
    program.dump(
        environment={
            "BUILD_SECRET": "planted-alpha-1",
            "HF_TOKEN": "planted-beta-2",
            "PREBAKE_TOKEN": "planted-gamma-3",
        }
    )
    for file in program.snapshot.iterdir():
        assert b"planted-" not in file.read_bytes()
