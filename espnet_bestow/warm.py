"""Python with its imports behind it: the recipe's processes are forked from one that has loaded ESPnet already.

Importing torch, transformers and ESPnet takes a process five to ten seconds, and a recipe starts dozens of them.

    python -m espnet_bestow.warm run DIR -m MODULE ARG...    does what python -m MODULE ARG... does, only sooner

The first such call starts a server in DIR (a private folder of the caller, whose removal ends the server once nothing
runs any more); each call then becomes a fork of it, with the caller's arguments, folder, environment and open files,
and ends with its exit status. A caller that is killed takes its fork along. Where forking is not to be had, or the
imports fail, the call is an ordinary start of Python.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

PRELOADED = (
    "espnet_bestow.task",
    "espnet_bestow.inference",
    "espnet_bestow.streaming",
    "espnet2.main_funcs.collect_stats",
    "matplotlib.pyplot",
    "torch.distributed.run",
)
_SOCKET = "python.socket"
_LOOK_SECONDS = 2.0  # how often the server looks whether its folder is still there
_STARTED = b"+"


class Command(NamedTuple):
    """What the caller wants: ``python -m module *arguments`` in its own surroundings."""

    module: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]


def run(folder: Path, module: str, arguments: Sequence[str]) -> int:
    """The exit status of the module, run in a fork of the server of ``folder``."""
    command = Command(module, list(arguments), os.getcwd(), dict(os.environ))
    connection = _connect(folder) if hasattr(os, "pidfd_open") else None
    if connection is None:
        _start_plainly(command)
    with connection:
        request = json.dumps(command).encode()
        try:
            socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(request)
            started = connection.recv(1)
        except ConnectionError:
            started = b""
        if started != _STARTED:
            _start_plainly(command)
        answer = connection.recv(8)
    if not answer:
        print(f"error: the process that ran {module} was lost together with its server", file=sys.stderr)
        return 1
    return int(answer)


def serve(folder: Path) -> Command:
    """Forks until ``folder`` is gone and nothing runs. Returns only in the forks, with what each is to do."""
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(str(folder / _SOCKET))
        listener.listen(64)  # callers wait here while we import
        for name in PRELOADED:
            importlib.import_module(name)
        gc.freeze()  # or every collection of a fork would copy the pages that it shares
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the callers
        selector.register(listener, selectors.EVENT_READ)
        callers: dict[int, tuple[int, socket.socket]] = {}  # pidfd -> (pid, who waits for it)
        while callers or folder.exists():
            for key, _ in selector.select(_LOOK_SECONDS):
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    command = _fork(connection)
                    if isinstance(command, Command):
                        for pidfd, (_, other) in callers.items():
                            os.close(pidfd)
                            other.close()
                        return command
                    if command is not None:
                        pidfd = os.pidfd_open(command)
                        callers[pidfd] = command, connection
                        selector.register(pidfd, selectors.EVENT_READ)
                        selector.register(connection, selectors.EVENT_READ, pidfd)
                elif key.data in callers:
                    # A caller says nothing while it waits: it is gone.
                    selector.unregister(key.fileobj)
                    os.kill(callers[key.data][0], signal.SIGTERM)
                elif key.fd in callers:
                    _bury(key.fd, *callers.pop(key.fd), selector)
    sys.exit(0)


def _fork(connection: socket.socket) -> Command | int | None:
    """In the fork: its command. In the server: the fork's pid, or None for a caller that went away."""
    connection.settimeout(10)
    files: list[int] = []
    try:
        size, files, _, _ = socket.recv_fds(connection, 8, 3)
        request = _receive(connection, int.from_bytes(size, "big"))
    except OSError:
        for file in files:
            os.close(file)
        connection.close()
        return None
    connection.settimeout(None)
    pid = os.fork()
    if pid == 0:
        connection.close()
        command = Command(*json.loads(request))
        _become(command, files)
        return command
    for file in files:
        os.close(file)
    with contextlib.suppress(OSError):  # the selector will see it
        connection.sendall(_STARTED)
    return pid


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise ConnectionError("the caller went away")
        received += part
    return received


def _become(command: Command, files: Sequence[int]) -> None:
    """Takes over the caller's surroundings."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(command.folder)
    os.environ.clear()
    os.environ.update(command.environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [command.module, *command.arguments]
    sys.path[0] = command.folder
    unbuffered = bool(command.environment.get("PYTHONUNBUFFERED"))
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=unbuffered)  # type: ignore[union-attr]
    torch = sys.modules.get("torch")
    if torch is not None and command.environment.get("OMP_NUM_THREADS", "").isdecimal():
        torch.set_num_threads(int(command.environment["OMP_NUM_THREADS"]))  # was read when torch was loaded


def _bury(pidfd: int, pid: int, connection: socket.socket, selector: selectors.BaseSelector) -> None:
    """Tells the caller how its fork ended, as a shell would."""
    selector.unregister(pidfd)
    os.close(pidfd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if connection in selector.get_map():
        selector.unregister(connection)
        with contextlib.suppress(OSError):
            connection.sendall(str(status if status >= 0 else 128 - status).encode())
    connection.close()


def _connect(folder: Path) -> socket.socket | None:
    """A connection to the server of ``folder``, which is started if there is none; None if it does not start."""
    path = folder / _SOCKET
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return _try_to_connect(path)
        except OSError:
            path.unlink(missing_ok=True)
        server = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "serve", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while server.poll() is None:
            try:
                return _try_to_connect(path)
            except OSError:
                time.sleep(0.02)
    return None


def _try_to_connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _start_plainly(command: Command) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", command.module, *command.arguments])


def main(words: Sequence[str]) -> None:
    """Entry point: ``run DIR -m MODULE ARG...``, or ``serve DIR`` for the server that it starts."""
    if len(words) >= 4 and words[0] == "run" and words[2] == "-m":
        sys.exit(run(Path(words[1]), words[3], words[4:]))
    if len(words) == 2 and words[0] == "serve":
        command = serve(Path(words[1]))
        sys.modules.pop(command.module, None)  # it is run, not imported
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
        return
    sys.exit("usage: python -m espnet_bestow.warm run DIR -m MODULE ARG...")


if __name__ == "__main__":
    main(sys.argv[1:])
