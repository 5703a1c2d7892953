"""Tells an address of this machine alone from one that other machines can reach."""

import socket
from ipaddress import IPv6Address, ip_address


def reachable_by_others(host: str) -> str:
    """Return why other machines may reach a service on this host; empty where none can.

    A name is looked up, as `bind` does: LOCALHOST, `localhost.` and 127.1 are this machine, and 0
    is every address that it has. Each address that is found has to be a loopback address.
    """
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no name of a host"
        return f"HOST={host} cannot be looked up ({reason}), and other machines may reach it"
    others = sorted({str(place[0]) for *_, place in found if not _is_loopback(str(place[0]))})
    if not others:
        return ""
    place = f"HOST={host}" if others == [host] else f"HOST={host} is {', '.join(others)}, which"
    return f"{place} can be reached from other machines"


def _is_loopback(text: str) -> bool:
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
