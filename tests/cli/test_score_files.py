"""captioning evaluate --predictions: anyone's captions against every format of references."""

import json
import subprocess
import sys

import pytest

from captioning.errors import UserError
from captioning.records import read_results
from tests.helpers.running import ROOT, python, tool
from tests.helpers.scoring import (
    CAPTIONS,
    IMAGES,
    METRICS,
    PRINTED,
    VAL,
    pycocoevalcap,
    pycocoevalcap_of_each,
    results,
    write_coco,
    write_folder_csv,
    write_jsonl,
    write_karpathy,
    write_lists,
    write_pairs,
    write_piped,
    write_tokens,
)


@pytest.mark.parametrize(
    "write",
    [write_coco, write_karpathy, write_tokens, write_pairs, write_folder_csv, write_jsonl, write_piped],
)
def test_all_references_give_pycocoevalcap_s_scores(tmp_path, predictions, write):
    """The scores of one split, from whatever file the references come in."""
    if write in (write_tokens, write_pairs):
        write_lists(tmp_path)
    path = write(tmp_path)
    arguments = ["--predictions", predictions, "--references", path, "--split", "val", "--json"]
    done = tool("evaluate", *arguments, "--out", tmp_path / "s.json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    expected, each = pycocoevalcap(VAL, CAPTIONS), pycocoevalcap_of_each(VAL, CAPTIONS)
    written = json.loads((tmp_path / "s.json").read_text())["per_image"]
    assert len(written) == len(each) == len(VAL)
    for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr-D"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name
        assert [entry[name] for entry in written] == pytest.approx([of[name] for of in each], abs=1e-6), name
    assert 0 < found["CIDEr"] < 10
    signature = found["signature"]
    assert signature["split"] == "val" and signature["search"] is None
    assert signature["coverage"] == {"images": 3, "scored": 3, "share": 1, "passed_over": 0}
    assert signature["matched_by"] == ("file name" if write is write_coco else "image id")


def test_text_is_the_same_numbers_times_100(tmp_path, predictions):
    arguments = ["--predictions", predictions, "--references", write_jsonl(tmp_path), "--split", "val"]
    done = tool("evaluate", *arguments, "--out", tmp_path / "new" / "s.json")
    assert (done.code, done.err) == (0, "")
    rows = dict(line.split()[:2] for line in done.out.splitlines()[1:-1])
    written = json.loads((tmp_path / "new" / "s.json").read_text())
    assert done.out.splitlines()[-1] == f"scores: {tmp_path / 'new' / 's.json'}"
    for printed, name in zip(PRINTED, METRICS, strict=True):
        assert float(rows[printed]) == pytest.approx(100 * written["scores"][name], abs=0.006)
    assert [each["image_id"] for each in written["per_image"]] == list(VAL)


def test_no_torch_to_score(tmp_path, predictions):
    code = (
        "import sys\n"
        "from captioning.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = python(
        code, "evaluate", "--predictions", str(predictions), "--references", str(write_coco(tmp_path))
    )
    assert done.err.splitlines()[-1] == "0 False"
    assert "BLEU-4" in done.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c.pop("b.png"),
            "split 'val': 1 images have no prediction ('b.png'); caption them, or score",
        ),
        (
            lambda c: c.update({"d.png": "x"}),
            "split 'val': 1 predictions are of images that are not in it ('d.png')",
        ),
        (lambda c: (c.clear(), c.update({9: "x"})), "split 'val': no prediction is of one of its images"),
    ],
    ids=["missing", "extra", "of something else"],
)
def test_every_image_counts(tmp_path, change, said):
    captions = dict(CAPTIONS)
    change(captions)
    references = write_karpathy(tmp_path)
    arguments = ["--predictions", results(tmp_path / "p.json", captions), "--references", references]
    done = tool("evaluate", *arguments, "--split", "val")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {said}") and len(done.err.splitlines()) == 1


def test_one_image_captioned_twice(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"image_id": "b.png", "caption": text} for text in ("a cat", "a dog")]))
    done = tool("evaluate", "--predictions", path, "--references", write_karpathy(tmp_path), "--split", "val")
    assert done.code == 2 and "occur twice" in done.err


@pytest.mark.parametrize(
    "entry", [{"caption": None}, {"caption": ["a", "dog"]}, {"text": "a dog"}, {"captions": []}]
)
def test_an_entry_that_is_no_caption_is_shown(tmp_path, entry):
    path = tmp_path / "p.json"
    entry = {"image_id": "b.png", **entry}
    path.write_text(json.dumps([entry]))
    with pytest.raises(UserError) as caught:
        read_results(str(path))
    assert str(caught.value) == (
        f'{path}: entry 0 is not {{"image_id": ..., "caption": "..."}}: found {entry}'
    )


def test_a_part_is_scored_on_demand_and_says_so(tmp_path):
    captions = {name: CAPTIONS[name] for name in ("a 1.png", "c.png")}
    predictions = results(tmp_path / "p.json", {**captions, "d.png": "of another split"})
    arguments = ["--predictions", predictions, "--references", write_karpathy(tmp_path), "--split", "val"]
    done = tool("evaluate", *arguments, "--allow-partial")
    rows = [line for line in done.out.splitlines() if line.split()[0] in PRINTED]
    assert done.code == 0 and len(rows) == len(PRINTED)
    assert all(row.endswith("on 2 of 3 images") for row in rows)
    found = json.loads(tool("evaluate", *arguments, "--allow-partial", "--json").out)
    assert found["signature"]["coverage"] == {"images": 3, "scored": 2, "share": 2 / 3, "passed_over": 1}
    # document frequencies are still those of all three images: only BLEU and ROUGE can be those of a part alone
    expected = pycocoevalcap({name: VAL[name] for name in captions}, captions)
    for name in ("Bleu_1", "Bleu_4", "ROUGE_L"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.parametrize(
    ("ids", "how"), [(int, "image id"), (str, "image id as text"), (lambda i: f"{i}.jpg", "file name")]
)
def test_images_under_other_names(tmp_path, ids, how):
    images = {f"{number}.jpg": texts for number, texts in zip((101, 103, 105), VAL.values(), strict=True)}
    captions = {ids(number): text for number, text in zip((101, 103, 105), CAPTIONS.values(), strict=True)}
    predictions = results(tmp_path / "p.json", captions)
    done = tool(
        "evaluate", "--predictions", predictions, "--references", write_coco(tmp_path, images), "--json"
    )
    found = json.loads(done.out)
    assert found["signature"]["matched_by"] == how
    assert done.err == ("" if how == "image id" else f"{predictions}: its images are matched by {how}\n")
    assert found["Bleu_4"] == pytest.approx(pycocoevalcap(VAL, CAPTIONS)["Bleu_4"], abs=1e-6)


def test_bad_references_are_listed_beside_the_scores(tmp_path, predictions):
    """2 of 12 images and captions: refused by default, and never listed in the working folder."""
    path = tmp_path / "mine.csv"
    rows = [f'{name},"{text}"' for name, texts in VAL.items() for text in texts] + ["b.png,!", "c.png,"]
    path.write_text("\n".join(["file_name,caption", *rows]))
    arguments = ["--predictions", predictions, "--references", path]
    out = tmp_path / "found" / "scores.json"
    plain = tool("evaluate", *arguments, cwd=tmp_path)
    listed = tool("evaluate", *arguments, "--out", out, cwd=tmp_path)
    for done, advice in ((plain, "correct them, or raise max_bad"), (listed, f"listed in {out.parent}")):
        assert done.code == 2 and done.err.count("\n") == 1
        assert (
            "2 of 12 images and captions are bad, more than max_bad = 0.01" in done.err and advice in done.err
        )
    assert (out.parent / "scores.references-skipped.csv").read_text().splitlines()[1:] == [
        f'{path}: line 9,"caption has no words, only punctuation"',
        f"{path}: line 10,caption is empty",
    ]
    assert not out.exists() and not (tmp_path / "skipped.csv").exists()
    done = tool("evaluate", *arguments, "--max-bad", "0.2", "--json", cwd=tmp_path)
    assert done.code == 0 and json.loads(done.out)["Bleu_4"] == pytest.approx(
        pycocoevalcap(VAL, CAPTIONS)["Bleu_4"], abs=1e-6
    )
    assert tool("evaluate", *arguments, "--max-bad", "0.16").code == 2
    for wrong in ("2", "-0.1", "nan", "x"):
        assert "expected a share from 0 to 1" in tool("evaluate", *arguments, "--max-bad", wrong).err
    assert "--max-bad is for --predictions" in tool("evaluate", tmp_path, "--max-bad", "0").err


def test_which_split_must_be_said(tmp_path, predictions):
    path = write_jsonl(tmp_path)
    done = tool("evaluate", "--predictions", predictions, "--references", path)
    assert done.code == 2
    assert (
        done.err
        == f"error: {path}: contains val (3 images), test (2 images), odd (1 images); choose one of them with --split\n"
    )
    done = tool("evaluate", "--predictions", predictions, "--references", path, "--split", "tset")
    assert done.code == 2 and "no images in the split 'tset'; there are val (3 images)" in done.err


def test_a_file_without_splits_is_one(tmp_path):
    captions = {name: texts[0] for name, (_, texts) in IMAGES.items()}
    predictions = results(tmp_path / "p.json", captions)
    for write in (write_tokens, write_pairs):
        path = write(tmp_path)
        found = json.loads(tool("evaluate", "--predictions", predictions, "--references", path, "--json").out)
        assert found["signature"]["split"] == path.name.split(".")[0]
        assert found["signature"]["coverage"]["images"] == len(IMAGES)
        assert found["ROUGE_L"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "unknown format of reference captions"),
        ("a,b\n1,2\n", "unknown format of reference captions"),
        ('{"images": [', "broken JSON at line 1, column 13"),
        ('[{"image_id": 1, "caption": "x"}]', "look like results (predictions), not annotations"),
    ],
)
def test_references_of_another_kind(tmp_path, predictions, content, said):
    path = tmp_path / "x.json"
    path.write_text(content)
    done = tool("evaluate", "--predictions", predictions, "--references", path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {path}: ") and said in done.err


def test_files_that_are_not_there(tmp_path, predictions):
    for arguments in (
        ["--predictions", predictions, "--references", tmp_path / "no.json"],
        ["--predictions", tmp_path / "no.json", "--references", write_coco(tmp_path)],
    ):
        done = tool("evaluate", *arguments)
        assert (done.code, done.out, done.err) == (2, "", f"error: {tmp_path / 'no.json'}: no such file\n")


def test_captions_that_cannot_be_compared_with_are_named(tmp_path):
    images = {f"{number}.jpg": ["a dog", "a cat"] for number in range(60)}
    images["7.jpg"] = ["a dog", "..."]
    predictions = results(tmp_path / "p.json", dict.fromkeys(images, "a dog"))
    done = tool("evaluate", "--predictions", predictions, "--references", write_coco(tmp_path, images))
    assert done.code == 0
    assert "passed over 1 caption has no words, only punctuation" in done.err.splitlines()[0]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--predictions", "p.json"],
        ["runs/x", "--predictions", "p.json"],
        ["runs/x", "--allow-partial"],
        ["--predictions", "p", "--references", "r", "--beam", "3"],
        ["--predictions", "p", "--references", "r", "--split", "a", "b"],
    ],
)
def test_arguments_that_do_not_go_together(arguments):
    done = tool("evaluate", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: ")


def test_scores_are_written_though_nobody_reads_the_table(tmp_path, predictions):
    arguments = f"--predictions '{predictions}' --references '{write_jsonl(tmp_path)}' --split val"
    for option in ("", "--json"):
        command = (
            f"'{sys.executable}' -m captioning evaluate {arguments} --out '{tmp_path}/s.json' {option} | true"
        )
        done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, cwd=ROOT)
        assert done.returncode == 0
        assert json.loads((tmp_path / "s.json").read_text())["scores"]["Bleu_4"] > 0
        (tmp_path / "s.json").unlink()
