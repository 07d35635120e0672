"""Beam search of our Transformer beside Hugging Face's `generate`, in the same run. Times, counts and compares.

The only file that imports transformers (of the extra `dev`). No weights are fetched: they are random.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from captioning.benchmarks.training_and_decoding import (
    Contenders,
    WorkerProcess,
    flops,
    large_product,
    memory_ratios,
    peak_memory,
    rounds,
    summary,
)
from captioning.errors import UserError
from captioning.generation import BeamConfig, GreedyConfig, SearchConfig, search
from captioning.models.decoders import TransformerConfig, build
from captioning.models.decoders.transformer import DecoderLayer, Transformer
from captioning.tensors import Features
from captioning.text.vocabulary import SPECIALS, Vocabulary

try:
    import transformers
    from transformers.modeling_outputs import BaseModelOutput
except ImportError:
    raise UserError("transformers is not installed; pip install 'captioning[dev]' has it") from None

REGIONS, WORDS = 49, 9491
WIDTH, LENGTH, IMAGES = 5, 20, 50
FEW = 10
"""Images for what is only looked at once: whether captions agree, which attention is faster."""

CONFIG = TransformerConfig(
    hidden=512, feed_forward=2048, heads=8, layers=6, max_length=LENGTH, tied=True, dropout=0.0
)
BEAM = BeamConfig(width=WIDTH, min_length=LENGTH, max_length=LENGTH)
Attention = Literal["eager", "sdpa"]


def sizes_of(config: TransformerConfig, vocabulary_size: int) -> dict[str, Any]:
    """Our sizes in the words of Hugging Face's encoder-decoder configs; the encoder is given its output."""
    return {
        "vocab_size": vocabulary_size,
        "d_model": config.hidden,
        "decoder_layers": config.layers,
        "decoder_ffn_dim": config.feed_forward,
        "decoder_attention_heads": config.heads,
        "encoder_layers": 1,
        "encoder_ffn_dim": 1,
        "encoder_attention_heads": 1,
        "max_position_embeddings": config.max_length,
        "activation_function": "gelu",
        "pad_token_id": Vocabulary.pad,
        "bos_token_id": Vocabulary.start,
        "decoder_start_token_id": Vocabulary.start,
        "eos_token_id": Vocabulary.end,
        "forced_eos_token_id": None,
    }


def bart(
    config: TransformerConfig, *, vocabulary_size: int, attention: Attention
) -> transformers.BartForConditionalGeneration:
    """A BART of random weights whose decoder has our sizes."""
    sizes = {**sizes_of(config, vocabulary_size), "attn_implementation": attention}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes)).eval()


@torch.no_grad()
def twin(model: Transformer) -> transformers.BlenderbotForConditionalGeneration:
    """The same decoder, weight for weight, built by Hugging Face: Blenderbot is BART with the norms first, as ours.

    It looks at `model.project(regions)`, and computes what `model` computes.
    """
    config = model.config
    if config.encoder_layers or config.norm != "pre" or model.position_embedding is None:
        raise ValueError(f"a twin has norms first, learned positions, no encoder_layers; got {config}")
    theirs: Any = transformers.BlenderbotForConditionalGeneration(
        transformers.BlenderbotConfig(
            **sizes_of(config, model.vocabulary_size),
            scale_embedding=True,
            tie_word_embeddings=False,
            encoder_no_repeat_ngram_size=0,
        )
    )
    theirs.to(model.norm.weight.dtype)
    decoder: Any = theirs.get_decoder()
    decoder.embed_tokens.weight.copy_(model.embedding.weight)
    decoder.embed_positions.weight.copy_(model.position_embedding.weight)
    theirs.lm_head.weight.copy_(model.vocab_projection.weight)
    theirs.final_logits_bias.copy_(model.vocab_projection.bias)
    pairs: list[tuple[nn.Module, nn.Module]] = [(decoder.layer_norm, model.norm)]
    for to, layer in zip(decoder.layers, cast(Iterable[DecoderLayer], model.layers), strict=True):
        _split(layer.self_qkv_proj, to.self_attn.q_proj, to.self_attn.k_proj, to.self_attn.v_proj)
        _split(layer.cross_kv_proj, to.encoder_attn.k_proj, to.encoder_attn.v_proj)
        pairs += [
            (to.self_attn_layer_norm, layer.self_norm),
            (to.self_attn.out_proj, layer.self_out_proj),
            (to.encoder_attn_layer_norm, layer.cross_norm),
            (to.encoder_attn.q_proj, layer.cross_query_proj),
            (to.encoder_attn.out_proj, layer.cross_out_proj),
            (to.final_layer_norm, layer.ff_norm),
            (to.fc1, layer.fc1),
            (to.fc2, layer.fc2),
        ]
    for target, source in pairs:
        target.load_state_dict(source.state_dict())
    return theirs.eval()


def _split(source: nn.Linear, *targets: nn.Linear) -> None:
    """One matrix of ours is several of theirs, one below the other."""
    for name in ("weight", "bias"):
        for part, target in zip(getattr(source, name).chunk(len(targets)), targets, strict=True):
            getattr(target, name).copy_(part)


@torch.inference_mode()
def generate(model: Any, regions: Tensor, *, width: int, length: int) -> Tensor:
    """The best `length` words that Hugging Face's beam search (of 1: greedy) finds: (B, length) int64.

    Args:
        regions: (B, N, H), the encoder's output as the decoder takes it.
    """
    words = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=regions),
        attention_mask=torch.ones(regions.shape[:2], dtype=torch.int64),
        num_beams=width,
        do_sample=False,
        use_cache=True,
        min_new_tokens=length,
        max_new_tokens=length,
        suppress_tokens=[Vocabulary.pad, Vocabulary.start, Vocabulary.unk],
    )
    return words[:, 1:]  # without <start>


@torch.inference_mode()
def find(model: Transformer, features: Features, config: SearchConfig) -> Tensor:
    """The best words that our search finds: (B, T) int64."""
    vocabulary = Vocabulary(words=SPECIALS)
    found = search(
        model,
        model.encode_memory(features),
        config,
        special=vocabulary.special_tokens,
    )
    return found.ids[:, 0]


class _Searching(NamedTuple):
    """What both are to caption, and our model."""

    model: Transformer
    features: Features

    def find(self, config: SearchConfig) -> Tensor:
        return find(self.model, self.features, config)


def _searching(seed: int) -> _Searching:
    generator = np.random.default_rng(seed)
    regions = torch.from_numpy(generator.standard_normal((IMAGES, REGIONS, CONFIG.hidden), np.float32))
    torch.manual_seed(seed)
    model = build(CONFIG, channels=CONFIG.hidden, vocabulary_size=WORDS).eval()
    assert isinstance(model, Transformer)
    return _Searching(model, Features(regions))


def _theirs(seed: int, *, attention: Attention) -> Contenders:
    searching = _searching(seed)
    model = bart(CONFIG, vocabulary_size=WORDS, attention=attention)
    return Contenders(
        lambda: searching.find(BEAM),
        lambda: generate(model, searching.features.regions, width=WIDTH, length=LENGTH),
    )


def benchmark_transformer(*, repeats: int = 3, seed: int = 0) -> dict[str, Any]:
    """Beam search of width 5 over 50 images, each caption exactly 20 words, float32.

    Theirs is BART's decoder with its cache, in the faster of torch's attention and the plain one, given the
    encoder's output, in a process of its own. Ours projects and normalises the regions besides. That both find
    the same captions is seen once with one set of weights, which `twin` carries over.
    """
    searching = _searching(seed)
    model, regions = searching.model, searching.features.regions
    same = same_captions(model, Features(regions[:FEW]), BEAM)
    if same < 0.9:  # rounding may tip a near tie, no more
        raise RuntimeError(f"the two ways disagree: only {100 * same:.0f} % of the captions are the same")
    attention = _faster(regions)
    apart = WorkerProcess(functools.partial(_theirs, attention=attention), seed)
    ours = functools.partial(searching.find, BEAM)
    for name, words in {"ours": ours().numpy(), "huggingface": apart()[1]}.items():
        if words.shape != (IMAGES, LENGTH) or (words == Vocabulary.end).any():
            raise RuntimeError(f"{name}: {LENGTH} words an image were asked for, got {words}")
    counted = flops(ours)
    product, product_flops = large_product()
    seconds = rounds({"ours": ours, "huggingface": apart, "product": product}, repeats=repeats)
    memory = {
        "ours": peak_memory(ours),
        "huggingface": apart.peak_memory(),
        "ours_greedy": peak_memory(
            lambda: searching.find(GreedyConfig(min_length=LENGTH, max_length=LENGTH))
        ),
        "beam_logits": IMAGES * WIDTH * WORDS * 4,
        "weights": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
    }
    apart.close()
    return {
        "name": "decode transformer",
        **summary(
            seconds,
            units=IMAGES,
            unit="images",
            counted=counted,
            product_flops=product_flops,
            memory=memory,
            beside="huggingface",
        ),
        "same_captions": same,
        "huggingface_attention": attention,
        "transformers": transformers.__version__,
        **memory_ratios(memory),
    }


def same_captions(model: Transformer, features: Features, config: BeamConfig) -> float:
    """Share of images for which `generate` with our weights finds our caption; `config` forces its length."""
    with torch.inference_mode():
        regions = model.project(features.regions)
    theirs = generate(twin(model), regions, width=config.width, length=config.max_length)
    return float((find(model, features, config) == theirs).all(1).float().mean())


def _faster(regions: Tensor) -> Attention:
    """The attention with which BART is faster here."""
    seconds: dict[Attention, float] = {}
    kinds: tuple[Attention, ...] = ("sdpa", "eager")
    for attention in kinds:
        model = bart(CONFIG, vocabulary_size=WORDS, attention=attention)
        generate(model, regions[:2], width=WIDTH, length=2)
        began = time.perf_counter()
        generate(model, regions[:FEW], width=WIDTH, length=LENGTH)
        seconds[attention] = time.perf_counter() - began
    return min(kinds, key=lambda name: seconds[name])
