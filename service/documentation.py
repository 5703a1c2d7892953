"""`/openapi.json` and `/docs`: what `openapi` describes, for tools and for people.

The page and its scripts come out of an installed package, so that nothing is asked of the outside.
"""

from pathlib import Path

import swagger_ui_bundle
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from service.bodies import answer
from service.errors import Problem
from service.openapi import document

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Onsale: the API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{root}/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{root}/docs/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({
  url: "{root}/openapi.json",
  dom_id: "#swagger-ui",
  validatorUrl: null,
  defaultModelsExpandDepth: 0,
});
</script>
</body>
</html>
"""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:;"
        " script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
    ),
}
_FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


def routes(root: str = "") -> list[Route]:
    """Return the routes of the documentation; the document is made once.

    `root` is the path prefix under which a browser reaches them.
    """
    described = document(root)
    made = page(root)

    async def openapi(_: Request) -> Response:
        return answer(200, described)

    async def docs(_: Request) -> Response:
        return HTMLResponse(made, headers=_HEADERS)

    return [
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
        Route("/docs/{file}", _file, methods=["GET"]),
    ]


def page(root: str) -> str:
    """Return the page, as it is under a path prefix."""
    return _PAGE.replace("{root}", root)


async def _file(request: Request) -> Response:
    name = request.path_params["file"]
    if name not in _FILES:
        raise Problem("not_found")
    return FileResponse(
        Path(swagger_ui_bundle.swagger_ui_path) / name,
        media_type=_FILES[name],
        headers={"Cache-Control": "max-age=86400", **_HEADERS},
    )
