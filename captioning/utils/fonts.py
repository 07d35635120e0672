"""Saving figures whose text may be in any script."""

from __future__ import annotations

import os
import warnings
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from captioning.utils.files import atomic_write

FONTS = (
    *(
        "Noto Sans CJK SC",
        "Noto Sans CJK JP",
        "Source Han Sans SC",
        "WenQuanYi Micro Hei",
        "WenQuanYi Zen Hei",
    ),
    *("PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei"),
    *(
        "Noto Sans Thai",
        "Thonburi",
        "Leelawadee UI",
        "Noto Sans Devanagari",
        "Noto Sans Arabic",
        "Arial Unicode MS",
    ),
)
"""Fonts with letters that matplotlib's own lacks, as systems install them."""


def save_png(figure: Figure, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a figure atomically; one warning if no installed font has a letter of its text."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(font for font in FONTS if font in installed)]
    for text in figure.findobj(Text):
        if isinstance(text, Text) and not text.get_text().isascii():
            text.set_fontfamily(families)
    with atomic_write(path) as temporary, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(temporary, format="png", **options)
    messages = [str(warning.message) for warning in caught]
    unseen = f"{os.fspath(path)}: no installed font has all letters of its text; install one, such as Noto Sans CJK"
    for message in dict.fromkeys(unseen if "missing from font" in text else text for text in messages):
        warnings.warn(message, stacklevel=2)
