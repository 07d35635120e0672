"""The paired bootstrap beside a brute-force one, sacrebleu's, and a normal approximation; error rates of studies."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from captioning.metrics import NAMES, DocumentFrequencies, ReferenceCounts, Scores, score
from captioning.metrics.diversity import diversity_scores
from captioning.metrics.significance import (
    Comparison,
    comparable_metrics,
    compare_systems,
    draw_resamples,
    holm,
    paired_bootstrap,
    resample_scores,
)

Tokens = list[str]
WORDS = ["a", "the", "man", "dog", "on", "in", "grass", "red", "ball", "runs", "with", "two", "snow"]


def corpus(
    seed: int, *, images: int, fidelity: tuple[float, ...]
) -> tuple[list[list[Tokens]], list[list[Tokens]]]:
    """References, and for each fidelity a system that copies that share of a reference's words."""
    generator = random.Random(seed)
    references = [
        [generator.choices(WORDS, k=generator.randint(5, 13)) for _ in range(generator.randint(2, 5))]
        for _ in range(images)
    ]
    systems = [
        [
            [
                word if generator.random() < share else generator.choice(WORDS)
                for word in generator.choice(own)
            ]
            for own in references
        ]
        for share in fidelity
    ]
    return references, systems


def test_as_by_scoring_every_resample_from_scratch() -> None:
    """BLEU, brevity penalty included, and ROUGE-L by `score` of the drawn images; CIDEr with its frequencies."""
    references, systems = corpus(3, images=31, fidelity=(0.7, 0.5))
    systems[0] = [tokens[: len(tokens) * 2 // 3 + 1] for tokens in systems[0]]  # the brevity penalty matters
    whole = [score(references, system) for system in systems]
    length, reference_length = whole[0].statistics["BLEU-4"].values[:, -2:].sum(axis=0)
    assert length < reference_length
    drawn = np.concatenate(list(draw_resamples(31, resamples=53, seed=7)))
    assert drawn.shape == (53, 31)
    again = np.empty((2, 53, len(NAMES)))
    for row, images in enumerate(drawn):
        for number, system in enumerate(systems):
            scores = score([references[i] for i in images], [system[i] for i in images], metrics=NAMES[:5])
            fixed = [whole[number].per_image[name][images].mean() for name in NAMES[5:]]
            again[number, row] = [*scores.corpus.values(), *fixed]
    np.testing.assert_allclose(resample_scores(whole, metrics=NAMES, resamples=53, seed=7), again, atol=1e-12)

    found = paired_bootstrap(*whole, metrics=NAMES, resamples=53, seed=7)
    assert list(found) == list(NAMES)
    for column, (name, comparison) in enumerate(found.items()):
        differences = again[0, :, column] - again[1, :, column]
        seen = whole[0].corpus[name] - whole[1].corpus[name]
        assert (comparison.a, comparison.b) == (whole[0].corpus[name], whole[1].corpus[name])
        assert comparison.difference == pytest.approx(seen, abs=1e-15)
        assert comparison.low == pytest.approx(np.percentile(differences, 2.5), abs=1e-12)
        assert comparison.high == pytest.approx(np.percentile(differences, 97.5), abs=1e-12)
        far = sum(abs(each - differences.mean()) >= abs(seen) for each in differences)
        assert comparison.p == (1 + far) / 54


def test_diversity_as_by_scoring_every_resample_from_scratch() -> None:
    """mBLEU and the oracle's BLEU, whose resampled corpus comes from counts that no other metric shares."""
    references, systems = corpus(29, images=23, fidelity=(0.8, 0.5, 0.3))
    captions = list(zip(*systems, strict=True))
    table = DocumentFrequencies.of(ReferenceCounts(references))

    def scores(images: Sequence[int]) -> Scores:
        own = ReferenceCounts([references[i] for i in images])
        return diversity_scores(own, [captions[i] for i in images], metrics=NAMES, frequencies=table)

    whole = scores(range(23))
    names = comparable_metrics(whole)
    assert names == list(whole.corpus) and {"mBLEU-4", "oracle-BLEU-1", "oracle-BLEU-4"} < set(names)
    found = resample_scores([whole], metrics=names, resamples=17, seed=3)[0]
    again = [
        list(scores(images).corpus.values())
        for images in np.concatenate(list(draw_resamples(23, resamples=17, seed=3)))
    ]
    np.testing.assert_allclose(found, again, atol=1e-12)
    assert found.std(0).min() > 1e-4


def test_resamples_do_not_depend_on_how_they_are_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draw_resamples(11, resamples=23, seed=5)))
    monkeypatch.setattr("captioning.metrics.significance._CHUNK", 7 * 11)
    parted = list(draw_resamples(11, resamples=23, seed=5))
    assert [len(part) for part in parted] == [7, 7, 7, 2]
    assert (np.concatenate(parted) == whole).all()


def test_bleu_as_sacrebleu() -> None:
    """The same resamples (both draw by NumPy's default generator), so each system's figures are the same.

    sacrebleu's p counts |d*| - mean of |d*| > |d|: about one tail of what ours counts on both.
    """
    sacrebleu = pytest.importorskip("sacrebleu")
    from sacrebleu.significance import PairedTest

    references, systems = corpus(11, images=97, fidelity=(0.75, 0.71))
    most = max(map(len, references))
    streams = [[" ".join(own[n]) if n < len(own) else None for own in references] for n in range(most)]
    metric = sacrebleu.BLEU(tokenize="none", smooth_method="none", references=streams)
    named = [
        (name, [" ".join(tokens) for tokens in system]) for name, system in zip("ba", systems, strict=True)
    ]
    _, theirs = PairedTest(named, {"BLEU": metric}, references=None, test_type="bs", n_samples=401)()

    scores = [score(references, system) for system in systems]
    runs = resample_scores(scores, metrics=["BLEU-4"], resamples=401, seed=12345)[
        ..., 0
    ]  # sacrebleu's own seed
    for run, result in zip(runs, theirs["BLEU"], strict=True):
        assert 100 * run.mean() == pytest.approx(result.mean, abs=1e-4)  # it sums in float32
        ordered = np.sort(run)
        assert 50 * (ordered[401 - 10 - 1] - ordered[10]) == pytest.approx(result.ci, abs=1e-4)
    found = paired_bootstrap(*scores, metrics=["BLEU-4"], resamples=401, seed=12345)["BLEU-4"]
    assert 100 * found.a == pytest.approx(theirs["BLEU"][0].score, abs=1e-6)
    sizes = np.abs(runs[0] - runs[1])
    p = (1 + (sizes - sizes.mean() > abs(found.difference)).sum()) / 402
    assert p == pytest.approx(theirs["BLEU"][1].p_value)
    assert 0.01 < p < found.p < 3 * p < 1


def test_means_as_by_the_normal_distribution() -> None:
    generator = np.random.default_rng(13)
    images = 1009
    a = generator.normal(0.9, 1.0, images)
    b = a + generator.normal(-0.05, 0.7, images)
    one, other = (Scores({"CIDEr-D": float(each.mean())}, {"CIDEr-D": each}) for each in (a, b))
    found = paired_bootstrap(one, other, metrics=["CIDEr-D"], resamples=5000)["CIDEr-D"]
    spread = (a - b).std() / math.sqrt(images)
    assert found.low == pytest.approx(found.difference - 1.96 * spread, abs=0.15 * spread)
    assert found.high == pytest.approx(found.difference + 1.96 * spread, abs=0.15 * spread)
    assert found.p == pytest.approx(math.erfc(found.difference / spread / math.sqrt(2)), abs=0.01)
    assert 0.003 < found.p < 0.2
    back = paired_bootstrap(other, one, metrics=["CIDEr-D"], resamples=5000)["CIDEr-D"]
    assert (back.low, back.high, back.p) == pytest.approx((-found.high, -found.low, found.p), abs=1e-12)


def test_equal_and_very_different_systems() -> None:
    references, (good, bad) = corpus(17, images=61, fidelity=(0.9, 0.1))
    good_scores, bad_scores = score(references, good), score(references, bad)
    for comparison in paired_bootstrap(good_scores, good_scores, metrics=NAMES, resamples=101).values():
        assert comparison[2:6] == (0, 0, 0, 1) and not comparison.at_floor
    for comparison in paired_bootstrap(good_scores, bad_scores, metrics=NAMES, resamples=101).values():
        assert (
            comparison.p == 1 / 102
            and comparison.at_floor
            and 0 < comparison.low < comparison.difference < comparison.high
        )


def test_seed_decides() -> None:
    references, systems = corpus(19, images=41, fidelity=(0.7, 0.6))
    scores = [score(references, system) for system in systems]
    one, same, other = (
        paired_bootstrap(*scores, metrics=["BLEU-4"], resamples=71, seed=seed)["BLEU-4"] for seed in (1, 1, 2)
    )
    assert one == same != other and one[:3] == other[:3]


def test_what_cannot_be_resample_scores() -> None:
    references, systems = corpus(23, images=7, fidelity=(0.7, 0.6))
    a, b = (score(references, system) for system in systems)
    fewer = score(references[1:], systems[0][1:])
    with pytest.raises(ValueError, match="of 6 and of 7 images"):
        paired_bootstrap(a, fewer, metrics=["BLEU-4"])
    with pytest.raises(ValueError, match=r"no score of METEOR can be resampled; of these it can: BLEU-1,"):
        paired_bootstrap(a, b, metrics=["METEOR"])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        paired_bootstrap(a, b, metrics=["BLEU-4"], resamples=0)
    with_meteor = Scores({**a.corpus, "METEOR": 0.3}, {**a.per_image, "METEOR": np.zeros(7)}, a.statistics)
    assert comparable_metrics(with_meteor) == list(NAMES)
    with pytest.raises(ValueError, match=r"no score of BLEU-4 can be resampled; of these it can: ROUGE-L"):
        paired_bootstrap(
            a._replace(per_image={"ROUGE-L": a.per_image["ROUGE-L"]}, statistics={}), b, metrics=["BLEU-4"]
        )


def test_holm_on_paper() -> None:
    # sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, and none below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([0.03]) == [0.03] and holm([]) == []


STUDIES = 1000
"""Simulated studies, side by side as the metrics of one comparison."""


def simulated_system(generator: np.random.Generator, seeds: int, images: int, spread: float) -> list[Scores]:
    """Scores of equally good systems, one for each study: what an image is worth to a system, and to a seed of it.

    `spread`: standard deviation of the seeds' true scores, as a multiple of the sampling error of one seed's score.
    """
    names = [str(study) for study in range(STUDIES)]
    system = generator.exponential(0.7, (images, STUDIES)) - 0.7
    runs = []
    for _ in range(seeds):
        values = system + generator.normal(0, 0.7, (images, STUDIES))
        values += generator.normal(0, spread / math.sqrt(images), STUDIES)
        means = dict(zip(names, values.mean(axis=0).tolist(), strict=True))
        runs.append(Scores(means, dict(zip(names, values.T, strict=True))))
    return runs


def compare_simulated(systems: Sequence[Sequence[Scores]]) -> list[list[Comparison]]:
    """The comparisons of every pair of systems, one list for each study."""
    pairs = compare_systems(systems, metrics=list(systems[0][0].corpus), resamples=200)
    return [list(study) for study in zip(*(pair.values() for pair in pairs.values()), strict=True)]


@pytest.mark.parametrize(("spread", "images"), [(0, 200), (1, 200), (4, 200), (1, 1000)])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_systems_differ_significantly_in_a_twentieth_of_all_studies(
    seeds: int, spread: float, images: int
) -> None:
    generator = np.random.default_rng((seeds, images))
    systems = [simulated_system(generator, seeds, images, spread) for _ in range(2)]
    tests = [study[0] for study in compare_simulated(systems)]
    assert 0.02 <= np.mean([test.p < 0.05 for test in tests]) <= 0.07
    assert np.mean([test.low <= 0 <= test.high for test in tests]) >= 0.93


def test_resampling_images_alone_takes_chance_for_a_difference() -> None:
    """What the seeds' variance is needed for: the same studies with each system's seeds averaged."""
    generator = np.random.default_rng(3)
    averaged = []
    for _ in range(2):
        runs = simulated_system(generator, 3, 200, 4)
        columns = {name: np.mean([run.per_image[name] for run in runs], axis=0) for name in runs[0].corpus}
        averaged.append([Scores({name: float(own.mean()) for name, own in columns.items()}, columns)])
    tests = [study[0] for study in compare_simulated(averaged)]
    assert np.mean([test.p < 0.05 for test in tests]) > 0.3
    assert all(test.degrees is None for test in tests)


@pytest.mark.parametrize("images", [200, 1000])
def test_with_one_seed_the_interval_is_of_the_two_trained_models(images: int) -> None:
    """It contains the two models' difference on all images in the world, seeds however far apart."""
    generator = np.random.default_rng(images)
    systems = [simulated_system(generator, 1, images, 0) for _ in range(2)]
    true = generator.normal(
        0, 4 / math.sqrt(images), STUDIES
    )  # one true score for each model of the first system
    shifted = [
        Scores(
            {name: run.corpus[name] + shift for name, shift in zip(run.corpus, true, strict=True)},
            {name: run.per_image[name] + shift for name, shift in zip(run.corpus, true, strict=True)},
        )
        for run in systems[0]
    ]
    tests = [study[0] for study in compare_simulated([shifted, systems[1]])]
    assert (
        0.93 <= np.mean([test.low <= own <= test.high for test, own in zip(tests, true, strict=True)]) <= 0.98
    )
    equal = [study[0] for study in compare_simulated(systems)]
    assert 0.02 <= np.mean([test.p < 0.05 for test in equal]) <= 0.07


def test_a_family_of_pairs_has_one_false_finding_in_a_twentieth_of_all_studies() -> None:
    generator = np.random.default_rng(5)
    systems = [simulated_system(generator, 3, 200, 2) for _ in range(4)]
    studies = compare_simulated(systems)
    assert np.mean([min(test.p for test in study) < 0.05 for study in studies]) > 0.12
    assert np.mean([min(holm([test.p for test in study])) < 0.05 for study in studies]) <= 0.07


def test_seeds_and_images_on_paper() -> None:
    """Two images and seeds scored without sampling error: Welch's test of the seeds' scores.

    Means 5 and 2, variances 2 and 8 of 3 seeds: t = 3 / sqrt(10 / 3), degrees (10 / 3)^2 / (4 / 18 + 64 / 18).
    """
    a, b = (
        [Scores({"m": float(value)}, {"m": np.full(7, float(value))}) for value in values]
        for values in ((5 - 2**0.5, 5, 5 + 2**0.5), (2 - 8**0.5, 2, 2 + 8**0.5))
    )
    test = compare_systems([a, b], metrics=["m"], resamples=11)[0, 1]["m"]
    assert test.degrees == pytest.approx((10 / 3) ** 2 / (68 / 18))
    assert test.difference == pytest.approx(3) and (test.low + test.high) / 2 == pytest.approx(3)
    assert (test.high - 3) / math.sqrt(10 / 3) == pytest.approx(
        3.182, abs=0.2
    )  # t with 2.94 degrees, near that of 3
    assert test.p == pytest.approx(0.2, abs=0.02)  # t = 1.643; 1.638 is the 90th percentile with 3 degrees
    # one seed on a side: the seeds' spread is unknown, and only images are counted
    assert compare_systems([a[:1], b], metrics=["m"], resamples=11)[0, 1]["m"].degrees is None


def test_a_seed_s_own_images_are_counted_once() -> None:
    """Seeds that differ only in which images they caption well: their variance is the sampling error itself."""
    generator = np.random.default_rng(11)
    images, seeds = 400, 200
    a, b = (
        [
            Scores({"m": float(values.mean())}, {"m": values})
            for values in generator.normal(0, 1, (seeds, images))
        ]
        for _ in range(2)
    )
    test = compare_systems([a, b], metrics=["m"], resamples=2000)[0, 1]["m"]
    error = (test.high - test.low) / 2 / 1.96
    assert error == pytest.approx(math.sqrt(2 / images / seeds), rel=0.1)  # and not the root of 2 times that
