"""Which addresses a tool may reach that a model chose."""

import pytest

from tenter.tools.addresses import Reach, Unreachable

NOT_PUBLIC = """
127.0.0.1 ::1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::a9fe:a9fe fec0::1 fd00:ec2::254
fe80::1 0.0.0.0 100.64.0.1 100.100.100.200 198.18.0.1 192.0.0.192 192.88.99.1 240.0.0.1 224.0.0.1
ff02::1 2002:7f00:1:: 2001:0:7f00:1:: 5f00::1 3fff::1 100::1 100:0:0:1::1 169.254.169.254 168.63.129.16
::ffff:168.63.129.16 ::ffff:169.254.169.254%1 2001:db8::1 203.0.113.4 255.255.255.255
"""


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_what_is_not_public_is_not_reached(address: str) -> None:
    with pytest.raises(Unreachable):
        Reach().check_address(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111"])
def test_what_is_public_is_reached(address: str) -> None:
    Reach().check_address(address)


def test_the_author_allows_a_network_of_theirs() -> None:
    Reach(networks=("192.0.0.0/24",)).check_address("192.0.0.192")
