"""`osora-bench data`: a registry that agrees with itself; downloads that are whole or nothing."""

import base64
import errno
import hashlib
import http.server
import importlib.util
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from osora_bench.benchdata import download, sets
from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.planning.compose import compose, composer, group_choices, resolve

REAL = paths.data_root()
ROWS = b"".join(b'{"question": "%d + 1"}\n' % i for i in range(4000))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Files by path, with ranges; `cuts` are the bytes after which the next answers break off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append((self.path, wanted))
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if wanted and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(data)
        self.wfile.write(data[start:end])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty data folder, network allowed."""
    folder = tmp_path / "data"
    monkeypatch.setenv("OSORA_DATA", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return folder


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Write one conf/data/<name>.yaml in a configuration folder of its own."""
    monkeypatch.setattr(paths, "CONF", tmp_path / "conf")
    folder = tmp_path / "conf" / "data"
    folder.mkdir(parents=True)

    def write(*files: dict, name: str = "mine", **more) -> None:
        head = {"label": "Mine", "licence": "MIT", "source": "here", "questions": 3, **more}
        OmegaConf.save({**head, "files": list(files)}, folder / f"{name}.yaml")
        sets.registry.cache_clear()

    yield write
    sets.registry.cache_clear()


def entry(*origins: dict, path: str = "mine/test.jsonl", data: bytes | None = ROWS, rows=4000):
    return {
        "path": path,
        "sha256": None if data is None else sha256(data),
        "rows": rows,
        "origins": list(origins),
    }


def left_over(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def test_a_fresh_fetch_brings_the_file_and_a_second_one_asks_for_nothing(
    place, registry, server, capsys
):
    server.files["/a.jsonl"] = ROWS
    registry(entry({"url": f"{server.url}/a.jsonl"}))
    assert main(["data", "fetch", "mine"]) == 0
    assert (place / "mine" / "test.jsonl").read_bytes() == ROWS
    assert left_over(place) == ["mine/test.jsonl"]
    assert main(["data", "fetch"]) == 0
    assert "nothing to fetch: mine complete" in capsys.readouterr().out
    assert server.asked == [("/a.jsonl", None)]


def test_a_download_goes_on_where_an_earlier_one_stopped(place, registry, server):
    server.files["/a.jsonl"] = ROWS
    registry(entry({"url": f"{server.url}/a.jsonl"}))
    (place / "mine").mkdir(parents=True)
    (place / "mine" / "test.jsonl.part").write_bytes(ROWS[:1000])
    assert main(["data", "fetch", "mine"]) == 0
    assert server.asked == [("/a.jsonl", "bytes=1000-")]
    assert (place / "mine" / "test.jsonl").read_bytes() == ROWS
    assert left_over(place) == ["mine/test.jsonl"]


def test_a_connection_that_breaks_is_taken_up_again(place, registry, server):
    server.files["/a.jsonl"] = ROWS
    server.cuts = [500, 700]
    registry(entry({"url": f"{server.url}/a.jsonl"}))
    assert main(["data", "fetch", "mine"]) == 0
    assert [asked for _, asked in server.asked] == [None, "bytes=500-", "bytes=1200-"]
    assert (place / "mine" / "test.jsonl").read_bytes() == ROWS


def test_what_breaks_again_and_again_is_kept_for_the_next_fetch(place, registry, server, capsys):
    server.files["/a.jsonl"] = ROWS
    server.cuts = [100, 100, 100]
    registry(entry({"url": f"{server.url}/a.jsonl"}))
    assert main(["data", "fetch", "mine"]) == 1
    assert "interrupted; 300 bytes are kept" in capsys.readouterr().err
    assert left_over(place) == ["mine/test.jsonl.part"]
    assert main(["data", "fetch", "mine"]) == 0
    assert server.asked[-1] == ("/a.jsonl", "bytes=300-")
    assert (place / "mine" / "test.jsonl").read_bytes() == ROWS


@pytest.mark.parametrize("stale", [b"of another version", b"x" * (len(ROWS) + 1)])
def test_what_is_left_of_another_version_is_downloaded_from_the_start(
    place, registry, server, stale
):
    server.files["/a.jsonl"] = ROWS
    registry(entry({"url": f"{server.url}/a.jsonl"}))
    (place / "mine").mkdir(parents=True)
    (place / "mine" / "test.jsonl.part").write_bytes(stale)
    assert main(["data", "fetch", "mine"]) == 0
    assert [asked for _, asked in server.asked] == [f"bytes={len(stale)}-", None]
    assert (place / "mine" / "test.jsonl").read_bytes() == ROWS


def test_a_part_that_was_whole_needs_no_more_bytes(place, registry, server):
    server.files["/a.jsonl"] = ROWS
    registry(entry({"url": f"{server.url}/a.jsonl"}))
    (place / "mine").mkdir(parents=True)
    (place / "mine" / "test.jsonl.part").write_bytes(ROWS)
    assert main(["data", "fetch", "mine"]) == 0
    assert left_over(place) == ["mine/test.jsonl"]
    assert len(server.asked) == 1


def test_other_bytes_than_the_checksum_says_never_get_the_name(place, registry, server, capsys):
    server.files["/a.jsonl"] = ROWS + b"\n"
    registry(entry({"url": f"{server.url}/a.jsonl"}))
    assert main(["data", "fetch", "mine"]) == 1
    assert "/a.jsonl: other bytes than the checksum says" in capsys.readouterr().err
    assert left_over(place) == []


def test_the_next_origin_is_tried_where_one_fails(place, registry, server, capsys):
    server.files |= {"/wrong.jsonl": b"{}\n", "/right.jsonl": ROWS}
    names = ("none", "wrong", "right")
    registry(entry(*({"url": f"{server.url}/{name}.jsonl"} for name in names)))
    assert main(["data", "fetch", "mine"]) == 0
    assert [path for path, _ in server.asked] == [f"/{name}.jsonl" for name in names]
    assert (place / "mine" / "test.jsonl").read_bytes() == ROWS


def test_a_file_that_no_origin_has_is_told_with_every_reason(place, registry, server, capsys):
    server.files["/there.jsonl"] = ROWS
    registry(
        entry({"url": f"{server.url}/gone.jsonl"}, path="mine/gone.jsonl"),
        entry({"url": f"{server.url}/there.jsonl"}),
    )
    assert main(["data", "fetch", "mine"]) == 1
    error = capsys.readouterr().err
    assert f"mine: mine/gone.jsonl could not be had:\n  {server.url}/gone.jsonl: 404" in error
    assert "no host answered" not in error
    assert left_over(place) == ["mine/test.jsonl"]


@pytest.mark.parametrize("right", [True, False])
def test_a_file_of_a_repository_is_held_against_gits_name_of_it(
    right, place, registry, server, capsys
):
    named = subprocess.run(
        ["git", "hash-object", "--stdin"], input=ROWS, capture_output=True, check=True
    )
    blob = named.stdout.decode().strip() if right else "0" * 40
    server.files["/a.jsonl"] = ROWS
    registry(entry({"url": f"{server.url}/a.jsonl", "blob": blob}, data=None))
    assert main(["data", "fetch", "mine"]) == (0 if right else 1)
    assert (place / "mine" / "test.jsonl").is_file() == right
    assert ("other bytes than the checksum says" in "".join(capsys.readouterr())) != right


def test_members_of_an_archive_are_taken_from_one_download(place, registry, server):
    labels = b"1\n0\n" * 2000
    archive = zipped(**{"in/test.jsonl": ROWS, "in/labels.lst": labels, "in/other": b"x"})
    server.files["/a.zip"] = archive
    server.cuts = [300]
    origin = {"url": f"{server.url}/a.zip", "md5": hashlib.md5(archive).hexdigest()}
    registry(
        entry({**origin, "member": "in/test.jsonl"}),
        entry({**origin, "member": "in/labels.lst"}, path="mine/labels.lst", data=labels),
    )
    assert main(["data", "fetch", "mine"]) == 0
    assert [asked for _, asked in server.asked] == [None, "bytes=300-"]
    assert left_over(place) == ["mine/labels.lst", "mine/test.jsonl"]
    assert (place / "mine" / "labels.lst").read_bytes() == labels
    assert not (place / ".fetch").exists()


@pytest.mark.parametrize(
    "case",
    [
        ({"member": "in/nothing"}, "has no file in/nothing"),
        ({"md5": "0" * 32}, "other bytes than the checksum says"),
        ({"sha256": "0" * 64}, "other bytes than the checksum says"),
        ({"url": "{url}/broken.zip"}, "File is not a zip file"),
        ({"member": "in/short.jsonl"}, "instead of"),
    ],
)
def test_archives_that_do_not_hold_what_they_should(place, registry, server, capsys, case):
    more, told = case
    server.files["/a.zip"] = zipped(**{"in/test.jsonl": ROWS, "in/short.jsonl": ROWS[:-1]})
    server.files["/broken.zip"] = b"not a zip"
    origin = {"url": "{url}/a.zip", "member": "in/test.jsonl", **more}
    origin["url"] = origin["url"].format(url=server.url)
    registry(entry(origin), entry(origin, path="mine/again.jsonl"))
    assert main(["data", "fetch", "mine"]) == 1
    assert capsys.readouterr().err.count(told) == 2
    assert len(server.asked) == 1, "an archive is asked for once, whatever came of it"
    assert left_over(place) == []


def test_rows_are_counted_where_no_checksum_is_known(place, registry, server, capsys):
    server.files["/a.zip"] = zipped(rows=ROWS)
    origin = {"url": f"{server.url}/a.zip", "member": "rows"}
    registry(entry(origin, data=None, rows=3999))
    assert main(["data", "fetch", "mine"]) == 1
    assert "4,000 rows instead of 3,999" in capsys.readouterr().err
    assert left_over(place) == []
    registry(entry(origin, data=None))
    assert main(["data", "fetch", "mine"]) == 0
    assert main(["data", "verify", "mine"]) == 0
    assert "4,000 rows; its checksum is not known" in capsys.readouterr().out


def test_without_network_it_says_what_to_do_instead(place, registry, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    registry(entry({"url": f"{closed}/a.jsonl"}, {"url": f"{closed}/b.jsonl"}))
    assert main(["data", "fetch", "mine"]) == 1
    error = capsys.readouterr().err
    assert f"{closed}/a.jsonl: [Errno {errno.ECONNREFUSED}]" in error
    assert f"{closed}/b.jsonl: no answer from" in error, "a silent host is asked once"
    assert "no host answered" in error
    assert "name it with OSORA_DATA" in error
    assert not place.exists()


def test_offline_nothing_is_asked_for(place, registry, server, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    registry(entry({"url": f"{server.url}/a.jsonl"}))
    assert main(["data", "fetch", "mine"]) == 2
    error = capsys.readouterr().err
    assert "cannot fetch: HF_HUB_OFFLINE is set" in error
    assert "name it with OSORA_DATA" in error
    assert (server.asked, place.exists()) == ([], False)


def test_a_file_with_another_checksum_is_overwritten_only_on_request(
    place, registry, server, capsys
):
    server.files |= {"/a.jsonl": ROWS, "/b.jsonl": ROWS}
    registry(
        entry({"url": f"{server.url}/a.jsonl"}),
        entry({"url": f"{server.url}/b.jsonl"}, path="mine/b.jsonl"),
    )
    mine = place / "mine" / "test.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b'{"mine": 1}\n')
    assert main(["data", "fetch", "mine"]) == 1
    error = capsys.readouterr().err
    assert f"mine: {mine}: sha256 {sha256(mine.read_bytes())} instead of {sha256(ROWS)}" in error
    assert "`osora-bench data fetch mine --replace` overwrites it" in error
    assert mine.read_bytes() == b'{"mine": 1}\n'
    assert (place / "mine" / "b.jsonl").read_bytes() == ROWS, "what is missing comes all the same"
    assert main(["data", "fetch", "mine", "--replace"]) == 0
    assert mine.read_bytes() == ROWS


def test_a_wrong_file_stays_where_its_replacement_cannot_be_had(place, registry, server):
    registry(entry({"url": f"{server.url}/gone.jsonl"}))
    mine = place / "mine" / "test.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine\n")
    assert main(["data", "fetch", "mine", "--replace"]) == 1
    assert mine.read_bytes() == b"mine\n"


# one made-up CSV of two rows, encrypted with the password open-sesame: zipfile only decrypts
SECRET = base64.b64decode(
    "UEsDBAoACQAAAPseeF0GMAbDUAAAAEQAAAATAAAAZGF0YXNldC9tYWRlX3VwLmNzdqx/gXIt9KIlc0GjQlMd1fSGEXvC+ccq"
    "xALXQE8ztPtqy2A56xY05hOqm/8up5TPKQ+1pkrQQTZwC5/GH4UcdmNgxjVaEGLOAqmBQqw059kuUEsHCAYwBsNQAAAARAAA"
    "AFBLAQIeAwoACQAAAPseeF0GMAbDUAAAAEQAAAATAAAAAAAAAAEAAACkgQAAAABkYXRhc2V0L21hZGVfdXAuY3N2UEsFBgAA"
    "AAABAAEAQQAAAJEAAAAAAA=="
)


@pytest.fixture
def gated(registry, server):
    server.files["/secret.zip"] = SECRET
    origin = {
        "url": f"{server.url}/secret.zip",
        "sha256": sha256(SECRET),
        "member": "dataset/made_up.csv",
        "password": "OSORA_TEST_PASSWORD",
    }
    file = entry(origin, path="secret/made_up.csv", data=None, rows=2)
    registry(file, name="secret", gated="its authors ask for care")


def test_gated_questions_come_only_by_name_and_with_the_password(
    place, gated, server, capsys, monkeypatch
):
    assert main(["data", "fetch"]) == 0
    assert "secret: left out, its authors ask for care" in capsys.readouterr().out
    assert main(["data", "fetch", "secret"]) == 1
    assert "set OSORA_TEST_PASSWORD" in capsys.readouterr().err
    assert server.asked == []
    monkeypatch.setenv("OSORA_TEST_PASSWORD", "wrong")
    assert main(["data", "fetch", "secret"]) == 1
    assert "dataset/made_up.csv: Bad password" in capsys.readouterr().err
    assert left_over(place) == []
    monkeypatch.setenv("OSORA_TEST_PASSWORD", "open-sesame")
    assert main(["data", "fetch", "secret"]) == 0
    assert left_over(place) == ["secret/made_up.csv"]
    assert main(["data", "verify", "secret"]) == 0


def test_gated_questions_are_not_written_where_git_would_commit_them(
    place, gated, server, capsys, monkeypatch
):
    monkeypatch.setenv("OSORA_TEST_PASSWORD", "open-sesame")
    subprocess.run(["git", "init", "--quiet", str(place.parent)], check=True)
    assert main(["data", "fetch", "secret"]) == 2
    assert (
        "inside a git repository that does not ignore it: name another folder with OSORA_DATA"
        in capsys.readouterr().err
    )
    assert (server.asked, place.exists()) == ([], False)
    (place.parent / ".gitignore").write_text("/data/\n")
    assert main(["data", "fetch", "secret"]) == 0


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_rows_of_the_hub_are_written_in_opencompasss_form(place, registry, server, capsys, suffix):
    rows = [{"problem": f"{i} + é", "subject": "sums", "answer": str(i)} for i in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    server.files["/hub.jsonl"] = lines
    origin = {"url": f"{server.url}/hub.jsonl", "sha256": sha256(lines)}
    file = entry(path=f"mine/test{suffix}", data=None, rows=3)
    registry({**file, "origins": [{**origin, "columns": {"problem": "topic"}}]})
    assert main(["data", "fetch", "mine"]) == 1
    assert "has no column 'topic'" in capsys.readouterr().err
    assert left_over(place) == []
    columns = {"problem": "problem", "type": "subject"}
    registry({**file, "origins": [{**origin, "columns": columns}]})
    assert main(["data", "fetch", "mine"]) == 0
    text = (place / "mine" / f"test{suffix}").read_text(encoding="utf-8")
    wanted = [{"problem": row["problem"], "type": "sums"} for row in rows]
    if suffix == ".json":
        assert json.loads(text) == {str(i): row for i, row in enumerate(wanted)}
    else:
        assert [json.loads(line) for line in text.splitlines()] == wanted
    assert left_over(place) == [f"mine/test{suffix}"]


@pytest.mark.parametrize("content", [b"not JSON", b'{"problem": 1'])
def test_a_file_of_the_hub_that_cannot_be_read(place, registry, server, capsys, content):
    server.files["/hub.jsonl"] = content
    origin = {"url": f"{server.url}/hub.jsonl", "columns": {"problem": "problem"}}
    registry(entry(origin, data=None))
    assert main(["data", "fetch", "mine"]) == 1
    assert f"{server.url}/hub.jsonl: " in capsys.readouterr().err
    assert left_over(place) == []


def test_the_hub_can_be_a_mirror(place, registry, server, monkeypatch):
    server.files["/mirror/datasets/x/resolve/main/a.jsonl"] = ROWS
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/mirror/")
    registry(entry({"url": "https://huggingface.co/datasets/x/resolve/main/a.jsonl"}))
    assert main(["data", "fetch", "mine"]) == 0


def test_a_full_disk_is_told_before_and_while_it_fills(
    place, registry, server, capsys, monkeypatch
):
    server.files["/a.jsonl"] = ROWS
    registry(entry({"url": f"{server.url}/a.jsonl"}))
    with monkeypatch.context() as patched:
        usage = download.shutil.disk_usage(place.parent)
        patched.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=10))
        assert main(["data", "fetch", "mine"]) == 2
    assert f"cannot write there ({len(ROWS):,} bytes to come, 10 free)" in capsys.readouterr().err
    assert left_over(place) == []

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(download.os, "fsync", full)
        assert main(["data", "fetch", "mine"]) == 2
    assert f"{place}: cannot write there (No space left on device)" in capsys.readouterr().err
    assert left_over(place) == ["mine/test.jsonl.part"]
    assert main(["data", "fetch", "mine"]) == 0
    assert (place / "mine" / "test.jsonl").read_bytes() == ROWS


FORMS = {
    "lines": ("a.jsonl", b"{}\n{}\n\n", 2, "right, 2 rows"),
    "labels": ("a.lst", b"1\n0\n", 3, "WRONG: 2 rows instead of 3"),
    "object": ("a.json", b'{"0": {}, "1": {}}', 2, "right, 2 rows"),
    "cut off": ("a.json", b"[{}, {}", 2, "WRONG: cannot be read"),
    "number": ("a.json", b"3", 3, "WRONG: cannot be read"),
    "table": ("a.csv", b'q,a\n"two\nlines",1\n', 1, "right, 1 rows"),
    "no text": ("a.jsonl", b"\xff\n", 1, "WRONG: cannot be read"),
}


@pytest.mark.parametrize("form", FORMS)
def test_verify_counts_the_rows_of_every_form(place, registry, capsys, form):
    name, content, rows, told = FORMS[form]
    registry(entry(path=name, data=None, rows=rows))
    place.mkdir()
    assert main(["data", "verify"]) == 1
    assert "1 right" not in capsys.readouterr().out, "missing"
    (place / name).write_bytes(content)
    assert main(["data", "verify"]) == int(told.startswith("WRONG"))
    out = capsys.readouterr().out
    assert told in out
    assert f"1 files below {place}" in out


def test_verify_and_list_tell_right_rebuilt_and_wrong_copies(place, registry, capsys):
    other = ROWS.replace(b" ", b"")
    file = {**entry(), "bytes": len(ROWS), "also": {sha256(other): "no spaces"}}
    registry(file, entry(path="mine/gone.jsonl"))
    mine = place / "mine" / "test.jsonl"
    mine.parent.mkdir(parents=True)
    for content, verified, listed in (
        (ROWS, "right, 4,000 rows\n", "missing: gone.jsonl"),
        (other, "right, 4,000 rows; no spaces\n", "missing: gone.jsonl"),
        (
            ROWS[:-1],
            f"{len(ROWS) - 1:,} bytes instead of {len(ROWS):,}\n",
            "another checksum: test",
        ),
    ):
        mine.write_bytes(content)
        assert main(["data", "verify", "mine"]) == 1
        assert verified in capsys.readouterr().out
        assert main(["data", "list"]) == 0
        assert listed in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fetch", "gsm8"], "unknown data set 'gsm8'. Did you mean 'gsm8k'?"),
        (["verify", "winogrand"], "Did you mean 'winogrande'?"),
        (["lst"], "unknown action of `data` 'lst'. Did you mean 'list'?"),
        ([], "Valid: fetch, list, verify"),
        (["verify", "--replace"], "unknown option --replace"),
        (["fetch", "--force"], "unknown option --force"),
    ],
)
def test_mistakes_name_what_there_is(place, capsys, arguments, told):
    assert main(["data", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_misspelled_key_names_the_file(registry, capsys):
    registry(entry(), licens="MIT")
    assert main(["data", "list"]) == 2
    assert "conf/data/mine.yaml: Key 'licens' not in 'DataSet'" in capsys.readouterr().err


def test_listing_imports_no_torch():
    code = (
        "import sys; from osora_bench.cli.main import main; main(['data', 'list']); "
        "heavy = {'torch', 'datasets', 'opencompass'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gsm8k" in done.stdout


def test_advice_names_the_command_that_gets_a_file():
    assert sets.advice("gsm8k/test.jsonl") == "; `osora-bench data fetch gsm8k` gets it"
    assert sets.advice("my/own.jsonl") == ""


FILES = [(name, f) for name, each in sets.registry().items() for f in each.files]


@pytest.mark.parametrize(("name", "file"), FILES, ids=[f.path for _, f in FILES])
def test_every_download_can_be_checked_and_is_pinned(name, file):
    assert file.origins
    assert all(re.fullmatch("[0-9a-f]{64}", d) for d in (file.sha256, *file.also) if d is not None)
    for origin in file.origins:
        assert origin.url.startswith("https://")
        taken_out = bool(origin.member or origin.columns)
        whole = re.fullmatch("[0-9a-f]{40}", origin.blob or "") and not taken_out
        known = file.sha256 or whole or (taken_out and (origin.md5 or origin.sha256))
        assert known, origin.url
        for host in ("raw.githubusercontent.com", "huggingface.co"):
            assert host not in origin.url or re.search("/[0-9a-f]{40}/", origin.url), "no branch"


def test_no_two_entries_are_one_file():
    places = [f.path for _, f in FILES]
    assert len(places) == len(set(places)) == 31


def test_the_package_is_the_one_that_opencompass_names():
    """URL and md5 of OpenCompass's own table, read without importing OpenCompass."""
    root = Path(importlib.util.find_spec("opencompass").origin).parent
    spec = importlib.util.spec_from_file_location("table", root / "utils" / "datasets_info.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    known = {each["url"].replace("http:", "https:"): each for each in table.DATASETS_URL.values()}
    used = [o for _, f in FILES for o in f.origins if "aliyuncs" in o.url]
    assert {o.md5 for o in used} == {known[o.url]["md5"] for o in used}
    assert len(used) > 10


def test_gpqa_is_fetched_from_the_encrypted_archive_alone():
    origins = [o for name, f in FILES if name == "gpqa" for o in f.origins]
    assert len(origins) == 3
    assert all(o.password == "OSORA_GPQA_PASSWORD" for o in origins)
    assert sets.registry()["gpqa"].gated


def composed(group: str, name: str):
    # a suite without sets needs something else that judges
    suite = [f"eval={name}", "task.validation_rows=8"]
    chosen = {"eval": suite, "task": [f"task={name}", "eval=toy", "trainer=paper"]}
    with composer():
        return getattr(resolve(compose(chosen[group], "test"), "test"), group)


@pytest.mark.parametrize("name", group_choices("eval"))
def test_suites_name_files_and_numbers_of_the_registry(name):
    for dataset in composed("eval", name).datasets:
        files = [f for f in dataset.files if not f.startswith("pkg://")]
        for path in files:
            (owner,) = {n for n, f in FILES if f.path == path}
            assert sets.registry()[owner].questions == dataset.questions, path
        assert files or name.startswith(("toy", "arithmetic"))


@pytest.mark.parametrize("name", group_choices("task"))
def test_tasks_train_on_files_of_the_registry(name):
    sources = composed("task", name).sources
    parts = [*sources, *(s.exclude for s in sources if s.exclude)]
    for part in parts:
        if not part.path.startswith("pkg://"):
            (file,) = [f for _, f in FILES if f.path == part.path]
            assert file.rows == part.rows


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "file"), FILES, ids=[f.path for _, f in FILES])
def test_real_files_are_what_the_registry_says(name, file, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", str(REAL))
    place = REAL / file.path
    if not place.is_file():
        pytest.skip(f"OSORA_DATA has no {file.path}")
    finding = sets.examine(file)
    assert finding.kind == "right", finding.told
    if finding.told == f"right, {file.rows:,} rows":  # the very copy that the registry names
        assert file.bytes in (None, place.stat().st_size)
