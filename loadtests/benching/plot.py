"""The ratios as a picture: a bar each, its spread across it, and a mark where it is hoped to be."""

from collections.abc import Iterator, Sequence
from html import escape

from loadtests.benching.measures import Ratio

_LEFT, _WIDTH, _ROW, _TOP, _RIGHT = 260, 520, 26, 44, 120
_COLOURS = {"holds": "#2f7d4f", "does not hold": "#b3541e", "": "#5b7a99"}
_MOST = 3.0
"""Ratios beyond this leave the picture: their numbers stand beside the bar."""


def svg(ratios: Sequence[Ratio], title: str) -> str:
    """Return the picture."""
    height = _TOP + _ROW * len(ratios) + 20
    width = _LEFT + _WIDTH + _RIGHT
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
                ' font-family="sans-serif" font-size="12">'
            ),
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
            *_scale(height),
            *(line for at, each in enumerate(ratios) for line in _bar(each, _TOP + _ROW * at)),
            "</svg>\n",
        ]
    )


def _x(value: float) -> float:
    return _LEFT + _WIDTH * min(value, _MOST) / _MOST


def _scale(height: int) -> Iterator[str]:
    for tenths in range(0, round(_MOST * 10) + 1, 5):
        x = _x(tenths / 10)
        colour = "#888888" if tenths == 10 else "#dddddd"
        yield f'<line x1="{x:.1f}" y1="34" x2="{x:.1f}" y2="{height - 18}" stroke="{colour}"/>'
        yield f'<text x="{x:.1f}" y="{height - 5}" text-anchor="middle">{tenths / 10:g}</text>'


def _bar(each: Ratio, y: int) -> Iterator[str]:
    middle, colour = y + 9, _COLOURS[each.verdict]
    name = escape(f"{each.pair.over} ÷ {each.pair.under}")
    yield f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{name}</text>'
    width = _x(each.median) - _LEFT
    yield f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>'
    yield (
        f'<line x1="{_x(each.least):.1f}" y1="{middle}" x2="{_x(each.most):.1f}" y2="{middle}"'
        ' stroke="#000000"/>'
    )
    if each.pair.at_least:
        x = _x(each.pair.at_least)
        yield (
            f'<line x1="{x:.1f}" y1="{y - 3}" x2="{x:.1f}" y2="{y + 21}" stroke="#000000"'
            ' stroke-width="2"/>'
        )
    hoped = f" (≥ {each.pair.at_least:g})" if each.pair.at_least else ""
    right = _LEFT + _WIDTH + 8
    yield f'<text x="{right}" y="{middle + 4}">{each.median:.2f}{hoped}</text>'
