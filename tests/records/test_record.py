"""Records are whole, written once, and damage is found."""

import base64
import hashlib
import json
import os

import numpy as np
import pytest

from osora_bench.records import record

BODY = {
    "run_id": "0123456789ab",
    "config": {},
    "provenance": {},
    "parameters": {},
    "training": None,
    "scores": {},
    "measured": {},
}


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 500])
def test_verdicts_survive_packing(n):
    verdicts = [i % 3 == 0 for i in range(n)]
    assert record.unpack(record.pack(verdicts), n) == verdicts


@pytest.mark.parametrize("n", [1, 7, 8, 9, 500])
def test_packing_is_numpys_in_base64(n):
    """Others can read the verdicts of a record without this program."""
    verdicts = [i % 3 == 0 or i % 7 == 2 for i in range(n)]
    assert record.pack(verdicts) == base64.b64encode(np.packbits(verdicts).tobytes()).decode()
    assert record.pack([]) == ""


def test_the_same_record_is_the_same_bytes(tmp_path):
    """In whatever order its parts came, a line each; with a checksum that others can take."""
    nested = {**BODY, "measured": {"b": 1, "a": {"d": 2.5, "c": None}}}
    turned = {**dict(reversed(nested.items())), "measured": {"a": {"c": None, "d": 2.5}, "b": 1}}
    first, second = (
        record.write_record(body, tmp_path / name).read_text()
        for name, body in (("one", nested), ("other", turned))
    )
    assert first == second
    read = json.loads(first)
    assert first == json.dumps(read, indent=1, sort_keys=True) + "\n"
    told = read.pop("sha256")
    assert (read.pop("schema"), read) == (1, nested)
    body = json.dumps({**nested, "schema": 1}, sort_keys=True)
    assert told == hashlib.sha256(body.encode()).hexdigest()


def test_a_record_is_read_back_and_leaves_no_other_file(tmp_path):
    path = record.write_record(BODY, tmp_path)
    assert {k: v for k, v in record.read_record(path).items() if k in BODY} == BODY
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_is_written_once(tmp_path):
    path = record.write_record(BODY, tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="written once"):
        record.write_record({**BODY, "parameters": {"trainable": 1}}, tmp_path)
    assert path.read_bytes() == before


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        record.write_record({**BODY, "scores": {"x": float("nan")}}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "cannot be read"),
        (lambda text: "[]", "not a JSON object"),
        (lambda text: text.replace('"scores"', '"score"'), "lacks scores"),
        (lambda text: text.replace('"trainable": 5', '"trainable": 6'), "checksum"),
        (lambda text: text.replace("0123456789ab", "0123456789ac"), "holds run"),
        (lambda text: text.replace('"schema": 1', '"schema": 9'), "schema 9"),
    ],
)
def test_damage_is_named_and_the_others_still_read(tmp_path, damage, message):
    bad = record.write_record({**BODY, "parameters": {"trainable": 5}}, tmp_path)
    good = record.write_record({**BODY, "run_id": "fedcba987654"}, tmp_path)
    damaged = damage(bad.read_text())
    bad.write_text(damaged)
    ledger = record.read_ledger(tmp_path)
    assert list(ledger.records) == [good.stem]
    assert len(ledger.damaged) == 1
    assert message in ledger.damaged[0]
    assert bad.name in ledger.damaged[0]
    assert bad.read_text() == damaged


def test_records_do_not_depend_on_the_order_of_keys(tmp_path):
    path = record.write_record(BODY, tmp_path)
    shuffled = dict(reversed(list(json.loads(path.read_text()).items())))
    path.write_text(json.dumps(shuffled))
    assert record.read_record(path)["run_id"] == BODY["run_id"]


def test_a_whole_record_is_read_again_only_when_it_has_changed(tmp_path, monkeypatch):
    path = record.write_record(BODY, tmp_path)
    reads = []
    original = record.read_record
    monkeypatch.setattr(record, "read_record", lambda place: reads.append(place) or original(place))
    assert [record.is_whole(path), record.is_whole(path)] == [True, True]
    assert reads == [path]
    path.write_text(path.read_text().replace('"training": null', '"training": 5'))
    assert not record.is_whole(path)
    assert not record.is_whole(tmp_path / "fedcba987654.json")


@pytest.mark.parametrize("part", record.REQUIRED)
def test_a_part_that_is_missing_is_named(tmp_path, part):
    path = record.write_record(BODY, tmp_path)
    content = json.loads(path.read_text())
    del content[part]
    path.write_text(json.dumps(content))
    with pytest.raises(record.DamagedRecord, match=f"lacks {part}$"):
        record.read_record(path)


def test_the_loss_on_the_rows_that_were_kept_out_is_read_where_there_is_one():
    validation = {"rows": 8, "tokens": 16, "loss": 0.5}
    trained = {**BODY, "training": {"validation": validation}}
    assert record.held_out_loss(trained) == validation
    assert record.held_out_loss({**BODY, "training": {"validation": None}}) is None
    assert record.held_out_loss({**BODY, "training": {"diverged": "a loss of NaN"}}) is None
    assert record.held_out_loss(BODY) is None


def test_contents_are_those_of_most_records_and_of_the_ledger_as_it_is(tmp_path):
    def written(number, fingerprints):
        provenance = {"fingerprints": fingerprints} if fingerprints else {}
        body = {**BODY, "run_id": f"{number:012d}", "provenance": provenance}
        record.write_record(body, tmp_path / "ledger")

    assert record.contents(tmp_path / "ledger") == {}
    for number, content in enumerate(["old", "new", "new"]):
        written(number, {"rows.jsonl": content, f"only{number}": "x"})
    written(3, None)  # of before there were any
    expected = {"rows.jsonl": "new", "only0": "x", "only1": "x", "only2": "x"}
    assert record.contents(tmp_path / "ledger") == expected
    (tmp_path / "ledger" / "damaged.json").write_text("{")
    written(4, {"model": "y"})
    assert record.contents(tmp_path / "ledger") == {**expected, "model": "y"}


def test_a_path_is_recorded_without_what_is_of_one_machine():
    assert record.portable("/somewhere/else/model") == "model"
    assert record.portable("siqa/train.jsonl") == "siqa/train.jsonl"
    assert record.portable("org/name") == "org/name"


def test_a_record_of_another_size_or_time_or_file_is_read_again(tmp_path):
    """Whatever changes with a file's content shows."""
    path = record.write_record(BODY, tmp_path)
    assert record.is_whole(path)
    text = path.read_text()
    for damaged in (text[:-9], text.replace("{}", "[]", 1)):
        times = path.stat()
        path.write_text(damaged)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert not record.is_whole(path)
        path.write_text(text)
        assert record.is_whole(path)
