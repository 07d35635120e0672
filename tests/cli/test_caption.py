"""captioning caption as a process: what it prints, where, and how it ends."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from captioning.captioner.captioner import Captioner
from captioning.captioner.predict import generate_captions
from captioning.generation import BeamConfig, GreedyConfig
from captioning.images.preprocessing import preprocess
from captioning.images.reading import load_image
from captioning.utils.paths import find_images, natural_key
from tests.helpers.models import ATTENDING, DECODERS, WORDS, save_tiny_model
from tests.helpers.running import ROOT, python, tool

HTML = b"<!DOCTYPE html><html><body>404</body></html>"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A folder for each decoder."""
    root = tmp_path_factory.mktemp("models")
    return {kind: save_tiny_model(root / kind, kind) for kind in DECODERS}


@pytest.fixture(scope="module")
def model(models) -> Path:
    return models["lstm"]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Seven photos of different sizes, one below another folder."""
    folder = tmp_path / "photos"
    for number in (1, 2, 3, 10, 11, 12):
        paint(folder / f"img{number}.png", number)
    paint(folder / "deeper" / "img5.JPG", 5)
    return folder


def paint(path: Path, seed: int) -> Path:
    """A picture of a few coloured patches, other ones for each seed."""
    generator = np.random.default_rng(seed)
    patches = Image.fromarray(generator.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    patches.resize((31 + seed, 23), Image.Resampling.NEAREST).save(path)
    return path


def captions(model: Path, paths: list[Path], config=None) -> list[str]:
    """What the model says, image by image, without the tool."""
    captioner = Captioner.open(model)
    found = []
    for path in paths:
        pixels = preprocess(load_image(path), captioner.config.preprocessing)
        found.append(generate_captions(captioner, pixels[None], ["x"], config=config)[0].caption)
    return found


def lines(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


@pytest.mark.parametrize("kind", DECODERS)
def test_a_folder_in_natural_order(models, photos, kind):
    names = ["deeper/img5.JPG", *(f"img{number}.png" for number in (1, 2, 3, 10, 11, 12))]
    (photos / "notes.txt").write_text("not an image, not looked at")
    (photos / ".img0.png").write_bytes(b"hidden, not looked at")
    done = tool("caption", photos, "--model", models[kind], "--batch", "3")
    paths = [photos / name for name in names]
    expected = captions(models[kind], paths)
    assert len(set(expected)) > 2, "a model that says the same of all photos would prove nothing"
    assert lines(done.out) == [[str(path), text] for path, text in zip(paths, expected, strict=True)]
    assert (done.code, done.err) == (0, "")


def test_one_bad_file_does_not_stop_the_rest(model, photos):
    (photos / "img2.png").write_bytes(b"")
    (photos / "img3.png").write_bytes(HTML)
    (photos / "img4.HEIC").write_bytes(b"\0\0\0\x18ftypmif1" + bytes(range(200)))  # left out unsaid before
    (photos / "notes.txt").write_bytes(b"no photograph")
    whole = (photos / "img12.png").read_bytes()
    (photos / "img12.png").write_bytes(whole[: len(whole) // 2])
    good = [photos / "deeper" / "img5.JPG", photos / "img1.png", photos / "img10.png", photos / "img11.png"]
    done = tool(
        "caption", photos, "no/such.jpg", "--model", model, "--batch", "2", "--out", photos / "p.json"
    )
    assert done.code == 1
    assert [path for path, _ in lines(done.out)] == [str(path) for path in good]
    assert [text for _, text in lines(done.out)] == captions(model, good)
    said = done.err.splitlines()
    assert said[0] == f"{photos / 'img2.png'}: not an image (empty file)"
    assert said[1] == f"{photos / 'img3.png'}: not an image (looks like HTML)"
    assert said[2] == f"{photos / 'img4.HEIC'}: format not allowed (HEIC); convert it to PNG or JPEG"
    assert said[3].startswith(f"{photos / 'img12.png'}: truncated")
    assert said[4] == "no/such.jpg: no such file"
    assert said[5:] == [f"captions of 4 images: {photos / 'p.json'}", "5 of 9 could not be captioned"]


def test_nothing_but_bad_files(model, tmp_path):
    bad = tmp_path / "x.jpg"
    bad.write_bytes(b"")
    done = tool("caption", bad, "--model", model)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"{bad}: not an image (empty file)\n1 of 1 could not be captioned\n"


@pytest.mark.parametrize("name", ["a photo.png", "café 犬.png", "two\nlines\tand a tab.png", "[1]*.png"])
def test_odd_names(model, tmp_path, name):
    path = paint(tmp_path / name, 4)
    plain = tool("caption", path, "--model", model)
    assert plain.code == 0 and len(plain.out.splitlines()) == 1
    shown = str(path).replace("\n", "\\n").replace("\t", "\\t")
    assert plain.out == f"{shown}\t{captions(model, [path])[0]}\n"
    found = json.loads(tool("caption", path, "--model", model, "--json").out)
    assert (found["path"], found["image_id"]) == (str(path), name)


def test_a_name_that_is_no_unicode(model, tmp_path):
    folder = os.fsencode(tmp_path)
    paint(tmp_path / "x.png", 4)
    try:
        os.rename(folder + b"/x.png", folder + b"/\xe9.png")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    done = tool("caption", tmp_path, "--model", model, "--json", "--out", tmp_path / "p.json")
    found = json.loads(done.out)
    assert os.fsencode(found["path"]) == folder + b"/\xe9.png"
    assert json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))[0]["image_id"] == "\\xe9.png"
    assert done.code == 0


def test_standard_input(model, photos):
    path = photos / "img3.png"
    done = tool("caption", "-", "--model", model, stdin=path.read_bytes())
    assert (done.code, done.err) == (0, "")
    assert lines(done.out) == [["-", captions(model, [path])[0]]]


def test_standard_input_with_nothing_in_it(model):
    done = tool("caption", "-", "--model", model)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("<stdin>: not an image (empty file)\n")


def test_pattern_that_the_shell_left(model, photos):
    done = tool("caption", photos / "img1*.png", photos / "*.gif", "--model", model)
    assert [Path(path).name for path, _ in lines(done.out)] == [f"img{n}.png" for n in (1, 10, 11, 12)]
    assert done.code == 1
    assert done.err.splitlines()[0] == f"{photos / '*.gif'}: no file matches this pattern"


@pytest.mark.parametrize("kind", DECODERS)
def test_the_best_three(models, photos, kind):
    arguments = [photos / "img1.png", photos / "img2.png", "--model", models[kind], "--beam", "5"]
    best = lines(tool("caption", *arguments).out)
    ranked = lines(tool("caption", *arguments, "--top", "3").out)
    assert len(ranked) == 6
    for image, (path, caption) in enumerate(best):
        three = ranked[3 * image : 3 * image + 3]
        assert [row[0] for row in three] == [path] * 3
        assert three[0][1] == caption
        assert len({row[1] for row in three}) == 3
        # those that ended come before those that the length limit cut off
        found = json.loads(tool("caption", path, *arguments[2:], "--top", "3", "--json").out)
        ended = [found["finished"], *(each["finished"] for each in found["alternatives"])]
        scores = [float(row[2]) for row in three]
        assert scores == pytest.approx(
            [found["score"], *(each["score"] for each in found["alternatives"])], abs=3e-4
        )
        assert [(not end, -score) for end, score in zip(ended, scores, strict=True)] == sorted(
            (not end, -score) for end, score in zip(ended, scores, strict=True)
        )


def test_top_widens_the_beam(model, photos):
    done = tool("caption", photos / "img1.png", "--model", model, "--top", "7")
    assert done.code == 0 and len(lines(done.out)) == 7


def test_json_lines(models, photos):
    done = tool("caption", photos, "--model", models["transformer"], "--json", "--top", "2")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert len(found) == 7
    assert [each["image_id"] for each in found][:2] == ["deeper/img5.JPG", "img1.png"]
    for each in found:
        assert set(each) == {
            "path", "image_id", "caption", "logprob", "score", "confidence", "finished", "captions", "alternatives",
        }  # fmt: skip
        words = len(each["caption"].split()) + each["finished"]
        assert each["confidence"] == pytest.approx(np.exp(each["logprob"] / words))
        assert each["score"] == pytest.approx(each["logprob"] / words)  # the model's length rule is the mean
        assert set(each["caption"].split()) <= set(WORDS)
        assert each["captions"] == [each["caption"], *(other["caption"] for other in each["alternatives"])]
        assert len(each["captions"]) == 2


def test_results_file_is_coco_s(model, photos, tmp_path, capfd):
    out = tmp_path / "new folder" / "p.json"
    done = tool("caption", photos, "--model", model, "--out", out)
    assert done.err == f"captions of 7 images: {out}\n"
    names = ["deeper/img5.JPG", *(f"img{number}.png" for number in (1, 2, 3, 10, 11, 12))]
    annotations = tmp_path / "annotations.json"
    images = [{"id": name, "file_name": name} for name in names]
    annotations.write_text(json.dumps({"images": images, "annotations": [], "info": {}}))
    results = COCO(str(annotations)).loadRes(str(out))
    found = {each["image_id"]: each["caption"] for each in results.anns.values()}
    assert found == {Path(path).relative_to(photos).as_posix(): text for path, text in lines(done.out)}


def test_files_of_one_name_keep_different_ids(model, tmp_path):
    paths = [paint(tmp_path / folder / "x.png", seed) for seed, folder in enumerate("ab", 2)]
    other = paint(tmp_path / "a" / "y.png", 7)
    done = tool("caption", *paths, other, paths[0], "--model", model, "--json")
    found = [json.loads(line)["image_id"] for line in done.out.splitlines()]
    assert found == [str(paths[0]), str(paths[1]), "y.png"]


def test_search_options(models, photos):
    path = photos / "img2.png"
    for kind, model in models.items():
        for options, config in (
            (["--beam", "1"], GreedyConfig(max_length=9)),
            (["--max-length", "4"], BeamConfig(width=3, max_length=4)),
            (["--beam", "6", "--length-rule", "sum"], BeamConfig(width=6, max_length=9, length_rule="sum")),
        ):
            done = tool("caption", path, "--model", model, *options)
            assert lines(done.out) == [[str(path), captions(model, [path], config)[0]]], (kind, options)


def test_a_greedy_model(tmp_path, photos):
    model = save_tiny_model(tmp_path / "greedy", search=GreedyConfig(max_length=7))
    path = photos / "img2.png"
    done = tool("caption", path, "--model", model)
    assert lines(done.out) == [[str(path), captions(model, [path])[0]]]
    assert len(lines(tool("caption", path, "--model", model, "--top", "4").out)) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--top", "4", "--beam", "3"], "--top 4 needs a beam at least as wide, but --beam is 3"),
        (["--beam", "0"], "expected a number from 1 on, got '0'"),
        (["--max-length", "18"], "--max-length 18: this model's decoder reads at most 17 words"),
        (["--device", "toaster"], "--device toaster: not available here"),
        (["--out", "."], "--out .: a folder; name a file"),
    ],
)
def test_settings_that_cannot_be(models, photos, options, said):
    done = tool("caption", photos, "--model", models["transformer"], *options)
    assert (done.code, done.out) == (2, "")
    assert said in done.err and "Traceback" not in done.err


def test_cuda_where_there_is_none(model, photos):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = tool("caption", photos, "--model", model, "--device", "cuda")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: --device cuda: not available here")


def test_run_folder_stands_for_its_model(model, photos, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(model, run / "model")
    path = photos / "img1.png"
    assert tool("caption", path, "--model", run).out == tool("caption", path, "--model", model).out != ""


@pytest.mark.parametrize("what", ["missing", "empty", "a file"])
def test_no_model(tmp_path, photos, what):
    model = tmp_path / "m"
    if what == "empty":
        model.mkdir()
    elif what == "a file":
        model.write_text("x")
    done = tool("caption", photos, "--model", model)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {model}: ") and len(done.err.splitlines()) == 1


def test_a_flipped_bit_in_the_weights(model, photos, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-9] ^= 4
    (broken / "model.safetensors").write_bytes(weights)
    done = tool("caption", photos, "--model", broken)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {broken / 'model.safetensors'}: damaged or edited")


def test_first_frame_of_an_animation(model, tmp_path):
    frames = [Image.open(paint(tmp_path / f"{seed}.png", seed)).resize((40, 30)) for seed in (2, 3)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    done = tool("caption", tmp_path / "x.gif", "--model", model)
    assert done.code == 0 and len(lines(done.out)) == 1
    assert done.err == f"{tmp_path / 'x.gif'}: has several frames, the first is used\n"


@pytest.mark.parametrize("kind", ATTENDING)
def test_attention_is_drawn(models, photos, tmp_path, kind):
    before = (photos / "img1.png").read_bytes()
    (photos / "img2.png").write_bytes(b"")
    names = [photos / "img1.png", photos / "img2.png", photos / "deeper"]
    done = tool("caption", *names, "--model", models[kind], "--attention", photos)
    assert done.err.splitlines()[1:] == [f"attention of 2 images: {photos}", "1 of 3 could not be captioned"]
    drawn = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.attention.png"))
    assert drawn == ["img1.png.attention.png", "img5.JPG.attention.png"]
    assert min(Image.open(photos / name).width for name in drawn) > 300
    assert (photos / "img1.png").read_bytes() == before


def test_reader_that_leaves_early(model, photos):
    for number in range(20, 30):
        paint(photos / f"img{number}.png", number)
    command = f"'{sys.executable}' -m captioning caption '{photos}' --model '{model}' --batch 1 | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=ROOT)
    assert (done.stderr, len(done.stdout.splitlines())) == (b"", 1)


def test_a_mistyped_model_needs_no_torch():
    code = (
        "import sys\n"
        "from captioning.cli.main import main\n"
        "try: main(['caption', 'x.jpg', '--model', 'runs/no-such-run'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = python(code)
    assert done.out == "2 False\n"
    assert done.err == (
        "error: runs/no-such-run: no such folder; give a run (runs/NAME), a model folder or a name that "
        "`captioning models` lists\n"
    )


def test_natural_order():
    names = ["b1", "a10b2", "a2", "a10b10", "10", "9", "a"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "a2", "a10b2", "a10b10", "b1"]


def test_finding_files(tmp_path):
    paint(tmp_path / "a.png", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [
        (each.image_id, each.problem) for each in find_images([str(tmp_path), str(tmp_path / "empty"), "-"])
    ]
    assert found == [
        ("a.png", ""),
        ("link.png", ""),
        (str(tmp_path / "empty"), "no images in this folder"),
        ("-", ""),
    ]
