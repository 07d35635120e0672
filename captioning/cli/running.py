"""Devices and captioning of batches for the commands that run a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captioning.errors import UserError

if TYPE_CHECKING:
    import torch

    from captioning.captioner.captioner import Captioner
    from captioning.captioner.ensemble import EnsembleCaptioner
    from captioning.generation import SearchConfig
    from captioning.records import ImageId, Prediction


def choose_device(name: str) -> torch.device:
    """The device of `--device`: "auto" is a GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not available here ({reason}); use --device cpu") from None


def caption_batch(
    captioner: Captioner | EnsembleCaptioner, images: Any, image_ids: Sequence[ImageId], search: SearchConfig
) -> list[Prediction]:
    """The captions of a batch of images on the captioner's device, in order.

    Raises:
        UserError: memory ran out.
    """
    from captioning.captioner.predict import generate_captions
    from captioning.tensors import is_out_of_memory

    try:
        return generate_captions(captioner, images, image_ids, config=search)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise UserError(f"out of memory with {len(image_ids)} images at a time; lower --batch") from None
        raise
