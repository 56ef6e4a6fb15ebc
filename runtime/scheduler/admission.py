"""Who may enter: a pure test of a worker's room for one more call."""

from math import ceil

HEADROOM = 0.95  # share of the KV capacity that calls may reserve (Past-Future, 2507.10150)


def lacks(running: int, reserved: int, room: int, demand: int) -> int:
    """How much room is lacking for `demand` KV tokens beside what runs; 0 or less: none."""
    if running == 0:
        return demand - room
    return ceil((reserved + demand) / HEADROOM) - room


def may_enter(
    running: int, max_running: int, reserved: int, room: int, demand: int, calls: int = 1
) -> bool:
    """Whether `calls` that may come to hold `demand` KV tokens together fit beside what runs.

    `reserved` is what the running calls may come to hold, `room` the capacity less pins. A worker
    that runs nothing takes any call that fits it at all, so that the headroom starves nobody.
    """
    if running + calls > max_running:
        return False
    if running == 0:
        return demand <= room
    return reserved + demand <= HEADROOM * room
