"""Command line: how fast training and decoding are on this machine, beside another way of doing them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

DECODED = ("soft_attention_lstm", "transformer")
"""Decoders whose beam search is measured."""

EXAMPLES = """\
examples:
  captioning benchmark train
  captioning benchmark train --decoder up_down --json
  captioning benchmark train --decoder transformer --decoder-option layers=6
  captioning benchmark train --decoder all            every decoder.kind there is, as a table
  captioning benchmark decode --json
  captioning benchmark decode --decoder transformer
  captioning benchmark metrics --captions captions_val2017.json
  captioning benchmark reward --json"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measure one part of the codebase against another way of doing it, in the same run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name",
        choices=["train", "decode", "metrics", "reward"],
        help="train: a training step of 50 captions; decode: beam search of width 5; metrics: tokenizing and "
        "scoring 5,000 captions beside pycocoevalcap, and resampling the scores; reward: CIDEr-D of 50 images x "
        "5 samples beside pycocoevalcap's scorer, and its share of a self-critical step",
    )
    parser.add_argument(
        "--decoder",
        default="soft_attention_lstm",
        metavar="KIND",
        help="of train: any decoder.kind, or all; the soft attention LSTM (default) beside the textbook way, "
        "others beside their own step unrolled, word for word, with features repeated for every caption. Of "
        "decode: the soft attention LSTM, or the transformer beside Hugging Face's BART and its generate (needs "
        "transformers, which the extra dev has; fetches nothing)",
    )
    parser.add_argument(
        "--decoder-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of train: a setting of the decoder (default: sizes of 512, Transformers with 3 layers)",
    )
    parser.add_argument(
        "--captions", metavar="FILE", help="of metrics: references of one split (default: made-up captions)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--repeats",
        type=int,
        default=None,
        metavar="N",
        help="interleaved repeats (default: 15, of other decoders 7; decode 5, transformer 3; metrics 3; reward 9)",
    )
    parser.add_argument(
        "--threads", type=int, default=None, metavar="N", help="CPU threads (default: torch's)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args()
    if options.name == "decode" and options.decoder not in DECODED:
        parser.error(f"--decoder of decode: one of {', '.join(DECODED)}")
    if options.decoder_option and (options.name != "train" or options.decoder == "all"):
        parser.error("--decoder-option is for train with one --decoder")
    if options.captions and options.name != "metrics":
        parser.error("--captions is for metrics")
    if options.name == "metrics":
        return metrics(options)

    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    result = benchmark_of(options)(**({"repeats": options.repeats} if options.repeats else {}))
    if options.json:
        print(json.dumps(result))
        return 0
    if options.name == "reward":
        from captioning.benchmarks.reward import lines as reward_lines

        print("\n".join(reward_lines(result)))
        return 0
    if options.name == "train":
        from captioning.benchmarks.decoders import lines

        print("\n".join(lines(result.get("decoders", [result]))))
        return 0
    unit, memory = result["unit"], result["memory_mb"]
    beside = "huggingface" if "huggingface" in memory else "textbook"
    for name, note in (("ours", " above the model's"), (beside, "")):
        print(f"{name:12} {result[f'{name}_per_s']:8.1f} {unit}/s   {memory[name]:.0f} MB{note}")
    print(f"{result['ratio']:.2f} times as fast, at {100 * result['peak_share']:.0f} % of this machine's")
    print(f"matrix product ({result['peak_gflops']:.0f} GFLOP/s, {result['threads']} threads)")
    return 0


def metrics(options: argparse.Namespace) -> int:
    """Scoring captions, which takes no torch."""
    from captioning.benchmarks.metrics import benchmark_metrics, lines

    repeats = {"repeats": options.repeats} if options.repeats else {}
    result = benchmark_metrics(captions=options.captions, **repeats)
    print(json.dumps(result) if options.json else "\n".join(lines(result)))
    return 0


def benchmark_of(options: argparse.Namespace) -> Callable[..., dict[str, Any]]:
    """The benchmark asked for. Raises UserError for an unknown decoder, or where transformers is missing."""
    if options.name == "reward":
        from captioning.benchmarks.reward import benchmark_reward

        return benchmark_reward
    if options.name == "train":
        from captioning.benchmarks.decoders import benchmark_all, benchmark_decoder, config_of

        if options.decoder == "all":
            return benchmark_all
        return partial(benchmark_decoder, config_of(options.decoder, options.decoder_option))
    if options.decoder == "transformer":
        from captioning.benchmarks.huggingface import benchmark_transformer

        return benchmark_transformer
    from captioning.benchmarks.training_and_decoding import benchmark_decode

    return benchmark_decode
