"""Which network addresses a tool may reach: public ones, and what the author allows beside them.

A URL that a model chose may name a machine behind the firewall, by any spelling: a decimal or
octal number, an IPv6 address around an IPv4 one, a name that resolves to a private address, or to
a public one first and a private one afterwards. So what counts is the address that is dialled.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))  # RFC 6052, RFC 8215

# No addresses of the public internet, whatever the version of `ipaddress` says.
_NOT_PUBLIC: tuple[IPv4Network | IPv6Network, ...] = (
    IPv4Network("168.63.129.16/32"),  # Azure's host, beside every machine of theirs
    IPv4Network("192.0.0.0/24"),  # of protocols (RFC 6890); Oracle's metadata are at 192.0.0.192
    IPv4Network("192.88.99.0/24"),  # relays of 6to4 (RFC 7526)
    IPv6Network("100:0:0:1::/64"),  # to be dropped (RFC 9780)
    IPv6Network("3fff::/20"),  # of documents (RFC 9637)
    IPv6Network("5f00::/16"),  # segments of routes (RFC 9602)
    IPv6Network("fec0::/10"),  # of a site (RFC 3879)
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Unreachable(ValueError):
    """The author does not allow to go there."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where requests may go.

    `hosts`: only these, and with a leading dot those below ("api.example.org", ".example.org");
    None: all. `networks`: private networks that are allowed though they are not public, as
    "10.1.0.0/16". `ports` and `schemes` of URLs.
    """

    hosts: tuple[str, ...] | None = None
    networks: tuple[str, ...] = ()
    ports: tuple[int, ...] = (80, 443)
    schemes: tuple[str, ...] = ("https", "http")

    def check_host(self, host: str) -> None:
        """Raise `Unreachable` for a host that is not among those named."""
        name = host.rstrip(".").lower()
        if self.hosts is None or any(_within(name, allowed) for allowed in self.hosts):
            return
        raise Unreachable(f"the host {host!r} is not allowed; allowed: {', '.join(self.hosts)}")

    def check_address(self, text: str) -> None:
        """Raise `Unreachable` for an address that is not public, unless its network is allowed."""
        address = ip_address(text.split("%", 1)[0])
        address = _carried(address) or address
        if any(address in network for network in self._allowed()):
            return
        public = address.is_global and not (address.is_multicast or address.is_reserved)
        if not public or _tunnel(address) or any(address in network for network in _NOT_PUBLIC):
            raise Unreachable(f"{text} is no public address")

    def check_port(self, port: int) -> None:
        """Raise `Unreachable` for a port that is not among those allowed."""
        if port not in self.ports:
            allowed = ", ".join(map(str, self.ports))
            raise Unreachable(f"the port {port} is not allowed; allowed: {allowed}")

    def _allowed(self) -> list[Network]:
        return [ip_network(network) for network in self.networks]


def _within(name: str, allowed: str) -> bool:
    allowed = allowed.lower()
    return name.endswith(allowed) if allowed.startswith(".") else name == allowed


def _carried(address: Address) -> IPv4Address | None:
    """The IPv4 address that is dialled by way of an IPv6 one: mapped, or through NAT64."""
    if isinstance(address, IPv4Address):
        return None
    if any(address in network for network in _NAT64):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped


def _tunnel(address: Address) -> bool:
    """6to4 and Teredo: out of use, and a way around a check of the address outside."""
    return isinstance(address, IPv6Address) and bool(address.sixtofour or address.teredo)
