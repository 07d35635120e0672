"""Command line: how fast training and decoding are on this machine, beside another way of doing them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from captioning.errors import run

EXAMPLES = """\
examples:
  python tools/benchmark.py train
  python tools/benchmark.py decode --json
  python tools/benchmark.py decode --decoder transformer
  python tools/benchmark.py metrics --captions captions_val2017.json"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measure one part of the codebase against another way of doing it, in the same run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name",
        choices=["train", "decode", "metrics"],
        help="train: a training step of the soft attention LSTM; decode: beam search of width 5; metrics: "
        "tokenizing and scoring 5,000 captions beside pycocoevalcap, and resampling the scores",
    )
    parser.add_argument(
        "--decoder",
        choices=["soft_attention_lstm", "transformer"],
        default="soft_attention_lstm",
        help="of decode: the LSTM beside the textbook way (default), or the Transformer beside Hugging Face's "
        "BART and its generate (needs transformers, which the extra dev has; fetches nothing)",
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
        help="interleaved repeats (default: 15; decode 5, transformer 3; metrics 3)",
    )
    parser.add_argument(
        "--threads", type=int, default=None, metavar="N", help="CPU threads (default: torch's)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args()
    if options.name == "train" and options.decoder != "soft_attention_lstm":
        parser.error("--decoder is for decode; train measures the soft attention LSTM")

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
    unit, memory = result["unit"], result["memory_mb"]
    beside = "huggingface" if "huggingface" in memory else "textbook"
    for name, note in (("ours", " above the model's"), (beside, "")):
        print(f"{name:12} {result[f'{name}_per_s']:8.1f} {unit}/s   {memory[name]:.0f} MB{note}")
    print(f"{result['ratio']:.2f} times as fast, at {100 * result['peak_share']:.0f} % of this machine's")
    print(f"matrix product ({result['peak_gflops']:.0f} GFLOP/s, {result['threads']} threads)")
    return 0


def metrics(options: argparse.Namespace) -> int:
    """Scoring captions, which takes no torch."""
    from captioning.analysis.benchmark_metrics import benchmark_metrics, lines

    repeats = {"repeats": options.repeats} if options.repeats else {}
    result = benchmark_metrics(captions=options.captions, **repeats)
    print(json.dumps(result) if options.json else "\n".join(lines(result)))
    return 0


def benchmark_of(options: argparse.Namespace) -> Callable[..., dict[str, Any]]:
    """The benchmark asked for. Raises UserError where transformers is needed and missing."""
    if options.decoder == "transformer":
        from captioning.analysis.benchmark_transformer import benchmark_transformer

        return benchmark_transformer
    from captioning.analysis.benchmark import benchmark_decode, benchmark_train

    return {"train": benchmark_train, "decode": benchmark_decode}[options.name]


if __name__ == "__main__":
    run(main)
