"""Records are whole, written once, and damage is found."""

import json

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
