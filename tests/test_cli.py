# SPDX-License-Identifier: Apache-2.0
"""The command as a person or a script meets it: files, words, exit codes."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from shielded.cli import files
from shielded.cli.app import app
from shielded.cli.load import warn_unknown_words
from shielded.cli.protect import pictures
from shielded.cli.sample import batches, call_options
from shielded.errors import BadInput

BOX = math.sqrt(3 * 16 * 16) * 2  # diameter of the colour space of the tiny RGB pipeline


@pytest.fixture
def latent(saved):
    return saved("stable_diffusion")


def shielded(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def generate(model, out, *arguments, prompts=("a dog",), count=3, steps=2):
    """`shielded generate` on a small pipeline, and run.json where there is one."""
    result = shielded(
        "generate",
        *prompts,
        "-n",
        count,
        "--model",
        model,
        "--steps",
        steps,
        "--out",
        out,
        *arguments,
    )
    file = Path(out) / "run.json"
    return result, json.loads(file.read_text()) if file.exists() else None


def colours(folder):
    """The saved images in [-1, 1], by file name."""
    return {
        p.name: np.asarray(Image.open(p), float) / 127.5 - 1 for p in sorted(folder.glob("*.png"))
    }


def complaint(result):
    """The one sentence on stderr of a command that found bad input."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_a_run_leaves_images_sheet_plot_page_and_json(rgb, tmp_path):
    result, run = generate(rgb, tmp_path / "o", "--radius", "14")
    assert result.exit_code == 0, result.output
    names = ["000-seed0.png", "001-seed1.png", "002-seed2.png"]
    assert sorted(colours(tmp_path / "o/plain")) == names
    assert sorted(colours(tmp_path / "o/shielded")) == names
    assert {p.name for p in (tmp_path / "o").iterdir()} == {
        "plain", "shielded", "sheet.png", "trace.png", "report.html", "run.json",
    }  # fmt: skip
    assert Image.open(tmp_path / "o/sheet.png").width >= 900
    assert run["model"]["pipeline"] == "IFPipeline"
    assert [image["seed"] for image in run["images"]] == [0, 1, 2]
    assert run["settings"]["radius"] == 14
    moved = sum(image["certificate"]["intervened"] for image in run["images"])
    assert f"3 images, {moved} moved by SPELL" in result.stdout


def test_radius_zero_changes_no_byte(latent, tmp_path):
    result, run = generate(latent, tmp_path, "--radius", "0")
    assert result.exit_code == 0, result.output
    for image in run["images"]:
        plain, shield = tmp_path / image["plain"], tmp_path / image["shielded"]
        assert plain.read_bytes() == shield.read_bytes()
    assert (run["summary"]["moved"], run["summary"]["identical"]) == (0, 3)


def test_saved_images_are_a_radius_apart_across_batches_and_untouched_ones_are_identical(
    rgb, tmp_path
):
    radius = 13.0
    result, run = generate(rgb, tmp_path, "--radius", radius, "--batch-size", 2, count=5)
    assert result.exit_code == 0, result.output
    images = colours(tmp_path / "shielded")
    for one, other in combinations(images.values(), 2):
        assert np.linalg.norm(one - other) >= radius * (1 - 1e-5)
    before = colours(tmp_path / "plain")
    nearest = min(np.linalg.norm(a - b) for a, b in combinations(before.values(), 2))
    assert nearest < radius  # so there was something to do
    assert run["summary"]["nearest_pair_plain"] == pytest.approx(nearest)
    for image in run["images"]:
        same = bool(
            (before[Path(image["plain"]).name] == images[Path(image["shielded"]).name]).all()
        )
        assert same == image["identical"]
        assert same or image["certificate"]["intervened"]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_certificate_names_the_nearest_reference_and_its_true_distance(rgb, tmp_path, size):
    _, run = generate(rgb, tmp_path, "--radius", 12, "--batch-size", size, count=5)
    images = list(colours(tmp_path / "shielded").values())
    for k, image in enumerate(run["images"]):
        certificate = image["certificate"]
        if k == 0 and size == 1:
            assert certificate["nearest"] is None
            continue
        other = int(certificate["nearest"].removeprefix("seed "))
        distance = np.linalg.norm(images[k] - images[other])
        assert certificate["distance"] == pytest.approx(distance, rel=1e-6)
        assert other < k or other // size == k // size


def test_a_seed_means_the_same_image_in_any_batch(latent, tmp_path):
    generate(latent, tmp_path / "one", "--radius", 0, "--batch-size", 1)
    generate(latent, tmp_path / "three", "--radius", 0, "--seed", 1, count=1)
    one = colours(tmp_path / "one/plain")["001-seed1.png"]
    alone = colours(tmp_path / "three/plain")["000-seed1.png"]
    assert np.abs(one - alone).max() <= 2 / 127.5


def test_prompts_do_not_repel_each_other(rgb, tmp_path):
    _, run = generate(rgb, tmp_path, "--radius", 10, prompts=("a dog", "two cats"), count=1)
    assert [image["certificate"]["source"] for image in run["images"]] == ["none", "none"]
    assert [image["seed"] for image in run["images"]] == [0, 0]
    assert run["summary"]["nearest_pair_shielded"] is None  # one image of each: no pair
    assert sorted(colours(tmp_path / "shielded")) == ["000-seed0.png", "001-seed0.png"]


def test_a_history_file_keeps_the_next_run_away(rgb, tmp_path):
    file = tmp_path / "seen.safetensors"
    generate(rgb, tmp_path / "first", "--radius", 13, "--history", file)
    result, run = generate(rgb, tmp_path / "again", "--radius", 13, "--history", file)
    assert result.exit_code == 0, result.output
    both = [
        *colours(tmp_path / "first/shielded").values(),
        *colours(tmp_path / "again/shielded").values(),
    ]
    assert min(np.linalg.norm(a - b) for a, b in combinations(both, 2)) >= 13 * (1 - 1e-5)
    assert "earlier image" in " ".join(image["certificate"]["nearest"] for image in run["images"])
    assert run["summary"]["moved"] == 3  # the same seeds, so each had its twin to leave


def test_protected_images_stay_at_their_radius(rgb, tmp_path):
    generate(rgb, tmp_path / "before", "--radius", 0)
    folder = tmp_path / "protected"
    folder.mkdir()
    (tmp_path / "before/shielded/001-seed1.png").rename(folder / "mine.png")
    (folder / ".hidden").write_text("not an image")
    result, run = generate(
        rgb, tmp_path / "after", "--radius", 0, "--protect", folder, "--protect-radius", 9
    )
    assert result.exit_code == 0, result.output
    mine = np.asarray(Image.open(folder / "mine.png"), float) / 127.5 - 1
    for image in colours(tmp_path / "after/shielded").values():
        assert np.linalg.norm(image - mine) >= 9 * (1 - 1e-5)
    assert run["settings"]["protected"] == ["mine.png"]
    assert run["images"][1]["certificate"]["nearest"] == "mine.png"
    assert run["images"][1]["certificate"]["intervened"]
    assert "the protected image" in (tmp_path / "after/report.html").read_text()


def test_what_cannot_be_cleared_is_told_by_exit_code_sentence_and_frame(rgb, tmp_path):
    result, run = generate(rgb, tmp_path, "--radius", BOX * 1.05, count=2)
    assert result.exit_code == 3
    assert "2 of 2 images are still inside a shield" in result.stderr
    assert run["summary"]["not_clear"] == 2
    assert "not clear" in (tmp_path / "report.html").read_text()


def test_json_prints_run_json_and_nothing_else(latent, tmp_path):
    result, run = generate(latent, tmp_path, "--radius", 1, "--json", "--no-plain", count=2)
    assert json.loads(result.stdout) == run
    assert result.stderr == ""
    assert run["summary"]["identical"] is None
    assert not (tmp_path / "plain").exists()


def test_auto_takes_the_calibrated_radius(latent, tmp_path):
    told = json.loads(
        shielded("calibrate", "a dog", "--model", latent, "--steps", 2, "-n", 16, "--json").stdout
    )
    _, run = generate(latent, tmp_path, count=2)
    assert run["settings"]["radius"] == told["radius"]
    assert run["calibration"]["median"] == told["median"]
    words = shielded("calibrate", "a dog", "--model", latent, "--steps", 2).stdout
    assert f"radius {told['radius']:.4g}" in words


def test_pipelines_of_every_shape_of_call_are_calibrated_and_generated(saved, tmp_path):
    result, run = generate(saved("ldm_text_to_image"), tmp_path, count=2)
    assert result.exit_code == 0, result.output
    assert run["settings"]["radius"] > 0


def test_another_scheduler_is_used(latent, tmp_path):
    result, run = generate(latent, tmp_path, "--radius", 1, "--scheduler", "DDIM", count=1)
    assert result.exit_code == 0, result.output
    assert run["model"]["scheduler"] == "DDIMScheduler"


def test_images_of_earlier_runs_go_and_other_files_stay(latent, tmp_path):
    generate(latent, tmp_path, "--radius", 0, count=2)
    (tmp_path / "plain/notes.png").write_bytes(b"mine")
    generate(latent, tmp_path, "--radius", 0, "--seed", 5, count=1)
    assert {p.name for p in (tmp_path / "plain").iterdir()} == {"000-seed5.png", "notes.png"}
    assert {p.name for p in (tmp_path / "shielded").iterdir()} == {"000-seed5.png"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a dog", "-n", "0"], "-n is 0"),
        (["a dog", "-n", "-3"], "-n is -3"),
        (["  "], "prompt is empty"),
        (["a dog", "a dog"], "given twice"),
        (["a dog", "--radius", "-1"], "--radius is -1"),
        (["a dog", "--radius", "nan"], "--radius is nan"),
        (["a dog", "--radius", "inf"], "--radius is inf"),
        (["a dog", "--radius", "wide"], "--radius is wide"),
        (["a dog", "--steps", "0"], "--steps is 0"),
        (["a dog", "--batch-size", "0"], "--batch-size is 0"),
        (["a dog", "--seed", "-1"], "--seed is -1"),
        (["a dog", "--guidance-scale", "nan"], "--guidance-scale is nan"),
        (["a dog", "--protect-radius", "3"], "needs --protect"),
        (["a dog", "--overcompensation", "nan"], "overcompensation is nan"),
        (["a dog", "--overlap", "both"], "overlap is 'both'"),
        (["a dog", "--window", "0", "1"], "window is (0.0, 1.0)"),
        (["a dog", "--model", "tiny-dragons"], "tiny-dragons is not a model"),
        (["a dog", "--protect", "no-such-folder"], "no-such-folder is not a folder"),
        (["a dog", "--history", "no-such-folder/h.safetensors"], "does not exist"),
        (["a dog", "--history", __file__], "is not a saved history"),
        (["a dog", "--device", "abacus"], "abacus is not a device"),
        (["a dog", "--dtype", "float8"], "float8 is not a precision"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, tmp_path):
    assert words in complaint(shielded("generate", *arguments, "--out", tmp_path / "o"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scheduler", "Nonsense"], "Nonsense is not a diffusers scheduler"),
        (["--scheduler", "KarrasVeScheduler"], "KarrasVe"),
        (["--scheduler", "FlowMatchEulerDiscreteScheduler"], "flow-matching models only"),
        (["--device", "cuda:99"], "cuda:99 cannot be used"),
    ],
)
def test_bad_input_that_needs_the_model_is_one_sentence(latent, arguments, words, tmp_path):
    result, run = generate(latent, tmp_path, "--radius", 1, *arguments)
    assert words in complaint(result)
    assert run is None


@pytest.mark.parametrize(
    ("name", "words"),
    [("wan", "makes no still images"), ("dit", "takes no prompt"), ("ddpm", "takes no prompt")],
)
def test_models_that_are_not_text_to_image_are_refused(saved, name, words, tmp_path):
    assert words in complaint(generate(saved(name), tmp_path, "--radius", 1)[0])


def test_a_setting_that_the_pipeline_lacks_is_named():
    class Fixed:
        def __call__(self, prompt, num_inference_steps=4): ...

    assert call_options(Fixed(), {"num_inference_steps": 2, "guidance_scale": None}) == {
        "num_inference_steps": 2
    }
    with pytest.raises(BadInput, match="Fixed has no such setting: leave --guidance-scale out"):
        call_options(Fixed(), {"guidance_scale": 2.0})


def test_a_folder_without_a_pipeline_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    told = complaint(generate(tmp_path / "empty", tmp_path / "o", "--radius", 1)[0])
    assert "could not be loaded from the folder" in told


def test_a_corrupt_file_in_the_protected_folder_is_named(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "folder").mkdir()
    assert list(pictures(tmp_path)) == ["good.png"]
    for name, content in (
        ("cut.png", whole[: len(whole) // 2]),
        ("words.jpg", b"hello"),
        ("e.gif", b""),
    ):
        bad = tmp_path / name
        bad.write_bytes(content)
        result = shielded("generate", "a dog", "--protect", tmp_path, "--out", tmp_path / "o")
        assert name in complaint(result)
        bad.unlink()


def test_an_empty_protected_folder_is_refused(tmp_path):
    (tmp_path / ".hidden").write_bytes(b"")
    assert "holds no images" in complaint(shielded("generate", "a dog", "--protect", tmp_path))


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    told = complaint(shielded("generate", "a dog", "--out", tmp_path / "file/o"))
    assert "cannot be written" in told
    assert "--out" in told


def test_a_full_disk_ends_with_a_sentence_and_keeps_finished_images(latent, tmp_path, monkeypatch):
    written = []

    def full(path, content, write=files.write):
        if path.name == "001-seed1.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        write(path, content)

    monkeypatch.setattr(files, "write", full)
    result, run = generate(latent, tmp_path, "--radius", 1)
    assert run is None
    assert "The disk is full" in complaint(result)
    assert "1 finished image is in" in result.stderr
    assert sorted(colours(tmp_path / "plain")) == ["000-seed0.png"]


def test_half_a_file_is_never_left(tmp_path, monkeypatch):
    files.write(tmp_path / "a", b"old")
    monkeypatch.setattr(
        os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
    )
    with pytest.raises(OSError, match="full"):
        files.write(tmp_path / "a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def start(*arguments, code="from shielded.cli import main; main()"):
    """The command in a process of its own."""
    # Tests that run in the background inherit an ignored Ctrl-C: a terminal's command does not.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys; {heard}; sys.argv[0] = 'shielded'; {code}",
            *map(str, arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_keeps_finished_images_and_exits_130(latent, tmp_path):
    process = start(
        "generate", "a dog", "-n", 500, "--batch-size", 1, "--model", latent, "--steps", 20,
        "--radius", 1, "--out", tmp_path,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "plain/001-seed1.png").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    kept = colours(tmp_path / "plain")  # every file opens
    assert f"{len(kept)} finished images are in" in err
    assert not list(tmp_path.rglob("*.part"))


def test_help_is_quick_because_nothing_heavy_is_loaded():
    code = (
        "from shielded.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    process = start("generate", "--help", code=f"\n{code}")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "--protect" in out


def test_without_the_extra_the_command_says_how_to_get_it():
    code = (
        "\nimport importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'typer' else find(name, *rest)\n"
        "from shielded.cli import main\nmain()"
    )
    process = start("--help", code=code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert err == 'The command needs a few packages: pip install "shielded-diffusion[cli]"\n'


def test_unknown_words_are_told_with_the_nearest_known(capsys):
    class Pipe:
        def unknown_words(self, prompt):
            return {"excalibur": ["sword", "blade"], "zzz": []} if "excalibur" in prompt else {}

    warn_unknown_words(Pipe(), ("sword", "excalibur zzz"))
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "The model has never seen the word excalibur; words it knows: sword, blade.",
        "The model has never seen the word zzz.",
    ]


def test_batches_cover_every_seed_of_every_prompt_once():
    made = batches(("a", "b"), 5, 7, 2)
    assert [batch.seeds for batch in made[:3]] == [(7, 8), (9, 10), (11,)]
    places = [batch.first + k for batch in made for k in range(len(batch.seeds))]
    assert places == list(range(10))


def test_version_and_no_arguments():
    from shielded import __version__

    assert shielded("--version").stdout.strip() == __version__
    assert "generate" in shielded().output


def test_the_bundled_model_is_the_default_and_tells_words_it_does_not_know(tmp_path, caplog):
    result = shielded(
        "generate", "sword excaliburr", "-n", 2, "--steps", 2, "--radius", 30, "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    assert result.stderr.count("excaliburr") == 1, result.stderr
    assert "excaliburr" not in caplog.text  # the pipeline would say it for each batch
    assert "has never seen the word excaliburr" in result.stderr
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["model"]["name"] == "tiny-sprites"
    one, other = colours(tmp_path / "shielded").values()
    assert one.shape == (32, 32, 3)
    assert np.linalg.norm(one - other) >= 30 * (1 - 1e-5)


def test_models_are_listed_with_size_and_the_first_words_of_their_cards():
    told = json.loads(shielded("models", "--json").stdout)
    assert 0.1 < told["tiny-sprites"]["megabytes"] <= 10
    assert "sprite" in told["tiny-sprites"]["summary"].lower()
    words = shielded("models").stdout
    assert "tiny-sprites" in words
    assert told["tiny-sprites"]["summary"] in words


def test_warnings_of_the_library_are_sentences(rgb, tmp_path):
    """Guidance that may not act leaves the whole way to the landing: said in words."""
    generate(rgb, tmp_path / "first", "--radius", 0)
    protect = ["--protect", tmp_path / "first" / "plain", "--window", 0, 0]
    result, run = generate(rgb, tmp_path / "second", "--radius", 5, *protect)
    assert all(image["certificate"]["landed"] for image in run["images"])
    assert result.stderr.startswith("3 of 3 finished images had to be moved by a whole radius")
    assert "guidance.py" not in result.stderr
