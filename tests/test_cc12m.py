# SPDX-License-Identifier: Apache-2.0
"""The soft-label split of CC12M: made tables whose right answer is known."""

import json
import random
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction
from hashlib import blake2b
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded.data import Domain, Settings, buckets, build_cc12m
from shielded.data.buckets import groups, paths, spread
from shielded.data.domain import domain, host
from shielded.data.rows import LIMIT, fault
from shielded.data.soft_labels import Group, many_domains, right_size, top_share
from shielded.data.split import splitter, whole
from shielded.errors import BadInput, Damaged

HALF = Fraction(1, 2)
SITES = {  # host: its site and its top-level domain, by hand
    "a.com": ("a.com", "com"),
    "img1.a.com": ("a.com", "com"),
    "b.co.uk": ("b.co.uk", "uk"),
    "x.b.co.uk": ("b.co.uk", "uk"),
    "c.co.uk": ("c.co.uk", "uk"),
    "d.de": ("d.de", "de"),
    "e.org": ("e.org", "org"),
    "10.0.0.1": ("10.0.0.1", "10.0.0.1"),
}


def write(path, rows):
    """A table of (url, caption) pairs."""
    path.write_text("".join(f"{url}\t{caption}\n" for url, caption in rows), newline="")
    return path


def spreaded(caption, count, start=0):
    """So many rows of a caption, each on a site of its own."""
    return [(f"https://site{start + k}.com/{k}.jpg", caption) for k in range(count)]


def made(out):
    """The captions that a build has written: caption to (split, urls)."""
    rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert all(row["count"] == len(row["urls"]) for row in rows)
    assert [row["caption"] for row in rows] == sorted(row["caption"] for row in rows)
    listed = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert listed == [
        {"url": url, "caption": row["caption"], "split": row["split"]}
        for row in rows
        for url in row["urls"]
    ]
    return {row["caption"]: (row["split"], row["urls"]) for row in rows}


def test_every_filter_takes_what_it_should(tmp_path):
    rows = [
        *spreaded("three", 3),
        *spreaded("four", 4),
        *spreaded("many", 128),
        *spreaded("too many", 129),
        *spreaded("half is an album", 4),
        *[(f"http://img{k}.album.com/{k}", "half is an album") for k in range(4)],
        *spreaded("less than half is an album", 5),
        *[(f"http://img{k}.album.com/{k}", "less than half is an album") for k in range(4)],
        *spreaded("Image result for a cat", 5),
        *spreaded("- Display larger image", 5),
        *spreaded("This image may contain a cat", 5),
        *spreaded("This is the product title 3", 5),
        *spreaded("<PERSON> and a cat", 6),
        *spreaded("image result for a dog", 4),  # another phrase: capitals count
        *spreaded("Four", 4),
        *spreaded("four ", 1),
    ]
    random.Random(0).shuffle(rows)
    told = build_cc12m(write(tmp_path / "t.tsv", rows), tmp_path).summary
    found = made(tmp_path)
    assert {caption: len(urls) for caption, (_, urls) in found.items()} == {
        "four": 4, "Four": 4, "many": 128, "less than half is an album": 9,
        "image result for a dog": 4,
    }  # fmt: skip
    for caption, (_, urls) in found.items():
        assert urls == [url for url, name in rows if name == caption]
    left = [(step["step"], step["captions"], step["images"]) for step in told["left_after"]]
    assert left == [
        ("grouped", 14, 3 + 4 + 128 + 129 + 8 + 9 + 20 + 6 + 4 + 4 + 1),
        ("4 to 128 images", 11, 4 + 128 + 8 + 9 + 20 + 6 + 4 + 4),
        ("many domains", 10, 4 + 128 + 9 + 20 + 6 + 4 + 4),
        ("made by people", 6, 4 + 128 + 9 + 6 + 4 + 4),
        ("no person", 5, 4 + 128 + 9 + 4 + 4),
    ]
    assert told["captions"] == {"validation": 0, "test": 5}
    assert told["images"] == {"validation": 0, "test": 149}
    assert told["table 3"]["test"] == [3, 1, 0, 0, 0, 0, 1]
    assert json.loads((tmp_path / "summary.json").read_text()) == told
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "captions.jsonl", "images.jsonl", "summary.json", "t.tsv",
    ]  # fmt: skip


def naive(rows, share, kind):
    """Appendix E as one reads it, all in memory: (caption to urls, captions after each step)."""
    urls = defaultdict(list)
    for url, caption in rows:
        urls[caption].append(url)

    def name(url):
        known = urlsplit(url).hostname
        return {"host": known, "site": SITES[known][0], "top": SITES[known][1]}[kind]

    steps = [
        lambda c: 4 <= len(urls[c]) <= 128,
        lambda c: not any(
            n / len(urls[c]) >= share for n in Counter(map(name, urls[c])).values()
        ),
        lambda c: all(
            phrase not in c
            for phrase in ("Display larger image", "This image may contain",
                           "This is the product title", "Image result for")
        ),
        lambda c: "<PERSON>" not in c,
    ]  # fmt: skip
    left, counts = list(urls), [len(urls)]
    for step in steps:
        left = [caption for caption in left if step(caption)]
        counts.append(len(left))
    return {caption: urls[caption] for caption in left}, counts


CAPTIONS = st.sampled_from(
    ["a cat", "A cat", "a cat ", "ein Käse", "<PERSON>", "with <PERSON> there", "“quoted”\u2028",
     "Image result for x", "x This image may contain", "[1, 2]", '"tab\\t"', "\r", "0"]
)  # fmt: skip
TABLES = st.lists(
    st.tuples(
        CAPTIONS,
        st.sampled_from([1, 2, 3, 4, 5, 7, 40, 127, 128, 129]),
        st.lists(st.sampled_from(sorted(SITES)), min_size=1, max_size=6),
    ),
    max_size=9,
)


@settings(max_examples=30)
@given(TABLES, st.sampled_from([0.25, 0.4, 0.5, 0.6, 1.0]), st.sampled_from(Domain), st.randoms())
def test_as_one_reads_it(tmp_path_factory, table, share, kind, rng):
    rows = [("https://seed.invalid/", "not a set")]
    for number, (caption, count, hosts) in enumerate(table):
        rows += [(f"http://{rng.choice(hosts)}/{number}/{k}", caption) for k in range(count)]
    rng.shuffle(rows)
    out = tmp_path_factory.mktemp("out")
    rows = [row for row in rows if row[1].strip()]
    choice = Settings(Fraction(str(share)), kind)
    told = build_cc12m(write(out / "t.tsv", rows), out, choice).summary
    expected, counts = naive(rows, share, kind.value)
    assert {caption: urls for caption, (_, urls) in made(out).items()} == expected
    assert [step["captions"] for step in told["left_after"]] == counts
    assert told["left_after"][0]["images"] == told["table"]["rows"] == len(rows)


def test_other_shares_leave_what_the_summary_says(tmp_path):
    rng = random.Random(1)
    rows = []
    for number in range(60):
        hosts = rng.sample(sorted(SITES), rng.randint(1, len(SITES)))
        caption = f"{number} <PERSON>" if number % 10 == 0 else f"{number}"
        rows += [(f"http://{rng.choice(hosts)}/{number}/{k}", caption) for k in range(4 + number)]
    table = write(tmp_path / "t.tsv", rows)
    said = build_cc12m(table, tmp_path).summary["captions_at_share"]
    seen = set()
    for kind in Domain:
        for share in ("0.3", "0.6", "1"):
            built = build_cc12m(table, tmp_path, Settings(Fraction(share), kind))
            assert said[kind.value][share] == built.summary["left_after"][-1]["captions"]
            seen.add(said[kind.value][share])
    assert len(seen) > 4  # they differ, so that the comparison says something


@pytest.mark.parametrize(("images", "good"), [(3, False), (4, True), (128, True), (129, False)])
def test_the_right_size(images, good):
    assert right_size(images) is good


def test_a_share_is_met_exactly():
    """0.7 * 10 is more than 7 in floating point, and 0.6 * 5 is not."""
    for top, of in ((7, 10), (3, 5), (1, 3), (29, 100)):
        urls = ["http://a.com/"] * top + [f"http://s{k}.com/" for k in range(of - top)]
        group = Group("x", tuple(urls))
        assert top_share(group) == Fraction(top, of)
        assert not many_domains(group, Fraction(top, of))
        assert many_domains(group, Fraction(top, of) + Fraction(1, 10**9))
        assert not many_domains(group, Fraction(str(top / of))) or of == 3


@pytest.mark.parametrize(
    ("url", "known", "site"),
    [
        ("https://a.com", "a.com", "a.com"),
        ("HTTP://IMG.A.com:8080/x@y:z", "img.a.com", "a.com"),
        ("http://me:secret@a.b.c.com.au/?q=http://d.de", "a.b.c.com.au", "c.com.au"),
        ("http://co.uk/", "co.uk", "co.uk"),
        ("http://i.co.uk?x", "i.co.uk", "i.co.uk"),
        ("http://cdn.co.com/", "cdn.co.com", "co.com"),
        ("http://192.168.1.20/x", "192.168.1.20", "192.168.1.20"),
        ("http://[::1]:80/x", "[::1]", "[::1]"),
        ("http://localhost/x", "localhost", "localhost"),
        ("http://a.com./x", "a.com", "a.com"),
        ("http:///x", "", ""),
        ("http://a.com\\@b.de/", "a.com", "a.com"),
    ],
)
def test_whose_server_it_is(url, known, site):
    assert (host(url), domain(url)) == (known, site)


def test_hosts_as_the_standard_library_reads_them():
    for name in SITES:
        for url in (f"https://u@{name}:1/a?b#c", f"http://{name}", f"http://{name}#x/@y"):
            assert host(url) == urlsplit(url).hostname == domain(url, Domain.host)
            assert domain(url) == SITES[name][0]
            assert domain(url, Domain.top) == SITES[name][1]


def test_the_split_is_the_papers_and_needs_no_order():
    captions = [f"caption {k}" for k in range(5554)]
    groups_ = [Group(caption, ()) for caption in captions]
    split = splitter(groups_, 0)
    chosen = {caption for caption in captions if split(caption) == "validation"}
    assert len(chosen) == 554
    by_hash = sorted(captions, key=lambda c: blake2b(f"0\0{c}".encode(), digest_size=16).digest())
    assert chosen == set(by_hash[:554])
    again = splitter(reversed(groups_), 0)
    assert chosen == {caption for caption in captions if again(caption) == "validation"}
    other = splitter(groups_, 1)
    both = sum(other(caption) == "validation" for caption in chosen)
    assert 30 < both < 80  # by chance 55, deviation 6.7
    assert 200 < sum(int(caption.split()[1]) < 2777 for caption in chosen) < 354  # 277 +- 11


def test_order_of_the_rows_matters_only_to_the_urls(tmp_path):
    rows = [row for k in range(40) for row in spreaded(f"caption {k}", 3 + k % 4)]
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_cc12m(write(tmp_path / f"{name}.tsv", rows), tmp_path / name)
        found.append({c: (s, sorted(urls)) for c, (s, urls) in made(tmp_path / name).items()})
        random.Random(5).shuffle(rows)
    assert found[0] == found[1]
    assert len(found[0]) == 30


def test_lines_that_are_no_rows_are_counted_and_named(tmp_path):
    good = spreaded("a cat", 4)
    lines = [b"URL\tcaption"] + [f"{url}\t{caption}".encode() for url, caption in good[:2]]
    bad = {
        5: (b"https://a.com/x.jpg a cat", "no tab"),
        6: (b"a cat\thttps://a.com/x.jpg", "no URL before the tab"),
        8: (b"https://a.com/\ta\tcat", "more than one tab"),
        9: (b"https://a.com/\t \r", "no caption after the tab"),
        10: (b"https://a.com/\tK\xe4se", "not UTF-8"),
        11: (b"", "no tab"),
        12: (b"https://a.com/\t" + b"x" * (2 * LIMIT), "longer than 1 MiB"),
        13: (b"https://a.com/\t" + b"y" * (LIMIT - 15), "longer than 1 MiB"),
        14: (b"url\tcaption", "no URL before the tab"),
    }
    fine = iter([*(f"{u}\t{c}\r".encode() for u, c in good[2:]), *[b"HTTP://a.com\tdog"] * 9])
    for number in range(4, 20):
        lines.append(bad[number][0] if number in bad else next(fine))
    path = tmp_path / "t.tsv"
    path.write_bytes(b"\n".join(lines))  # the last one has no end
    told = build_cc12m(path, tmp_path).summary["table"]
    assert told["first_skipped"] == [{"line": n, "reason": why} for n, (_, why) in bad.items()]
    assert told["skipped"] == dict(sorted(Counter(why for _, why in bad.values()).items()))
    assert told["lines"] == 19
    assert told["rows"] == 19 - 1 - len(bad)
    assert list(made(tmp_path)) == ["a cat"]


def test_only_the_first_skipped_lines_are_named(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("http://a.com\tx\n" + "no\n" * 500)
    told = build_cc12m(path, tmp_path).summary["table"]
    assert told["skipped"] == {"no tab": 500}
    assert [one["line"] for one in told["first_skipped"]] == list(range(2, 12))


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b\x08\x00" * 50, b"url\tcaption\n", b"a cat\thttp://a.com\n" * 3,
                b"\0" * 3 * LIMIT, b'{"url": "http://a.com", "caption": "a cat"}\n'],
    ids=["empty", "gzip", "header", "swapped", "zeros", "json"],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused_and_leaves_nothing(tmp_path, content):
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(BadInput, match=r"is not CC12M.s table: give its \.tsv, unpacked"):
        build_cc12m(tmp_path / "t.tsv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_row_is_no_fault():
    assert fault(b"http://a.com\tx") is None
    assert fault(b"https://a.com\t" + "Käse".encode()) is None


@pytest.fixture
def table(tmp_path, monkeypatch):
    """2,000 rows that are read in some thirty blocks."""
    monkeypatch.setattr(buckets, "BLOCK", 4000)
    rows = [row for k in range(400) for row in spreaded(f"caption {k}", 5, k)]
    rows[7:7] = [("no url", "here"), ("nor", "here")]
    return write(tmp_path / "t.tsv", rows)


class Stop(Exception):
    pass


def stop_after(blocks):
    """A teller that breaks off after so many blocks."""
    left = iter(range(blocks))

    def tell(title, share, rows):
        if next(left, None) is None:
            raise Stop

    return tell


@pytest.mark.parametrize("blocks", [1, 9, 60])
def test_a_run_that_was_stopped_goes_on(tmp_path, table, monkeypatch, blocks):
    """It gives the same bytes, and reads no line twice."""
    read = []
    monkeypatch.setattr(buckets, "fault", lambda line: read.append(line) or fault(line))
    monkeypatch.setattr(buckets, "_check", lambda table: None)
    build_cc12m(table, tmp_path / "whole")
    lines, read[:] = len(read), []
    with pytest.raises(Stop):
        build_cc12m(table, tmp_path / "parts", tell=stop_after(blocks))
    assert not (tmp_path / "parts/captions.jsonl").exists()
    with open(paths(tmp_path / "parts/cc12m.work")[3], "ab") as file:
        file.write(b"written after the last checkpoint")
    build_cc12m(table, tmp_path / "parts")
    assert len(read) == lines == 2002
    for name in ("captions.jsonl", "images.jsonl", "summary.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert not (tmp_path / "parts/cc12m.work").exists()


def test_another_table_is_read_from_its_start(tmp_path, table):
    with pytest.raises(Stop):
        build_cc12m(table, tmp_path / "out", tell=stop_after(9))
    other = write(tmp_path / "o.tsv", spreaded("alone", 4))
    assert build_cc12m(other, tmp_path / "out").summary["table"]["rows"] == 4
    assert list(made(tmp_path / "out")) == ["alone"]


def test_a_table_that_still_grows_is_refused(tmp_path, table):
    def grow(share, rows):
        with open(table, "a") as file:
            file.write("http://a.com\tone more\n")

    with pytest.raises(BadInput, match="changed while it was read"):
        spread(table, tmp_path / "work", grow)


def test_buckets_that_lost_rows_are_not_used(tmp_path, table):
    with pytest.raises(Stop):
        build_cc12m(table, tmp_path / "out", tell=stop_after(60))
    for path in paths(tmp_path / "out/cc12m.work"):
        path.write_bytes(path.read_bytes().replace(b"\n", b" "))  # as long as before
    with pytest.raises(Damaged, match="run the command again"):
        build_cc12m(table, tmp_path / "out")
    build_cc12m(table, tmp_path / "out")
    assert len(made(tmp_path / "out")) == 400


def test_short_buckets_are_read_again(tmp_path, table):
    with pytest.raises(Stop):
        build_cc12m(table, tmp_path / "out", tell=stop_after(20))
    for path in paths(tmp_path / "out/cc12m.work"):
        path.write_bytes(b"")
    build_cc12m(table, tmp_path / "out")
    assert len(made(tmp_path / "out")) == 400


def test_a_caption_of_thousands_of_images_needs_no_memory(tmp_path):
    rows = [(f"http://a.com/{k}", "everywhere") for k in range(5000)]
    path = write(tmp_path / "00.tsv", rows)
    [(caption, urls, images)] = groups(path, 5000, 128)
    assert (caption, len(urls), images) == (b"everywhere", 129, 5000)


def test_nobody_sees_half_a_file(tmp_path):
    (tmp_path / "f").write_text("old")

    def lines():
        yield "new\n"
        assert (tmp_path / "f").read_text() == "old"
        raise Stop

    with pytest.raises(Stop):
        whole(tmp_path / "f", lines())
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_repeated_urls_are_told_and_kept(tmp_path):
    rows = [*spreaded("a cat", 4), *spreaded("a cat", 2)]
    assert build_cc12m(write(tmp_path / "t.tsv", rows), tmp_path).summary["repeated_urls"] == 2
    assert len(made(tmp_path)["a cat"][1]) == 6


def test_settings_count(tmp_path):
    rows = [row for k in range(50) for row in spreaded(f"caption {k}", 4)]
    table = write(tmp_path / "t.tsv", rows)
    first = Settings(HALF)
    splits = []
    for choice in (first, replace(first, seed=7)):
        build_cc12m(table, tmp_path, choice)
        splits.append({c for c, (s, _) in made(tmp_path).items() if s == "validation"})
    assert splits[0] != splits[1]
    assert len(splits[0]) == len(splits[1]) == 5
