"""Model folders, devices and captioning of batches for the commands that run a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioning.errors import UserError

if TYPE_CHECKING:
    import torch

    from captioning.captioner.captioner import Captioner
    from captioning.captioner.ensemble import EnsembleCaptioner
    from captioning.generation import SearchConfig
    from captioning.records import ImageId, Prediction


def model_folder(run: Path) -> Path:
    """The model folder: `run` itself, or `run/model`.

    Raises:
        UserError: neither is a model folder.
    """
    if (run / "manifest.json").is_file():
        return run
    if (run / "model").is_dir() or (run / ".model.old").is_dir():  # the latter: see `files.recover_folder`
        return run / "model"
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give a run (runs/NAME) or a model folder")
    raise UserError(f"{run}: holds no model (no manifest.json, no model/); give a finished run")


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
    import torch

    from captioning.captioner.predict import generate_captions

    try:
        return generate_captions(captioner, images, image_ids, config=search)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise UserError(f"out of memory with {len(image_ids)} images at a time; lower --batch") from None
        raise
