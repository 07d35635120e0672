"""Model folders that are made in a moment, for tests of what uses a model. Their captions mean nothing."""

from pathlib import Path

import torch

from captioning.captioner.captioner import Captioner
from captioning.generation import BeamConfig, SearchConfig
from captioning.images.preprocessing import Preprocessing
from captioning.models.decoders import (
    AdaptiveAttentionConfig,
    AoAConfig,
    Att2inConfig,
    DecoderConfig,
    HardAttentionLSTMConfig,
    MeshedMemoryConfig,
    ShowTellConfig,
    SoftAttentionLSTMConfig,
    TransformerConfig,
    UpDownConfig,
)
from captioning.models.encoders import EncoderConfig, SmallCNNConfig, TorchvisionConfig
from captioning.text.vocabulary import SPECIALS, Vocabulary

WORDS = ("a", "dog", "cat", "café", "runs", "on", "grass", "red", "the")
PREPROCESSING = Preprocessing(size=20, resize="short_side", crop=0.8)
GRID = 5  # two blocks of the encoder halve 20 pixels twice
ENCODERS: dict[str, EncoderConfig] = {
    "small": SmallCNNConfig(channels=(4, 6), frequencies=2),
    "frozen": TorchvisionConfig(name="squeezenet1_1", grid=3),
}
DECODERS: dict[str, DecoderConfig] = {
    "lstm": SoftAttentionLSTMConfig(embedding=7, attention_size=5, hidden=11),
    "show_tell": ShowTellConfig(embedding=7, hidden=11),
    "hard_attention_lstm": HardAttentionLSTMConfig(embedding=7, attention_size=5, hidden=11),
    "adaptive_attention": AdaptiveAttentionConfig(embedding=3, attention_size=5, hidden=17),
    "att2in": Att2inConfig(embedding=7, attention_size=5, hidden=11),
    "aoa": AoAConfig(embedding=7, hidden=10, heads=2, refining=1),
    "up_down": UpDownConfig(embedding=7, attention_size=5, hidden=11),
    "meshed_memory": MeshedMemoryConfig(hidden=6, feed_forward=13, heads=3, layers=1, slots=5),
    "transformer": TransformerConfig(hidden=6, feed_forward=13, heads=3, layers=2, max_length=17),
}
ATTENDING = [kind for kind in DECODERS if kind != "show_tell"]  # those that show where they look


def tiny_captioner(
    kind: str = "lstm",
    *,
    encoder: str | EncoderConfig = "small",
    search: SearchConfig | None = None,
    preprocessing: Preprocessing = PREPROCESSING,
) -> Captioner:
    """A captioner of random weights, in eval mode. Its captions differ from image to image, and some end."""
    with torch.random.fork_rng():
        torch.manual_seed({"transformer": 1, "adaptive_attention": 12, "att2in": 5}.get(kind, 0))
        captioner = Captioner.build(
            encoder=ENCODERS[encoder] if isinstance(encoder, str) else encoder,
            preprocessing=preprocessing,
            decoder=DECODERS[kind],
            search=search or BeamConfig(width=3, max_length=9),
            vocabulary=Vocabulary(words=(*SPECIALS, *WORDS)),
        )
        trained = captioner if encoder == "small" else captioner.decoder
        for parameter in trained.parameters():  # far from the start of training, where all words are alike
            parameter.data *= 3
        with torch.no_grad():  # BatchNorm's statistics as after training, or all images look alike
            captioner.encoder.train()(torch.randn(31, 3, preprocessing.size, preprocessing.size))
        captioner.decoder.vocab_projection.bias.data[Vocabulary.end] += 2  # type: ignore[index, operator, union-attr]
    return captioner.eval()


def save_tiny_model(folder: Path, kind: str = "lstm", **settings) -> Path:
    """`tiny_captioner` as a model folder; its path."""
    tiny_captioner(kind, **settings).save(folder, card="# A model for tests\n")
    return folder
