"""Runs one command under limits and leaves nothing behind: the process between a tool and a shell.

    python -I -S shell_guard.py CONTROL_FD LIMITS PROGRAM ARGUMENT...

It adopts every orphan among the command's descendants (PR_SET_CHILD_SUBREAPER), so that nothing
escapes by a new session or a double fork, and kills them all when the command ends, or when the
other side of CONTROL_FD is closed: by a cancel, a timeout, or the death of the runtime itself.
LIMITS is JSON: memory_bytes of each process, file_bytes of each file, processes altogether. What
it did beside running the command goes to CONTROL_FD as one line of JSON.

Stands alone: imports only the standard library, and nothing of this package.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time

SUBREAPER = 36  # prctl(2)
LOOK_S = 0.1  # how often the descendants are counted


def main(arguments: list[str]) -> int:
    """The exit status of the command; 128 plus the signal that ended it; 127: cannot be started."""
    control = int(arguments[1])
    limits: dict[str, int] = json.loads(arguments[2])
    os.set_inheritable(control, False)
    ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child == 0:
        _become(arguments[3:], limits)
    reason = _watch(child, control, limits["processes"])
    if reason is None:
        _, status = os.waitpid(child, 0)
        _kill_all()
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
    _kill_all()
    if reason:
        os.write(control, json.dumps({"stopped": reason}).encode() + b"\n")
    return 128 + signal.SIGKILL


def _become(command: list[str], limits: dict[str, int]) -> None:
    """In the child: put the limits in force and turn into the command."""
    try:
        _limit(resource.RLIMIT_AS, limits["memory_bytes"])
        _limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
        _limit(resource.RLIMIT_CORE, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _watch(child: int, control: int, processes: int) -> str | None:
    """Wait for the child's end (None), for the other side's ("") or for too many processes."""
    poll = select.poll()
    poll.register(os.pidfd_open(child), select.POLLIN)
    poll.register(control, select.POLLIN | select.POLLHUP)
    while True:
        ready = [fd for fd, _ in poll.poll(LOOK_S * 1000)]
        if control in ready:
            return ""
        if ready:
            return None
        if len(_descendants()) > processes:
            return f"it ran more than {processes} processes at once"


def _descendants() -> list[int]:
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        parent = todo.pop()
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
            for task in tasks:
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    todo += [int(pid) for pid in file.read().split()]
        except OSError:
            continue
        if parent != os.getpid():
            found.append(parent)
    return found


def _kill_all() -> None:
    """Kill every descendant until there is none, those that are forked meanwhile too."""
    while True:
        for pid in _descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
