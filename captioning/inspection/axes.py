"""Helpers shared by the figures of this package."""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib.axes import Axes


def style(axes: Axes, *, grid: Literal["both", "x", "y"] = "both") -> None:
    """Light grid behind the data, no frame at the top and right."""
    axes.grid(axis=grid, color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def escape(text: str) -> str:
    """Text without the dollar signs that begin a formula in matplotlib."""
    return text.replace("$", r"\$")


def highlight(photo: np.ndarray, light: np.ndarray) -> np.ndarray:
    """A photo (height, width, 3) in its colours where `light` (height, width) is 1, dark grey where it is 0."""
    grey = photo.mean(-1, keepdims=True) * 0.35
    return np.clip(grey + (photo - grey) * light[..., None], 0, 1)
