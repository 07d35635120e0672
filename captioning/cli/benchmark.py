"""`captioning benchmark`: speed and memory of training, decoding and scoring against a baseline on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from captioning.cli.options import encoder_of, positive

DECODED = ("soft_attention_lstm", "transformer")
"""Decoders whose beam search can be measured."""

EXAMPLES = """\
examples:
  captioning benchmark train
  captioning benchmark train --decoder up_down --json
  captioning benchmark train --decoder transformer --decoder-option layers=6
  captioning benchmark train --decoder all            every decoder.kind, as a table
  captioning benchmark decode --json
  captioning benchmark decode --decoder transformer
  captioning benchmark metrics --captions captions_val2017.json
  captioning benchmark reward --json
  captioning benchmark encode                         networks of torchvision and timm, as a table
  captioning benchmark encode --encoder kind=timm,name=vit_small_patch16_224"""

Benchmark = Callable[..., dict[str, Any]]
Lines = Callable[[Mapping[str, Any]], list[str]]


def main() -> int:
    options = parse_arguments()
    if options.threads and options.name != "metrics":
        import torch

        torch.set_num_threads(options.threads)
    benchmark, lines = select(options)
    result = benchmark(**({"repeats": options.repeats} if options.repeats else {}))
    print(json.dumps(result) if options.json else "\n".join(lines(result)))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure one part of the package against a baseline, both in turns in the same run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "name",
        choices=["train", "decode", "metrics", "reward", "encode"],
        help="train: a training step of 50 captions; decode: beam search of width 5; metrics: tokenizing and "
        "scoring 5,000 captions against pycocoevalcap, and resampling the scores; reward: CIDEr-D of 50 images x "
        "5 samples against pycocoevalcap's scorer, and its share of a self-critical step; encode: images to "
        "regions, against a plain loop over the same network",
    )
    add(
        "--decoder",
        default="soft_attention_lstm",
        metavar="KIND",
        help="train: any decoder.kind, or all. The baseline of the soft attention LSTM (default) is computed as in "
        "well-known reproductions, that of the others by their own step word for word, with features repeated for "
        "every caption. decode: the soft attention LSTM, or the transformer against Hugging Face's BART and its "
        "generate (needs transformers, in the extra dev; downloads nothing)",
    )
    add(
        "--decoder-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="train: a setting of the decoder (default: sizes of 512; Transformers with 3 layers)",
    )
    add(
        "--encoder",
        metavar="NAME|KEY=VALUE,...",
        help="encode: a network of torchvision by its name, or kind=timm,name=NAME; random weights (default: three)",
    )
    add("--captions", metavar="FILE", help="metrics: references of one split (default: synthetic captions)")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add(
        "--repeats",
        type=positive,
        metavar="N",
        help="rounds (default: train 15, with other decoders 7; decode 5, transformer 3; metrics 3; reward 9; "
        "encode 5)",
    )
    add("--threads", type=positive, metavar="N", help="CPU threads (default: torch's)")
    add("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args()
    if options.name == "decode" and options.decoder not in DECODED:
        parser.error(f"--decoder of decode: one of {', '.join(DECODED)}")
    if options.decoder_option and (options.name != "train" or options.decoder == "all"):
        parser.error("--decoder-option is for train with one --decoder")
    if options.encoder and options.name != "encode":
        parser.error("--encoder is for encode")
    if options.captions and options.name != "metrics":
        parser.error("--captions is for metrics")
    return options


def select(options: argparse.Namespace) -> tuple[Benchmark, Lines]:
    """The requested benchmark, and the function that formats its result.

    Raises:
        UserError: an unknown decoder, or transformers is missing.
    """
    if options.name == "metrics":  # without torch
        from captioning.benchmarks import metrics

        return partial(metrics.benchmark_metrics, captions=options.captions), metrics.lines
    if options.name == "reward":
        from captioning.benchmarks import reward

        return reward.benchmark_reward, reward.lines
    if options.name == "encode":
        from captioning.benchmarks import encoding

        if options.encoder is None:
            return encoding.benchmark_all, encoding.lines
        encoder = encoder_of(options.encoder).without_weights()
        return partial(encoding.benchmark_encoder, encoder), encoding.lines
    if options.name == "train":
        from captioning.benchmarks import training

        if options.decoder == "all":
            return training.benchmark_all, training.lines
        config = training.decoder_config(options.decoder, options.decoder_option)
        return partial(training.benchmark_decoder, config), training.lines
    from captioning.benchmarks import torch_harness

    if options.decoder == "transformer":
        from captioning.benchmarks.huggingface import benchmark_transformer

        return benchmark_transformer, torch_harness.lines
    from captioning.benchmarks.decoding import benchmark_decode

    return benchmark_decode, torch_harness.lines
