"""Benchmark of decoding: the Transformer's beam search against Hugging Face's `generate`.

Needs transformers (extra `dev`). Weights are random; nothing is downloaded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from captioning.benchmarks.decoding import (
    BEAM,
    GREEDY,
    IMAGES,
    LENGTH,
    REGIONS,
    SPECIAL,
    WIDTH,
    check_same_captions,
    memory_ratios,
)
from captioning.benchmarks.harness import Contenders, interleave, peak_memory, timed
from captioning.benchmarks.torch_harness import count_flops, large_product, start_worker, summarize
from captioning.errors import UserError
from captioning.generation import BeamConfig, SearchConfig, search
from captioning.models.decoders import TransformerConfig, build
from captioning.models.decoders.transformer import DecoderLayer, Transformer
from captioning.tensors import Features
from captioning.text.vocabulary import Vocabulary

try:
    import transformers
    from transformers.modeling_outputs import BaseModelOutput
except ImportError:
    raise UserError("transformers is not installed; pip install 'captioning[dev]' has it") from None

VOCABULARY_SIZE = 9491
FEW_IMAGES = 10
"""Images for the checks that are not timed: whether captions agree, and which attention is faster."""

CONFIG = TransformerConfig(
    hidden=512, feed_forward=2048, heads=8, layers=6, max_length=LENGTH, tied=True, dropout=0.0
)
Attention = Literal["eager", "sdpa"]


def sizes_of(config: TransformerConfig, vocabulary_size: int) -> dict[str, Any]:
    """Our sizes under the names of Hugging Face's encoder-decoder configs; their encoder is not used."""
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
    """A BART with random weights whose decoder has our sizes."""
    sizes = {**sizes_of(config, vocabulary_size), "attn_implementation": attention}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes)).eval()


@torch.no_grad()
def twin(model: Transformer) -> transformers.BlenderbotForConditionalGeneration:
    """Hugging Face's Blenderbot (BART with pre-norm layers, as ours) with the weights of `model`.

    Given `model.project(regions)` as the encoder's output, it computes the same logits.

    Raises:
        ValueError: the config has post-norm layers, other than learned positions, or encoder layers.
    """
    config = model.config
    if config.encoder_layers or config.norm != "pre" or model.position_embedding is None:
        raise ValueError(f"needs norm=pre, learned positions and no encoder_layers, got {config}")
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
    """Copy one stacked matrix into several."""
    for name in ("weight", "bias"):
        for rows, target in zip(getattr(source, name).chunk(len(targets)), targets, strict=True):
            getattr(target, name).copy_(rows)


@torch.inference_mode()
def generate(model: Any, regions: Tensor, *, width: int, length: int) -> Tensor:
    """Ids (B, length) int64 of the best captions of Hugging Face's beam search; width 1 is greedy.

    Args:
        regions: (B, N, H), the encoder's output.
    """
    ids = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=regions),
        attention_mask=torch.ones(regions.shape[:2], dtype=torch.int64),
        num_beams=width,
        do_sample=False,
        use_cache=True,
        min_new_tokens=length,
        max_new_tokens=length,
        suppress_tokens=[Vocabulary.pad, Vocabulary.start, Vocabulary.unk],
    )
    return ids[:, 1:]  # without <start>


@torch.inference_mode()
def best_captions(model: Transformer, features: Features, config: SearchConfig) -> Tensor:
    """Ids (B, T) int64 of the best captions of our search."""
    return search(model, model.encode_memory(features), config, special=SPECIAL).ids[:, 0]


def _model_and_features(seed: int) -> tuple[Transformer, Features]:
    generator = np.random.default_rng(seed)
    regions = torch.from_numpy(generator.standard_normal((IMAGES, REGIONS, CONFIG.hidden), np.float32))
    torch.manual_seed(seed)
    model = build(CONFIG, channels=CONFIG.hidden, vocabulary_size=VOCABULARY_SIZE).eval()
    assert isinstance(model, Transformer)
    return model, Features(regions)


def _contenders(seed: int, *, attention: Attention) -> Contenders:
    model, features = _model_and_features(seed)
    theirs = bart(CONFIG, vocabulary_size=VOCABULARY_SIZE, attention=attention)
    return Contenders(
        functools.partial(best_captions, model, features, BEAM),
        functools.partial(generate, theirs, features.regions, width=WIDTH, length=LENGTH),
    )


def benchmark_transformer(*, repeats: int = 3, seed: int = 0) -> dict[str, Any]:
    """Beam search of width 5 over 50 images, every caption exactly 20 words, float32.

    Hugging Face's contender is BART's decoder with its cache in a process of its own, with the faster of torch's and
    the plain attention, given the encoder's output. Ours projects and normalises the regions as well. That both find
    the same captions is checked once with equal weights (`twin`).

    Raises:
        RuntimeError: the contenders find different captions, or captions of another length.
    """
    model, features = _model_and_features(seed)
    same = same_captions(model, Features(features.regions[:FEW_IMAGES]), BEAM)
    check_same_captions(same)
    attention = _faster_attention(features.regions)
    worker = start_worker(functools.partial(_contenders, attention=attention), seed)
    ours = functools.partial(best_captions, model, features, BEAM)
    for name, ids in {"ours": ours().numpy(), "huggingface": worker()[1]}.items():
        if ids.shape != (IMAGES, LENGTH) or (ids == Vocabulary.end).any():
            raise RuntimeError(f"{name}: expected {LENGTH} words per image, got {ids}")
    flops = count_flops(ours)
    product, product_flops = large_product()
    seconds = interleave({"ours": ours, "huggingface": worker, "product": product}, repeats=repeats)
    memory = {
        "ours": peak_memory(ours),
        "huggingface": worker.peak_memory(),
        "ours_greedy": peak_memory(functools.partial(best_captions, model, features, GREEDY)),
        "beam_logits": IMAGES * WIDTH * VOCABULARY_SIZE * 4,
        "weights": sum(weight.numel() * weight.element_size() for weight in model.parameters()),
    }
    worker.close()
    return {
        "name": "decode transformer",
        **summarize(
            seconds,
            units=IMAGES,
            unit="images",
            flops=flops,
            product_flops=product_flops,
            memory=memory,
            baseline="huggingface",
        ),
        "same_captions": same,
        "huggingface_attention": attention,
        "transformers": transformers.__version__,
        **memory_ratios(memory),
    }


def same_captions(model: Transformer, features: Features, config: BeamConfig) -> float:
    """Share of images for which Hugging Face's search with our weights finds our caption; `config` fixes its length."""
    with torch.inference_mode():
        regions = model.project(features.regions)
    theirs = generate(twin(model), regions, width=config.width, length=config.max_length)
    return float((best_captions(model, features, config) == theirs).all(1).float().mean())


def _faster_attention(regions: Tensor) -> Attention:
    """The attention implementation with which BART is faster on this machine."""
    seconds: dict[Attention, float] = {}
    kinds: tuple[Attention, ...] = ("sdpa", "eager")
    for attention in kinds:
        model = bart(CONFIG, vocabulary_size=VOCABULARY_SIZE, attention=attention)
        generate(model, regions[:2], width=WIDTH, length=2)
        few = regions[:FEW_IMAGES]
        seconds[attention], _ = timed(functools.partial(generate, model, few, width=WIDTH, length=LENGTH))
    return min(kinds, key=lambda name: seconds[name])
