"""Operating characteristics: what rules say on simulated runs, here at few repeats, and in the stored file at full size."""

import math

import numpy as np
import pandas as pd
import pytest

from twinslib import __main__ as cli
from twinslib.claims import characteristics
from twinslib.claims.characteristics import CLAIMED, COLUMNS, NONE, WORDS, rates, sentence, simulate, stored
from twinslib.claims.verdict import NOT, PARTLY, REPRODUCED
from twinslib.studies import rules

JUDGED = [c for c in rules.claims() if c.rule.measure != "shown"]
REPEATS = 12


@pytest.mark.parametrize("claim", JUDGED, ids=lambda c: c.id)
def test_errors_are_rare(claim) -> None:
    """Without effect hardly ever reproduced or partly, with the claimed effect hardly ever not."""
    found = rates(claim.rule, REPEATS)
    assert found[f"{NONE} {REPRODUCED}"] + found[f"{NONE} {PARTLY}"] <= 3 / REPEATS and found[f"{CLAIMED} {NOT}"] <= 3 / REPEATS
    assert all(sum(found[f"{truth} {word}"] for word in WORDS) == pytest.approx(1) for truth in (NONE, CLAIMED))
    assert found == rates(claim.rule, REPEATS)  # the same seed


def test_stored_rates() -> None:
    """The file is of the present rules, at enough repeats; both errors are at most 5 % but for the noise of the simulation."""
    assert set(stored()) == {c.id for c in JUDGED}
    for claim in JUDGED:
        line = stored()[claim.id]
        assert list(line) == COLUMNS and line["stamp"] == claim.rule.stamp and line["repeats"] >= 400
        most = 0.05 + 2 * math.sqrt(0.05 * 0.95 / line["repeats"])
        assert line[f"{NONE} {REPRODUCED}"] + line[f"{NONE} {PARTLY}"] <= most and line[f"{CLAIMED} {NOT}"] <= most, claim.id
        assert sum(line[f"{truth} {word}"] for truth in (NONE, CLAIMED) for word in WORDS) == pytest.approx(2, abs=0.01)
        assert sentence(claim).startswith(f"simulated with {claim.rule.min_seeds} seeds: without effect reproduced or partly in ")


def test_of_another_rule_nothing_is_said(monkeypatch) -> None:
    """Rates of an earlier rule are not those of the present one."""
    monkeypatch.setattr(characteristics, "stored", lambda: {"C2": stored()["C2"] | {"stamp": "0:0"}})
    assert {sentence(c) for c in JUDGED} == {"—"}


def test_large_effects_are_seen(monkeypatch) -> None:
    """Simulated evidence follows the truth: with four times the claimed effect, or as much against it, the verdict is clear."""
    true = characteristics._true
    for factor, verdict in ((6, REPRODUCED), (-6, NOT)):
        monkeypatch.setattr(characteristics, "_true", lambda rule, e, truth, factor=factor: factor * true(rule, e, truth))
        for name in ("C2", "C9", "C6", "E1", "E3", "RS-C4"):
            (rule,) = [c.rule for c in JUDGED if c.id == name]
            assert simulate(rule, CLAIMED, np.random.default_rng(1)) == verdict, name


def test_command_stores_the_rates(monkeypatch, tmp_path, capsys) -> None:
    """claims --simulate writes the reference file that the ledger reads, and needs no preset."""
    (tmp_path / "reference").mkdir()
    monkeypatch.setattr(characteristics.resources, "files", lambda _: tmp_path)
    monkeypatch.setattr(characteristics, "rates", lambda rule, repeats: dict.fromkeys(COLUMNS[6:], 0.25))
    assert cli.main(["claims", "--simulate", "--repeats", "3"]) == 0
    frame = pd.read_csv(tmp_path / "reference" / characteristics.PATH)
    assert frame.columns.tolist() == COLUMNS and frame["claim"].tolist() == [c.id for c in JUDGED]
    assert "C2" in capsys.readouterr().out
    stored.cache_clear()
