"""Several captioners that describe an image as one. Knows what they must share; averages nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from captioning.captioner import Captioner
from captioning.decoders.ensemble import Average, Ensemble, Memory
from captioning.errors import UserError
from captioning.images import Preprocessing
from captioning.search import SearchConfig
from captioning.tensors import Features
from captioning.vocabulary import Vocabulary


class EnsembleCaptioner(nn.Module):
    """Captioners with one vocabulary, each with its own encoder and preprocessing; the first one's search."""

    def __init__(self, captioners: Sequence[Captioner], *, names: Sequence[str], average: Average):
        """
        Args:
            names: of the captioners, for what a user is told.

        Raises:
            UserError: their vocabularies differ.
        """
        super().__init__()
        for (name, first), (other, second) in pairwise(zip(names, captioners, strict=True)):
            if first.vocabulary.words != second.vocabulary.words:
                raise UserError(
                    f"{other}: its vocabulary {second.vocabulary.fingerprint} is not {first.vocabulary.fingerprint} "
                    f"of {name}; an ensemble needs models that were trained with the same words"
                )
        self.captioners = nn.ModuleList(captioners)
        self.decoder = Ensemble([captioner.decoder for captioner in captioners], average=average).eval()
        self.vocabulary: Vocabulary = captioners[0].vocabulary
        self.search: SearchConfig = captioners[0].search
        self.preprocessings: tuple[Preprocessing, ...] = tuple(
            each for captioner in captioners for each in captioner.preprocessings
        )
        limits = [captioner.longest for captioner in captioners if captioner.longest is not None]
        self.longest = min(limits, default=None)

    def remember(self, images: Sequence[Features | Tensor]) -> Memory:
        """What the decoder attends to, of a batch's images as each captioner takes them."""
        return Memory(
            tuple(
                captioner.remember(own)  # type: ignore[operator]
                for captioner, own in zip(self.captioners, images, strict=True)
            )
        )
