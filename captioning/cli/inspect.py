"""`captioning inspect`: gates, states and attention along a caption; gradient norms by distance."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from captioning.captioner.pretrained import find_model
from captioning.cli.options import add_allow_code, add_search, positive
from captioning.cli.running import choose_device
from captioning.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from captioning.captioner.captioner import Captioner
    from captioning.config import ExperimentConfig
    from captioning.inspection.gradients import Probe
    from captioning.inspection.trace import Trace
    from captioning.models.decoders import Decoder, DecoderConfig
    from captioning.records import ImageRecord
    from captioning.tensors import Features

EXAMPLES = """\
--image: what does the decoder compute while it captions a photo? RUN is a run or a model folder.
  NAME.trace.png   for each word: attention over the photo, mean of each gate, norm of the state
  NAME.trace.json  log-probabilities, means and saturation of the gates, half-life of the memory
  NAME.trace.npz   every gate and state as arrays
A decoder without gates, such as the Transformer, is reported as such; its attention is still traced.

--gradients: how far back does the loss of a word depend on earlier words? RUN is one or more runs; the
captions come from their data set. Norms of the gradient of a word's loss with respect to the inputs and states
k words earlier, for untrained RNN, GRU, LSTM and Transformer decoders of the run's sizes and for the trained
runs. Runs with equal decoders count as seeds of one system; all runs need the same data set and vocabulary.
  gradients.png    the norms by distance
  gradients.json   the norms, their decay, and whether they vanish in the RNN and not in the LSTM

examples:
  captioning inspect runs/shapes --image photo.png                    the caption found by the model's search
  captioning inspect MODEL --image a.jpg --text "a dog on the grass"  a caption of your choice
  captioning inspect MODEL --image a.jpg --beam 1 --out figures       another search and output folder
  captioning inspect runs/shapes --gradients                          one run
  captioning inspect runs/*_rnn_* runs/*_lstm_* --gradients           several systems and seeds
  captioning inspect runs/shapes --gradients --captions 2 --seeds 1   faster, with fewer samples

exit code: 0 success; 2 the input was refused, with the reason on stderr"""

SEARCH_OPTIONS = ("search", "search_option", "beam", "max_length", "length_rule")
IMAGE_OPTIONS = ("text", *SEARCH_OPTIONS)
GRADIENT_OPTIONS = ("captions", "losses", "seeds", "split")


class Run(NamedTuple):
    """A trained run."""

    name: str  # its folder, as given
    label: str  # the name of its decoder in tables and figures; equal decoders share it
    config: ExperimentConfig
    captioner: Captioner


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Look inside a trained decoder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RUN --image FILE [--text CAPTION] [options]\n"
        "       %(prog)s RUN [RUN ...] --gradients [options]",
    )
    add = parser.add_argument
    add(
        "runs", nargs="+", metavar="RUN", help="folder of a run (runs/NAME); with --image also a model folder"
    )
    add("--image", metavar="FILE", help="trace the caption of this photo")
    add("--text", metavar="CAPTION", help="trace this caption instead of searching for one")
    add("--gradients", action="store_true", help="measure gradient norms by distance")
    add("--out", metavar="FOLDER", help="output folder (default: RUN/inspect; for a model folder ./inspect)")
    add_search(parser, default="the model's")
    add("--captions", type=positive, metavar="N", help="number of captions for --gradients (default: 8)")
    add("--losses", type=positive, metavar="N", help="words per caption whose loss is used (default: 16)")
    add("--seeds", type=positive, metavar="N", help="seeds of each untrained decoder (default: 3)")
    add("--split", metavar="NAME", help="split of the captions for --gradients (default: val)")
    add(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="default: a GPU if there is one",
    )
    add_allow_code(parser)
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    if bool(args.image) == args.gradients:
        parser.error("give either --image FILE or --gradients")
    mode, foreign = ("--gradients", IMAGE_OPTIONS) if args.gradients else ("--image", GRADIENT_OPTIONS)
    for name in foreign:
        if getattr(args, name):
            parser.error(f"--{name.replace('_', '-')} has no meaning with {mode}")
    if args.image and len(args.runs) > 1:
        parser.error("--image takes one RUN")
    if args.text is not None and any(getattr(args, name) for name in SEARCH_OPTIONS):
        parser.error("--text gives the caption; search options have no meaning with it")
    return args


def main() -> None:
    args = parse_arguments()
    if args.gradients:
        inspect_gradients(args)
    else:
        inspect_image(args)


def inspect_image(args: argparse.Namespace) -> None:
    """Trace one caption of one photo; write a figure, a summary and arrays."""
    # imported after the arguments are parsed: importing torch takes seconds
    from captioning.captioner.captioner import Captioner
    from captioning.images.reading import read_image
    from captioning.inspection.trace import save_arrays, summary
    from captioning.inspection.trace_figure import draw_trace
    from captioning.utils.files import write_json

    run = Path(args.runs[0])
    folder = find_model(run)
    base = output_folder(args, run) / Path(args.image).stem
    image, notes = read_image(args.image)
    for note in notes:
        print(f"{args.image}: {note}", file=sys.stderr)
    captioner = Captioner.open(folder, device=choose_device(args.device), allow_code=args.allow_code)
    trace = trace_image(captioner, image, args)
    values = summary(trace)
    kind, preprocessing = captioner.config.decoder.kind, captioner.config.preprocessing
    files = {suffix: str(base.with_name(f"{base.name}.trace.{suffix}")) for suffix in ("png", "json", "npz")}
    save_arrays(trace, files["npz"])
    title = f"[{run}, {kind}]   {values['caption']}"
    draw_trace(trace, image, files["png"], preprocessing=preprocessing, title=title)
    source = {"image": args.image, "model": str(folder), "decoder": kind, "given": args.text is not None}
    write_json(files["json"], {**source, **values, "files": files})
    print_trace(values)
    print("\n".join(files.values()))


def trace_image(captioner: Captioner, image: Any, args: argparse.Namespace) -> Trace:
    """The trace of the caption `--text`, or of the one that the search finds."""
    from captioning.cli.options import search_of
    from captioning.images.preprocessing import preprocess
    from captioning.inspection.trace import trace_search, trace_text

    pixels = preprocess(image, captioner.config.preprocessing).to(next(captioner.parameters()).device)
    if args.text is not None:
        return trace_text(captioner, pixels, args.text)
    search = search_of(captioner, args, n_best=1)
    return trace_search(captioner, pixels, config=search, image_id=Path(args.image).name)


def print_trace(values: Mapping[str, Any]) -> None:
    """Print the caption, its probability and one line for each layer's gates."""
    print(values["caption"])
    print(
        f"log-probability {values['logprob']:.3f}, "
        f"probability of a word {values['confidence']:.3f} (geometric mean)"
    )
    for number, layer in enumerate(values["layers"], 1):
        print(f"layer {number}: {describe_layer(layer)}")
    if "note" in values:
        print(values["note"])


def describe_layer(layer: Mapping[str, Any]) -> str:
    """The gates and the memory of a layer in one line."""
    texts = [f"{layer['units']} units"]
    for name, gate in layer["gates"].items():
        mean = sum(gate["mean"]) / len(gate["mean"])
        above, below = 100 * gate["above_0.9"], 100 * gate["below_0.1"]
        texts.append(f"{name} gate {mean:.2f} on average ({above:.0f} % above .9, {below:.0f} % below .1)")
    if "half_life" in layer:
        median = layer["half_life"]["words"]["median"]
        texts.append(
            "the median unit never decays" if median is None else f"half-life {median:.1f} words (median)"
        )
    return "; ".join(texts)


def inspect_gradients(args: argparse.Namespace) -> None:
    """Measure gradient norms by distance, for the given runs and for untrained decoders of their sizes."""
    from captioning import datasets
    from captioning.inspection import gradients, gradients_report
    from captioning.inspection.gradients_figure import draw_gradients
    from captioning.utils.files import write_json

    folders = [Path(name) for name in args.runs]
    out = output_folder(args, folders[0])
    runs = open_runs(folders, args.device, allow_code=args.allow_code)
    dataset = runs[0].config.dataset
    records = spread(datasets.of_split(datasets.load(dataset), args.split or "val"), args.captions or 8)
    captions = encode_captions(records, runs)
    probes, parameters = probe_all(runs, records, captions, seeds=args.seeds or 3, losses=args.losses or 16)
    common = probes["trained"][runs[0].label][0].common
    stages = {stage: gradients_report.summarize(by_label) for stage, by_label in probes.items()}
    verdicts = {stage: gradients_report.verdict(values, common) for stage, values in stages.items()}
    files = {suffix: str(out / f"gradients.{suffix}") for suffix in ("png", "json")}
    lengths = [len(ids) - 1 for ids in captions]
    report = {
        "runs": [{"run": run.name, "decoder": run.label} for run in runs],
        "dataset": dataset.kind,
        "captions": [
            {"image_id": record.image_id, "words": length}
            for record, length in zip(records, lengths, strict=True)
        ],
        "common": common,
        "vanished": gradients.VANISHED,
        "parameters": parameters,
        **stages,
        "verdict": verdicts,
        "files": files,
    }
    title = f"Gradients by distance: {len(captions)} captions of {dataset.kind}, {max(lengths)} words"
    draw_gradients(report, files["png"], title=title)
    write_json(files["json"], report)
    print(f"{title}; {', '.join(f'{name} {size:,}' for name, size in parameters.items())} parameters\n")
    print(f"{gradients_report.table(stages)}\n")
    for stage, verdict in verdicts.items():
        if verdict:
            print(f"{stage}: does the gradient vanish in the RNN and not in the LSTM? {verdict['answer']}.")
            print(f"  {verdict['sentence']}")
    print("\n".join(files.values()))


def probe_all(
    runs: Sequence[Run],
    records: Sequence[ImageRecord],
    captions: Sequence[Sequence[int]],
    *,
    seeds: int,
    losses: int,
) -> tuple[dict[str, dict[str, list[Probe]]], dict[str, int]]:
    """Probes by stage ("initialisation", "trained") and label, and the number of parameters by label."""
    from tqdm import tqdm

    from captioning.inspection import gradients
    from captioning.text.vocabulary import Vocabulary

    first = runs[0].captioner
    max_positions = max(len(ids) for ids in captions) - 1
    configs = gradients.comparable_configs(first.config.decoder, max_positions=max_positions)
    configs |= {run.label: run.captioner.config.decoder for run in runs}
    features = [encode_images(run.captioner, records) for run in runs]
    untrained: dict[str, list[Probe]] = {}
    trained: dict[str, list[Probe]] = {}
    parameters: dict[str, int] = {}
    total = (len(configs) * seeds + len(runs)) * len(captions)
    with tqdm(total=total, desc="gradients", unit="caption", leave=False, disable=None, delay=2) as progress:

        def probe(decoder: Decoder, features: Features) -> Probe:
            return gradients.probe(
                decoder, features, captions, end=Vocabulary.end, count=losses, on_caption=progress.update
            )

        size = {"channels": first.encoder.channels, "vocabulary_size": len(first.vocabulary)}
        for label, config in configs.items():
            for seed in range(seeds):
                decoder = gradients.build_untrained(config, **size, seed=seed).to(features[0].regions.device)
                parameters[label] = sum(parameter.numel() for parameter in decoder.parameters())
                untrained.setdefault(label, []).append(probe(decoder, features[0]))
        for run, run_features in zip(runs, features, strict=True):
            trained.setdefault(run.label, []).append(probe(run.captioner.decoder, run_features))
    return {"initialisation": untrained, "trained": trained}, parameters


def output_folder(args: argparse.Namespace, run: Path) -> Path:
    """Create the output folder. Raises UserError, before any work is done, if that fails."""
    out = run / "inspect" if (run / "model").is_dir() else Path("inspect")
    out = Path(args.out) if args.out else out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot create this folder ({error.strerror}); give another --out") from None
    return out


def open_runs(folders: Sequence[Path], device: str, *, allow_code: bool = False) -> list[Run]:
    """Open the runs. Raises UserError if one is not a run, or if data sets or vocabularies differ."""
    from captioning.captioner.captioner import Captioner
    from captioning.config import read_config

    runs: list[Run] = []
    labels: dict[str, DecoderConfig] = {}
    for folder in folders:
        model = find_model(folder)
        if model == folder:
            raise UserError(f"{folder}: is a model folder, without a data set; give the folder of its run")
        config = read_config(folder / "config.yaml", allow_code=allow_code)
        captioner = Captioner.open(model, device=choose_device(device), allow_code=allow_code)
        runs.append(
            Run(str(folder), unique_label(captioner.config.decoder, folder, labels), config, captioner)
        )
        first = runs[0]
        if config.dataset != first.config.dataset:
            raise UserError(f"{folder}: another data set than {first.name}; give runs of one data set")
        if captioner.vocabulary.fingerprint != first.captioner.vocabulary.fingerprint:
            raise UserError(f"{folder}: another vocabulary than {first.name}; give runs of one vocabulary")
    return runs


def unique_label(config: DecoderConfig, folder: Path, labels: dict[str, DecoderConfig]) -> str:
    """The label of a decoder, added to `labels`: equal configs share a label, different configs never do."""
    from captioning.inspection.gradients import label

    for name, other in labels.items():
        if other == config:
            return name
    kind = label(config)
    candidates = (kind, f"{kind} of {folder.name}", f"{kind} of {folder}")
    name = next(name for name in candidates if name not in labels)
    labels[name] = config
    return name


def spread(records: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    """At most `count` records, evenly spaced over the list."""
    count = min(count, len(records))
    return [records[number * len(records) // count] for number in range(count)]


def encode_captions(records: Sequence[ImageRecord], runs: Sequence[Run]) -> list[list[int]]:
    """Caption i of image i, cyclically, as ids; cut to what every decoder can read."""
    limits = [run.captioner.config.decoder.max_positions for run in runs]
    limit = min((limit for limit in limits if limit is not None), default=None)
    vocabulary = runs[0].captioner.vocabulary
    captions = []
    for number, record in enumerate(records):
        tokens = vocabulary.tokenize(record.captions[number % len(record.captions)])
        captions.append(vocabulary.encode(tokens, max_length=len(tokens) if limit is None else limit - 1))
    return captions


def encode_images(captioner: Captioner, records: Sequence[ImageRecord]) -> Features:
    """The encoder's features of the images."""
    import torch

    from captioning.images.preprocessing import preprocess
    from captioning.images.reading import load_image

    preprocessing = captioner.config.preprocessing
    pixels = torch.stack([preprocess(load_image(record.path), preprocessing) for record in records])
    with torch.no_grad():
        return captioner.features(pixels.to(next(captioner.parameters()).device))
