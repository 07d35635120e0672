"""Provenance of features: the encoder, its weights and the preprocessing that they were computed with."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from captioning.errors import UserError
from captioning.images.preprocessing import Preprocessing
from captioning.models.encoders import Encoder
from captioning.utils.files import fingerprint


@dataclass(frozen=True)
class FeatureProvenance:
    """What features were computed with; equal provenance means equal features."""

    encoder: dict[str, Any]  # `Encoder.identity`
    weights: str  # `Encoder.fingerprint()`
    preprocessing: dict[str, Any]

    @classmethod
    def of(cls, encoder: Encoder, preprocessing: Preprocessing) -> FeatureProvenance:
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(preprocessing).items()}
        return cls(encoder=encoder.identity, weights=encoder.fingerprint(), preprocessing=plain)

    @property
    def fingerprint(self) -> str:
        return fingerprint(asdict(self))

    def differences(self, other: FeatureProvenance) -> list[str]:
        """The settings in which the two differ, this one's value first: "encoder.grid 7 / 14"."""
        lines = []
        for section in ("encoder", "preprocessing"):
            ours, theirs = getattr(self, section), getattr(other, section)
            for key in sorted({*ours, *theirs}):
                if ours.get(key) != theirs.get(key):
                    lines.append(f"{section}.{key} {ours.get(key)} / {theirs.get(key)}")
        if not any(line.startswith("encoder.") for line in lines) and self.weights != other.weights:
            lines.append(f"encoder weights {self.weights} / {other.weights}")
        return lines


def refuse_other_provenance(
    where: str | os.PathLike[str], stored: FeatureProvenance, expected: FeatureProvenance | str | None
) -> None:
    """Raises UserError if the features stored in `where` don't have the expected provenance (or its fingerprint)."""
    wanted = expected.fingerprint if isinstance(expected, FeatureProvenance) else expected
    if wanted is None or wanted == stored.fingerprint:
        return
    details = ""
    if isinstance(expected, FeatureProvenance):
        details = f" (stored / expected: {'; '.join(stored.differences(expected))})"
    raise UserError(
        f"{where}: features of another encoder or preprocessing: stored {stored.fingerprint}, "
        f"expected {wanted}{details}; name another folder or delete this one"
    )
