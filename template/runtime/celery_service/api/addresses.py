"""Tells addresses of this machine from others."""

import ipaddress

#: Names of this machine, and the one that Starlette's TestClient uses.
LOCAL = ("localhost", "testserver")


def is_local(host: str) -> bool:
    """Return whether a host, without its port, is a loopback address or a name of one."""
    if host.lower() in LOCAL:
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def without_port(host: str) -> str:
    """Return the host of a `Host` header."""
    name, colon, port = host.rpartition(":")
    return (
        name if colon and port.isdecimal() and (name.startswith("[") or ":" not in name) else host
    )
