"""`Prefer` (RFC 7240): what a client would like, as far as this service knows of it.

A preference is never an error: what is unknown, malformed or longer than anybody needs is as if it
had not been sent. Knows headers, nothing of what a preference leads to.
"""

import re

from starlette.datastructures import Headers

_LENGTH_MAX = 1_000
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # a token of HTTP's grammar, no secret
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_ELEMENT = re.compile(rf'(?:{_QUOTED}|[^,"])+')
_PREFERENCE = re.compile(
    rf"[ \t]*({_TOKEN})[ \t]*(?:=[ \t]*({_TOKEN}|{_QUOTED})?)?[ \t]*(?:;.*)?", re.DOTALL
)


def preferred(headers: Headers, name: str) -> str:
    """Return the value of a preference, empty where none is given.

    Names are compared without case, values with it. Of several only the first counts; parameters
    are left aside.
    """
    sent = headers.getlist("prefer")
    if not sent or sum(map(len, sent)) > _LENGTH_MAX:
        return ""
    for element in _ELEMENT.findall(", ".join(sent)):
        match = _PREFERENCE.fullmatch(element)
        if match is not None and match[1].lower() == name:
            value = match[2] or ""
            return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
    return ""
