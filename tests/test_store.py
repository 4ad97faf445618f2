# SPDX-License-Identifier: Apache-2.0
"""Protected sets on disk: what goes in comes out, in whole versions."""

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("lance", reason="needs the extra [protect]")

from shielded.errors import BadInput, Damaged, MissingExtra, NonFinite, ShapeMismatch
from shielded.shields.store import Entry, ProtectedSet, Report, protected_set
from shielded.shields.store import names as store_names

SHAPE = (2, 3, 4)


def latents(n, seed=0):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def names(n, start=0):
    return [f"image {k}" for k in range(start, start + n)]


def ids_of(a):
    return [name for batch in a.entries(["id"]) for name in batch["id"]]


def rows_of(a):
    return np.concatenate([np.empty(0, np.uint64), *(part.rows for part in a.parts())])


@pytest.fixture
def ten(tmp_path):
    a = ProtectedSet.create(tmp_path / "set", SHAPE)
    a.add(latents(10), ids=names(10))
    return a


def test_a_set_remembers_what_it_was_made_with(tmp_path):
    mark = {"pipeline": "P", "scale": [0.5, 1]}
    a = ProtectedSet.create(tmp_path / "new" / "set", SHAPE, mark, "float32", radius=2.5)
    for b in (a, ProtectedSet.open(str(a.path))):
        assert (b.shape, b.dim, b.dtype, b.radius) == (SHAPE, 24, "float32", 2.5)
        assert (b.fingerprint, b.version, len(b), b.parts()) == (mark, 1, 0, [])
        assert (list(b.entries()), b.has(["x"]), b.verify().sound) == ([], set(), True)
        assert b.take([]).shape == (0, 24)
        assert repr(b).endswith("version=1, images=0)")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"shape": ()}, "shape is"),
        ({"shape": (4, 0)}, "shape is"),
        ({"shape": (4, 2.5)}, "shape is"),
        ({"dtype": "bfloat16"}, "choose one of float16, float32"),
        ({"radius": -1.0}, "radius"),
        ({"fingerprint": {"a": object()}}, "JSON"),
        ({"fingerprint": {"a": float("nan")}}, "JSON"),
    ],
)
def test_a_set_that_makes_no_sense_is_not_made(tmp_path, wrong, words):
    with pytest.raises(BadInput, match=words):
        ProtectedSet.create(tmp_path / "set", **{"shape": SHAPE, **wrong})
    assert not list(tmp_path.iterdir())


def test_create_takes_an_empty_folder_and_no_other(tmp_path):
    assert len(ProtectedSet.create(tmp_path, SHAPE)) == 0
    with pytest.raises(BadInput, match="not empty"):
        ProtectedSet.create(tmp_path, SHAPE)
    with pytest.raises(BadInput, match="not empty"):
        ProtectedSet.create(tmp_path / "set.json", SHAPE)
    with pytest.raises(BadInput, match="there is no protected set"):
        ProtectedSet.open(tmp_path / "nowhere")


def test_lance_says_nothing_of_its_own(tmp_path, capfd):
    ProtectedSet.create(tmp_path / "set", SHAPE).add(latents(2))
    with pytest.raises(BadInput):
        ProtectedSet.open(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_every_finite_float16_comes_back_as_it_was(tmp_path):
    bits = np.arange(2**16, dtype=np.uint16).view(np.float16)
    x = bits[np.isfinite(bits)].reshape(-1, 64)  # both zeros and every subnormal among them
    a = ProtectedSet.create(tmp_path / "set", (64,))
    a.add(x)
    back = ProtectedSet.open(a.path).take(rows_of(a))
    assert back.dtype == np.float16
    assert np.array_equal(back.view(np.uint16), x.view(np.uint16))


@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_latents_are_rounded_once_to_the_stored_dtype(tmp_path, given, dtype):
    a = ProtectedSet.create(tmp_path / "set", SHAPE, dtype=dtype)
    x = latents(5).to(given)
    assert a.add(x.requires_grad_()) == 5
    assert np.array_equal(a.take(rows_of(a)), x.detach().to(getattr(torch, dtype)).flatten(1))


def test_take_and_labels_answer_in_the_order_asked(ten):
    ten.add(latents(3, 1), names(3, 10), radii=[None, 2.0, None], sources=["a.png", None, None])
    order = [12, 0, 11, 11, 5]
    expected = torch.cat([latents(10), latents(3, 1)]).half().flatten(1).numpy()
    assert np.array_equal(ten.take(rows_of(ten)[order]), expected[order])
    labels = ten.labels(rows_of(ten)[order])
    assert [label.id for label in labels] == [f"image {k}" for k in order]
    assert labels[2] == Entry("image 11", 2.0, None, None)
    for lost in (10, 1 << 32 | 3, 7 << 32):
        with pytest.raises(BadInput, match="row address"):
            ten.take([lost])


def test_whatever_is_known_of_an_image_comes_back(tmp_path):
    a = ProtectedSet.create(tmp_path / "set", SHAPE)
    odd = ["it's", 'say "hi"', "a\nb", "') OR 1=1 --", "Ünïcødé 🛡", "%", "0"]
    about = [{"n": k, "deep": [1, {"x": None}]} for k in range(6)] + [None]
    a.add(latents(7), odd, sources=odd, sha256=["ab" * 32] * 7, metadata=about)
    (batch,) = a.entries()
    assert batch["id"] == batch["source"] == odd
    assert batch["metadata"] == about
    assert batch["radius"] == [None] * 7
    assert batch["added"][0].tzinfo is not None
    assert [len(b["sha256"]) for b in a.entries(["sha256"], batch=3)] == [3, 3, 1]
    assert a.has([*odd, "it''s"]) == set(odd)
    assert a.remove(odd[:4]) == 4
    assert ids_of(a) == odd[4:]
    with pytest.raises(BadInput, match="'latent' not among the columns"):
        next(a.entries(["latent"]))


def test_ids_default_to_the_content_of_a_latent(tmp_path, ten):
    a = ProtectedSet.create(tmp_path / "other", SHAPE)
    a.add(latents(10))
    b = ProtectedSet.create(tmp_path / "third", SHAPE)
    b.add(latents(10).half())
    assert ids_of(a) == ids_of(b)
    assert len(set(ids_of(a))) == 10
    with pytest.raises(BadInput, match="already in the set"):
        a.add(latents(10)[3:4])
    with pytest.raises(BadInput, match="repeats among the ids"):
        a.add(torch.zeros(2, *SHAPE))


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"latents": torch.zeros(2, 2, 3, 5)}, ShapeMismatch, r"\(2, 3, 4\), these are"),
        ({"latents": torch.zeros(SHAPE)}, ShapeMismatch, "give"),
        ({"latents": torch.tensor(1.0)}, ShapeMismatch, "give"),
        ({"latents": latents(2) * torch.nan}, NonFinite, "0, 1 hold NaN"),
        ({"latents": torch.full((2, *SHAPE), -torch.inf)}, NonFinite, "NaN or infinity"),
        ({"latents": torch.full((2, *SHAPE), 7e4)}, NonFinite, "dtype='float32'"),
        ({"ids": ["a", "a"]}, BadInput, "'a' repeats"),
        ({"ids": ["image 3", "new"]}, BadInput, "'image 3' already in the set"),
        ({"ids": names(2)}, BadInput, "'image 0', 'image 1' already in the set"),
        ({"ids": ["a"]}, BadInput, "ids: 1 for 2 latents"),
        ({"ids": "ab"}, BadInput, "one text"),
        ({"ids": ["a", ""]}, BadInput, "not a text"),
        ({"ids": ["a", None]}, BadInput, "an id is None"),
        ({"ids": ["a", 7]}, BadInput, "not a text"),
        ({"ids": ["a", "\udcff"]}, BadInput, "not valid Unicode"),
        ({"sources": ["a"]}, BadInput, "sources: 1 for 2"),
        ({"sha256": ["a", b"b"]}, BadInput, "not a text"),
        ({"metadata": [{"a": 1}, {"b": {1, 2}}]}, BadInput, "JSON"),
        ({"radii": [1.0, -1.0]}, BadInput, "radius"),
        ({"radii": [1.0, float("nan")]}, BadInput, "radius"),
    ],
)
def test_nothing_is_added_where_one_image_is_wrong(ten, wrong, error, words):
    with pytest.raises(error, match=words):
        ten.add(**{"latents": latents(2, 1), "ids": ["new 1", "new 2"], **wrong})
    assert (ten.version, len(ten)) == (2, 10)
    assert ProtectedSet.open(ten.path).version == 2


def test_ids_are_found_even_where_all_their_hashes_agree(ten, monkeypatch):
    monkeypatch.setattr(store_names, "_hashes", lambda ids: np.zeros(len(ids), np.int64))
    b = ProtectedSet.open(ten.path)
    assert b.has(["image 3", "image 10", "image 8"]) == {"image 3", "image 8"}
    b.remove(["image 3"])
    assert ids_of(b) == [name for name in names(10) if name != "image 3"]


def test_a_change_of_nothing_makes_no_version(ten):
    assert ten.add(latents(0)) == ten.remove([]) == 0
    ten.compact()
    assert ten.version == 2


def test_remove_is_whole_too(ten):
    with pytest.raises(BadInput, match="'no', 'nor' not in the set"):
        ten.remove(["image 1", "no", "nor"])
    with pytest.raises(BadInput, match="one text"):
        ten.remove("image 1")
    assert len(ten) == 10
    assert ten.remove(["image 1", "image 4", "image 1"]) == 2
    assert ten.remove(iter(["image 0"])) == 1
    assert ids_of(ten) == [f"image {k}" for k in (2, 3, 5, 6, 7, 8, 9)]
    with pytest.raises(BadInput, match="'image 1' not in the set"):
        ten.remove(["image 1"])
    ten.add(latents(1), ["image 1"])
    assert ids_of(ten)[-1] == "image 1"
    ten.remove(ids_of(ten))
    assert (len(ten), ten.parts()) == (0, [])
    ten.compact(keep=1)
    ten.add(latents(1), ["image 1"])
    assert ids_of(ten) == ["image 1"]


def test_versions_can_be_read_for_ever_and_changed_never(ten):
    ten.remove(["image 2"])
    ten.add(latents(2, 5), ["x", "y"])
    ten.compact()
    assert [(v.number, v.images, v.note) for v in ten.versions()] == [
        (1, 0, "created"),
        (2, 10, "added 10"),
        (3, 9, "removed 1"),
        (4, 11, "added 2"),
        (5, 11, "compacted"),
    ]
    times = [v.time for v in ten.versions()]
    assert times == sorted(times)
    assert times[0].tzinfo is not None
    old = ProtectedSet.open(ten.path, version=2)
    assert (old.version, old.refresh(), ids_of(old)) == (2, False, names(10))
    assert np.array_equal(old.take(rows_of(old)), latents(10).half().flatten(1))
    for change in (lambda: old.add(latents(1)), lambda: old.remove(["x"]), old.compact):
        with pytest.raises(BadInput, match="opened at version 2"):
            change()
    with pytest.raises(BadInput, match="no version 6: it has 1, 2, 3, 4, 5"):
        ProtectedSet.open(ten.path, version=6)


def test_a_reader_stays_where_it_is_until_it_is_refreshed(ten):
    reader = ProtectedSet.open(ten.path)
    assert not reader.refresh()
    assert reader.has(["image 1", "new"]) == {"image 1"}
    ten.add(latents(1, 9), ["new"])
    ten.remove(["image 1"])
    assert reader.has(["image 1", "new"]) == {"image 1"}
    assert (len(reader), len(rows_of(reader))) == (10, 10)
    assert reader.refresh()
    assert reader.has(["image 1", "new"]) == {"new"}
    assert np.array_equal(rows_of(reader), rows_of(ten))
    assert not reader.refresh()


def test_a_writer_that_lags_behind_sees_what_others_added(ten):
    other = ProtectedSet.open(ten.path)
    ten.add(latents(1, 9), ["new"])
    with pytest.raises(BadInput, match="already in the set"):
        other.add(latents(1, 9), ["new"])
    other.add(latents(1, 8), ["newer"])
    assert ids_of(other)[-2:] == ["new", "newer"]


def test_compact_merges_parts_and_drops_what_was_removed(ten, monkeypatch):
    for k in range(1, 5):
        ten.add(latents(10, k), names(10, 10 * k))
    ten.remove(["image 3", "image 30", "image 49"])
    before, old = ids_of(ten), {part.name for part in ten.parts()}
    was = ten.take(rows_of(ten))
    ten.compact()
    (part,) = ten.parts()
    assert part.name not in old
    assert len(part.rows) == 47
    assert ids_of(ten) == before
    assert np.array_equal(ten.take(rows_of(ten)), was)
    ten.remove(["image 8"])  # one row of one part: still dropped from disk
    ten.compact(keep=1)
    assert [v.images for v in ten.versions()] == [46]
    text = b"".join(path.read_bytes() for path in (ten.path / "latents.lance/data").iterdir())
    assert latents(10)[8].half().numpy().tobytes() not in text
    assert latents(10)[9].half().numpy().tobytes() in text
    monkeypatch.setattr(protected_set, "PART_BYTES", 2 * 24 * 20)  # at most 20 rows a part
    ten.add(latents(30, 8))
    ten.remove(["image 9"])
    ten.compact()
    assert max(len(part.rows) for part in ten.parts()) <= 20
    assert len(ten.parts()) == 5
    assert len(ten) == 75
    assert set(before) - set(ids_of(ten)) == {"image 8", "image 9"}


def test_compact_keeps_as_many_versions_as_asked(ten):
    behind = ProtectedSet.open(ten.path)
    for k in range(4):
        ten.add(latents(1, 50 + k), [f"x{k}"])
    with pytest.raises(BadInput, match="keep is 0"):
        ten.compact(keep=0)
    ten.compact(keep=3)
    assert [v.number for v in ten.versions()] == [5, 6, 7]
    assert all(len(ProtectedSet.open(ten.path, v.number)) == v.images for v in ten.versions())
    report = ten.verify()
    assert report.sound
    assert not report.loose
    assert ids_of(behind) == names(10), "its files are still those of later versions"
    ten.compact(keep=1)
    with pytest.raises(BadInput, match=r"version 2 .* was erased meanwhile"):
        list(behind.entries())
    assert behind.refresh()
    assert ids_of(behind) == ids_of(ten)


def test_what_was_derived_from_erased_images_is_erased_too(ten):
    derived = ten.path / "screen"
    ten.keep("basis", {"axes": torch.eye(3)}, {})
    ten.add(latents(1, 50), ["one more"])
    ten.compact()  # merged, but earlier versions are still there
    before = ids_of(ten)
    assert ten.kept("basis") is not None
    ten.remove(["one more"])
    ten.compact(keep=2)  # version before the removal's merge is still needed
    ten.keep("basis", {"axes": torch.eye(3)}, {})
    ten.compact(keep=1)
    assert not derived.exists()
    assert ids_of(ten) == [name for name in before if name != "one more"]
    ten.keep("basis", {"axes": torch.eye(3)}, {})
    ten.compact(keep=1)  # nothing to erase
    assert ten.kept("basis") is not None


def test_read_gives_each_live_row_once(ten):
    ten.add(latents(7, 1), names(7, 10))
    ten.remove(["image 0", "image 9", "image 12"])
    for part in ten.parts():
        rows, x = zip(*ten.read(part, batch=3), strict=True)
        assert max(map(len, rows)) <= 3
        assert np.array_equal(np.concatenate(rows), part.rows)
        assert np.array_equal(np.concatenate(x), ten.take(part.rows))
        assert x[0].dtype == np.float16
    part = ten.parts()[0]
    ten.compact()
    with pytest.raises(BadInput, match="is no part of version"):
        next(ten.read(part))


def test_tensors_kept_beside_the_set(ten):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.zeros(0), "c": torch.tensor(True)}
    note = {"rows": "10", "what": "é"}
    assert ten.kept("x.lance") is None
    assert ten.keep("x.lance", tensors, note)
    back, said = ten.kept("x.lance")
    assert said == note
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
    assert ten.keep("x.lance", {"a": torch.ones(3, dtype=torch.bfloat16)}, {})
    assert ten.kept("x.lance")[0]["a"].dtype == torch.bfloat16
    (file,) = (ten.path / "screen").iterdir()
    whole = file.read_bytes()
    for k in range(len(whole)):
        file.write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :])
        found = ten.kept("x.lance")
        assert found is None or file.read_bytes()[k : k + 1].isspace()
    file.write_bytes(whole[:-1])
    assert ten.kept("x.lance") is None
    for name in ("", "a/b", "/etc/x"):
        with pytest.raises(BadInput, match="not a plain file name"):
            ten.kept(name)
    assert ten.verify() == Report(10, 6, [], [], [])
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("in the way")
    assert not ten.keep("x.lance", tensors, note)


def test_without_lance_the_extra_is_named(ten, monkeypatch):
    monkeypatch.setitem(sys.modules, "lance", None)
    for what in (lambda: ProtectedSet.open(ten.path), lambda: ten.add(latents(1))):
        with pytest.raises(MissingExtra, match=r"shielded-diffusion\[protect\]"):
            what()


changes = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sets(st.integers(0, 40), min_size=1)),
        st.tuples(st.just("remove"), st.sets(st.integers(0, 40), min_size=1)),
        st.tuples(st.just("compact"), st.sampled_from([None, 1, 2])),
    ),
    max_size=8,
)


@settings(max_examples=15)
@given(changes)
def test_a_set_behaves_like_a_dictionary(tmp_path_factory, steps):
    a = ProtectedSet.create(tmp_path_factory.mktemp("sets") / "set", SHAPE)
    model, parts = {}, {}
    for what, which in steps:
        if what == "add":
            new = sorted(which - model.keys())
            x = torch.stack([latents(1, k)[0] for k in new]) if new else latents(0)
            a.add(x, ids=list(map(str, new)), metadata=[{"k": k} for k in new])
            model |= dict.fromkeys(new)
        elif what == "remove":
            old = [k for k in model if k in which]
            assert a.remove(map(str, old)) == len(old)
            model = {k: None for k in model if k not in which}
        else:
            a.compact(which)
        for b in (a, ProtectedSet.open(a.path)):
            assert ids_of(b) == list(map(str, model))
            assert len(b) == len(model)
            assert b.has(map(str, range(41))) == set(map(str, model))
            rows = rows_of(b)
            assert [label.metadata["k"] for label in b.labels(rows)] == list(model)
            expected = [latents(1, k).half().flatten(1).numpy() for k in model]
            assert np.array_equal(b.take(rows), np.concatenate([np.empty((0, 24)), *expected]))
        for part in a.parts():  # a part may lose rows, and nothing else ever
            known = parts.setdefault(part.name, set(part.rows.tolist()))
            assert known >= set(part.rows.tolist())
    report = a.verify()
    assert report.sound
    assert not report.loose
    assert report.images == len(model)


def test_set_json_from_a_newer_version_is_refused_with_the_remedy(ten):
    file = ten.path / "set.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({"format": 2, "new": "thing"}))
    with pytest.raises(BadInput, match=r"has format 2, .* upgrade"):
        ProtectedSet.open(ten.path)
    for bad in ("", "[]", '{"format": 1}', json.dumps({**values, "shape": 3}), "{" * 9):
        file.write_text(bad)
        with pytest.raises(Damaged, match=r"set\.json is damaged"):
            ProtectedSet.open(ten.path)
    file.write_text(json.dumps({**values, "radius": 0.0}))
    with pytest.raises(Damaged, match=r"damaged \(set\.json\)"):
        ProtectedSet.open(ten.path)
