"""Names of hosts: where a service is bound, and what the header Host may say."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def name_of(header: str) -> str:
    """The name or address in a header ``Host``, without its port, in lower case."""
    name = header.strip().lower()
    if name.startswith("["):  # an address of IPv6
        return name[1:].partition("]")[0]
    return name.partition(":")[0]
