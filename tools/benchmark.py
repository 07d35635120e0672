"""Command line: how fast training and decoding are on this machine, beside the textbook way of doing them."""

from __future__ import annotations

import argparse
import json

from captioning.errors import run


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measure one part of the codebase against the textbook way of doing it, in the same run.",
        epilog="examples:\n  python tools/benchmark.py train\n  python tools/benchmark.py decode --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name",
        choices=["train", "decode"],
        help="train: a training step of the soft attention LSTM; decode: beam search of width 5",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--repeats", type=int, default=None, metavar="N", help="interleaved repeats (default: 15, 5)"
    )
    parser.add_argument(
        "--threads", type=int, default=None, metavar="N", help="CPU threads (default: torch's)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args()

    import torch

    from captioning.allocator import keep_freed_memory
    from captioning.analysis.benchmark import benchmark_decode, benchmark_train

    keep_freed_memory()  # ours and the textbook alike
    if options.threads:
        torch.set_num_threads(options.threads)
    work = {"train": benchmark_train, "decode": benchmark_decode}[options.name]
    result = work(**({"repeats": options.repeats} if options.repeats else {}))
    if options.json:
        print(json.dumps(result))
        return 0
    unit = result["unit"]
    print(
        f"ours      {result['ours_per_s']:8.1f} {unit}/s   {result['memory_mb']['ours']:.0f} MB above the model's"
    )
    print(f"textbook  {result['textbook_per_s']:8.1f} {unit}/s   {result['memory_mb']['textbook']:.0f} MB")
    print(f"{result['ratio']:.2f} times as fast, at {100 * result['peak_share']:.0f} % of this machine's")
    print(f"matrix product ({result['peak_gflops']:.0f} GFLOP/s, {result['threads']} threads)")
    return 0


if __name__ == "__main__":
    run(main)
