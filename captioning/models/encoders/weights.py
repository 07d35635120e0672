"""Safe reading of weight files, and checks that they fit a backbone."""

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
from captioning.models.encoders.base import IGNORED_BUFFER


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, or of a .pth / .pt file with a plain `state_dict`.

    Raises:
        UserError: the file is missing, damaged, not a `state_dict`, or a pickle of anything but tensors. No code
            of the file is run.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder; give the weight file in it (.safetensors or .pth)")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .safetensors or .pth file, none or default")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return check_state_dict(state, str(path))


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
                f"{path}: refused as unsafe: a pickle that holds more than tensors; "
                "if you trust it, save the model's state_dict as .safetensors"
            ) from None
        raise UserError(f"{path}: damaged, or not a weight file ({reason[:120]})") from None
    except Exception as error:  # torch.load raises almost any exception on damaged input
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(f"{path}: damaged, or not a state_dict ({reason})") from None


def check_state_dict(state: Any, where: str) -> dict[str, Tensor]:
    """Return `state` if it maps names to tensors. Raises UserError otherwise."""
    if not isinstance(state, Mapping):
        raise UserError(f"{where}: expected a state_dict (names to tensors), found {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{where}: expected a tensor under {name!r}, found {type(value).__name__}; "
                "save model.state_dict()"
            )
    return dict(state)


def match_weights(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor], *, optional: Collection[str], where: str
) -> dict[str, Tensor]:
    """The tensors of `weights` that a backbone with state dict `state` needs, in its dtypes.

    Args:
        optional: names that may occur in `weights` and are dropped: the classifier's.
        where: the file, for messages.

    Raises:
        UserError: a name is missing or unknown, or a tensor has another shape or values that are not finite.
    """
    needed = {name for name in state if not name.endswith(IGNORED_BUFFER)}
    given = {name for name in weights if not name.endswith(IGNORED_BUFFER) and name not in optional}
    for problem, names in (("is missing", needed - given), ("is not in this architecture", given - needed)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"{where}: weight {min(names)} {problem}{more}; is it a file for another network?"
            )
    matched = {}
    for name in sorted(needed):
        tensor, expected = weights[name], state[name]
        if tensor.shape != expected.shape:
            raise UserError(
                f"{where}: weight {name} has shape {list(tensor.shape)}, "
                f"the architecture {list(expected.shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{where}: weight {name} holds values that are not finite; fetch the file again")
        matched[name] = tensor.to(expected.dtype)
    return matched
