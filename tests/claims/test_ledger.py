"""The ledger: which runs count, what a changed rule does, what is written, printed and put into a text."""

import dataclasses
import json
import os
import re
from itertools import product
from pathlib import Path

import pytest

from tests.claims.made import CLEAN, DATASETS, LEDGER, SOURCE, N, claim_of, clear, fill, job, mask
from tests.store_made import finish, prove
from twinslib import __main__ as cli
from twinslib.base import paths
from twinslib.claims import ledger
from twinslib.claims.verdict import NOT, NOT_TESTED, PARTLY, REPRODUCED, VERDICTS
from twinslib.evidence import public
from twinslib.specs.jobs import Job
from twinslib.specs.run import DataSpec, FollowSpec, OptimSpec
from twinslib.store.store import Store
from twinslib.studies import plan as studies_plan
from twinslib.studies import presets, rules
from twinslib.studies.rules import Bound, Earlier

FIRST = [name for name, claim in LEDGER.items() if claim.notebook == "01"]


def test_toy_is_never_a_verdict(tmp_path):
    """Runs of a toy preset judge nothing, however many and clear they are."""
    store, claim = Store("toy", root=tmp_path), LEDGER["C2"]
    found = ledger.judge(claim, store, fill(store, claim, clear(claim)))
    assert (found.verdict, found.why) == (NOT_TESTED, "a toy run only checks that everything works")


def test_runs_that_are_no_runs_of_the_claim(store):
    """Source networks, unsettled runs, other methods, candidates of the tuning and runs whose course is followed neither count
    nor get in the way."""
    claim = claim_of()
    jobs = fill(store, claim, {"twins_at": 100, "at": 0})
    source = Job("transfer", dataclasses.replace(SOURCE, data=DataSpec(name="cifar10")), (CLEAN,), ship=True)
    unsettled = [dataclasses.replace(j, settled=False) for j in fill(store, claim, {"twins_at": -100, "at": 0}, ["dogs64"])]
    tuning = Job("tuning", dataclasses.replace(jobs[0].spec, optim=OptimSpec(lr=0.5)), ())
    followed = Job("followed", dataclasses.replace(jobs[0].spec, follow=FollowSpec(test_images=N)), ())
    for j in (source, tuning, followed):
        finish(store, j.spec, {CLEAN: mask()})
    found = ledger.judge(claim, store, [source, tuning, followed, *unsettled, *jobs, job(name="natural")])
    assert found == ledger.judge(claim, store, jobs) and found.verdict == REPRODUCED
    assert found.runs == tuple(sorted(j.spec.hash for j in jobs)) and found.not_counted == 0


@pytest.mark.parametrize("stamps", [None, {}, {"C9": "1:000000000000"}, {"X1": "1:000000000000"}],
                         ids=["before there were rules", "none then", "of other claims", "of an older version"])
def test_runs_from_before_the_rule_do_not_count(store, stamps):
    """They are counted as such, their numbers are not used; runs under the rule beside them are."""
    claim = claim_of(version=2, changes="because")
    jobs = fill(store, claim, {"twins_at": 100, "at": 0}, stamps=stamps)
    found = ledger.judge(claim, store, jobs)
    assert (found.verdict, found.not_counted, found.runs, found.detail) == (NOT_TESTED, 18, (), ())
    more = fill(store, claim, {"twins_at": -100, "at": 0}, ("dogs64", "cifar100", "caltech256"))
    found = ledger.judge(claim, store, jobs + more)
    assert (found.verdict, found.not_counted) == (NOT, 18) and found.runs == tuple(sorted(j.spec.hash for j in more))
    shown = ledger.to_table([found]).iloc[0]
    assert shown["n"] == "data sets: 3, seeds: 3, images: 1,000; began before the rule: 18" and shown["rule"] == "version 2"


def test_runs_of_an_earlier_rule_count_where_it_withholds(store):
    """A rule that can only withhold accepts the stamp of the one before, up to the verdict that such runs can give."""
    old = claim_of()
    jobs = fill(store, old, {"twins_at": 100, "at": 0})
    before = Earlier(stamp=old.rule.stamp, text="words", changed="2026-11-30", withholds=True)
    for change, verdict in (({}, REPRODUCED), ({"at_most": PARTLY}, PARTLY), ({"withholds": False}, NOT_TESTED)):
        claim = claim_of(version=2, changes="because", chance=0.01, earlier=(dataclasses.replace(before, **change),))
        found = ledger.judge(claim, store, jobs)
        assert found.verdict == verdict and found.not_counted == (18 if verdict == NOT_TESTED else 0)
        assert ("changed on 2026-11-30, can only withhold" in ledger.to_table([found])["rule"][0]) is (verdict != NOT_TESTED)
        assert ("give no more" in found.why) is (verdict == PARTLY)


@pytest.mark.parametrize("change", [{"text": "words, otherwise"}, {"min_seeds": 2},
                                    {"asked": ((Bound(above=0.0, claimed=0.01),),)}], ids=lambda change: next(iter(change)))
def test_a_rule_edited_after_the_runs_is_refused(store, change):
    """Any word or number changed under the same version: an error with claim, run, both stamps and what to do."""
    old, new = claim_of(), claim_of(**change)
    jobs = fill(store, old, {"twins_at": 100, "at": 0}, ["cifar10"], [0])
    assert ledger.judge(old, store, jobs).not_counted == 0
    with pytest.raises(ValueError, match="rule of X1 as it was when run .* restore it, or raise its version") as error:
        ledger.judge(new, store, jobs)
    assert any(j.spec.hash in str(error.value) for j in jobs)
    assert old.rule.stamp in str(error.value) and new.rule.stamp in str(error.value)
    found = ledger.judge(claim_of(version=2, changes="a slip", **change), store, jobs)
    assert (found.verdict, found.not_counted, found.runs) == (NOT_TESTED, 2, ())
    with pytest.raises(ValueError, match="expected `changes` to say why the rule is in version 2, got nothing"):
        claim_of(version=2)


def stamped(store, levels):
    """Runs under the rules of the whole ledger."""
    return fill(store, None, levels, stamps=rules.stamps())


def test_table(store):
    """One line per claim with verdict, reason, effects in points, numbers, source and what to type."""
    jobs = stamped(store, {"twins_at": 20, "at": 0})
    table = ledger.to_table(ledger.judge_all(store, jobs, "01")).set_index("claim")
    assert table.index.tolist() == FIRST and not table.isna().any(axis=None) and ledger.judge_all(store, jobs, "09") == []
    line = table.loc["C2"]
    assert line["verdict"] == REPRODUCED and line["robust at"] == "8/255" and "one start network" in line["regime"]
    assert line["effect"].startswith("TWINS-AT - AT, clean: +2.0 [+") and "; TWINS-AT - AT, PGD-20: +2.0 [" in line["effect"]
    assert line["n"] == "data sets: 3, seeds: 3, images: 1,000" and "controls without enough runs: TWINS" in line["why"]
    assert line["elsewhere"] == f"{public.reported('twins_at', 'at')} points"
    assert table.loc["C3", ["verdict", "effect", "n"]].tolist() == [NOT_TESTED, "none yet", "no run"]
    some = [j for j in jobs if j.spec.data.name == "cub64" or (j.spec.data.name == "cifar10" and j.spec.seed == 0)]
    (line,) = ledger.to_table([ledger.judge(LEDGER["C2"], store, some)]).to_dict("records")
    assert line["n"] == "data sets: 2, seeds: 1 to 3, images: 1,000"
    assert "TWINS-AT - AT, clean on CIFAR-10: +2.0 [" in line["effect"]


def test_file_is_complete(store):
    """claims.json is strict JSON with everything behind a verdict: rule, stamp, effects, data sets, runs, commands."""
    jobs = stamped(store, {"twins_at": 20, "at": 0, "two_adaptive": 0})
    ledger.write(store, ledger.judge_all(store, jobs, "01"))
    path = store.root / "claims.json"
    stored = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert list(stored) == FIRST
    for name, record in stored.items():
        claim = LEDGER[name]
        assert (record["sentence"], record["rule"], record["stamp"]) == (claim.sentence, claim.rule.text, claim.rule.stamp)
        assert record["preset"] == "small" and record["verdict"] in VERDICTS and record["why"]
    found = stored["C2"]
    assert found["verdict"] == REPRODUCED and found["remark"] and found["runs_before_the_rule"] == 0
    assert found["runs"] == sorted(j.spec.hash for j in jobs)
    assert [(e["metric"], e["dataset"], e["value"], e["p_value"]) for e in found["effects"]] == [
        ("clean", "mean", pytest.approx(0.02), None), ("robust", "mean", pytest.approx(0.02), None)]
    assert {(e["baseline"], e["dataset"]) for e in found["detail"]} == set(product(("at", "two_adaptive"), DATASETS))
    before = path.read_bytes()
    path.unlink()
    ledger.write(store, ledger.judge_all(store, jobs, "01")[::-1])
    assert path.read_bytes() == before
    path.write_text("{")
    with pytest.raises(ValueError, match="expected JSON in .*claims.json, .*moves it aside"):
        ledger.write(store, [])


def test_data_sets_of_others_are_none_of_a_rule(store):
    """Neither what is judged nor what tables are told to stand on."""
    jobs, (c9,) = stamped(store, {"at": 20, "at_natural": 0, "at_random": 0}), (c for c in rules.claims() if c.id == "C9")
    assert {e.dataset for e in ledger.judge(c9, store, jobs).detail} == {"cifar10"}
    stands = ledger.standing(store, jobs, "01")["at", "at_random"]
    assert {job.spec.data.name for job in stands.jobs} == {"cifar10"}


def test_headlines_say_what_data_sets_near_chance_withhold():
    """C3 of `small` has an interval without the claimed effect; that it is inconclusive needs its reason."""
    said = ledger.headlines(Store("small", root=Path(__file__).parents[2] / "results" / "small"))
    assert re.search(r"\(C3\) +\| \*\*inconclusive\*\* \(not reproduced without CUB-200 \(2010\), near chance\), in points", said)
    assert said.count("near chance") == 1


def test_headlines_are_put_between_the_marks(store):
    """The text around stays, what was between the marks goes; doing it twice changes nothing. Each mark once, in order."""
    text = "# A\n<!-- claims -->\nold\n<!-- /claims -->\nend | of text\n"
    assert "old" not in ledger.put_into(text, store)
    ledger.write(store, ledger.judge_all(store, stamped(store, {"twins_at": 20, "at": 0}), "01"))
    once = ledger.put_into(text, store)
    assert once.startswith("# A\n<!-- claims -->\n| claim ") and once.endswith("<!-- /claims -->\nend | of text\n")
    line = re.search(r"\| (.*) \(C2\) +\| \*\*reproduced\*\*, in points: clean \+2\.0 \[.*\]; robust \+2\.0 \[.*\] +\|", once)
    assert line[1] == LEDGER["C2"].short and re.search(r"\(C3\) +\| not tested +\|", once)
    assert "\nAll 6 claims: 2 reproduced, 4 not tested at this scale.\n" in once
    assert ledger.put_into(once, store) == once
    whole = (store.root / "claims.md").read_text()
    assert re.search(r"\| C2 +\| TWINS-AT has higher clean and robust accuracy than AT. +\| reproduced +\|", whole)
    assert all(f"| {name} " in whole for name in FIRST)
    start, end = "<!-- claims -->", "<!-- /claims -->"
    for wrong in ("", start, end, start + start + end, end + start):
        with pytest.raises(ValueError, match=f"expected the marks {start} and {end}, each once"):
            ledger.put_into(wrong, store)


def test_commands_exist(capsys):
    """What the ledger says to type is accepted: preset and notebook number by run_all.sh, the rest by the command line."""
    script = paths.notebooks_dir().parent / "run_all.sh"
    legal = re.search(r"usage: \./run_all\.sh \[([a-z|]+)\] \[NN…\]", script.read_text())[1].split("|")
    assert os.access(script, os.X_OK)
    for claim, preset in product(LEDGER.values(), presets.PRESETS):
        run_all, judge = ledger.commands(claim, Store(preset))
        program, one, number = run_all.split()
        assert program == "./run_all.sh" and one in legal and presets.notebook(number).name.startswith(number)
        python, *arguments = judge.split()
        assert [python, *arguments[:2]] == ["python", "-m", "twinslib"]
    assert cli.main(arguments[2:]) == 0  # the last, of preset paper
    assert capsys.readouterr().out.splitlines()[0] == f"{claim.id}  {claim.sentence}"


def test_commands_name_the_threads_of_the_runs(store):
    """The number of threads that a claim's runs were made with, since numbers repeat with that one only; others are counted."""
    jobs = stamped(store, {"twins_at": 20, "at": 0})
    for i, j in enumerate(jobs):
        prove(store, j.spec, threads=2 if i == 0 else 1, device="cpu")
    assert ledger.commands(LEDGER["C2"], store, jobs)[0] == (
        "python -m twinslib sweep --preset small --only 01 --threads 1 (1 of 18 runs: --threads 2)")


def test_command_prints_all_claims(capsys, tmp_path):
    """Every claim, notebook by notebook, with its verdict and the columns of the table, stored as well."""
    page, stored = tmp_path / "page.md", paths.results_dir() / "toy" / "claims.json"
    page.write_text("before\n<!-- claims -->\n<!-- /claims -->\nafter\n")
    assert cli.main(["claims", "--preset", "toy", "C8"]) == cli.main(["claims", "--preset", "toy", "C4", "C2"]) == 0
    assert re.findall(r"^(C\d)  ", capsys.readouterr().out, re.M) == ["C8", "C2", "C4"]
    assert set(json.loads(stored.read_text())) == {"C2", "C4", "C8"}
    assert cli.main(["claims", "--preset", "toy", "--into", str(page)]) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    notebooks = list(dict.fromkeys(c.notebook for c in LEDGER.values()))
    expected = sorted(LEDGER.values(), key=lambda c: notebooks.index(c.notebook))
    for block, claim in zip(blocks, expected, strict=True):
        first, *lines = block.splitlines()
        assert first == f"{claim.id}  {claim.sentence}" and "    verdict: not tested at this scale\n" in block
        assert {"effect", "why", "n", "rule", "reproduce"} <= {line.split(":")[0].strip() for line in lines}
    assert set(json.loads(stored.read_text())) == set(LEDGER)
    assert {p.name for p in stored.parent.glob("*.*")} == {"claims.json", "claims.md"}
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert all(f"({name})" in text for name, claim in LEDGER.items() if claim.short)
    assert all(f"| {name} " in stored.with_suffix(".md").read_text() for name in LEDGER)


def test_command_says_why(capsys, monkeypatch, store):
    """--why prints rule, runs, intervals against their bounds, and the calculation."""
    jobs, rule = fill(store, LEDGER["C2"], {"twins_at": 40, "at": 0}), LEDGER["C2"].rule
    monkeypatch.setattr(cli, "Store", lambda *_, **__: store)
    monkeypatch.setattr(studies_plan, "plan", lambda *_: (lambda best: jobs, {}))
    assert cli.main(["claims", "--preset", "small", "--why", "C2"]) == 0
    out = capsys.readouterr().out
    for piece in (rule.text, rule.stamp, rule.earlier[0].text, jobs[0].spec.hash, "TWINS-AT - AT, clean: +4.0 [",
                  "asked: above 0, yes; claimed 2.18, not excluded", "TWINS-AT - AT, clean on CIFAR-10: +4.0 ["):
        assert piece in out, piece
