"""Which retention a server is used with: the best that it allows, or the one that is wanted."""

from ...errors import InvalidConfig
from .info import PLUGIN, RetentionName, ServerInfo
from .marks import Marks
from .pins import Pins
from .references import References
from .retention import Retention, Server
from .touches import Touches

FLAGS = {
    "pins": f"install Tenter in the server and start it with --radix-cache-backend {PLUGIN}",
    "sessions": "start it with --enable-session-radix-cache",
    "priority": "start it with --radix-eviction-policy priority",
    "touch": "start it without --disable-radix-cache",
}


def choose_retention(info: ServerInfo, wanted: str, where: str) -> RetentionName:
    """The retention to use: the best that the server allows, or the one that is `wanted`.

    Raises InvalidConfig, with the flag that would change it, if the server does not allow it.
    """
    if wanted == "auto":
        return info.retentions[0]
    for name in info.retentions:
        if name == wanted:
            return name
    if wanted not in FLAGS:
        raise InvalidConfig(
            f"retention {wanted!r} is unknown; there is auto, {', '.join(FLAGS)}, none"
        )
    raise InvalidConfig(
        f"{where}: the server cannot do retention {wanted!r}: {FLAGS[wanted]}; "
        f"it can do {', '.join(info.retentions)}"
    )


def make_retention(name: RetentionName, info: ServerInfo, server: Server) -> Retention:
    """The implementation called `name` for a server with these settings."""
    match name:
        case "pins":
            return Pins(server)
        case "sessions":
            return References(server)
        case "priority":
            return Marks("priority", scheduled=info.enable_priority_scheduling)
        case "touch":
            return Touches(server, info)
        case "none":
            return Marks("none", scheduled=True)
