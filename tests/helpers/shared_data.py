"""Real captions, photographs and weights beside the checkout, and the marker that skips a test without them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"needs real data, which is not in the repository: no folder {SHARED}"
)
