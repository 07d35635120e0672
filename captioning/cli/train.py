"""Command line: train a captioning model as a config says."""

from __future__ import annotations

import argparse
import functools


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Train a captioning model; the best by its validation metric is left in RUNS/NAME/model.",
        epilog="""examples:
  captioning train configs/shapes.yaml
  captioning train configs/flickr8k_lstm.yaml dataset.root=data/flickr8k training.epochs=10
  captioning train configs/flickr8k_lstm.yaml name=second seed=1 tracking.mode=online
  captioning train runs/second/config.yaml --resume

Each config's first lines say what it takes and what score to expect. Any setting can be overridden as
section.key=value; a wrong key is refused with the nearest right one.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a YAML file of configs/, or the config.yaml of a run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings to change")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_intermixed_args()

    from captioning.config import read_config
    from captioning.experiment import Experiment
    from captioning.ops.cpu_kernels import keep_freed_memory

    keep_freed_memory()
    experiment = Experiment(
        read_config(options.config, options.overrides), log=functools.partial(print, flush=True)
    )
    progress = experiment.train(resume=options.resume)
    metric = experiment.config.training.metric
    print(
        f"best {metric} {100 * (progress.best or 0):.1f} at epoch {progress.best_epoch}, after "
        f"{progress.seconds / 60:.1f} minutes\n"
        f"model: {experiment.folder / 'model'}   numbers: {experiment.folder / 'metrics.jsonl'}"
    )
    experiment.world.leave()
    return 0
