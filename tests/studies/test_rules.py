"""Acceptance rules: read strictly, and stamped so that a rule written after its runs is noticed."""

import dataclasses
import re
from dataclasses import replace
from importlib import resources

import pytest
import yaml

from tests.studies.made import first
from twinslib.specs.jobs import Job
from twinslib.specs.measure import EvalSpec
from twinslib.studies import plan, rules
from twinslib.studies.rules import Bound, Claim, Earlier, Robust, Rule, Smooth

RULE = Rule(version=1, measure="gain", text="Higher on average.", pairs=(("twins_at", "at"),), metrics=("clean", "robust"),
            robust=Robust(threat="linf", eps=8 / 255, min_images=1000))
OF_COURSE = ("rate", "escape", "overfits", "less_overfitting", "plateau")


def ledger(**changes: object) -> str:
    """A ledger of one claim, as YAML; `changes` to its rule, a value of None leaves the key out."""
    rule = {"version": 1, "measure": "gain", "text": "Higher.", "pairs": [["twins_at", "at"]], "metrics": ["robust"],
            "robust": {"threat": "linf", "eps": 0.03, "min_images": 100}} | changes
    claim = {"paper": "TWINS", "notebook": "01", "sentence": "It is better.", "source": "abstract", "certainty": "direction",
             "rule": {k: v for k, v in rule.items() if v is not None}}
    return yaml.safe_dump({"claims": {"C2": claim}})


@pytest.mark.parametrize("changes", [
    {"version": 2, "changes": "a reason"}, {"measure": "spread"}, {"text": "Higher!"}, {"pairs": (("at", "twins_at"),)},
    {"metrics": ("robust", "clean")}, {"robust": replace(RULE.robust, eps=4 / 255)}, {"min_datasets": 2}, {"min_seeds": 2},
    {"datasets": ("cifar10",)}, {"margin": 0.01}, {"alpha": 0.01}, {"controls": (("twins_at", "at_lr"),)}, {"changes": "a"},
    {"epochs": 5}, {"reference": "mixed/noise*/group"}, {"share": 0.5}, {"floor": 0.2}, {"lower": True}, {"chance": 0.05},
    {"asked": ((Bound(above=0.0, claimed=0.01),),)}, {"partly": ((Bound(above=0.0, reach=0.0),),)}, {"rates": (0.1,)},
    {"min_rates": 3},
    {"earlier": (Earlier(stamp="1:0", text="Higher.", changed="2026-11-30", withholds=True),)},
    {"measure": "cost", "metrics": ("forwards",), "robust": None, "pairs": (("mixed/clean/group", "clean/clean/group"),),
     "smooth": Smooth(sigmas=(0.5,), radii=(), n=10, alpha=0.001, min_images=5)},
], ids=str)
def test_stamp_changes_with_the_rule(changes: dict) -> None:
    """Any other word, number, pair or order makes another stamp, which begins with the version."""
    other = replace(RULE, **changes)
    assert other.stamp != RULE.stamp and other.stamp.startswith(f"{other.version}:")
    assert replace(RULE).stamp == RULE.stamp


def test_what_is_stamped() -> None:
    """The list of changes above leaves out no field of a rule; what is said about a claim has no stamp."""
    (mark,) = test_stamp_changes_with_the_rule.pytestmark
    assert {name for changes in mark.args[1] for name in changes} == {f.name for f in dataclasses.fields(Rule)}
    claim = Claim(id="C2", paper="a", notebook="01", sentence="b", source="c", certainty="d", rule=RULE)
    other = Claim(id="C2", paper="e", notebook="01", sentence="f", source="g", certainty="h", rule=RULE, reported=("at", "at"))
    assert claim.rule.stamp == other.rule.stamp == RULE.stamp
    assert rules.stamps() == {c.id: c.rule.stamp for c in rules.claims()} and len(rules.stamps()) == len(rules.claims())


def test_a_ledger_is_read() -> None:
    """Claims come in the file's order under their ids, with lists as tuples and everything else at its default."""
    (claim,) = rules.read(ledger())
    assert (claim.id, claim.rule.pairs, claim.rule.metrics) == ("C2", (("twins_at", "at"),), ("robust",))
    assert claim.rule == Rule(version=1, measure="gain", text="Higher.", pairs=(("twins_at", "at"),), metrics=("robust",),
                              robust=Robust(threat="linf", eps=0.03, min_images=100))
    assert rules.read(ledger(version=2, changes="why"))[0].rule.version == 2


@pytest.mark.parametrize(("text", "message"), [
    (ledger(measure="gains"), "measure to be one of gain, spread, .*, got 'gains'; did you mean 'gain'?"),
    (ledger(metrics=["clean", "robst"]), "metric of gain to be one of clean, robust, got 'robst'; did you mean 'robust'?"),
    (ledger(measure="rate", robust=None), "metric of rate to be one of lr_over_w2, angle, got 'robust'"),
    (ledger(measure="rate", metrics=["angle"]), "`robust` in every rule but those on weights.*, got Robust.* for rate"),
    (ledger(measure="overfits", metrics=["gap"], robust=None), "`robust` in every rule .*, got None for overfits"),
    (ledger(robust=None), "`robust` in every rule .*, got None for gain"),
    (ledger(robust={"threat": "linf", "eps": 0.03}), "min_images in C2.rule.robust"),
    (ledger(pairs=[["twins", "at"]]), "method of a rule .*, got 'twins'"), (ledger(pairs=["at"]), "a list for C2.rule.pairs"),
    (ledger(controls=[["twins_at", "at_rl"]]), "method of a rule .*, got 'at_rl'; did you mean 'at_lr'?"),
    (ledger(pairs=[["twins_at"]]), "pairs of a method and a baseline, got \\['twins_at'\\]"),
    (ledger(controls=[["at", "at_lr", "at_split"]]), "pairs of a method and a baseline, got"),
    (ledger(version=2), "`changes` to say why the rule is in version 2, got nothing"),
    (ledger(version="1"), "int for C2.rule.version, got '1'"),
    (ledger(marign=0.1), "key of C2.rule .*, got 'marign'; did you mean 'margin'?"),
    (ledger(metrics="clean"), "a list for C2.rule.metrics"),
    (ledger().replace("sentence:", "sentnce:"), "key of C2 .*; did you mean 'sentence'?"),
    *((text, "YAML with a mapping `claims`") for text in ("claims: {C2: {", "claim: {}", "", "claims: []", "claims:")),
    ("claims: {C2: 3}", "a mapping for C2, got 3"),
    # bounds name effects that the rule has, and something that would refute it
    (ledger(asked=[[{"above": 0.0}]]), "a claimed or least effect in `asked`, got none"),
    (ledger(asked=[[{"above": 0.0, "claimed": 0.1, "of": ["clean"]}]]), "effect that a bound names .*, got 'clean'"),
    (ledger(asked=[[{"abvoe": 0.0}]]), "did you mean 'above'"), (ledger(asked=[{"above": 0.0}]), "a list for C2.rule.asked"),
    # a rule without a comparison, or content with no run at all, would be met by nothing
    *((ledger(**changes), "at least one pair, metric, data set and seed")
      for changes in ({"pairs": []}, {"metrics": []}, {"min_datasets": 0}, {"min_seeds": 0})),
])
def test_illegal_ledgers(text: str, message: str) -> None:
    """Unknown methods, metrics, measures and keys, other types, and a new version without a reason are refused by name."""
    with pytest.raises((ValueError, TypeError), match=message):
        rules.read(text)


def test_defaults_of_rules_are_never_changed() -> None:
    """A default is left out of the stamp, so a stamped rule means the default of its day: each is as written here."""
    defaults = {f.name: f.default for f in dataclasses.fields(Rule) if f.default is not dataclasses.MISSING}
    assert defaults == {"robust": None, "min_datasets": 1, "min_seeds": 1, "datasets": (), "margin": 0.0, "epochs": 0,
                        "alpha": 0.05, "controls": (), "changes": "", "smooth": None, "reference": "", "share": 0.0, "floor": 0.0,
                        "asked": (), "partly": (), "lower": False, "chance": 0.0, "rates": (), "min_rates": 0, "earlier": ()}
    assert all(f.default is dataclasses.MISSING for f in dataclasses.fields(Robust))
    defaults = {f.name: f.default for kind in (Bound, Earlier) for f in dataclasses.fields(kind)
                if f.default is not dataclasses.MISSING}
    assert defaults == {"of": (), "reach": None, "claimed": None, "withholds": False, "at_most": "reproduced"}


def test_committed_claims() -> None:
    """The ledger is read, ids are unique in the text too, and the claims on TWINS are there with all that a reader needs."""
    claims = rules.claims()
    assert [c.id for c in claims if "TWINS" in c.paper] == [
        "C1", "C2", "C3", "C4", "C8", "C9", "C5", "C6", "E1", "E2", "E3", "C7"]
    assert [c.id for c in claims if "2012.13628" in c.paper] == [
        "AFT-C1", "AFT-C2", "AFT-C3b", "AFT-C4", "AFT-C3", "AFT-C5", "AFT-C6"]
    text = (resources.files("twinslib") / "reference" / "claims.yaml").read_text(encoding="utf-8")
    assert [line.strip(" :\n") for line in text.splitlines() if re.match(r"  [A-Z]", line)] == [c.id for c in claims]
    for c in claims:
        assert all((c.paper, c.sentence, c.source, c.certainty, c.rule.text, c.rule.pairs, c.rule.metrics))
        assert c.rule.min_seeds >= 1 and c.rule.min_datasets >= 1 and 0 < c.rule.alpha < 0.5 and c.rule.margin >= 0
        if c.rule.robust:
            EvalSpec(kind="pgd", images=c.rule.robust.min_images, eps=c.rule.robust.eps, threat=c.rule.robust.threat)


def test_rules_change_with_their_version() -> None:
    """Rules are as they were when the runs they judge began; to edit one, raise its version and enter its new stamp here."""
    assert rules.stamps() == {"C1": "1:1e8d1c1de0ce", "C2": "4:069d745f8e98", "C3": "4:4dc84dc21311", "C4": "3:42f58e51788f",
                              "C8": "4:9c6797fc7bb9", "C9": "2:b08b7bcf7014", "C5": "2:8f66352dcd61", "C6": "2:8ae7e3344703",
                              "E1": "1:b02a2583380e", "E2": "1:7289f8fb18b8", "E3": "1:740d1ca2982e", "C7": "2:e8eecc7c6eaf",
                              "AFT-C1": "2:33c9dbf3649e", "AFT-C2": "2:8637f4948938", "AFT-C3b": "3:c30fb18c618d",
                              "AFT-C4": "2:9c4db0c9aa60", "AFT-C3": "2:1d90344c9290", "AFT-C5": "2:149d2dbab209",
                              "AFT-C6": "2:a9ea09934edf", "RS-C1": "2:69eeae79d706", "RS-C2": "2:4b58721b1859",
                              "RS-C3": "2:63c3804a8540", "RS-C4": "2:b6589b7f5811", "RS-C5": "2:c8ed8f063513",
                              "RS-C6": "2:854900e861b9", "RS-C7": "2:b999e18c9dcd", "RS-C8": "2:3b4752e11806"}


def test_earlier_rules_are_known() -> None:
    """A changed rule says when, what it was, and by which stamp its runs are known; those of one that withholds count."""
    for rule in (c.rule for c in rules.claims()):
        assert rule.version == 1 or rule.earlier, "a change is entered under `earlier`"
        for e in rule.earlier:
            assert re.fullmatch(r"\d+:[0-9a-f]{12}", e.stamp) and int(e.stamp.split(":")[0]) < rule.version and e.text
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", e.changed) and e.at_most in ("reproduced", "partly")
            assert (e.stamp in rule.accepted) is e.withholds
        assert rule.accepted[rule.stamp] == "reproduced"


def measured(job: Job, rule: Rule) -> bool:
    """Whether a run has what the rule asks for: evaluations, or a course on enough images and at the right epochs."""
    follow, epochs = job.spec.follow, job.spec.optim.epochs
    if rule.measure not in OF_COURSE:
        return any(e.kind == "clean" for e in job.evals) and any(
            e.kind != "clean" and (e.threat, e.eps) == (rule.robust.threat, rule.robust.eps)
            and e.images >= rule.robust.min_images for e in job.evals)
    if follow is None:
        return False
    if rule.measure == "rate":
        return follow.record_every > 0
    if rule.measure == "escape":
        return follow.train_images > 0 and all(e % follow.every == 0 or e <= follow.dense for e in range(1, rule.epochs + 1))
    chosen = bool(job.spec.data.val_images) and job.spec.optim.val_every % follow.every == 0 and epochs > job.spec.optim.val_every
    attack = job.spec.attack
    return chosen and follow.test_images >= rule.robust.min_images and (attack.threat, attack.eps) == (
        rule.robust.threat, rule.robust.eps)


@pytest.mark.parametrize("preset", rules.SCALES)
def test_rules_can_be_applied(preset: str) -> None:
    """Every pair and control of a rule runs at each scale that judges, on enough data sets."""
    judged = [claim for claim in rules.claims() if claim.rule.smooth is None]
    assert {claim.notebook for claim in judged} == {"01", "02", "03", "06"}
    planned = {n: plan.plan(preset, n)[0](best=first) for n in ("01", "02", "03", "06")}
    for claim in judged:
        rule, cells = claim.rule, {}
        found: dict[tuple, set] = {}
        for job in planned[claim.notebook]:
            marks, spec = dict(job.labels), job.spec
            if measured(job, rule) and marks.get("part") != "long":
                found.setdefault((spec.method.name, spec.data.name, spec.seed), set()).add(marks.get("rate"))
        asked = {f"{rate:g}" for rate in rule.rates} or {None}
        for (name, *cell), at in found.items():
            if not rule.rates or at >= asked:
                cells.setdefault(name, set()).add(tuple(cell))
        for pair in (*rule.pairs, *rule.controls):
            if preset == "paper" and pair[0].startswith("joint"):
                continue
            both = set.intersection(*(cells.get(name, set()) for name in pair))
            names = {name for name, _ in both if not rule.datasets or name in rule.datasets}
            if preset == "paper" and rule.datasets:
                assert names == set(rule.datasets)
            assert len(names) >= rule.min_datasets, (claim.id, pair)
            assert all(sum(name == data for data, _ in both) >= rule.min_seeds for name in names), (claim.id, pair)
