"""Specs: strict reading, legal values, and hashes that stay what they are."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinslib.specs.choices import ARCHS, AUGMENTATIONS, LOSSES, NORMS
from twinslib.specs.measure import CertifySpec, EvalSpec
from twinslib.specs.method import METHODS, MethodSpec, method
from twinslib.specs.reading import canonical_json, from_dict, spec_hash, to_dict
from twinslib.specs.run import AttackSpec, DataSpec, FollowSpec, ModelSpec, NoiseSpec, OptimSpec, RunSpec, WeightsSpec
from twinslib.specs.schedules import SCHEDULES
from twinslib.specs.strength import PARTS

SOURCE = RunSpec(data=DataSpec(name="toy_source", image_size=16), model=ModelSpec(arch="tiny_resnet"),
                 method=METHODS["at"], optim=OptimSpec(epochs=4))
TUNED = RunSpec(data=DataSpec(name="cifar10", train_images=9500, val_images=500), model=ModelSpec(arch="tiny_resnet"),
                method=METHODS["twins_trades"], optim=OptimSpec(lr=0.01), source=SOURCE, seed=3)


# -- hashes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("spec", "golden"), [
    (AttackSpec(), "44136fa355b3"), (OptimSpec(), "44136fa355b3"), (SOURCE, "db45f54084c2"), (TUNED, "f885598b5052"),
    (replace(TUNED, source=replace(SOURCE, seed=1)), "6ace9cd41378"),
    (replace(TUNED, source=None, weights=WeightsSpec(file="resnet50.pt", classes=1000)), "b2a57b2b6dec"),
    (RunSpec(data=DataSpec(name="dogs64", exclude=("n02085620", "n02094433"), augment="resized_crop_flip", crop=24),
             model=ModelSpec(arch="resnet50", norm="group", upsample=224), method=METHODS["natural"],
             optim=OptimSpec(schedule="cosine", warmup=0.1, precision="bfloat16", milestones=(0.25,))), "ee17be7c26f7"),
    (replace(SOURCE, follow=FollowSpec()), "03e030f5ade1"),
    (replace(SOURCE, follow=FollowSpec(record_every=5, train_images=1000, every=6, dense=5)), "70c884cc4f3e"),
    (EvalSpec(kind="clean", images=1000), "74a7b1f45b4c"),
    (EvalSpec(kind="pgd", images=1000, eps=8 / 255), "b23e6ef5112c"),
    (EvalSpec(kind="autoattack", images=100, eps=8 / 255, batch_size=50), "10229de1dd3e"),
], ids=["attack", "optim", "source", "fine-tune", "other source", "weights", "odd", "followed", "recorded", "clean", "pgd",
        "autoattack"])
def test_golden_hashes(spec: object, golden: str) -> None:
    """Hashes as they were when results were first stored; a changed default or field name moves them."""
    assert spec_hash(spec) == golden


GOLDEN_METHODS = {
    "natural": "3b1c1c29ab2a", "at": "158bfb5df312", "trades": "1ee9d68a7be0", "twins_at": "341692e67844",
    "twins_trades": "4c1869853f37",  # these five as before there were others
    "distill": "df20272b429e", "feature_distill": "f951c718a25d", "l2sp": "7b0ea2fbd266", "joint": "2b66509d4b8d",
    "joint_uot": "e2498b0efb10", "frozen_at": "8ed070529e8d", "at_natural": "e6f0919e38f5", "at_random": "a7d04f8d2941",
    "at_lr": "ab6a2b0fe70e", "at_split": "21cfbf14b846", "two_adaptive": "3b0fc36ea48d", "twins_shared": "3f2abcc6988f",
    "twins_attack_frozen": "ffe946f0e46c", "twins_attack_alternating": "35a49910551c", "trades_beta3": "e35ae1f31031",
    "twins_trades_wing": "affb268b6e41",
    "noise": "ef92acbcd950", "mixed_noise": "a23fe5c93f78", "natural_frozen": "a6abb5ae8cb1", "linear_probe": "33ebbcbba600",
    "at_awp": "c76df946310c", "at_cosine": "a6fec17264f0", "at_cyclic": "3d8b2ef2676f", "at_slow_fast": "a5034e948d3a",
    "at_short_plateau": "64e57249c07c", "at_long_plateau": "732284d762c7",
    "at_scratch": "1621d3e9b0b3", "trades_scratch": "0ff0c1dcbb08", "free_at": "5574454eb572", "fast_at": "81a753a6dbb4",
    "aft": "212c02094b94", "aft_random": "8afd8faf9be3", "aft_free": "297fd8148ec7", "aft_twins": "eb4a5b8697dc",
    "aft_public": "636bb1729cca", "aft_l2": "e0a284d6ce5e", "aft_l2_random": "6306fb834b4b", "aft_constant": "8c76a4294f39",
    "aft_piecewise": "97cf7bda6727", "aft_cosine": "be5ec4e78b33", "aft_one_cycle": "ace8d6f90356",
    "aft_fast_decay": "5920d65a4a4f", "aft_slow_start": "d74ce53043e2", "aft_slow_fast_exp": "cb315bfb4849",
    "aft_eps_warmup": "c330b18c01a3",
}


GOLDEN_DEFAULTS = {
    DataSpec: dict(image_size=32, exclude=(), train_images=None, val_images=0, augment="crop_flip", crop=None,
                   split_seed=0),
    ModelSpec: dict(norm="batch", upsample=None, width=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    AttackSpec: dict(threat="linf", eps=8 / 255, step_size=2 / 255, steps=10, loss="ce", random_start=True,
                     eps_warmup=0.0),
    MethodSpec: dict(objective="at", wings="single", twins_weight=1.0, normalize_loss=False, share_affine=False,
                     attack_wing="adaptive", trades_beta=6.0, kl_divisor="batch", distill_weight=0.0, feature_weight=0.0,
                     l2sp_weight=0.0, source_weight=0.0, source_classes=None, awp_gamma=0.0, trains="all", replays=1),
    OptimSpec: dict(epochs=60, batch_size=128, lr=0.003, momentum=0.9, weight_decay=1e-5, schedule="piecewise",
                    milestones=(0.5, 5 / 6), warmup=0.0, precision="float32", val_every=1, val_steps=10,
                    keep_best=False),
    WeightsSpec: dict(origin="", key="", prefix="", accuracy=None),
    NoiseSpec: dict(draw="image"),
    FollowSpec: dict(record_every=0, train_images=0, test_images=0, every=1, dense=0, steps=10, features=0,
                     feature_epochs=()),
    RunSpec: dict(attack=AttackSpec(), source=None, weights=None, follow=None, noise=None, keep_head=False, seed=0),
    CertifySpec: dict(n=100_000, n0=100, alpha=0.001, radii=(), stop_if_wrong=False, restat_images=0, precision="float32",
                      seed=0, spending=None, sound=False),
    EvalSpec: dict(threat="linf", eps=0.0, step_size=None, steps=20, restarts=1,
                   attacks=("apgd-ce", "apgd-t", "fab-t", "square"), batch_size=250, seed=0, at="last"),
}


def test_what_hashes_stand_on_is_never_changed() -> None:
    """What a method's name stands for, as results are stored under its hash."""
    assert {name: spec_hash(m) for name, m in METHODS.items()} == GOLDEN_METHODS
    for cls, golden in GOLDEN_DEFAULTS.items():
        defaults = {f.name: f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
                    for f in dataclasses.fields(cls)}
        assert {k: v for k, v in defaults.items() if v is not dataclasses.MISSING} == golden, cls


def test_canonical_form() -> None:
    """It holds what differs from the defaults and nothing else, at every depth; an int for a float hashes alike."""
    assert canonical_json(AttackSpec()) == "{}"
    assert to_dict(replace(TUNED, source=None)) == {
        "data": {"name": "cifar10", "train_images": 9500, "val_images": 500}, "model": {"arch": "tiny_resnet"},
        "method": {"name": "twins_trades", "objective": "trades", "wings": "twins"}, "optim": {"lr": 0.01}, "seed": 3}
    assert to_dict(TUNED)["source"] == {
        "data": {"name": "toy_source", "image_size": 16}, "model": {"arch": "tiny_resnet"}, "method": {"name": "at"},
        "optim": {"epochs": 4}}
    assert OptimSpec(lr=1) == OptimSpec(lr=1.0) and spec_hash(OptimSpec(lr=1)) == spec_hash(OptimSpec(lr=1.0))
    follows = (None, FollowSpec(), FollowSpec(every=2), FollowSpec(dense=1))
    assert len({replace(TUNED, follow=f).hash for f in follows}) == 4
    assert "follow" not in canonical_json(TUNED) and '"follow":{}' in canonical_json(replace(TUNED, follow=FollowSpec()))


# -- round trip ------------------------------------------------------------------------------------------------------
share = st.floats(0.01, 0.99)
count = st.integers(1, 10**6)
texts = st.lists(st.text(), max_size=3).map(tuple)
methods = st.builds(MethodSpec, name=st.text(), objective=st.sampled_from(["at", "trades"]), l2sp_weight=st.floats(0, 99),
                    wings=st.sampled_from(["single", "split"]), twins_weight=st.floats(0, 99), share_affine=st.booleans())


def run_specs(source: st.SearchStrategy, methods: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(
        RunSpec, source=source, method=methods, seed=count, model=st.just(ModelSpec(arch="resnet18", upsample=64)),
        data=st.builds(DataSpec, name=st.text(), image_size=count, exclude=texts, train_images=st.none() | count,
                       augment=st.sampled_from(AUGMENTATIONS)),
        optim=st.builds(OptimSpec, epochs=count, lr=st.floats(1e-9, 9), momentum=st.just(0) | share,
                        milestones=st.lists(share, max_size=3).map(tuple),
                        schedule=st.sampled_from(sorted({*SCHEDULES} - {"cyclic", "one_cycle"}))),
        attack=st.builds(AttackSpec, threat=st.just("l2"), eps=st.floats(0, 1e3), steps=st.integers(0, 99),
                         loss=st.sampled_from(LOSSES)),
        follow=st.none() | st.builds(FollowSpec, record_every=count, every=count))


first = run_specs(st.none(), st.just(METHODS["at"]))
weights = st.builds(WeightsSpec, file=st.just("a.pt"), classes=count, origin=st.text())
specs = run_specs(run_specs(first, methods), methods) | st.builds(replace, first, weights=weights, method=methods)
evaluations = st.builds(EvalSpec, kind=st.sampled_from(["pgd", "autoattack"]), images=count, eps=share, steps=count,
                        restarts=count, step_size=st.none() | share, at=st.sampled_from(["last", "best", "start"]),
                        attacks=st.lists(st.sampled_from(PARTS), min_size=1, unique=True).map(tuple))


@settings(max_examples=40, deadline=None)
@given(specs | evaluations, specs | evaluations)
def test_round_trip(a: RunSpec | EvalSpec, b: RunSpec | EvalSpec) -> None:
    """Spec to dict to JSON text and back gives the same spec and hash; sources up to two deep, weights."""
    again = from_dict(type(a), json.loads(canonical_json(a)))
    assert again == a and again.hash == a.hash and to_dict(again) == to_dict(a)
    assert (a == b) == (a.hash == b.hash)


# -- strict reading --------------------------------------------------------------------------------------------------
def run(**changes: object) -> dict:
    return {"data": {"name": "cifar10"}, "model": {"arch": "tiny_resnet"}, "method": {"name": "at"}, "optim": {},
            **changes}


@pytest.mark.parametrize(("values", "message"), [
    (run(optin={}), "key of RunSpec to be one of data, model, .*'optin'; did you mean 'optim'?"),
    (run(attack={"stepsize": 0.1}), "key of RunSpec.attack .*got 'stepsize'; did you mean 'step_size'?"),
    (run(source=run(sead=1)), "key of RunSpec.source .*got 'sead'; did you mean 'seed'?"),
    (run(follow={"recordevery": 1}), "key of RunSpec.follow .*did you mean 'record_every'?"),
    ({"data": {"name": "a"}}, "model, method, optim in RunSpec, got only data"),
    (run(data={}), "name in RunSpec.data, got only nothing"),
    (run(attack=[1]), "a mapping for RunSpec.attack, got \\[1\\]"), (run(follow=5), "a mapping for RunSpec.follow, got 5"),
    (run(data=None), "a value for RunSpec.data, got nothing"),
    (run(optim={"lr": "1e-3"}), "number for RunSpec.optim.lr, got the text '1e-3'; in YAML write 1.0e-3"),
    *((run(attack={"eps": text}), f"number for RunSpec.attack.eps, got the text {text!r}; in YAML write 1.0e-3, not 1e-3, and")
      for text in ("8/0", "8/255/1", "-8/255", "eight", "", "1e3/255", "8//255")),
    *((run(optim={"lr": value}), f"float for RunSpec.optim.lr, got {got}") for value, got in ((True, "True"), ([0.1], ""))),
    (run(optim={"lr": None}), "a value for RunSpec.optim.lr, got nothing \\(null\\)"),
    *((run(optim={"lr": float(text)}), f"a finite number for RunSpec.optim.lr, got {text}") for text in ("nan", "inf")),
    *((run(optim={"epochs": value}), f"int for RunSpec.optim.epochs, got {value}") for value in (3.0, True)),
    (run(follow={"every": 1.0}), "int for RunSpec.follow.every, got 1.0"),
    (run(optim={"milestones": 0.5}), "a list for RunSpec.optim.milestones, got 0.5"),
    (run(optim={"milestones": ["a"]}), "a number for RunSpec.optim.milestones, got the text 'a'"),
    (run(data={"name": "a", "exclude": "n01"}), "a list for RunSpec.data.exclude"),
    (run(data={"name": "a", "exclude": [1]}), "str for RunSpec.data.exclude, got 1"),
    (run(attack={"random_start": 1}), "bool for RunSpec.attack.random_start, got 1"),
])
def test_strict_reading(values: dict, message: str) -> None:
    """Unknown keys and wrong types are refused, with the path of the field and a hint."""
    with pytest.raises((ValueError, TypeError), match=message):
        from_dict(RunSpec, values)


@pytest.mark.parametrize(("text", "number"), [("8/255", 8 / 255), ("12.5/255", 12.5 / 255), ("8 / 255", 8 / 255)])
def test_fractions(text: str, number: float) -> None:
    """A number may be written as a fraction: the same float as the division gives, and so the same hash."""
    assert from_dict(AttackSpec, {"eps": text, "step_size": text}) == AttackSpec(eps=number, step_size=number)
    assert spec_hash(from_dict(RunSpec, run(attack={"eps": text}))) == spec_hash(from_dict(RunSpec, run(attack={"eps": number})))
    assert from_dict(OptimSpec, {"milestones": ["30/60"]}).milestones == (0.5,)


def test_conversions() -> None:
    """An int where a float is meant, lists for tuples, NumPy's numbers as they are written; null in the fields that know it."""
    spec = from_dict(RunSpec, run(optim={"lr": 1, "milestones": [0.5]}, attack={"eps": 0}, source=None,
                                  data={"name": "a", "train_images": None, "crop": None}))
    assert type(spec.optim.lr) is float and type(spec.attack.eps) is float and spec.optim.milestones == (0.5,)
    assert spec.source is None and spec.data.train_images is None
    spec = from_dict(OptimSpec, {"epochs": np.int64(3), "lr": np.float32(0.1), "keep_best": np.bool_(True)})
    assert spec == OptimSpec(epochs=3, lr=0.1, keep_best=True) and type(spec.epochs) is int
    with pytest.raises(TypeError, match="int for OptimSpec.epochs, got 3.0"):
        from_dict(OptimSpec, {"epochs": np.float64(3)})


# -- legal values ----------------------------------------------------------------------------------------------------
TUNE, FILE = dict(data=DataSpec(name="a"), optim=OptimSpec()), WeightsSpec(file="a.pt", classes=2)


def tuned(**changes: object) -> RunSpec:
    return replace(TUNED, **changes)


def named(of: str, **switches: object) -> MethodSpec:
    return method(of, **switches)


WEIGHTS = ("twins_weight", "trades_beta", "distill_weight", "feature_weight", "l2sp_weight", "source_weight", "awp_gamma")
ILLEGAL = {  # class: values, and pieces of the message that they are refused with
    AttackSpec: [
        ({"eps": 8}, "eps in [0, 1] (pixel units), got 8; write 8/255"), ({"eps": -0.1}, "eps in [0, 1] (pixel units), got -0.1"),
        ({"eps": -0.1, "threat": "l2"}, "eps of at least 0 (l2, pixel units), got -0.1"),
        ({"step_size": 0.0}, "step_size above 0"),
        ({"step_size": 2}, "(pixel units), got 2; write 2/255"), ({"steps": -1}, "steps >= 0, got -1"),
        ({"threat": "l3"}, "threat to be one of linf, l2, got 'l3'"), ({"loss": "ke"}, "attack loss to be one of ce, kl, margin"),
        ({"loss": "kl", "random_start": False}, "random_start with attack loss kl"),
        ({"eps_warmup": 1.5}, "eps_warmup in [0, 1], a share of the run, got 1.5")],
    EvalSpec: [(({"kind": "pgd", "images": 1, "eps": 0.1}) | values, message) for values, message in [
        ({"eps": 4}, "eps in [0, 1] (pixel units), got 4; write 4/255"), ({"eps": 0.0}, "eps > 0 for an attack, got 0.0"),
        ({"kind": "pdg"}, "one of clean, pgd, autoattack, got 'pdg'; did you mean 'pgd'?"), ({"images": 0}, "images > 0, got 0"),
        ({"batch_size": 0}, "batch_size > 0, got 0"), ({"restarts": 0}, "restarts > 0, got 0"), ({"step_size": 2}, "write 2/255"),
        ({"at": "first"}, "at of an evaluation to be one of last, best, start, got 'first'"),
        ({"kind": "autoattack", "attacks": ("apgd-tt",)}, "did you mean 'apgd-t'?"),
        ({"kind": "autoattack", "attacks": ()}, "at least one attack, none twice"),
        ({"kind": "autoattack", "attacks": ("square",) * 2}, "none twice")]],
    MethodSpec: [({"name": "a"} | values, message) for values, message in [
        ({"objective": "trade"}, "objective to be one of natural, at, trades, got 'trade'; did you mean 'trades'?"),
        ({"wings": "twin"}, "one of single, twins, two_adaptive, split, frozen, got 'twin'; did you mean 'twins'?"),
        ({"attack_wing": "both"}, "attack_wing to be one of adaptive, frozen, alternating, got 'both'"),
        ({"kl_divisor": "half"}, "kl_divisor to be one of batch, wing"),
        ({"source_classes": 5}, "source_weight > 0 with source_classes, got 0.0"),
        *(({field: value}, f"{field} >= 0, got {value}") for value in (-1e-9, -1.0, float("nan")) for field in WEIGHTS),
        *(({"wings": wings, "attack_wing": wing}, f"attack_wing adaptive without two branches, got '{wing}'")
          for wings in ("single", "split", "frozen") for wing in ("frozen", "alternating"))]],
    ModelSpec: [
        ({"arch": "resnet5"}, "arch to be one of "), ({"arch": "resnet18", "width": 0}, "width of at least 1"),
        *(({"arch": arch, "width": 32}, "an arch with a free width") for arch in ("resnet20", "resnet50")),
        ({"arch": "resnet18", "upsample": 0}, "upsample > 0 or null, got 0"),
        ({"arch": "resnet18", "norm": "bach"}, "batch, group, layer, got 'bach'; did you mean 'batch'?")],
    DataSpec: [({"name": "a"} | values, message) for values, message in [
        ({"augment": "crop_flop"}, "did you mean 'crop_flip'?"), ({"image_size": 0}, "image_size > 0, got 0"),
        ({"val_images": -1}, "val_images >= 0, got -1"), ({"train_images": 0}, "train_images > 0 or null, got 0"),
        ({"crop": 40}, "crop in 1..32 (image_size) or null, got 40"),
        ({"crop": 24}, "augment resized_crop_flip or center_crop with crop 24")]],
    OptimSpec: [
        ({"schedule": "cosin"}, f"schedule to be one of {', '.join(SCHEDULES)}, got 'cosin'; did you mean 'cosine'?"),
        ({"precision": "float16"}, "precision to be one of float32, bfloat16"),
        ({"milestones": (30.0, 50.0)}, "milestones in (0, 1), as shares of the run, got [30.0, 50.0]; divide"),
        ({"schedule": "cyclic"}, "one milestone, the peak of cyclic, got [0.5, 0.8333333333333334]; name it"),
        ({"epochs": 0}, "epochs > 0, got 0"), ({"batch_size": 0}, "batch_size > 0, got 0"), ({"lr": 0.0}, "lr > 0, got 0.0"),
        ({"momentum": 1.0}, "momentum in [0, 1), got 1.0"), ({"weight_decay": -1.0}, "weight_decay >= 0, got -1.0"),
        ({"warmup": 1.0}, "warmup in [0, 1), a share of the run, got 1.0"), ({"val_every": -1}, "val_every >= 0, got -1"),
        ({"val_steps": -1}, "val_steps >= 0, got -1")],
    FollowSpec: [
        ({"every": 0}, "every > 0, got 0"), ({"steps": 0}, "steps > 0, got 0"),
        ({"features": 5}, "features and feature_epochs, both or neither"),
        *(({name: -1}, f"{name} >= 0, got -1") for name in ("record_every", "train_images", "test_images", "dense"))],
    WeightsSpec: [
        ({"file": "weights/a.pt", "classes": 2}, "the name of a file, without folders"),
        ({"file": "", "classes": 2}, "the name of a file"), ({"file": "a.pt", "classes": 0}, "classes > 0, got 0")],
    named: [({"of": name} | values, message) for name, values, message in [
        ("twins-at", {}, "method to be one of natural, at, trades, .*; did you mean 'twins_at'?"),
        ("at", {"twin_weight": 1.0}, "key of MethodSpec .*; did you mean 'twins_weight'?"),
        ("joint", {"source_classes": 0}, "source_classes > 0 or null, got 0"),
        ("trades", {"replays": 2}, "replays 1 but for plain adversarial training, got 2"),
        ("joint_uot", {"source_weight": 0.0}, "source_weight > 0 with source_classes, got 0.0"),
        *((name, {"objective": "natural"}, "an objective with adversarial images for distillation, got 'natural'")
          for name in ("distill", "feature_distill")),
        *((name, {"awp_gamma": 0.01}, f"no other term of the loss with awp_gamma, got '{name}'")
          for name in ("distill", "feature_distill", "l2sp", "joint", "joint_uot")),
        # source images pass with the adversarial ones of one ordinary network; nothing else is defined
        *(("joint", {field: value}, "wings single and objective at with source_weight, got '"
           + (f"{value}, at'" if field == "wings" else f"single, {value}'"))
          for field, value in (("wings", "twins"), ("wings", "split"), ("wings", "two_adaptive"), ("wings", "frozen"),
                               ("objective", "trades"), ("objective", "natural")))]],
    tuned: [
        ({"method": METHODS["joint"]}, "source images of the target's size (32, 32) for method 'joint', got (16, 16)"),
        ({"method": METHODS["joint"], "data": DataSpec(name="a", image_size=64, augment="center_crop", crop=16)},
         "source images of the target's size (64, 16) for method 'joint', got (16, 16)"),
        ({"method": METHODS["joint_uot"], "source": None, "weights": FILE},
         "a source run for method 'joint_uot', got 'a.pt'; joint training needs the images of the source task"),
        ({"weights": FILE}, "a source run or weights from elsewhere, got 'both'"),
        ({"method": METHODS["at_awp"], "follow": FollowSpec(record_every=2)}, "record_every 0 with awp_gamma, got 2"),
        ({"model": ModelSpec(arch="resnet18")}, "source of arch resnet18, got 'arch tiny_resnet'"),
        ({"method": METHODS["natural"], "optim": OptimSpec(keep_best=True)}, "an objective with adversarial images, val_images"),
        ({"source": None, "keep_head": True}, "a source run or weights with keep_head, got 'neither'"),
        ({"method": METHODS["distill"], "keep_head": True}, "a source on the same classes")],
}


@pytest.mark.parametrize("make", ILLEGAL, ids=lambda make: make.__name__)
def test_illegal_values(make) -> None:
    """Values out of range and unknown names are refused before any work, however they are given."""
    for values, message in ILLEGAL[make]:
        with pytest.raises(ValueError) as caught:
            make(**values)
        assert all(piece in str(caught.value) for piece in message.split(".*")), (values, str(caught.value))
    with pytest.raises(ValueError, match="write 8/255"):
        from_dict(AttackSpec, {"eps": 8})


@pytest.mark.parametrize("name", METHODS)
def test_norms_and_starts_of_methods(name: str) -> None:
    """Methods with other statistics than an ordinary network's need batch norm; all others take any."""
    wings, group, batch = METHODS[name].wings, ModelSpec(arch="resnet18", norm="group"), ModelSpec(arch="resnet18")
    parts = TUNE | {"method": METHODS[name]}
    source = RunSpec(**TUNE, model=group, method=METHODS["at"])
    if wings in ("twins", "two_adaptive", "frozen"):
        with pytest.raises(ValueError, match=f"norm 'batch' for the wings '{wings}', got 'group'"):
            RunSpec(**parts, model=group, source=source)
    else:
        assert RunSpec(**parts, model=group, source=source).source == source
    if name in ("distill", "feature_distill", "l2sp", "frozen_at", "natural_frozen", "linear_probe", "joint", "joint_uot"):
        with pytest.raises(ValueError, match=f"a source run or weights for method '{name}', got 'neither'; it keeps"):
            RunSpec(**parts, model=batch)
    else:
        assert RunSpec(**parts, model=batch).source is None
    if name.startswith("joint"):
        with pytest.raises(ValueError, match=f"a source run for method '{name}', got 'a.pt'"):
            RunSpec(**parts, model=batch, weights=FILE)
    else:
        assert RunSpec(**parts, model=batch, weights=FILE).weights == FILE


def test_every_network_has_a_spec() -> None:
    """Ours, those of torchvision, of timm and one's own, without two wings; another name is answered with the whole list."""
    for arch in (*ARCHS, "torchvision/vit_b_16", "timm/resnet18.a1_in1k", "my.networks:small"):
        assert {ModelSpec(arch=arch, norm=norm).width for norm in (*NORMS, *["own"] * (arch not in ARCHS))} == {None}
    for wrong in ("resnet19", "torchvison/resnet18", "timm/a/b", "torchvision/", "a.b", "a:b:c", ""):
        with pytest.raises(ValueError, match=f"{', '.join(ARCHS)}, torchvision/NAME, .*, got '{wrong}'"):
            ModelSpec(arch=wrong)
    with pytest.raises(ValueError, match="norm 'batch' for the wings 'twins', got 'own'"):
        RunSpec(**TUNE | {"method": METHODS["twins_at"]}, model=ModelSpec(arch="a:b", norm="own"))
    with pytest.raises(ValueError, match="expected norm to be one of batch, group, layer, got 'own'"):
        ModelSpec(arch="resnet18", norm="own")


def test_methods_by_name() -> None:
    """Every method is registered under its own name; `method` changes switches and nothing else, and checks them."""
    assert all(m.name == name for name, m in METHODS.items())
    assert method("twins_at", twins_weight=0.4) == replace(METHODS["twins_at"], twins_weight=0.4)
    assert method("twins_at", name="other").name == "other" and type(method("l2sp", l2sp_weight=1).l2sp_weight) is float
    for name, switches, message in (("twins_at", {"normalize_loss": 1}, "bool for MethodSpec.normalize_loss"),
                                    ("joint", {"source_classes": 3.0}, "int for MethodSpec.source_classes, got 3.0")):
        with pytest.raises(TypeError, match=message):
            method(name, **switches)
    for wings, halves, two in (("single", 0, 0), ("twins", 1, 1), ("two_adaptive", 1, 1), ("split", 1, 0), ("frozen", 0, 0)):
        m = MethodSpec(name="a", wings=wings)
        assert (m.halves, m.two_branches) == (bool(halves), bool(two)) and (not two or replace(m, attack_wing="frozen"))
    assert [name for name, m in METHODS.items() if m.needs_origin] == ["distill", "feature_distill", "joint", "joint_uot"]
