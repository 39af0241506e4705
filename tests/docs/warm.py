"""`kvrt` without the seconds of its imports: each call is forked from a process that has done them.

python warm.py SOCKET   the process; says "ready" when it is
kvrt ARGUMENTS          `COMMAND`, which hands its folder, environment, standard streams and
                        signals on to a fork that runs `kvrt_cli.main.main`, and ends as that does
"""

import json
import os
import signal
import socket
import sys

COMMAND = """#!{python} -ISu
import json, os, signal, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({path!r})
asked = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(link, [len(asked).to_bytes(4)], [0, 1, 2])
link.sendall(asked)
said = link.makefile()
pid = int(said.readline())
for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, lambda number, frame: os.kill(pid, number))
sys.exit(int(said.readline()))
"""
MODULES = ("kvrt_cli.main", "kvrt_cli.serve", "kvrt_cli.run", "torch", "kvrt.engine.assembly",
           "kvrt.runtime", "kvrt.server.serve", "kvrt_cpu")  # fmt: skip


def serve(path: str) -> None:
    """Take calls, until it is killed."""
    for name in MODULES:
        __import__(name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever keeps a call ends unwaited for
        print("ready", flush=True)
        while True:
            link, _ = server.accept()
            if not os.fork():
                server.close()
                keep(link)
            link.close()


def keep(link: socket.socket) -> None:
    """Have one call run, and tell how it has ended. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(link, 4, 3)
    asked = link.makefile("rb").read(int.from_bytes(size))
    pid = os.fork()
    if not pid:
        link.close()
        call(*json.loads(asked), streams)
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    link.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    link.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
    os._exit(0)


def call(
    arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]
) -> None:
    """As a process that the caller has begun. Never returns."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, (0, 1, 2), "rww")
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    sys.path[0] = ""
    from kvrt_cli.main import main

    main()


if __name__ == "__main__":
    serve(sys.argv[1])
