"""What the head of a request may be: its bounds, and framing that leaves nothing to guess. Pure.

The parser has read the head before; what it passes over and two readers could take differently is
refused here. Sizes are bytes.
"""

from collections.abc import Sequence

URL_BYTES_MAX = 2 << 10
HEADER_BYTES_MAX = 16 << 10
FIELDS_MAX = 64
HEAD_BYTES_MAX = HEADER_BYTES_MAX + URL_BYTES_MAX + 64
"""All of a head that came whole; 64 for the method, the version and the line ends."""

DETAILS = {
    "uri_too_long": f"The address may have {URL_BYTES_MAX} bytes.",
    "head_too_large": f"The headers may have {HEADER_BYTES_MAX} bytes, in {FIELDS_MAX} fields.",
}

_FIELD_FRAME = len(b": \r\n")
_VERSIONS = ("1.1", "1.0")

Headers = Sequence[tuple[bytes, bytes]]


def flaw(method: bytes, version: str, headers: Headers) -> str:
    """Return the code of the problem with a whole head, empty where there is none.

    Names are lower case. How long the fields are is another question: `header_bytes`.
    """
    if len(headers) > FIELDS_MAX:
        return "head_too_large"
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if (
        version not in _VERSIONS
        or method == b"CONNECT"
        or hosts > 1
        or (not hosts and version == "1.1")
        or (b"transfer-encoding" in names and not _is_chunked(version, headers))
    ):
        return "invalid_http"
    return ""


def header_bytes(headers: Headers) -> int:
    """Return the size of the fields, each as `name: value` and its line end."""
    return sum(len(name) + len(value) + _FIELD_FRAME for name, value in headers)


def header_lines(headers: Headers) -> bytes:
    """Return the fields as they are sent, each with its line end."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def _is_chunked(version: str, headers: Headers) -> bool:
    """Whether the one coding is `chunked`, as HTTP/1.1 has it: others are decoded by nobody."""
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    return version == "1.1" and len(codings) == 1 and codings[0].strip().lower() == b"chunked"
