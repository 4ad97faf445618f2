# SPDX-License-Identifier: Apache-2.0
"""Pictures as a stream: every source, every damage, and what ends up in a set."""

import gzip
import hashlib
import io
import json
import os
import struct
import tarfile
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from shielded.errors import BadInput
from shielded.ingest import Aside, Picture, Skipped, build, decode, open_source
from shielded.ingest.build import HOLD

SIDE = 8


class Pixel:
    """The least that `encode` takes for a pipeline: pixels of SIDE x SIDE."""

    components = {"unet": object()}  # noqa: RUF012
    default_sample_size = SIDE


def pixels(seed, size=(SIDE, SIDE), channels=3):
    shape = (*size, channels) if channels > 1 else size
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def file(seed=0, kind="PNG", mode="RGB", size=(SIDE, SIDE), **options):
    """The bytes of a picture's file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, size)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def stream(path, **options):
    """(pictures as id -> bytes, skipped as id -> reason, kinds left aside) of a source."""
    pictures, skipped, aside = {}, {}, []
    for item in open_source(path, **options):
        if isinstance(item, Picture):
            assert item.id not in pictures
            pictures[item.id] = item.read()
        elif isinstance(item, Skipped):
            skipped[item.id] = item.reason
        else:
            assert isinstance(item, Aside)
            aside.append(item.kind)
    return pictures, skipped, sorted(aside)


def tar(path, members, mode="w"):
    """A tar file; a member is (name, bytes), or (name, target, type) for a link."""
    with tarfile.open(path, mode) as archive:
        for name, *content in members:
            info = tarfile.TarInfo(name)
            if len(content) == 1:
                info.size = len(content[0])
                archive.addfile(info, io.BytesIO(content[0]))
            else:
                info.linkname, info.type = content
                archive.addfile(info)
    return path


class Memory:
    """A set in memory, with the little of ProtectedSet that `build` needs."""

    def __init__(self, shape=(3, SIDE, SIDE), dtype="float16"):
        self.shape, self.dim, self.dtype = shape, int(np.prod(shape)), dtype
        self.rows, self.radii, self.calls = {}, [], []

    def entries(self, columns):
        yield {"id": list(self.rows), "sha256": [digest for digest, *_ in self.rows.values()]}

    def add(self, latents, ids, sources, sha256, radii):
        assert len(set(ids)) == len(ids)
        assert not set(ids) & set(self.rows)
        for name, *row in zip(ids, sha256, sources, latents, strict=True):
            self.rows[name] = row
        self.radii += radii or [None] * len(ids)
        self.calls.append(len(ids))


def built(path, target=None, batch=4, **options):
    target = target or Memory()
    return target, build(target, Pixel(), open_source(path), batch, **options)


# Folders and lists


def test_a_folder_is_read_recursively_in_order_and_by_content(tmp_path):
    for name in ("b.png", "a/z.jpg", "a/deep/er/x.webp", "c.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {"jpg": "JPEG"}.get(name.split(".")[1], name.split(".")[1].upper())
        (tmp_path / name).write_bytes(file(1, kind))
    (tmp_path / "a/noname").write_bytes(file(2))
    (tmp_path / "a/words.txt").write_text("not a picture")
    (tmp_path / "a/words.png").write_text("not a picture either")
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/x.png").write_bytes(file(3))
    source = open_source(tmp_path)
    items = list(source)
    ids = [item.id for item in items if isinstance(item, Picture)]
    assert ids == ["b.png", "c.gif", "a/noname", "a/words.png", "a/z.jpg", "a/deep/er/x.webp"]
    assert sorted(i.kind for i in items if isinstance(i, Aside)) == [".txt", "hidden", "hidden"]
    assert source.share == 1
    first = items[[getattr(i, "id", "") for i in items].index("b.png")]
    assert first.source == str(tmp_path / "b.png")
    assert first.read() == file(1)


def test_links_may_lead_inside_the_folder_and_not_out_of_it(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hid").mkdir()
    (folder / "sub/x.png").write_bytes(file(1))
    (tmp_path / "secret.png").write_bytes(file(2))
    for name, target in {
        "out.png": "../secret.png", "up": "..", "same.png": "sub/x.png", "dead.png": "nowhere",
        "twin": "sub", "loop": ".", "veiled": ".hid", "self.png": "self.png",
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    pictures, skipped, aside = stream(folder)
    assert pictures == {"same.png": file(1), "sub/x.png": file(1)}
    leaves, nowhere = "a symbolic link that leaves the folder", "a symbolic link that leads nowhere"
    assert skipped == {
        "out.png": leaves, "up": leaves, "dead.png": nowhere, "self.png": nowhere,
        "veiled": "a symbolic link to a hidden folder", "pipe.png": "not a regular file",
    }  # fmt: skip
    assert aside == ["hidden", "link", "link"]


def test_names_that_are_no_text_are_kept_apart(tmp_path):
    for name in (b"\xff.png", b"\xfe.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as out:
            out.write(file(1))
    assert list(stream(tmp_path)[0]) == ["\\xfe.png", "\\xff.png"]


def test_a_list_stays_in_its_folder_unless_a_path_is_absolute(tmp_path):
    folder = tmp_path / "lists"
    (folder / "in").mkdir(parents=True)
    (folder / "in/a.png").write_bytes(file(1))
    (tmp_path / "b.png").write_bytes(file(2))
    (folder / "link.png").symlink_to("../b.png")
    tar(folder / "t.tar", [("m.png", file(3))])
    lines = ["in/a.png", "", "in/../in/./a.png", "../b.png", str(tmp_path / "b.png")]
    lines += ["link.png", "gone.png", "in", "t.tar"]
    (folder / "all.txt").write_text("\ufeff" + "\r\n".join(lines))
    items = list(open_source(folder / "all.txt"))
    ids = [item.id for item in items if isinstance(item, Picture)]
    assert ids == ["in/a.png", "in/a.png", str(tmp_path / "b.png"), "t.tar/m.png"]
    assert {item.id: item.reason for item in items if isinstance(item, Skipped)} == {
        "../b.png": "a relative path that leaves the list's folder: write it in full",
        "link.png": "a relative path that leaves the list's folder: write it in full",
        "gone.png": "there is no such file",
        "in": "not a regular file",
    }
    made = built(folder / "all.txt")[1]
    assert (made.added, made.present, len(made.skipped)) == (3, 1, 4)


def test_what_is_no_source_is_said(tmp_path):
    with pytest.raises(BadInput, match="there is no file or folder"):
        open_source(tmp_path / "nothing")
    (tmp_path / "l.txt").write_bytes(b"\0\0")
    with pytest.raises(BadInput, match="is not a list"):
        open_source(tmp_path / "l.txt")


def test_several_sources_keep_their_names_apart_on_request(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(file())
    both = [tmp_path / "a", tmp_path / "b"]
    assert [item.id for item in open_source(both)] == ["1.png", "1.png"]
    assert [item.id for item in open_source(both, named=True)] == [f"{p}/1.png" for p in both]
    assert [item.id for item in open_source(both[:1], named=True)] == ["1.png"]


# Archives


@pytest.mark.parametrize("kind", ["", ".gz", ".bz2", ".xz"])
def test_an_archive_is_read_in_place(tmp_path, kind):
    members = [
        ("000.jpg", file(1, "JPEG")), ("000.json", b"{}"), ("../../up.png", file(2)),
        ("/abs.png", file(3)), ("000.jpg", file(4)), ("l.png", "000.jpg", tarfile.SYMTYPE),
        ("h.png", "nowhere.png", tarfile.LNKTYPE), ("._x.jpg", b"mac"),
        ("d.png", "", tarfile.CHRTYPE),
    ]  # fmt: skip
    path = tar(tmp_path / f"w.tar{kind}", members, f"w:{kind[1:]}")
    before = set(tmp_path.parent.rglob("*"))
    source = open_source(path)
    pictures, skipped, aside = stream(path)
    assert pictures == {
        "NAME/000.jpg".replace("NAME", path.name): file(1, "JPEG"),
        f"{path.name}/../../up.png": file(2),
        f"{path.name}//abs.png": file(3),
        f"{path.name}/000.jpg#2": file(4),
    }
    assert skipped == {
        f"{path.name}/h.png": "a link to a file that is not in the archive",
        f"{path.name}/d.png": "not a regular file",
    }
    assert aside == [".json", "hidden", "link"]
    assert set(tmp_path.parent.rglob("*")) == before
    assert list(source)
    assert source.share == 1


def test_an_archive_cut_anywhere_is_told(tmp_path):
    whole = tar(tmp_path / "w.tar", [(f"{k}.png", file(k)) for k in range(3)]).read_bytes()
    end = whole.rstrip(b"\0")
    for cut in range(0, len(end) + 511, 61):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        pictures, skipped, _ = tolerant(tmp_path / "cut.tar")
        assert skipped, cut
        assert len(pictures) <= 3
    (tmp_path / "two.tar").write_bytes(whole + whole)
    pictures, skipped, _ = stream(tmp_path / "two.tar")
    assert len(pictures) == 3
    assert "more after its end mark" in skipped["two.tar"]
    packed = gzip.compress(whole)
    for cut in range(0, len(packed) - 1, 61):
        (tmp_path / "cut.tar.gz").write_bytes(packed[:cut])
        assert tolerant(tmp_path / "cut.tar.gz")[1], cut


def tolerant(path):
    """`stream` where reading a picture may fail, too, as `build` takes it."""
    pictures, skipped, aside = {}, {}, []
    for item in open_source(path):
        if isinstance(item, Picture):
            try:
                pictures[item.id] = item.read()
            except BadInput as error:
                skipped[item.id] = str(error)
        elif isinstance(item, Skipped):
            skipped[item.id] = item.reason
    return pictures, skipped, aside


def test_a_damaged_header_in_the_middle_of_an_archive_is_told(tmp_path):
    whole = tar(tmp_path / "w.tar", [(f"{k}.png", file(k)) for k in range(3)]).read_bytes()
    at = whole.index(b"1.png")
    (tmp_path / "w.tar").write_bytes(whole[:at] + b"2" + whole[at + 1 :])
    pictures, skipped, _ = stream(tmp_path / "w.tar")
    assert list(pictures) == ["w.tar/0.png"]
    assert "cut short or damaged" in skipped["w.tar"]


# Tables and latents


def parquet(path, columns, **options):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_tables_as_the_datasets_library_writes_them_and_plain_bytes(tmp_path):
    rows = [{"bytes": file(1), "path": "x.png"}, {"bytes": None, "path": "y"}, None]
    path = parquet(tmp_path / "t.parquet", {"image": rows, "other": [b"1", b"2", b"3"]})
    pictures, skipped, _ = stream(path)
    assert pictures == {"t.parquet/0": file(1)}
    assert skipped == dict.fromkeys(["t.parquet/1", "t.parquet/2"], "the row holds no image bytes")
    path = parquet(tmp_path / "k.parquet", {"jpg": [file(1), file(2)], "__key__": ["a", None]})
    assert list(stream(path)[0]) == ["a", "k.parquet/1"]
    path = parquet(tmp_path / "no.parquet", {"image": [1, 2], "text": ["a", "b"]})
    assert "no column image" in stream(path)[1]["no.parquet"]


def test_a_damaged_table_is_told(tmp_path):
    columns = {"image": [file(k, size=(40, 40)) for k in range(6)]}
    path = parquet(tmp_path / "t.parquet", columns, row_group_size=2, compression="gzip")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as Parquet" in stream(path)[1]["t.parquet"]
    middle = len(whole) // 2  # in the rows 2 and 3; the last two are read again
    path.write_bytes(whole[: middle - 200] + bytes(400) + whole[middle + 200 :])
    pictures, skipped, _ = stream(path)
    assert {"t.parquet/0", "t.parquet/1", "t.parquet/4", "t.parquet/5"} <= set(pictures)
    assert [reason.split(":")[0] for reason in skipped.values()] == ["rows 2 to 3"]


def test_latents_come_with_their_ids_and_never_from_pickle(tmp_path):
    z = np.random.default_rng(0).normal(size=(5, 3, SIDE, SIDE)).astype(np.float32)
    np.savez(tmp_path / "a.npz", latents=z, ids=np.array(list("abcde")))
    save_file({"only": torch.from_numpy(z).bfloat16()}, tmp_path / "b.safetensors")
    save_file(
        {"latents": torch.from_numpy(z), "mask": torch.ones(2, 2)},
        tmp_path / "c.safetensors",
        {"ids": json.dumps(list("vwxyz"))},
    )
    target, made = built(tmp_path)
    assert made.added == 15
    assert not made.skipped
    assert torch.equal(target.rows["c"][2], torch.from_numpy(z[2]))
    assert torch.equal(target.rows["b.safetensors/4"][2], torch.from_numpy(z[4]).bfloat16().float())
    assert torch.equal(target.rows["y"][2], torch.from_numpy(z[3]))
    np.savez(tmp_path / "p.npz", latents=np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "n.npz", latents=z, ids=np.array(["a"]))
    (tmp_path / "x.safetensors").write_bytes(b"no")
    _, made = built(tmp_path, target)
    assert (made.added, made.present) == (0, 15)
    reasons = {one.id: one.reason for one in made.skipped}
    assert "allow_pickle" in reasons["p.npz"]
    assert "1 ids for 5 rows" in reasons["n.npz"]
    assert "cannot be read as latents" in reasons["x.safetensors"]


def test_latents_that_the_set_cannot_hold_are_skipped_one_by_one(tmp_path):
    z = np.zeros((4, 3, SIDE, SIDE), np.float32)
    z[1, 0, 0, 0], z[2, 0, 0, 0], z[3] = np.nan, 7e4, 1
    np.savez(tmp_path / "a.npz", latents=z)
    np.savez(tmp_path / "b.npz", latents=z[:, :2])
    target, made = built(tmp_path)
    assert list(target.rows) == ["a.npz/0", "a.npz/3"]
    reasons = {one.id: one.reason for one in made.skipped}
    assert reasons["a.npz/1"] == reasons["a.npz/2"] == "its latent is not finite in float16"
    assert "not (3, 8, 8)" in reasons["b.npz/0"]
    assert len(reasons) == 6
    target, made = built(tmp_path / "a.npz", Memory(dtype="float32"))
    assert list(target.rows) == ["a.npz/0", "a.npz/2", "a.npz/3"]


# Pictures


def chunk(name, data):
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def bomb(side):
    """A PNG of 100 bytes that says it is a square of `side`."""
    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 13_000, 20_000, 2**31 - 1])
def test_bombs_are_refused_before_they_go_off(side):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadInput, match="more than 100,000,000 pixels"):
            decode(bomb(side))


def test_the_limit_is_a_choice_and_pillows_own_comes_back():
    before = Image.MAX_IMAGE_PIXELS
    assert decode(file(size=(20, 20)), 400)[0].size == (20, 20)
    with pytest.raises(BadInput, match="more than 399 pixels"):
        decode(file(size=(20, 20)), 399)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_damage_is_a_reason_and_never_another_error(kind):
    whole, rng = file(3, kind, size=(24, 24)), np.random.default_rng(0)
    assert decode(whole)[0].size == (24, 24)
    for _ in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(len(data))] = rng.integers(256)
        with suppress(BadInput):
            assert decode(bytes(data), 10_000)[0].mode == "RGBA"
    with pytest.raises(BadInput):
        decode(whole[: len(whole) // 2])


def test_every_kind_of_pixel_arrives_as_it_looks():
    grey = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")
    assert decode(buffer.getvalue())[0].getpixel((0, 0)) == (156, 156, 156, 255)
    for mode, kind in (("CMYK", "JPEG"), ("P", "GIF"), ("L", "PNG"), ("1", "PNG"), ("LA", "PNG")):
        assert decode(file(1, kind, mode))[0].mode == "RGBA"
    floats = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(floats, "TIFF")
    with pytest.raises(BadInput, match="neither 8-bit nor 16-bit"):
        decode(floats.getvalue())
    turned = Image.new("RGB", (6, 3))
    exif = turned.getexif()
    exif[0x112] = 6
    upright = io.BytesIO()
    turned.save(upright, "JPEG", exif=exif)
    assert decode(upright.getvalue())[0].size == (3, 6)


def test_of_an_animation_the_first_frame_is_taken_and_that_is_told(tmp_path):
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.gif")
    target, made = built(tmp_path)
    assert made.first_frames == ["a.gif"]
    assert target.rows["a.gif"][2][:, 0, 0].tolist() == [1, -1, -1]


# Building


def test_a_build_encodes_what_a_set_does_not_have(tmp_path, monkeypatch):
    for k in range(7):
        (tmp_path / f"{k}.png").write_bytes(file(k))
    (tmp_path / "cut.png").write_bytes(file(0)[:60])
    heard = []
    target, made = built(
        tmp_path, radius=2.5, prefix="x/", tell=lambda share, b: heard.append((share, b.taken))
    )
    assert (made.added, made.present, made.taken) == (7, 0, 8)
    assert [one.id for one in made.skipped] == ["x/cut.png"]
    assert heard[-1] == (1.0, 8)
    assert heard == sorted(heard)
    digest, source, latent = target.rows["x/3.png"]
    assert digest == hashlib.sha256(file(3)).hexdigest()
    assert source == str(tmp_path / "3.png")
    expected = torch.from_numpy(pixels(3)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(latent, expected, atol=1e-6)
    assert target.radii == [2.5] * 7
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded again"))
    (tmp_path / "cut.png").unlink()
    _, made = built(tmp_path, target, prefix="x/")
    assert (made.added, made.present, made.skipped) == (0, 7, [])


def test_another_picture_under_a_known_id_is_not_passed_over(tmp_path):
    (tmp_path / "a.png").write_bytes(file(1))
    target, _ = built(tmp_path)
    (tmp_path / "a.png").write_bytes(file(2))
    _, made = built(tmp_path, target)
    assert (made.added, made.present) == (0, 0)
    assert "belongs to another picture" in made.skipped[0].reason


def test_encoded_pictures_are_written_in_large_pieces(tmp_path):
    for k in range(9):
        (tmp_path / f"{k}.png").write_bytes(file(k))
    assert built(tmp_path)[0].calls == [9]
    row = 3 * SIDE * SIDE * 4
    assert built(tmp_path, batch=2, hold=(4 * row, HOLD[1]))[0].calls == [4, 4, 1]
    assert built(tmp_path, batch=2, hold=(HOLD[0], 0.0))[0].calls == [2, 2, 2, 2, 1]


def test_what_was_encoded_is_kept_when_a_build_ends_early(tmp_path):
    for k in range(9):
        (tmp_path / f"{k}.png").write_bytes(file(k))

    def stop(share, made):
        if made.taken == 7:
            raise KeyboardInterrupt

    target = Memory()
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path, target, batch=2, tell=stop)
    assert list(target.rows) == [f"{k}.png" for k in range(6)]

    class Full(Memory):
        def add(self, *_, **__):
            self.calls.append(0)
            raise OSError("full")

    target = Full()
    with pytest.raises(OSError, match="full"):
        built(tmp_path, target)
    assert target.calls == [0]  # and not tried again


def test_a_picture_that_the_encoder_cannot_take_costs_only_itself(tmp_path, monkeypatch):
    from shielded.errors import NonFinite
    from shielded.spaces import encode

    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(file(k))
    bad = pixels(2).tobytes()

    def fragile(pipe, images, *size):
        if any(image.convert("RGB").tobytes() == bad for image in images):
            raise NonFinite("the encoder makes NaN of it")
        return encode(pipe, images, *size)

    monkeypatch.setattr("shielded.spaces.encode", fragile)
    target, made = built(tmp_path)
    assert sorted(target.rows) == ["0.png", "1.png", "3.png"]
    assert [(one.id, one.reason) for one in made.skipped] == [
        ("2.png", "the encoder makes NaN of it")
    ]
