"""A trained model as one folder: encoder, decoder, vocabulary, preprocessing, decode defaults. No training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from captioning.tensors import Features
from captioning.text.vocabulary import Vocabulary
from captioning.utils.files import (
    atomic_folder,
    check_manifest,
    recover_folder,
    write_manifest,
    write_text,
)
from captioning.utils.validation import dump, read_yaml, validate

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """`config.yaml` of a model folder: all that is needed to build the model, and how it decodes by default."""

    __pydantic_config__ = {"extra": "forbid"}
    encoder: EncoderConfig
    preprocessing: Preprocessing
    decoder: DecoderConfig
    vocabulary: str  # fingerprint
    search: SearchConfig = field(default_factory=BeamConfig)
    format: int = FORMAT


class Captioner(nn.Module):
    """Encoder and decoder with the vocabulary and preprocessing they were trained with."""

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
        """A captioner with a decoder yet to be trained, and the encoder's weights as its config says.

        Raises:
            UserError: the search's rules name words that the vocabulary does not have.
        """
        constraint_ids(search, vocabulary)
        config = ModelConfig(
            encoder=encoder,  # type: ignore[arg-type]
            preprocessing=preprocessing,
            decoder=decoder,  # type: ignore[arg-type]
            search=search,
            vocabulary=vocabulary.fingerprint,
        )
        eyes = encoders.build(encoder)
        mouth = decoders.build(decoder, channels=eyes.channels, vocabulary_size=len(vocabulary))
        return cls(config, vocabulary, eyes, mouth)

    def features(self, images: Features | Tensor) -> Features:
        """Stored features as they are; pixels (B, 3, height, width) through the encoder."""
        return images if isinstance(images, Features) else self.encoder(images)

    def encode_memory(self, images: Features | Tensor) -> Any:
        """The decoder's memory of `features(images)`."""
        return self.decoder.encode_memory(self.features(images))

    @property
    def search(self) -> SearchConfig:
        """How it decodes where nothing else is asked for."""
        return self.config.search

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """How photos are prepared; several where several captioners speak as one (`ensemble`)."""
        return (self.config.preprocessing,)

    @property
    def max_positions(self) -> int | None:
        """Most words, `<end>` counted, that the decoder can read; None: any number."""
        return self.config.decoder.max_positions

    def save(self, folder: str | os.PathLike[str], *, card: str) -> None:
        """Write the model folder, whole or not at all; a folder of that name is replaced.

        Args:
            card: the model card, Markdown.
        """
        with atomic_folder(folder) as part:
            write_text(part / "config.yaml", yaml.safe_dump(dump(self.config), sort_keys=False))
            self.vocabulary.save(str(part / "vocabulary.json"))
            write_text(part / "README.md", card)
            save_weights(self.state_dict(), part / "model.safetensors")
            write_manifest(part)

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, device: torch.device | str = "cpu", allow_code: bool = False
    ) -> Captioner:
        """The captioner that `save` wrote, in eval mode on `device`. Needs nothing but the folder.

        Args:
            allow_code: whether a decoder, encoder or search outside the package ("my_module:MyConfig") may be
                imported. Importing runs code: read it first if the model is not your own.

        Raises:
            UserError: a file is missing, changed since it was saved, or does not fit the others, or the model
                needs code that is not allowed or cannot be imported.
        """
        folder = recover_folder(Path(folder))
        if not (folder / "manifest.json").is_file():
            raise UserError(
                f"{folder}: not a model folder (no manifest.json); give RUN/model of a finished run"
            )
        check_manifest(folder)
        config = _read_model_config(folder / "config.yaml", allow_code=allow_code)
        vocabulary = Vocabulary.open(str(folder / "vocabulary.json"))
        if vocabulary.fingerprint != config.vocabulary:
            raise UserError(
                f"{folder}: vocabulary {vocabulary.fingerprint}, but the model was trained with {config.vocabulary}"
            )
        captioner = cls.build(
            encoder=config.encoder.without_weights(),
            preprocessing=config.preprocessing,
            decoder=config.decoder,
            search=config.search,
            vocabulary=vocabulary,
        )
        captioner.config = config
        load_weights(captioner, folder / "model.safetensors")
        return captioner.to(device).eval()


def _read_model_config(path: Path, *, allow_code: bool) -> ModelConfig:
    return validate(ModelConfig, read_yaml(path), where=str(path), allow_code=allow_code)


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name. Those that share storage (a tied matrix) are written once a name."""
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}, path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill `module` from a safetensors file.

    Raises:
        UserError: the file is damaged, or names or shapes are not the module's (the first one named).
    """
    try:
        state: dict[str, Any] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from None
    own = module.state_dict()
    for name in sorted(own.keys() ^ state.keys()):
        raise UserError(
            f"{path}: weight {name} is {'missing' if name in own else 'not in this architecture'}"
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{path}: weight {name} has shape {list(tensor.shape)}, the architecture {list(own[name].shape)}"
            )
    module.load_state_dict(state)


def count_parameters(module: nn.Module) -> dict[str, int]:
    """Numbers of parameters: all, and those that train."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return {"parameters": sum(size for size, _ in sizes), "trainable": sum(size for size, on in sizes if on)}
