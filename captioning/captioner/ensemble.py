"""An ensemble of captioners that generates one caption by averaging the members' predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from captioning.captioner.captioner import Captioner
from captioning.errors import UserError
from captioning.generation import SearchConfig
from captioning.images.preprocessing import Preprocessing
from captioning.models.decoders.ensemble import Average, Ensemble, Memory
from captioning.tensors import Features
from captioning.text.vocabulary import Vocabulary


def open_captioners(
    folders: Sequence[Path], *, device: torch.device, average: Average, allow_code: bool = False
) -> Captioner | EnsembleCaptioner:
    """The captioner of one model folder, or the ensemble of several, in eval mode.

    Raises:
        UserError: see `Captioner.open`, `EnsembleCaptioner`.
    """
    captioners = [Captioner.open(folder, device=device, allow_code=allow_code) for folder in folders]
    if len(captioners) == 1:
        return captioners[0]
    return EnsembleCaptioner(captioners, names=[str(folder) for folder in folders], average=average)


class EnsembleCaptioner(nn.Module):
    """Captioners with one vocabulary; each has its own encoder and preprocessing.

    The default search is that of the first member, with captions no longer than every member can read.
    """

    def __init__(self, captioners: Sequence[Captioner], *, names: Sequence[str], average: Average):
        """
        Args:
            names: of the captioners, for error messages.

        Raises:
            UserError: their vocabularies differ.
        """
        super().__init__()
        self.members = tuple(captioners)
        for (name, first), (other, second) in pairwise(zip(names, captioners, strict=True)):
            if first.vocabulary.fingerprint != second.vocabulary.fingerprint:
                raise UserError(
                    f"{other}: its vocabulary {second.vocabulary.fingerprint} differs from "
                    f"{first.vocabulary.fingerprint} of {name}; an ensemble needs models with the same vocabulary"
                )
        self.captioners = nn.ModuleList(captioners)
        self.decoder = Ensemble([captioner.decoder for captioner in captioners], average=average).eval()
        self.vocabulary: Vocabulary = captioners[0].vocabulary
        self.preprocessings: tuple[Preprocessing, ...] = tuple(
            preprocessing for captioner in captioners for preprocessing in captioner.preprocessings
        )
        limits = [captioner.max_positions for captioner in captioners if captioner.max_positions is not None]
        self.max_positions = min(limits, default=None)
        search = captioners[0].search
        self.search: SearchConfig = replace(search, max_length=min([search.max_length, *limits]))

    def encode_memory(self, images: Sequence[Features | Tensor]) -> Memory:
        """The memories of a batch, from the images as each member needs them."""
        return Memory(
            tuple(member.encode_memory(batch) for member, batch in zip(self.members, images, strict=True))
        )
