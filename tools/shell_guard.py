"""Runs one command under limits and leaves nothing behind: the process between a tool and a shell.

    python -I -S shell_guard.py CONTROL_FD LIMITS PROGRAM ARGUMENT...

It adopts every orphan among the command's descendants (PR_SET_CHILD_SUBREAPER), so that nothing
escapes by a new session or a double fork, and kills them all when the command ends, or when the
other side of CONTROL_FD is closed: by a cancel, a timeout, or the death of the runtime itself.
LIMITS is JSON: memory_bytes of each process, file_bytes of each file, processes altogether.
CONTROL_FD is told, in lines of JSON, the command's "child" process, then its "exit" status or why
it was "stopped". Without one of these last two the guard itself was killed.

Stands alone: imports only the standard library, and nothing of this package.
"""

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

PARENT_DEATH_SIGNAL, SUBREAPER, NO_NEW_RIGHTS = 1, 36, 38  # prctl(2)
CREATE_RULESET, RESTRICT_SELF = 444, 446  # landlock_create_ruleset(2), landlock_restrict_self(2)
SIGNAL_SCOPE, SIGNAL_SCOPE_ABI = 2, 6  # Linux 6.12
LOOK_S = 0.1  # how often the descendants are counted

_LIBC = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> int:
    """The exit status of the command; 128 plus the signal that ended it; 127: cannot be started."""
    control = int(arguments[1])
    limits: dict[str, int] = json.loads(arguments[2])
    os.set_inheritable(control, False)
    _LIBC.prctl(SUBREAPER, 1, 0, 0, 0)
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        _become(arguments[3:], limits, control, guard)
    reason = _watch(child, control, limits["processes"])
    code = 128 + signal.SIGKILL
    if reason is None:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        code = code if code >= 0 else 128 - code
    _kill_all()
    _tell(control, {"stopped": reason} if reason else {"exit": code})
    return code


def _tell(control: int, said: dict[str, object]) -> None:
    with suppress(OSError):  # nobody listens any more
        os.write(control, json.dumps(said).encode() + b"\n")


def _become(command: list[str], limits: dict[str, int], control: int, guard: int) -> None:
    """In the child: put the limits in force and turn into the command."""
    try:
        _limit(resource.RLIMIT_AS, limits["memory_bytes"])
        _limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
        _limit(resource.RLIMIT_CORE, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        _LIBC.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            return  # it died before it could take us with it
        _tell(control, {"child": os.getpid()})
        _fence()
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _fence() -> None:
    """Take from the command what reaches processes that are not its own: rights by set-user-ID
    (such a program could not be killed), and, where the kernel can (landlock(7), Linux 6.12), to
    signal them or, unless it runs as root, look into them (ptrace, /proc/PID/environ): the guard's
    and the runtime's.
    """
    _LIBC.prctl(NO_NEW_RIGHTS, 1, 0, 0, 0)
    if _LIBC.syscall(CREATE_RULESET, None, 0, 1) < SIGNAL_SCOPE_ABI:
        return
    rules = struct.pack("QQQ", 0, 0, SIGNAL_SCOPE)  # of files, of ports, of other processes
    descriptor = _LIBC.syscall(CREATE_RULESET, rules, len(rules), 0)
    if descriptor >= 0:
        _LIBC.syscall(RESTRICT_SELF, descriptor, 0)
        os.close(descriptor)


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
    children = (
        _by_task if os.path.exists(f"/proc/{todo[0]}/task/{todo[0]}/children") else _by_scan()
    )
    while todo:
        below = children(todo.pop())
        found += below
        todo += below
    return found


def _by_task(parent: int) -> list[int]:
    """The children of a process, where the kernel lists them (CONFIG_PROC_CHILDREN)."""
    found: list[int] = []
    with suppress(OSError):  # it has ended
        for task in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{task}/children") as file:
                found += [int(pid) for pid in file.read().split()]
    return found


def _by_scan() -> Callable[[int], list[int]]:
    """The same by a look at every process; raises `OSError` where there is no /proc."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            parent = file.read().rpartition(b") ")[2].split()[1]  # after the name, its state
            children[int(parent)].append(int(pid))
    return lambda parent: children.get(parent, [])


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
