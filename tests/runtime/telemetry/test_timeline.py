"""The timeline: spans and marks on a clock that began when the kernel made the process."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers.runtime_fakes import python_says
from prebake.telemetry import timeline
from prebake.telemetry.timeline import Memory, Timeline


def test_the_clock_starts_at_the_birth_of_the_process_not_at_the_import() -> None:
    """A process that sleeps before it imports prebake finds its first mark after the sleep."""
    said = python_says(
        "import time; time.sleep(0.4); before = time.monotonic()\n"
        "from prebake.telemetry import timeline\n"
        "timeline.mark('imported')\n"
        "print(timeline.process.marks['imported'], before - timeline.process.birth)"
    )
    mark, slept = map(float, said.split())
    assert mark >= slept >= 0.4


def test_a_span_is_a_context_manager() -> None:
    spans = Timeline()
    with spans.span("import", "caption"):
        time.sleep(0.001)
    (span,) = spans.spans
    assert (span.name, span.model, span.depth, span.thread) == ("import", "caption", 0, threading.current_thread().name)
    assert 0 < span.start < span.end
    assert span.seconds == span.end - span.start


def test_a_span_is_a_decorator_that_keeps_the_function_as_it_is() -> None:
    spans = Timeline()

    @spans.span("factorial")
    def factorial(n: int) -> int:
        """n!"""
        return n * factorial(n - 1) if n else 1

    assert factorial(3) == 6
    assert factorial.__name__ == "factorial"
    assert factorial.__doc__ == "n!"
    assert [span.depth for span in spans.spans] == [3, 2, 1, 0]


def test_one_span_object_can_be_entered_again_and_inside_itself() -> None:
    spans = Timeline()
    phase = spans.span("phase")
    with phase, phase:
        pass
    with phase:
        pass
    assert [span.depth for span in spans.spans] == [1, 0, 0]


def test_a_span_that_fails_is_recorded_and_its_error_goes_on() -> None:
    spans = Timeline()
    with pytest.raises(ZeroDivisionError), spans.span("outer"), spans.span("inner"):
        1 / 0  # noqa: B018
    with spans.span("after"):
        pass
    assert [(span.name, span.depth) for span in spans.spans] == [("inner", 1), ("outer", 0), ("after", 0)]


def test_each_thread_has_its_own_depth() -> None:
    spans = Timeline()
    inside = threading.Barrier(2, timeout=30)

    def work() -> None:
        with spans.span("outer"):
            inside.wait()
            with spans.span("inner"):
                inside.wait()

    threads = [threading.Thread(target=work, name=f"thread-{i}") for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {(span.thread, span.name, span.depth) for span in spans.spans}
    assert found == {(f"thread-{i}", name, depth) for i in range(2) for name, depth in (("outer", 0), ("inner", 1))}


def test_one_span_object_serves_many_threads_at_once() -> None:
    spans = Timeline()
    phase = spans.span("phase")
    inside = threading.Barrier(2, timeout=30)

    def first() -> None:
        with phase:
            inside.wait()
            inside.wait()  # the other enters while this is open
        inside.wait()

    def second() -> None:
        inside.wait()
        with phase:
            inside.wait()
            inside.wait()  # and stays when this has left

    threads = [threading.Thread(target=work, name=work.__name__) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first_span, second_span = spans.spans
    assert (first_span.thread, first_span.depth, second_span.thread, second_span.depth) == ("first", 0, "second", 0)
    assert first_span.start < second_span.start


def test_only_the_first_time_of_a_mark_counts() -> None:
    spans = Timeline()
    spans.mark("ready")
    first = spans.marks["ready"], spans.memory["ready"]
    spans.mark("ready")
    assert (spans.marks["ready"], spans.memory["ready"]) == first


def test_the_document_is_json_sorted_by_start_with_the_longer_span_first() -> None:
    spans = Timeline()
    with spans.span("outer"), spans.span("inner", "caption"):
        pass
    spans.mark("ready")
    document = json.loads(json.dumps(spans.to_dict()))
    assert document["format"] == 1
    assert document["pid"] == os.getpid()
    assert [span["name"] for span in document["spans"]] == ["outer", "inner"]
    assert document["spans"][1].keys() == {"name", "model", "start", "end", "thread", "depth"}
    assert document["marks"].keys() == {"ready"}
    assert document["memory"].keys() == {"ready", "now"}
    assert document["memory"]["now"].keys() == {
        "rss", "anonymous", "file", "peak_rss", "minor_faults", "major_faults",
    }  # fmt: skip


def test_a_document_can_be_made_while_other_threads_mark() -> None:
    spans = Timeline()
    stop = threading.Event()

    def work() -> None:
        for i in range(3000):
            if stop.is_set():
                break
            spans.marks[str(i)] = 0.0
            spans.memory[str(i)] = memory

    memory = Memory.now()
    thread = threading.Thread(target=work)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        while thread.is_alive():
            spans.to_dict()
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


def test_a_document_can_be_made_while_the_garbage_collector_runs_code_that_marks() -> None:
    spans = Timeline()
    names = [
        str(i) for i in range(5000)
    ]  # more than the interpreter keeps spare tuples for: new ones wake the collector
    spans.marks.update(dict.fromkeys(names, 0.0))
    spans.memory.update(dict.fromkeys(names, Memory.now()))

    def collected(phase: str, info: dict[str, int]) -> None:
        spans.marks[f"{phase} {len(spans.marks)}"] = 0.0
        spans.memory[f"{phase} {len(spans.memory)}"] = spans.memory["0"]

    threshold = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(1)
    try:
        document = spans.to_dict()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(collected)
    assert len(spans.marks) > len(names), "the garbage collector never ran"
    assert document["marks"].keys() >= set(names)


def test_memory_counts_touched_pages_as_anonymous_and_mapped_files_apart(tmp_path: Path) -> None:
    import mmap

    size = 32_000_000
    (tmp_path / "file").write_bytes(bytes(size))
    before = Memory.now()
    private = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    private[::4096] = b"x" * len(private[::4096])
    touched = Memory.now()
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert not any(mapped[i] for i in range(0, size, 4096))
        with_file = Memory.now()
    private.close()
    assert touched.anonymous - before.anonymous > 0.9 * size
    assert with_file.file - touched.file > 0.9 * size
    assert with_file.anonymous - touched.anonymous < 0.1 * size
    assert with_file.peak_rss >= with_file.rss > 0
    assert with_file.minor_faults > before.minor_faults


def test_without_proc_the_clock_starts_at_the_import_and_memory_is_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_proc(self: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No such file or directory", str(self))

    monkeypatch.setattr(Path, "read_text", no_proc)
    before = time.monotonic()
    assert Timeline().birth >= before
    memory = Memory.now()
    assert memory.rss == memory.peak_rss > 0
    assert memory.anonymous == memory.file == 0


def test_a_forked_child_starts_its_own_timeline() -> None:
    said = python_says(
        "import os, time\n"
        "from prebake.telemetry import timeline\n"
        "with timeline.span('parent'): time.sleep(0.3)\n"
        "timeline.mark('ready')\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    with timeline.span('child'): pass\n"
        "    print([s.name for s in timeline.process.spans], timeline.process.marks, timeline.process.now() < 0.3,"
        " flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print([s.name for s in timeline.process.spans], list(timeline.process.marks))"
    )
    assert said.splitlines() == ["['child'] {} True", "['parent'] ['ready']"]


def test_the_process_has_one_timeline() -> None:
    before = len(timeline.process.spans)
    with timeline.span("mine"):
        pass
    assert timeline.process.spans[before].name == "mine"
