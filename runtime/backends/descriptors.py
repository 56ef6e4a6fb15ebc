"""How many connections this process can have, and when it is short of them."""

import errno
from contextlib import suppress

MOST = 4096  # connections of one client
LEAST = 16
_WANTED = 1 << 16  # open files
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def connections() -> int:
    """How many connections one client may open: half of the files that may be open at all.

    Raises the process's soft limit of open files towards its hard one first.
    """
    try:
        import resource
    except ModuleNotFoundError:  # not on this system, and no such limit
        return MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < _WANTED:
        wanted = _WANTED if hard == unlimited else min(_WANTED, hard)
        with suppress(ValueError, OSError):  # some systems have a lower limit than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MOST if soft == unlimited else max(LEAST, min(MOST, soft // 2))


def is_short(error: BaseException) -> bool:
    """Whether a connection failed for want of something on this side: it tells nothing of the
    other one."""
    cause = getattr(error, "os_error", error)
    if not isinstance(cause, OSError):
        return False
    if cause.errno in _SHORT or cause.errno == errno.EADDRNOTAVAIL:  # no local port is free
        return True
    told = str(cause)  # several addresses were tried, and failed in several ways
    return any(f"[Errno {code}]" in told for code in _SHORT)
