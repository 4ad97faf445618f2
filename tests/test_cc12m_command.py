# SPDX-License-Identifier: Apache-2.0
"""`shielded data cc12m` as a person or a script meets it, and img2dataset behind it."""

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shielded.cli.app import app
from shielded.data.images import arguments
from shielded.ingest.picture import Aside, Picture, decode
from shielded.ingest.source import open_source

PROGRAM = """#!{python}
import io, json, pathlib, sys, tarfile
from PIL import Image
told = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
print("a line on stdout")
assert told["input_format"] == "jsonl" and told["output_format"] == "webdataset"
assert (told["url_col"], told["caption_col"]) == ("url", "caption")
folder, size = pathlib.Path(told["output_folder"]), int(told["image_size"])
rows = [json.loads(line) for line in open(told["url_list"])]
came = rows[:{came}]
with tarfile.open(folder / "00000.tar", "w") as tar:
    for number, row in enumerate(came):
        buffer = io.BytesIO()
        Image.new("RGB", (size, size), (number, 0, 0)).save(buffer, "PNG")
        for suffix, data in (("png", buffer.getvalue()), ("txt", row["caption"].encode())):
            info = tarfile.TarInfo(f"{{number:09d}}.{{suffix}}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
(folder / "00000.parquet").write_bytes(b"what img2dataset keeps beside it")
stats = {{"count": len(rows), "successes": len(came)}}
(folder / "00000_stats.json").write_text(json.dumps(stats))
sys.exit({code})
"""


@pytest.fixture
def table(tmp_path):
    """Three captions with five images each, a pair, and a line that is no row."""
    rows = [
        f"https://s{k}.com/{k}.jpg\t{name}\n" for name in ("cat", "dog", "cow") for k in range(5)
    ]
    rows += ["https://a.com/1\tpair\n", "https://b.com/2\tpair\n", "broken\n"]
    path = tmp_path / "cc12m.tsv"
    path.write_text("".join(rows))
    return path


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a program on the PATH that stands in for img2dataset and fetches nothing."""
    if os.name != "posix":
        pytest.skip("the stand-in is a script with a shebang")

    def install(came=12, code=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        file = folder / "img2dataset"
        file.write_text(PROGRAM.format(python=sys.executable, came=came, code=code))
        file.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return install


def run(*told, code=0):
    """Run the command in this process."""
    result = CliRunner().invoke(app, ["data", "cc12m", *map(str, told)])
    assert result.exit_code == code, result.output
    return result


def complaint(*told):
    """The one sentence on stderr about bad input."""
    result = run(*told, code=2)
    assert result.stdout == ""
    [line] = result.stderr.strip().splitlines()
    return line


def test_what_a_person_sees(table, tmp_path):
    result = run(table, "--out", tmp_path / "out")
    assert result.stderr == "line 18 skipped: no tab\n"
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][0] == "17"
    assert lines[0][-3:] == ["1", "line", "skipped"]
    assert ["grouped", "4", "captions", "17", "images"] in lines
    assert ["4", "to", "128", "images", "3", "captions", "15", "images"] in lines
    assert ["test", "3", "captions", "15", "images"] in lines
    assert not (tmp_path / "out/images").exists()


def test_what_a_script_reads(table, tmp_path):
    found = json.loads(run(table, "--out", tmp_path / "out", "--json").stdout)
    del found["seconds"], found["out"]
    assert found == json.loads((tmp_path / "out/summary.json").read_text())
    assert found["left_after"][-1] == {"step": "no person", "captions": 3, "images": 15}


def test_options_reach_the_filters(table, tmp_path):
    for told, captions in (
        (("--domain-share", 0.2), 0),
        (("--domain-share", 0.21), 3),
        (("--domain-share", 1, "--domain", "top"), 0),
        (("--domain-share", 1, "--domain", "host"), 3),
    ):
        found = json.loads(run(table, "--out", tmp_path / "out", "--json", *told).stdout)
        assert sum(found["captions"].values()) == captions
    found = json.loads(run(table, "--out", tmp_path / "out", "--json", "--seed", 5).stdout)
    assert found["settings"] == {"domain_share": 0.5, "domain": "site", "seed": 5}


@pytest.mark.parametrize("share", ["0", "-1", "1.01", "nan", "inf"])
def test_a_share_that_is_none(table, tmp_path, share):
    told = complaint(table, "--out", tmp_path / "out", "--domain-share", share)
    assert told.endswith("give a number above 0 and at most 1.")


def test_files_that_are_no_table(table, tmp_path):
    out = ("--out", tmp_path / "out")
    assert "check the path" in complaint(tmp_path / "nothing.tsv", *out)
    assert "check the path" in complaint(tmp_path, *out)
    assert "is not CC12M's table" in complaint(__file__, *out)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("a file")
    assert str(tmp_path / "out") in complaint(table, *out)


def test_images_come_as_archives_that_a_set_is_built_of(table, tmp_path, program, capfd):
    program()
    told = (table, "--out", tmp_path / "out", "--images", "--image-size", 8)
    found = json.loads(run(*told, "--json").stdout)
    heard = capfd.readouterr()
    assert heard.out == ""  # stdout is for JSON alone
    assert "a line on stdout" in heard.err
    assert found["fetched"] == {"images": 12, "of": 15}
    pictures, captions = [], 0
    for item in open_source(sorted((tmp_path / "out/images").glob("*.tar"))):
        if isinstance(item, Picture):
            pictures.append((item.id, decode(item.read())[0].size))
        captions += isinstance(item, Aside) and item.kind == ".txt"
    assert pictures == [(f"00000.tar/{k:09d}.png", (8, 8)) for k in range(12)]
    assert captions == 12
    assert "12 of 15 images in" in run(*told).stdout  # again: it goes on with what is there


def test_without_the_program(table, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    told = complaint(table, "--out", tmp_path / "out", "--images")
    assert "pip install 'shielded-diffusion[images]'" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("came", "code", "said"), [(12, 7, "exit code 7"), (0, 0, "fetched no image: check")]
)
def test_a_fetch_that_fails(table, tmp_path, program, came, code, said):
    program(came, code)
    assert said in run(table, "--out", tmp_path / "out", "--images", code=2).stderr
    assert json.loads((tmp_path / "out/summary.json").read_text())["captions"]["test"] == 3


def test_images_of_another_list_are_not_mixed(table, tmp_path, program):
    program()
    told = (table, "--out", tmp_path / "out", "--images", "--image-size", 8)
    run(*told)
    assert "holds other images" in run(*told, "--seed", 99, "--image-size", 9, code=2).stderr
    (tmp_path / "out/images/list.sha256").unlink()
    assert "holds other images" in run(*told, code=2).stderr


def test_every_argument_is_one_that_img2dataset_has():
    """Names as of its version 1.47."""
    names = [one.split("=")[0] for one in arguments(Path("l"), Path("f"), 256)]
    assert set(names) <= {
        "--url_list", "--image_size", "--output_folder", "--processes_count", "--resize_mode",
        "--output_format", "--input_format", "--url_col", "--caption_col", "--thread_count",
        "--number_sample_per_shard", "--save_additional_columns",
    }  # fmt: skip
