"""A path prefix, under which a proxy publishes the API (ONSALE_ROOT_PATH).

Requests are taken with the prefix and without: a proxy may strip it or pass it on, and health
checks come without. Answers always have it: `Location`, the `type` of a problem, `/docs`, the
document.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.heads import Headers

_LOCATION = b"location"


def stripped(url: bytes, root: bytes) -> bytes:
    """Return a request's address without the prefix, as it is where it does not have it."""
    if not url.startswith(root):
        return url
    rest = url[len(root) :]
    if not rest or rest.startswith(b"?"):
        return b"/" + rest
    return rest if rest.startswith(b"/") else url


def located(headers: Headers, root: bytes) -> Headers:
    """Return the headers of an answer, with the prefix in a `Location` on this server."""
    return [
        (name, root + value if name == _LOCATION and value.startswith(b"/") else value)
        for name, value in headers
    ]


class Prefix:
    """Middleware: has every `Location` begin with the prefix."""

    def __init__(self, app: ASGIApp, root: str) -> None:
        """Take the prefix, which is not empty."""
        self._app = app
        self._root = root.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and the head of an answer changed."""

        async def send_located(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = located(message["headers"], self._root)
            await send(message)

        await self._app(scope, receive, send_located)
