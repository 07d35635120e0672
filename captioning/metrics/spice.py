"""SPICE 1.0 by its authors' Java program (Anderson et al. 2016), as coco-caption calls it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from captioning.metrics.base import Metric, MetricInput, MetricScore, Unavailable, mean_score
from captioning.metrics.java import JavaProgram, java_line, java_package, java_version

_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_LAST_JAVASCRIPT = 14  # SPICE formats its results with Java's JavaScript engine, which Java 15 dropped


class Spice(Metric):
    """Mean over images of F over scene-graph tuples.

    Beside pycocoevalcap it needs Stanford's CoreNLP 3.6.0 with its models, and Java 8 to 14.
    """

    name = "SPICE"
    description = "1.0, mean of the images' F over all tuples"

    def __init__(self, *, heap: str = "4G", limit: float | None = None) -> None:
        """`heap`: Java's, in its notation; `limit`: seconds, by default 600 and one for each caption and reference."""
        self.heap, self.limit = heap, limit

    def check(self) -> None:
        _check_models_and_java(java_package(self.name) / "spice")

    def score(self, captions: MetricInput) -> MetricScore:
        """A candidate's token of white space alone counts as a word that no reference has."""
        self.check()
        folder = java_package(self.name) / "spice"
        entries = [
            {"image_id": row, "test": java_line(candidate), "refs": [*map(java_line, references)]}
            for row, (references, candidate) in enumerate(captions.pairs())
        ]
        limit = self.limit or 600 + sum(1 + len(references) for references, _ in captions.pairs())
        with tempfile.TemporaryDirectory() as temporary:
            source, result = Path(temporary, "captions.json"), Path(temporary, "scores.json")
            source.write_text(json.dumps(entries))  # ASCII, the same in every encoding Java may assume
            command = ["-jar", "spice-1.0.jar", str(source), "-out", str(result), "-subset", "-silent"]
            with JavaProgram(self.name, command, folder=folder, heap=self.heap, limit=limit) as program:
                program.finish()
            try:
                f_scores = {
                    entry["image_id"]: float(entry["scores"]["All"]["f"])
                    for entry in json.loads(result.read_text())
                }
                return mean_score([f_scores[row] for row in range(len(entries))])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise Unavailable(
                    f"SPICE: its results cannot be read ({type(error).__name__}: {error})"
                ) from None


def _check_models_and_java(folder: Path) -> None:
    """Raises Unavailable that names everything missing at once, since the models take long to download."""
    missing = []
    if absent := [name for name in _MODELS if not (folder / "lib" / name).is_file()]:
        missing.append(
            f"{' and '.join(absent)} in {folder / 'lib'} (they are in stanford-corenlp-full-2015-12-09.zip of "
            "https://nlp.stanford.edu/software/)"
        )
    version = java_version("SPICE")
    if version > _LAST_JAVASCRIPT:
        missing.append(f"a Java from 8 to {_LAST_JAVASCRIPT} first on PATH (this one is {version})")
    if missing:
        raise Unavailable(f"SPICE: needs {', and '.join(missing)}")
