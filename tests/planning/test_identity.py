"""Run ids of the committed records: what they were, they stay."""

import json

import pytest

from osora_bench.common import paths
from osora_bench.planning import identity
from osora_bench.planning.config import Config

LEDGER = sorted((paths.RESULTS / "ledger").glob("*.json"))


def test_there_are_committed_records():
    assert len(LEDGER) > 80


@pytest.mark.parametrize("place", LEDGER, ids=[p.stem for p in LEDGER])
def test_a_committed_run_id_follows_from_its_record(place, monkeypatch, tmp_path):
    """From the configuration and the content of its files that the record holds, with no file."""
    monkeypatch.setenv("OSORA_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    record = json.loads(place.read_text(encoding="utf-8"))
    told, found = record["config"], record["provenance"]["fingerprints"]
    config = Config.of({**told, "ledger": str(tmp_path), "runs": str(tmp_path)})
    assert identity.run_id(config, dict(found)) == record["run_id"] == place.stem
