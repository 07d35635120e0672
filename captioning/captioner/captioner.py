"""A trained model as one folder: encoder, decoder, vocabulary, preprocessing and default search."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from captioning.errors import UserError
from captioning.generation import BeamConfig, SearchConfig, constraint_ids
from captioning.images.preprocessing import Preprocessing
from captioning.models import decoders, encoders
from captioning.models.decoders import BaseDecoderConfig, DecoderConfig
from captioning.models.encoders import BaseEncoderConfig, EncoderConfig
from captioning.tensors import Features, is_out_of_memory
from captioning.text.vocabulary import Vocabulary
from captioning.utils.files import (
    atomic_folder,
    check_manifest,
    recover_folder,
    write_manifest,
    write_text,
)
from captioning.utils.validation import dump, read_yaml, validate

FORMAT = 2
FILES = ("config.yaml", "vocabulary.json", "model.safetensors")
"""Files of a model folder that `Captioner.open` reads."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """`config.yaml` of a model folder: the architecture, the preprocessing and the default search."""

    __pydantic_config__ = {"extra": "forbid"}
    encoder: EncoderConfig
    preprocessing: Preprocessing
    decoder: DecoderConfig
    vocabulary: str  # fingerprint
    search: SearchConfig = field(default_factory=BeamConfig)
    encoder_fingerprint: str | None = None  # of a frozen encoder whose weights are not in the folder
    format: int = FORMAT


class Captioner(nn.Module):
    """An encoder and a decoder with the vocabulary, preprocessing and default search of their training."""

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        encoder: encoders.Encoder,
        decoder: decoders.Decoder,
    ):
        super().__init__()
        self.config, self.vocabulary, self.encoder, self.decoder = config, vocabulary, encoder, decoder

    @classmethod
    def build(
        cls,
        *,
        encoder: BaseEncoderConfig,
        preprocessing: Preprocessing,
        decoder: BaseDecoderConfig,
        search: SearchConfig,
        vocabulary: Vocabulary,
    ) -> Captioner:
        """A captioner with an untrained decoder and the encoder weights that its config names.

        Raises:
            UserError: the search's constraints contain words that are not in the vocabulary, or memory ran out.
        """
        constraint_ids(search, vocabulary)
        config = ModelConfig(
            encoder=encoder,  # type: ignore[arg-type]
            preprocessing=preprocessing,
            decoder=decoder,  # type: ignore[arg-type]
            search=search,
            vocabulary=vocabulary.fingerprint,
        )
        try:
            built = encoders.build(encoder)
            built_decoder = decoders.build(decoder, channels=built.channels, vocabulary_size=len(vocabulary))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                "the encoder and the decoder are too large for the memory of this machine; lower the sizes in these "
                "sections"
            ) from error
        return cls(config, vocabulary, built, built_decoder)

    def features(self, images: Features | Tensor) -> Features:
        """The encoder's features of pixels (B, 3, height, width); stored features are returned unchanged."""
        return images if isinstance(images, Features) else self.encoder(images)

    def encode_memory(self, images: Features | Tensor) -> Any:
        """The decoder's memory of `features(images)`."""
        return self.decoder.encode_memory(self.features(images))

    @property
    def search(self) -> SearchConfig:
        """The default search."""
        return self.config.search

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The preprocessing of photos, as a tuple: an ensemble has one for each member."""
        return (self.config.preprocessing,)

    @property
    def max_positions(self) -> int | None:
        """Maximum number of tokens that the decoder can read, including `<end>`; None: no limit."""
        return self.config.decoder.max_positions

    def save(self, folder: str | os.PathLike[str], *, card: str, compact: bool = False) -> None:
        """Write the model folder atomically, replacing an existing one.

        Args:
            card: the model card, Markdown.
            compact: write the decoder in float16, and no encoder: opening the folder needs its default weights.

        Raises:
            UserError: `compact`, but the encoder is trained or its weights are not the default ones.
        """
        config, state = self.config, self.state_dict()
        if compact:
            if not self.encoder.frozen or getattr(config.encoder, "weights", None) != "default":
                raise UserError(
                    "a compact model folder holds no encoder, so it needs a frozen one with encoder.weights=default"
                )
            config = replace(config, encoder_fingerprint=self.encoder.fingerprint())
            state = {
                name: tensor.half() if tensor.is_floating_point() else tensor
                for name, tensor in self.decoder.state_dict().items()
            }
        with atomic_folder(folder) as temporary:
            write_text(temporary / "config.yaml", yaml.safe_dump(dump(config), sort_keys=False))
            self.vocabulary.save(str(temporary / "vocabulary.json"))
            write_text(temporary / "README.md", card)
            save_weights(state, temporary / "model.safetensors")
            write_manifest(temporary)

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, device: torch.device | str = "cpu", allow_code: bool = False
    ) -> Captioner:
        """Load a captioner from a folder written by `save`, in eval mode on `device`.

        Args:
            allow_code: whether a decoder, encoder or search outside the package ("my_module:MyConfig") may be
                imported. Importing runs code: read it first if the model is not your own.

        Raises:
            UserError: a file is missing, changed since it was saved, of another format, or does not match the
                others, or the model needs code that is not allowed or cannot be imported.
        """
        folder = recover_folder(Path(folder))
        if not (folder / "manifest.json").is_file():
            raise UserError(
                f"{folder}: not a model folder (no manifest.json); give RUN/model of a finished run"
            )
        check_manifest(folder, needed=FILES)
        config = _read_model_config(folder / "config.yaml", allow_code=allow_code)
        vocabulary = Vocabulary.open(str(folder / "vocabulary.json"))
        if vocabulary.fingerprint != config.vocabulary:
            raise UserError(
                f"{folder}: the vocabulary is {vocabulary.fingerprint}, but the model was trained with "
                f"{config.vocabulary}; restore the model's own vocabulary.json"
            )
        compact = config.encoder_fingerprint is not None
        captioner = cls.build(
            encoder=config.encoder if compact else config.encoder.without_weights(),
            preprocessing=config.preprocessing,
            decoder=config.decoder,
            search=config.search,
            vocabulary=vocabulary,
        )
        captioner.config = config
        if compact and captioner.encoder.fingerprint() != config.encoder_fingerprint:
            raise UserError(
                f"{folder}: the encoder's weights are {captioner.encoder.fingerprint()}, but the model was trained "
                f"with {config.encoder_fingerprint}; install the version of its weights that the model card names"
            )
        load_weights(captioner.decoder if compact else captioner, folder / "model.safetensors")
        return captioner.to(device).eval()


def _read_model_config(path: Path, *, allow_code: bool) -> ModelConfig:
    values = read_yaml(path)
    if values.get("format") != FORMAT:
        raise UserError(
            f"{path}: model folder of format {values.get('format')}, but this version reads format {FORMAT}; "
            "train the model again"
        )
    return validate(ModelConfig, values, where=str(path), allow_code=allow_code)


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name. Tensors that share storage (a tied matrix) are written once per name.

    Raises:
        OSError: the disk is full, or refuses the file.
    """
    try:
        save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}, path)
    except SafetensorError as error:  # with the system's error as text
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        if os.name == "nt":
            raise OSError(0, str(error), str(path), int(number[1])) from None
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def load_weights(module: nn.Module, path: Path) -> None:
    """Load the parameters and buffers of `module` from a safetensors file. Raises UserError as `read_tensors`."""
    module.load_state_dict(read_tensors(path, like=module.state_dict()))


def read_tensors(path: Path, *, like: Mapping[str, Tensor], partial: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which have the names and shapes of `like`, with `partial` some of them.

    Raises:
        UserError: the file is damaged, a name, shape or type is another, or a value is not finite. Floating-point
            numbers may be of another precision.
    """
    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from None
    for name in sorted(state.keys() - like.keys() if partial else state.keys() ^ like.keys()):
        problem = "missing" if name in like else "not in this architecture"
        raise UserError(f"{path}: weight {name} is {problem}")
    for name, tensor in state.items():
        expected = like[name]
        if tensor.shape != expected.shape:
            raise UserError(
                f"{path}: weight {name} has shape {list(tensor.shape)}, but the architecture needs "
                f"{list(expected.shape)}"
            )
        if tensor.dtype != expected.dtype and not (
            tensor.is_floating_point() and expected.is_floating_point()
        ):
            raise UserError(
                f"{path}: weight {name} is of type {tensor.dtype}, but the architecture needs {expected.dtype}"
            )
        # a buffer may begin as NaN, until the first update
        if not torch.isfinite(tensor.float()).all() and torch.isfinite(expected.float()).all():
            raise UserError(f"{path}: weight {name} holds values that are not finite; train the model again")
    return state


def count_parameters(module: nn.Module) -> dict[str, int]:
    """The number of parameters, and of trainable ones."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return {
        "parameters": sum(size for size, _ in sizes),
        "trainable": sum(size for size, trainable in sizes if trainable),
    }
