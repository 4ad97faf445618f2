# SPDX-License-Identifier: Apache-2.0
"""The study over HTTP: blind, for several raters, for this machine alone."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import shielded
from shielded.cli.app import app
from shielded.errors import BadInput
from shielded.study.folder import open_folders
from shielded.study.server import Server
from shielded.study.summary import summary
from study_kit import Client, make, served


def lines(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_nothing_that_is_sent_tells_which_side_is_which(tmp_path):
    folder = make(tmp_path / "secret", 8, changed="shielded")
    with served(folder) as server:
        client = Client(server.server_port)
        addresses = []
        view = client.view()
        while view["showing"]:
            assert set(view) == {"showing", "question", "left", "right", "done", "total"}
            addresses += [view["left"], view["right"], view["showing"]]
            replies = [client.get(view[at]) for at in ("left", "right")]
            heads = [[(k, v) for k, v in head.items() if k != "Date"] for _, head, _ in replies]
            assert heads[0] == heads[1]  # the number of bytes, too
            view = client.answer(view, random.choice(["left", "right", "no preference"]))
    heard = b"\n".join(client.heard)
    for word in ("plain", "changed", "shielded", "secret", ".png", str(folder)):
        assert word.encode() not in heard
    assert len(set(addresses)) == len(addresses)
    assert all(re.fullmatch(r"(/image/)?[\w-]{16}", address) for address in addresses)


def test_addresses_die_with_their_pair(tmp_path):
    with served(make(tmp_path, 3)) as server:
        client = Client(server.server_port)
        old = client.view()
        assert client.view() == old  # a reload changes nothing
        new = client.answer(old, "left")
        assert client.get(old["left"])[0] == 404
        again = client.answer(new, "undo")
        assert not {again["left"], again["right"]} & {old["left"], old["right"]}


def test_preferences_follow_the_image_and_not_its_side(tmp_path):
    folder = make(tmp_path, 10)
    with served(folder) as server:
        for _ in range(2):
            Client(server.server_port).answer_all(
                lambda left, right: "left" if left == "changed" else "right"
            )
    figures = summary(open_folders([folder]))["questions"][0]
    assert figures["shares"]["changed"]["share"] == 1
    assert figures["left"]["share"] == 0.5  # the sides are balanced
    assert figures["test"]["p"] == pytest.approx(2 / 2**20)
    assert figures["test_by_pair"]["p"] == pytest.approx(2 / 2**10)


def test_a_rater_who_always_takes_the_left_one_says_nothing(tmp_path):
    folder = make(tmp_path, 10)
    with served(folder) as server:
        for _ in range(2):
            seen = Client(server.server_port).answer_all(lambda left, right: "left")
            assert seen.count("plain") == 5
    figures = summary(open_folders([folder]))["questions"][0]
    assert figures["shares"]["changed"]["share"] == 0.5
    assert figures["left"]["share"] == 1
    assert figures["test"]["p"] == 1


def test_the_file_says_what_was_seen(tmp_path):
    folder = make(tmp_path, 6)
    with served(folder) as server:
        client = Client(server.server_port)
        said = ["left", "right", "no preference"] * 2
        want = iter(said)
        seen = client.answer_all(lambda left, right: next(want))
    kept = lines(folder)
    assert [one["left"] for one in kept] == seen
    assert [one["answer"] for one in kept] == said
    assert {one["rater"] for one in kept} == {client.cookie.removeprefix("rater=")}
    assert all(one["milliseconds"] == 700 and one["time"] for one in kept)


def test_raters_at_once_do_not_meet(tmp_path):
    first, second = make(tmp_path / "a", 5), make(tmp_path / "b", 4)
    with served(first, second) as server:
        clients = [Client(server.server_port) for _ in range(4)]
        threads = [
            threading.Thread(target=client.answer_all, args=(lambda left, right: "right",))
            for client in clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    kept = lines(first) + lines(second)
    assert (len(lines(first)), len(lines(second))) == (20, 16)
    for client in clients:
        mine = [one for one in kept if client.cookie.endswith(one["rater"])]
        assert len(mine) == 9
        assert sum(one["left"] == "plain" for one in mine) in (4, 5)


def test_other_hosts_methods_and_paths_are_refused(tmp_path):
    folder = make(tmp_path, 2)
    with served(folder) as server:
        client = Client(server.server_port)
        view = client.view()
        good = {"showing": view["showing"], "answer": "left", "milliseconds": 1}
        for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1"):
            for path in ("/", "/pair", view["left"]):
                assert client.get(path, Host=host)[0] == 403
            assert client.post(good, Host=host)[0] == 403
        assert client.post(good, Origin="http://evil.example")[0] == 403
        assert client.get("/", Host=f"localhost:{server.server_port}")[0] == 200
        for method in ("HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
            assert client.send(method, "/")[0] == 501
        for path in (
            "/answers.jsonl", "/image/", "/image/../answers.jsonl", "/image/%2e%2e/run.json",
            "/plain/000.png", "/image/plain/000.png", f"/image/{folder}/plain/000.png", "/pair?x",
            "/image/..%2fplain%2f000.png", "/../../etc/passwd",
        ):  # fmt: skip
            assert client.get(path)[0] == 404, path
        assert client.send("POST", "/", "{}")[0] == 404
        assert not (folder / "answers.jsonl").exists()
        assert client.post(good)[0] == 200


def test_what_is_no_answer_is_refused_and_not_kept(tmp_path):
    folder = make(tmp_path, 2)
    with served(folder) as server:
        client = Client(server.server_port)
        good = {"showing": client.view()["showing"], "answer": "left", "milliseconds": 1}
        wrong = [{"answer": "up"}, {"answer": None}, {"answer": ["left"]}, {"milliseconds": -1}]
        wrong += [{"milliseconds": v} for v in (1.5, True, "1", None, 10**12)]
        for values in wrong:
            assert client.post(good | values)[0] == 400, values
        assert client.post(good | {"answer": "undo"})[0] == 400  # nothing to undo
        assert client.post(good | {"showing": "x" * 16})[0] == 409
        assert client.post(good | {"showing": None})[0] == 409
        for body in ("", "{", "[]", "\xff", "[" * 900, "{}" + " " * 2000):
            assert client.send("POST", "/answer", body, Content_Type="application/json")[0] == 400
        assert client.post(good, Content_Type="text/plain")[0] == 400  # what other sites may send
        assert client.post(good, Cookie="rater=../../x")[0] == 403
        assert client.get("/pair", Cookie="")[0] == 403
        assert not (folder / "answers.jsonl").exists()
        assert client.post(good)[0] == 200
        assert client.post(good)[0] == 409  # a double click
    assert len(lines(folder)) == 1


def test_a_picture_that_changed_or_a_full_disk_is_told_to_both(tmp_path):
    folder = make(tmp_path, 1)
    with served(folder) as server:
        client = Client(server.server_port)
        view = client.view()
        (folder / "answers.jsonl").mkdir()
        status, _, content = client.post(
            {"showing": view["showing"], "answer": "left", "milliseconds": 1}
        )
        assert (status, "could not be saved" in json.loads(content)["error"]) == (500, True)
        Image.new("RGB", (16, 16)).save(folder / "plain" / "000.png")
        assert client.get(view["left"])[0] == 410
        assert ["cannot be written" in server.told[0], "has changed" in server.told[1]] == [
            True
        ] * 2
        assert str(folder).encode() not in b"".join(client.heard)


def test_a_port_that_is_taken_is_told(tmp_path):
    with served(make(tmp_path, 1)) as server:
        with pytest.raises(BadInput, match="choose another"):
            Server(server.study, server.server_port)
        assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("found", [True, False])
def test_open_opens_the_page_in_a_browser(tmp_path, monkeypatch, found):
    opened = []

    def interrupted(server):
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or found)
    monkeypatch.setattr(Server, "serve_forever", interrupted)
    result = CliRunner().invoke(app, ["study", str(make(tmp_path, 1)), "--open"])
    assert result.exit_code == 0
    assert len(opened) == 1
    assert f"{opened[0]} until Ctrl-C" in result.stdout
    assert ("go to" in result.stderr) is not found


def test_the_command_serves_until_interrupted_and_reports(tmp_path):
    folder = make(tmp_path, 4, same=(2,))
    (folder / "plain" / "none.png").write_bytes((folder / "plain" / "000.png").read_bytes())
    env = os.environ | {"PYTHONPATH": str(Path(shielded.__file__).parents[1])}
    # Tests that run in the background inherit an ignored Ctrl-C: a terminal's command does not.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; from shielded.cli import main; main()"
    command = [sys.executable, "-c", code, "study", str(folder), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as run:
        told = json.loads(run.stdout.readline())
        assert (told["pairs"], told["identical_pairs"]) == (3, 1)
        Client(int(told["address"].split(":")[2].strip("/"))).answer_all(
            lambda left, right: "left" if left == "plain" else "no preference"
        )
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=60)[1]
        assert b"no partner: none.png." in said
        assert b"answers.jsonl" in said
        assert run.returncode == 0
    result = CliRunner().invoke(app, ["study", str(folder), "--report", "--json"])
    report = json.loads(result.stdout)
    shares = report["questions"][0]["shares"]
    assert shares["plain"]["count"] + shares["no_preference"]["count"] == report["pairs"] == 3
    text = CliRunner().invoke(app, ["study", str(folder), "--report"]).stdout
    assert "3 answers by 1 rater on 3 of 3 pairs" in text
    assert "1 pair of identical images not shown" in text
    assert "1 image without a partner, left out" in text
    assert f"{100 * shares['plain']['low']:.1f}, {100 * shares['plain']['high']:5.1f}]" in text
