"""Several captioners that describe an image as one. Knows what they must share; averages nothing itself."""

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
    """The captioner of a model folder, in eval mode; of several folders their ensemble.

    Raises:
        UserError: see `Captioner.open`, `EnsembleCaptioner`.
    """
    captioners = [Captioner.open(folder, device=device, allow_code=allow_code) for folder in folders]
    if len(captioners) == 1:
        return captioners[0]
    return EnsembleCaptioner(captioners, names=[str(folder) for folder in folders], average=average)


class EnsembleCaptioner(nn.Module):
    """Captioners with one vocabulary, each with its own encoder and preprocessing.

    It searches as the first one does, for captions no longer than all can read.
    """

    def __init__(self, captioners: Sequence[Captioner], *, names: Sequence[str], average: Average):
        """
        Args:
            names: of the captioners, for what a user is told.

        Raises:
            UserError: their vocabularies differ.
        """
        super().__init__()
        self.each = tuple(captioners)
        for (name, first), (other, second) in pairwise(zip(names, captioners, strict=True)):
            if first.vocabulary.words != second.vocabulary.words:
                raise UserError(
                    f"{other}: its vocabulary {second.vocabulary.fingerprint} is not {first.vocabulary.fingerprint} "
                    f"of {name}; an ensemble needs models that were trained with the same words"
                )
        self.captioners = nn.ModuleList(captioners)
        self.decoder = Ensemble([captioner.decoder for captioner in captioners], average=average).eval()
        self.vocabulary: Vocabulary = captioners[0].vocabulary
        self.preprocessings: tuple[Preprocessing, ...] = tuple(
            each for captioner in captioners for each in captioner.preprocessings
        )
        limits = [captioner.max_positions for captioner in captioners if captioner.max_positions is not None]
        self.max_positions = min(limits, default=None)
        search = captioners[0].search
        self.search: SearchConfig = replace(search, max_length=min([search.max_length, *limits]))

    def encode_memory(self, images: Sequence[Features | Tensor]) -> Memory:
        """What the decoder attends to, of a batch's images as each captioner takes them."""
        return Memory(
            tuple(
                captioner.encode_memory(own)  # type: ignore[operator]
                for captioner, own in zip(self.captioners, images, strict=True)
            )
        )
