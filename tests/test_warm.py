"""espnet_bestow.warm: a call through the server does what a plain start of Python does."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from espnet_bestow import warm

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="forks are followed by pidfd (Linux)")

# A server that imports nothing: what ESPnet costs is not what is tested.
BARE_SERVER = "import sys, espnet_bestow.warm as warm; warm.PRELOADED = (); warm.main(['serve', sys.argv[1]])"
BROKEN_SERVER = BARE_SERVER.replace("()", "('slow_failure',)", 1)


@contextlib.contextmanager
def serving(folder: Path, program: str = BARE_SERVER) -> Iterator[subprocess.Popen]:
    folder.mkdir()
    command = [sys.executable, "-c", program, str(folder)]
    server = subprocess.Popen(command, cwd=folder.parent, stderr=subprocess.DEVNULL)
    wait_for(lambda: (folder / "python.socket").exists() or server.poll() is not None)
    try:
        yield server
    finally:
        server.kill()
        server.wait()


def wait_for(happened, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def call(folder: Path, module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "espnet_bestow.warm", "run", str(folder), "-m", module, *arguments]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with a module `program` in it, which is found because it is the caller's."""
    where = tmp_path / "where"
    where.mkdir()
    return where


def test_the_caller_surroundings_become_the_forks(tmp_path: Path, program: Path) -> None:
    (program / "program.py").write_text(
        "import os, sys\n"
        "print(sys.argv[1:], os.getcwd(), os.environ['SAID'], sys.stdin.read(), __name__)\n"
        "print('aside', file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    with serving(tmp_path / "server") as server:
        done = subprocess.run(
            call(tmp_path / "server", "program", "a b", "--c"),
            cwd=program,
            env={**os.environ, "SAID": "ü"},
            input="heard",
            capture_output=True,
            text=True,
        )
        assert done.stdout == f"['a b', '--c'] {program} ü heard __main__\n"
        assert done.stderr == "aside\n"
        assert done.returncode == 7
        assert server.poll() is None


def test_calls_run_side_by_side_and_none_sees_another_ones_changes(tmp_path: Path, program: Path) -> None:
    # Each waits for the file of the other one.
    (program / "program.py").write_text(
        "import os, sys, pathlib, time, espnet_bestow\n"
        "mine, other = sys.argv[1:]\n"
        "assert not hasattr(espnet_bestow, 'seen'); espnet_bestow.seen = True\n"
        "pathlib.Path(mine).touch()\n"
        "while not pathlib.Path(other).exists(): time.sleep(0.01)\n"
    )
    with serving(tmp_path / "server"):
        orders = ("x", "y"), ("y", "x")
        running = [subprocess.Popen(call(tmp_path / "server", "program", *order), cwd=program) for order in orders]
        assert [process.wait(20) for process in running] == [0, 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_caller_takes_its_fork_along(tmp_path: Path, program: Path, number: int) -> None:
    (program / "program.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(f'{os.getpid()}.')\ntime.sleep(60)\n"
    )
    written = program / "pid"
    with serving(tmp_path / "server"):
        caller = subprocess.Popen(call(tmp_path / "server", "program"), cwd=program)
        wait_for(lambda: written.exists() and written.read_text().endswith("."))
        pid = int(written.read_text()[:-1])
        assert pid != caller.pid
        caller.send_signal(number)
        caller.wait(20)
        wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_a_fork_that_is_killed_is_told_as_a_shell_would(tmp_path: Path, program: Path) -> None:
    (program / "program.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with serving(tmp_path / "server"):
        assert subprocess.run(call(tmp_path / "server", "program"), cwd=program).returncode == 128 + signal.SIGKILL


def test_a_lost_server_is_an_error(tmp_path: Path, program: Path) -> None:
    (program / "program.py").write_text("import pathlib, time\npathlib.Path('began').touch()\ntime.sleep(0.5)\n")
    with serving(tmp_path / "server") as server:
        caller = subprocess.Popen(call(tmp_path / "server", "program"), cwd=program, stderr=subprocess.PIPE, text=True)
        wait_for((program / "began").exists)
        server.kill()
        _, said = caller.communicate(timeout=20)
    assert caller.returncode == 1
    assert "program was lost" in said


def test_without_its_folder_the_server_ends(tmp_path: Path) -> None:
    with serving(tmp_path / "server") as server:
        (tmp_path / "server" / "python.socket").unlink()
        (tmp_path / "server").rmdir()
        assert server.wait(20) == 0


def test_where_imports_fail_the_call_starts_plainly(tmp_path: Path, program: Path) -> None:
    (program / "program.py").write_text("import sys\nsys.exit(len(sys.argv))\n")
    (tmp_path / "slow_failure.py").write_text("import time\ntime.sleep(1)\nraise ImportError\n")
    with serving(tmp_path / "server", BROKEN_SERVER) as server:
        assert subprocess.run(call(tmp_path / "server", "program", "one"), cwd=program).returncode == 2
        assert server.wait(20) != 0


def test_a_bad_call_says_how_to_call() -> None:
    with pytest.raises(SystemExit, match="run DIR -m MODULE"):
        warm.main(["run", "somewhere"])
