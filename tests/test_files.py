"""Are files written whole or not at all?"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
from pydantic import BaseModel, ValidationError

from tokenfab.errors import InputError
from tokenfab.files import check_writable, first_problem, json_text, write_whole


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_text_and_bytes_are_written_and_folders_made(tmp_path):
    write_whole(tmp_path / "a" / "b" / "text", "×\n")
    write_whole(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == b"\xc3\x97\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["a", "bytes"]


def test_a_file_has_the_permissions_that_the_umask_asks_for(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        old = os.umask(mask)
        try:
            write_whole(tmp_path / "file", "x")
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["os.replace", "os.chmod", "os.fdopen"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, interruption):
    def interrupt(*_: object) -> None:
        raise interruption

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(step, interrupt)
    with pytest.raises((InputError, KeyboardInterrupt, MemoryError)):
        write_whole(tmp_path / "file", "new")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_killed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    code = """if True:
        import os, signal, sys
        from tokenfab.files import write_whole
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        write_whole(sys.argv[1], "new" * 100_000)
    """
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "file"])
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"


def test_readers_see_the_old_file_or_the_new_one(tmp_path):
    file, sizes, done = tmp_path / "file", set(), threading.Event()
    write_whole(file, "a" * 100_000)

    def read() -> None:
        while not done.is_set():
            sizes.add(len(file.read_text()))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(50):
        write_whole(file, "b" * (200_000 if i % 2 else 100_000))
    done.set()
    reader.join()
    assert sizes <= {100_000, 200_000}


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for place in ("folder", "file/below", "n" * 300, "null\0character"):
        with pytest.raises(InputError, match="cannot be written: "):
            write_whole(tmp_path / place, "x")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_what_is_no_file_is_written_to_not_replaced(tmp_path):
    write_whole("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_whole(pipe, "through")
    reader.join(timeout=10)
    assert got == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_json_has_no_infinity():
    text = json_text({"a": [1.5, float("inf"), float("nan")], "b": ("×", True, None)})
    assert json.loads(text) == {"a": [1.5, None, None], "b": ["×", True, None]}
    assert text.endswith("}\n")
    assert "×" in text
    assert json_text("×", ascii_only=True) == '"\\u00d7"\n'


def test_the_first_problem_is_told_with_its_place_and_how_many_more():
    class Inner(BaseModel):
        n: int

    class Outer(BaseModel):
        inner: list[Inner]

    with pytest.raises(ValidationError) as raised:
        Outer.model_validate({"inner": [{"n": 1}, {"n": "x"}, {}]})
    assert first_problem(raised.value).startswith("inner.1.n: Input should be a valid integer")
    assert first_problem(raised.value).endswith(" (and 1 more)")


def test_what_cannot_be_written_is_known_before_the_work(tmp_path) -> None:
    """A folder; a file where a folder should be; a folder that takes no files. What can be is left untouched."""
    (tmp_path / "file").write_text("kept", "utf-8")
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "file" / "x.pdf", "Not a directory"),
                      ("/proc/x.pdf", ""), ("a\0b", "")):  # fmt: skip
        with pytest.raises(InputError, match=f"cannot be written: .*{why}"):
            check_writable(path)
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "folder" / "x.pdf")
    check_writable("/dev/null")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text("utf-8") == "kept"
