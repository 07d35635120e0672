"""A file of weights -> the part that a backbone needs, checked name by name. Runs no code from the file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from captioning.errors import UserError
from captioning.models.encoders.base import UNCOUNTED


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth / .pt file that holds a plain `state_dict`.

    Raises:
        UserError: missing, damaged, not a `state_dict`, or a pickle with more in it than tensors (never run).
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder; name the file of weights in it (.safetensors or .pth)")
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights; give a .safetensors or .pth, or none, or default")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return check_state(state, str(path))


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}); fetch the file again") from None


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        if "WeightsUnpickler error" in reason or "weights_only" in reason.lower():
            raise UserError(
                f"{path}: refused as unsafe: it is a pickle that holds more than tensors; "
                "save the model's state_dict as .safetensors where you trust it"
            ) from None
        raise UserError(f"{path}: damaged, or not a file of weights ({reason[:120]})") from None
    except Exception as error:  # torch.load raises nearly everything on damaged input
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(f"{path}: damaged, or not a state_dict ({reason})") from None


def check_state(state: Any, where: str) -> dict[str, Tensor]:
    """`state`, if it is a mapping of names to tensors. Raises UserError, naming what else is there."""
    if not isinstance(state, Mapping):
        raise UserError(f"{where}: expected a state_dict (names to tensors), found {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{where}: expected a tensor under {name!r}, found {type(value).__name__}; "
                "save model.state_dict()"
            )
    return dict(state)


def fit_weights(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], *, heads: Collection[str], where: str
) -> dict[str, Tensor]:
    """The tensors of `given` that the backbone's state `own` asks for, in its types.

    Args:
        heads: names that may be there and are left out: the classifier's.
        where: the file, for messages.

    Raises:
        UserError: a name is missing, unknown, of another shape, or holds values that are not finite.
    """
    needed = {name for name in own if not name.endswith(UNCOUNTED)}
    there = {name for name in given if not name.endswith(UNCOUNTED) and name not in heads}
    for problem, names in (("is missing", needed - there), ("is not in this architecture", there - needed)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"{where}: weight {min(names)} {problem}{more}; is this the file for the encoder named?"
            )
    fitted = {}
    for name in sorted(needed):
        tensor, wanted = given[name], own[name]
        if tensor.shape != wanted.shape:
            raise UserError(
                f"{where}: weight {name} has shape {list(tensor.shape)}, "
                f"the architecture {list(wanted.shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{where}: weight {name} holds values that are not finite; fetch the file again")
        fitted[name] = tensor.to(wanted.dtype)
    return fitted
