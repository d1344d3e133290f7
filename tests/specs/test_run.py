"""Specs: strict reading, legal values, and hashes that stay what they are."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinslib.attack.autoattack import ATTACKS
from twinslib.specs.choices import ARCHS, AUGMENTATIONS, LOSSES, NORMS
from twinslib.specs.measure import CertifySpec, EvalSpec
from twinslib.specs.method import METHODS, MethodSpec, method
from twinslib.specs.reading import canonical_json, from_dict, spec_hash, to_dict
from twinslib.specs.run import AttackSpec, DataSpec, FollowSpec, ModelSpec, NoiseSpec, OptimSpec, RunSpec, WeightsSpec
from twinslib.specs.schedules import SCHEDULES

RESULTS = Path(__file__).parents[2] / "results"
FINISHED = sorted(RESULTS.glob("*/runs/*.json"))
SHIPPED = sorted(RESULTS.glob("*/weights/*.json"))
MASKS = sorted(RESULTS.glob("*/masks/*.npz"))

SOURCE = RunSpec(data=DataSpec(name="toy_source", image_size=16), model=ModelSpec(arch="tiny_resnet"),
                 method=METHODS["at"], optim=OptimSpec(epochs=4))
TUNED = RunSpec(data=DataSpec(name="cifar10", train_images=9500, val_images=500), model=ModelSpec(arch="tiny_resnet"),
                method=METHODS["twins_trades"], optim=OptimSpec(lr=0.01), source=SOURCE, seed=3)


# -- hashes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("spec", "golden"), [
    (AttackSpec(), "44136fa355b3"),
    (OptimSpec(), "44136fa355b3"),
    (SOURCE, "db45f54084c2"),
    (TUNED, "f885598b5052"),
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


@pytest.mark.parametrize("name", METHODS)
def test_golden_methods(name: str) -> None:
    """What a method's name stands for is never changed: results are stored under its hash."""
    assert spec_hash(METHODS[name]) == GOLDEN_METHODS[name]


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
                      seed=0),
    EvalSpec: dict(threat="linf", eps=0.0, step_size=None, steps=20, restarts=1,
                   attacks=("apgd-ce", "apgd-t", "fab-t", "square"), batch_size=250, seed=0, at="last"),
}


@pytest.mark.parametrize("cls", GOLDEN_DEFAULTS, ids=lambda cls: cls.__name__)
def test_defaults_are_never_changed(cls: type) -> None:
    """A default is left out of the hash, so a stored result means the default of its day: each is as written here."""
    defaults = {f.name: f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
                for f in dataclasses.fields(cls)}
    assert {k: v for k, v in defaults.items() if v is not dataclasses.MISSING} == GOLDEN_DEFAULTS[cls]


@pytest.mark.parametrize("path", FINISHED + SHIPPED, ids=lambda p: "/".join(p.parts[-3:]))
def test_committed_results_hash_to_their_names(path: Path) -> None:
    """Every stored spec can be read, is canonical, and hashes to the name of its file."""
    spec = from_dict(RunSpec, json.loads(path.read_text())["spec"])
    assert spec.hash == path.stem
    assert json.loads(canonical_json(spec)) == json.loads(path.read_text())["spec"]


@pytest.mark.parametrize("path", MASKS, ids=lambda p: "/".join(p.parts[-3:]))
def test_committed_masks_hash_to_their_names(path: Path) -> None:
    """Every stored evaluation can be read and hashes to the prefix of its masks, which are as long as it says."""
    import numpy as np

    with np.load(path, allow_pickle=False) as stored:
        for key in (k for k in stored.files if k.endswith("/spec")):
            e = from_dict(EvalSpec, json.loads(str(stored[key])))
            assert e.hash == key.split("/")[0]
            masks = [stored[k] for k in stored.files if k.startswith(e.hash) and k != key]
            assert masks and all(m.shape == (e.images,) and m.dtype == bool for m in masks)


def test_defaults_are_left_out() -> None:
    """The canonical form holds what differs from the defaults and nothing else, at every depth."""
    assert canonical_json(AttackSpec()) == "{}"
    assert to_dict(replace(TUNED, source=None)) == {
        "data": {"name": "cifar10", "train_images": 9500, "val_images": 500}, "model": {"arch": "tiny_resnet"},
        "method": {"name": "twins_trades", "objective": "trades", "wings": "twins"}, "optim": {"lr": 0.01}, "seed": 3}
    assert to_dict(TUNED)["source"] == {
        "data": {"name": "toy_source", "image_size": 16}, "model": {"arch": "tiny_resnet"}, "method": {"name": "at"},
        "optim": {"epochs": 4}}


def test_int_and_float_of_one_value_hash_alike() -> None:
    """Equal specs have equal hashes, also where one was written with an int for a float."""
    for a, b in ((EvalSpec(kind="pgd", images=9, eps=1), EvalSpec(kind="pgd", images=9, eps=1.0)),
                 (OptimSpec(lr=1), OptimSpec(lr=1.0))):
        assert a == b and spec_hash(a) == spec_hash(b)


# -- round trip ------------------------------------------------------------------------------------------------------
share = st.floats(0.01, 0.99)
count = st.integers(1, 10**6)
attack_specs = st.builds(
    AttackSpec, threat=st.just("l2"), eps=st.floats(0, 1e3), step_size=st.floats(1e-6, 1e3), steps=st.integers(0, 99),
    loss=st.sampled_from(LOSSES)) | st.builds(
    AttackSpec, eps=st.floats(0, 1), step_size=st.floats(1e-6, 1), random_start=st.booleans())
data_specs = st.builds(
    DataSpec, name=st.text(), image_size=count, exclude=st.lists(st.text(), max_size=3).map(tuple),
    train_images=st.none() | count, val_images=st.integers(0, 99), augment=st.sampled_from(AUGMENTATIONS),
    split_seed=st.integers(0, 9))
weight = st.floats(0, 99)
switches = dict(name=st.text(), twins_weight=weight, normalize_loss=st.booleans(), share_affine=st.booleans(),
                trades_beta=weight, kl_divisor=st.sampled_from(["batch", "wing"]))
objectives = st.sampled_from(["natural", "at", "trades"])
free_methods = st.builds(MethodSpec, objective=objectives, wings=st.sampled_from(["single", "split"]), **switches) | st.builds(
    MethodSpec, objective=objectives, wings=st.sampled_from(["twins", "two_adaptive"]),
    attack_wing=st.sampled_from(["adaptive", "frozen", "alternating"]), **switches)
keeping_methods = st.builds(
    MethodSpec, objective=st.sampled_from(["at", "trades"]), wings=st.sampled_from(["single", "split", "twins", "frozen"]),
    distill_weight=weight, feature_weight=weight, l2sp_weight=weight, **switches)
awp_methods = st.builds(MethodSpec, objective=objectives, wings=st.sampled_from(["single", "split", "twins"]),
                        awp_gamma=st.floats(1e-3, 1), **switches)
joint_methods = st.builds(MethodSpec, source_weight=st.floats(0.1, 9), source_classes=st.none() | count, **switches)
optim_specs = st.builds(
    OptimSpec, epochs=count, batch_size=count, lr=st.floats(1e-9, 9), momentum=st.just(0) | share,
    schedule=st.sampled_from(sorted(SCHEDULES)), milestones=st.lists(share, max_size=3).map(tuple), warmup=share,
    precision=st.sampled_from(["float32", "bfloat16"]))


weights_specs = st.builds(WeightsSpec, file=st.just("a.pt"), classes=count, origin=st.text())
images = st.integers(0, 999)
follow_specs = st.none() | st.builds(FollowSpec, record_every=images, train_images=images, test_images=images, every=count,
                                     dense=images, steps=count)


def run_specs(source: st.SearchStrategy, methods: st.SearchStrategy = free_methods, data: st.SearchStrategy = data_specs,
              follow: st.SearchStrategy = follow_specs) -> st.SearchStrategy:
    return st.builds(RunSpec, data=data, model=st.just(ModelSpec(arch="resnet18", upsample=64)), method=methods,
                     optim=optim_specs, attack=attack_specs, source=source, follow=follow, seed=count)


plain_specs = run_specs(st.none())
one_size = st.builds(DataSpec, name=st.text(), image_size=st.just(48), crop=st.none() | st.just(48))
specs = (run_specs(run_specs(st.none() | plain_specs), free_methods | keeping_methods)
         | run_specs(run_specs(st.none(), data=one_size), joint_methods, one_size)
         | run_specs(st.none(), awp_methods, follow=st.builds(FollowSpec, train_images=count))
         | st.builds(replace, plain_specs, weights=weights_specs, method=free_methods | keeping_methods))


@settings(max_examples=25, deadline=None)
@given(specs)
def test_round_trip(spec: RunSpec) -> None:
    """Spec to dict to JSON text and back gives the same spec and hash; sources up to two deep, weights."""
    again = from_dict(RunSpec, json.loads(canonical_json(spec)))
    assert again == spec and again.hash == spec.hash
    assert to_dict(again) == to_dict(spec)


@settings(max_examples=25, deadline=None)
@given(specs, specs)
def test_hashes_are_equal_only_for_equal_specs(a: RunSpec, b: RunSpec) -> None:
    """Two specs share a hash exactly if they are equal."""
    assert (a == b) == (a.hash == b.hash)


@settings(max_examples=25, deadline=None)
@given(st.builds(EvalSpec, kind=st.sampled_from(["pgd", "autoattack"]), images=count, eps=share,
                 step_size=st.none() | share, steps=count, restarts=count,
                 attacks=st.lists(st.sampled_from(ATTACKS), min_size=1, unique=True).map(tuple)))
def test_round_trip_of_evaluations(spec: EvalSpec) -> None:
    """The same for evaluations."""
    assert from_dict(EvalSpec, json.loads(canonical_json(spec))) == spec


# -- strict reading --------------------------------------------------------------------------------------------------
def run(**changes: object) -> dict:
    return {"data": {"name": "cifar10"}, "model": {"arch": "tiny_resnet"}, "method": {"name": "at"}, "optim": {},
            **changes}


def test_int_is_read_as_float() -> None:
    """The one conversion: an int where a float is meant; lists become tuples."""
    spec = from_dict(RunSpec, run(optim={"lr": 1, "milestones": [0.5]}, attack={"eps": 0}))
    assert type(spec.optim.lr) is float and type(spec.attack.eps) is float and spec.optim.milestones == (0.5,)


@pytest.mark.parametrize(("values", "error", "message"), [
    (run(optin={}), ValueError, "expected key of RunSpec to be one of data, model, .*'optin'; did you mean 'optim'?"),
    (run(attack={"stepsize": 0.1}), ValueError, "key of RunSpec.attack .*got 'stepsize'; did you mean 'step_size'?"),
    (run(source=run(sead=1)), ValueError, "key of RunSpec.source .*got 'sead'; did you mean 'seed'?"),
    ({"data": {"name": "a"}}, ValueError, "expected model, method, optim in RunSpec, got only data"),
    (run(data={}), ValueError, "expected name in RunSpec.data, got only nothing"),
    (run(attack=[1]), TypeError, "expected a mapping for RunSpec.attack, got \\[1\\]"),
    (run(optim={"lr": "1e-3"}), TypeError, "number for RunSpec.optim.lr, got the text '1e-3'; in YAML write 1.0e-3"),
    (run(attack={"eps": "8/255"}), TypeError, "number for RunSpec.attack.eps, got the text '8/255'; in YAML write"),
    (run(optim={"lr": True}), TypeError, "expected float for RunSpec.optim.lr, got True"),
    (run(optim={"lr": [0.1]}), TypeError, "expected float for RunSpec.optim.lr"),
    (run(optim={"lr": None}), TypeError, "expected a value for RunSpec.optim.lr, got nothing \\(null\\)"),
    (run(optim={"lr": float("nan")}), ValueError, "expected a finite number for RunSpec.optim.lr, got nan"),
    (run(optim={"lr": float("inf")}), ValueError, "expected a finite number for RunSpec.optim.lr, got inf"),
    (run(optim={"epochs": 3.0}), TypeError, "expected int for RunSpec.optim.epochs, got 3.0"),
    (run(optim={"epochs": True}), TypeError, "expected int for RunSpec.optim.epochs, got True"),
    (run(optim={"milestones": 0.5}), TypeError, "expected a list for RunSpec.optim.milestones, got 0.5"),
    (run(optim={"milestones": ["a"]}), TypeError, "expected a number for RunSpec.optim.milestones, got the text 'a'"),
    (run(data={"name": "a", "exclude": "n01"}), TypeError, "expected a list for RunSpec.data.exclude"),
    (run(data={"name": "a", "exclude": [1]}), TypeError, "expected str for RunSpec.data.exclude, got 1"),
    (run(attack={"random_start": 1}), TypeError, "expected bool for RunSpec.attack.random_start, got 1"),
    (run(data=None), TypeError, "expected a value for RunSpec.data, got nothing"),
    (run(follow={"recordevery": 1}), ValueError, "key of RunSpec.follow .*got 'recordevery'; did you mean 'record_every'?"),
    (run(follow={"every": 1.0}), TypeError, "expected int for RunSpec.follow.every, got 1.0"),
    (run(follow=5), TypeError, "expected a mapping for RunSpec.follow, got 5"),
])
def test_strict_reading(values: dict, error: type, message: str) -> None:
    """Unknown keys and wrong types are refused, with the path of the field and a hint."""
    with pytest.raises(error, match=message):
        from_dict(RunSpec, values)


def test_null_is_read_where_a_default_is_null() -> None:
    """null stands for 'all' and 'none' in the fields that know it."""
    spec = from_dict(RunSpec, run(source=None, data={"name": "a", "train_images": None, "crop": None}))
    assert spec.source is None and spec.data.train_images is None


# -- legal values ----------------------------------------------------------------------------------------------------
TUNE = dict(data=DataSpec(name="a"), optim=OptimSpec())


@pytest.mark.parametrize(("make", "message"), [
    (lambda: AttackSpec(eps=8), "expected eps in [0, 1] (pixel units), got 8; write 8/255"),
    (lambda: from_dict(AttackSpec, {"eps": 8}), "expected eps in [0, 1] (pixel units), got 8; write 8/255"),
    (lambda: EvalSpec(kind="pgd", images=1, eps=4), "expected eps in [0, 1] (pixel units), got 4; write 4/255"),
    (lambda: AttackSpec(eps=-0.1), "expected eps in [0, 1] (pixel units), got -0.1"),
    (lambda: AttackSpec(eps=-0.1, threat="l2"), "expected eps of at least 0 (l2, pixel units), got -0.1"),
    (lambda: AttackSpec(step_size=2), "(pixel units), got 2; write 2/255"),
    (lambda: AttackSpec(step_size=0.0), "expected step_size above 0"),
    (lambda: AttackSpec(steps=-1), "expected steps >= 0, got -1"),
    (lambda: AttackSpec(threat="l3"), "expected threat to be one of linf, l2, got 'l3'"),
    (lambda: AttackSpec(loss="ke"), "expected attack loss to be one of ce, kl, margin, got 'ke'"),
    (lambda: AttackSpec(loss="kl", random_start=False), "expected random_start with attack loss kl"),
    (lambda: EvalSpec(kind="pdg", images=1, eps=0.1), "one of clean, pgd, autoattack, got 'pdg'; did you mean 'pgd'?"),
    (lambda: EvalSpec(kind="pgd", images=1), "expected eps > 0 for an attack, got 0.0"),
    (lambda: EvalSpec(kind="clean", images=0), "expected images > 0, got 0"),
    (lambda: EvalSpec(kind="clean", images=1, batch_size=0), "expected batch_size > 0, got 0"),
    (lambda: EvalSpec(kind="pgd", images=1, eps=0.1, restarts=0), "expected restarts > 0, got 0"),
    (lambda: EvalSpec(kind="pgd", images=1, eps=0.1, step_size=2), "write 2/255"),
    (lambda: EvalSpec(kind="autoattack", images=1, eps=0.1, attacks=("apgd-tt",)), "did you mean 'apgd-t'?"),
    (lambda: EvalSpec(kind="autoattack", images=1, eps=0.1, attacks=()), "expected at least one attack, none twice"),
    (lambda: EvalSpec(kind="autoattack", images=1, eps=0.1, attacks=("square",) * 2), "none twice"),
    (lambda: method("twins-at"), "expected method to be one of natural, at, trades, twins_at, twins_trades, distill, .*"
                                 ", got 'twins-at'; did you mean 'twins_at'?"),
    (lambda: method("at", twin_weight=1.0), "key of MethodSpec .*; did you mean 'twins_weight'?"),
    (lambda: MethodSpec(name="a", objective="trade"), "expected objective to be one of natural, at, trades, got 'trade'"
                                                      "; did you mean 'trades'?"),
    (lambda: MethodSpec(name="a", wings="twin"), "one of single, twins, two_adaptive, split, frozen, got 'twin'"
                                                  "; did you mean 'twins'?"),
    (lambda: MethodSpec(name="a", attack_wing="both"), "attack_wing to be one of adaptive, frozen, alternating, got 'both'"),
    (lambda: MethodSpec(name="a", kl_divisor="half"), "expected kl_divisor to be one of batch, wing, got 'half'"),
    (lambda: ModelSpec(arch="resnet5"), "expected arch to be one of "),
    (lambda: ModelSpec(arch="resnet18", norm="bach"), "batch, group, layer, got 'bach'; did you mean 'batch'?"),
    (lambda: ModelSpec(arch="resnet18", upsample=0), "expected upsample > 0 or null, got 0"),
    (lambda: DataSpec(name="a", augment="crop_flop"), "did you mean 'crop_flip'?"),
    (lambda: DataSpec(name="a", image_size=0), "expected image_size > 0, got 0"),
    (lambda: DataSpec(name="a", val_images=-1), "expected val_images >= 0, got -1"),
    (lambda: DataSpec(name="a", train_images=0), "expected train_images > 0 or null, got 0"),
    (lambda: DataSpec(name="a", crop=40), "expected crop in 1..32 (image_size) or null, got 40"),
    (lambda: DataSpec(name="a", crop=24), "expected augment resized_crop_flip or center_crop with crop 24"),
    (lambda: OptimSpec(schedule="cosin"), "expected schedule to be one of constant, piecewise, cosine, cyclic, slow_fast, "
                                         "slow_fast_exp, fast_decay, slow_start, one_cycle, got 'cosin'; did you mean 'cosine'?"),
    (lambda: OptimSpec(precision="float16"), "expected precision to be one of float32, bfloat16"),
    (lambda: OptimSpec(milestones=(30.0, 50.0)), "expected milestones in (0, 1), as shares of the run, got [30.0, 50.0]"
                                                 "; divide epochs by their number"),
    (lambda: OptimSpec(epochs=0), "expected epochs > 0, got 0"),
    (lambda: OptimSpec(batch_size=0), "expected batch_size > 0, got 0"),
    (lambda: OptimSpec(lr=0.0), "expected lr > 0, got 0.0"),
    (lambda: OptimSpec(momentum=1.0), "expected momentum in [0, 1), got 1.0"),
    (lambda: OptimSpec(weight_decay=-1.0), "expected weight_decay >= 0, got -1.0"),
    (lambda: OptimSpec(warmup=1.0), "expected warmup in [0, 1), a share of the run, got 1.0"),
    (lambda: OptimSpec(val_every=-1), "expected val_every >= 0, got -1"),
    (lambda: OptimSpec(val_steps=-1), "expected val_steps >= 0, got -1"),
    (lambda: MethodSpec(name="a", source_classes=5), "expected source_weight > 0 with source_classes, got 0.0"),
    (lambda: method("joint", source_classes=0), "expected source_classes > 0 or null, got 0"),
    (lambda: method("joint_uot", source_weight=0.0), "expected source_weight > 0 with source_classes, got 0.0"),
    (lambda: method("distill", objective="natural"),
     "expected an objective with adversarial images for distillation, got 'natural'"),
    (lambda: method("feature_distill", objective="natural"),
     "expected an objective with adversarial images for distillation, got 'natural'"),
    (lambda: replace(TUNED, method=METHODS["joint"]),
     "expected source images of the target's size (32, 32) for method 'joint', got (16, 16)"),
    (lambda: replace(TUNED, method=METHODS["joint"], data=DataSpec(name="a", image_size=64, augment="center_crop", crop=16)),
     "expected source images of the target's size (64, 16) for method 'joint', got (16, 16)"),
    (lambda: replace(TUNED, method=METHODS["joint_uot"], source=None, weights=WeightsSpec(file="a.pt", classes=2)),
     "expected a source run for method 'joint_uot', got 'a.pt'; joint training needs the images of the source task"),
    (lambda: replace(TUNED, weights=WeightsSpec(file="a.pt", classes=2)),
     "expected a source run or weights from elsewhere, got 'both'"),
    (lambda: replace(TUNED, method=METHODS["at_awp"], follow=FollowSpec(record_every=2)),
     "expected record_every 0 with awp_gamma, got 2; its gradients are not those at the weights"),
    (lambda: FollowSpec(every=0), "expected every > 0, got 0"),
    (lambda: FollowSpec(steps=0), "expected steps > 0, got 0"),
    *((lambda name=name: FollowSpec(**{name: -1}), f"expected {name} >= 0, got -1")
      for name in ("record_every", "train_images", "test_images", "dense")),
    *((lambda name=name: method(name, awp_gamma=0.01), f"expected no other term of the loss with awp_gamma, got '{name}'")
      for name in ("distill", "feature_distill", "l2sp", "joint", "joint_uot")),
    (lambda: WeightsSpec(file="weights/a.pt", classes=2), "expected the name of a file, without folders"),
    (lambda: WeightsSpec(file="", classes=2), "expected the name of a file"),
    (lambda: WeightsSpec(file="a.pt", classes=0), "expected classes > 0, got 0"),
    (lambda: replace(TUNED, model=ModelSpec(arch="resnet18")),
     "expected source of arch resnet18, got 'arch tiny_resnet'"),
])
def test_illegal_values(make, message: str) -> None:
    """Values out of range and unknown names are refused before any work; the message says what is legal."""
    with pytest.raises(ValueError) as caught:
        make()
    text = str(caught.value)
    assert all(piece in text for piece in message.split(".*")), text


@pytest.mark.parametrize("field", ["twins_weight", "trades_beta", "distill_weight", "feature_weight", "l2sp_weight",
                                   "source_weight", "awp_gamma"])
def test_negative_weights(field: str) -> None:
    """Each weight of a term may be 0 or more; a negative one, or one that is no number, is refused by name."""
    assert getattr(MethodSpec(name="a", **{field: 0.0}), field) == 0
    for value in (-1e-9, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"expected {field} >= 0, got {value}"):
            MethodSpec(name="a", **{field: value})


@pytest.mark.parametrize("wing", ["frozen", "alternating"])
@pytest.mark.parametrize("wings", ["single", "twins", "two_adaptive", "split", "frozen"])
def test_attacked_wing_needs_two_branches(wings: str, wing: str) -> None:
    """Only where each batch norm is double is there another wing to attack."""
    if wings in ("twins", "two_adaptive"):
        assert MethodSpec(name="a", wings=wings, attack_wing=wing).attack_wing == wing
        return
    with pytest.raises(ValueError, match=f"expected attack_wing adaptive without two branches, got '{wing}'"):
        MethodSpec(name="a", wings=wings, attack_wing=wing)


@pytest.mark.parametrize(("changes", "got"), [
    ({"wings": "twins"}, "twins, at"), ({"wings": "split"}, "split, at"), ({"wings": "two_adaptive"}, "two_adaptive, at"),
    ({"wings": "frozen"}, "frozen, at"), ({"objective": "trades"}, "single, trades"),
    ({"objective": "natural"}, "single, natural"),
])
def test_joint_training_is_for_one_network_and_at(changes: dict, got: str) -> None:
    """Source images pass with the adversarial ones of one ordinary network; nothing else is defined."""
    with pytest.raises(ValueError, match=f"expected wings single and objective at with source_weight, got '{got}'"):
        method("joint", **changes)


@pytest.mark.parametrize("name", METHODS)
def test_norms_of_methods(name: str) -> None:
    """Methods with other statistics than an ordinary network's need batch norm; all others take any."""
    parts = TUNE | {"source": RunSpec(**TUNE, model=ModelSpec(arch="resnet18", norm="group"), method=METHODS["at"])}
    parts |= {"model": ModelSpec(arch="resnet18", norm="group"), "method": METHODS[name]}
    needs = {"twins_at": "twins", "twins_trades": "twins", "twins_shared": "twins", "twins_attack_frozen": "twins",
             "twins_attack_alternating": "twins", "twins_trades_wing": "twins", "aft_twins": "twins",
             "two_adaptive": "two_adaptive", "frozen_at": "frozen", "natural_frozen": "frozen"}
    if name not in needs:
        assert RunSpec(**parts).model.norm == "group"
        return
    with pytest.raises(ValueError, match=f"expected norm 'batch' for the wings '{needs[name]}', got 'group'"):
        RunSpec(**parts)


@pytest.mark.parametrize("name", METHODS)
def test_start_of_methods(name: str) -> None:
    """A method that keeps something of its start is refused without one, and takes weights from elsewhere unless it needs
    the source's images."""
    parts = TUNE | {"model": ModelSpec(arch="tiny_resnet"), "method": METHODS[name]}
    file = WeightsSpec(file="a.pt", classes=2)
    keeps = name in ("distill", "feature_distill", "l2sp", "frozen_at", "natural_frozen", "linear_probe", "joint", "joint_uot")
    if keeps:
        with pytest.raises(ValueError, match=f"expected a source run or weights for method '{name}', got 'neither'; it keeps"):
            RunSpec(**parts)
    else:
        assert RunSpec(**parts).source is None
    if name.startswith("joint"):
        with pytest.raises(ValueError, match=f"expected a source run for method '{name}', got 'a.pt'"):
            RunSpec(**parts, weights=file)
    else:
        assert RunSpec(**parts, weights=file).weights == file
    source = RunSpec(**TUNE, model=ModelSpec(arch="tiny_resnet"), method=METHODS["natural"])
    assert RunSpec(**parts, source=source).source == source


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_network_has_a_spec(arch: str, norm: str) -> None:
    """What the library can build can be asked for, and another name is answered with the whole list."""
    assert ModelSpec(arch=arch, norm=norm).arch == arch
    with pytest.raises(ValueError, match=f"{', '.join(ARCHS)}, got '{arch}x'"):
        ModelSpec(arch=arch + "x")


@pytest.mark.parametrize("name", ["natural", "at", "trades", "twins_at", "twins_trades"])
def test_methods_of_the_paper(name: str) -> None:
    """The paper's five differ from each other in objective and wings, and in nothing else from the official defaults."""
    objective, wings = name.removeprefix("twins_"), "twins" if "twins" in name else "single"
    assert METHODS[name] == MethodSpec(name=name, objective=objective, wings=wings)


@pytest.mark.parametrize(("name", "base", "changes"), [
    ("distill", "at", {"distill_weight": 0.3}),
    ("feature_distill", "at", {"feature_weight": 1.0}),
    ("l2sp", "at", {"l2sp_weight": 0.01}),
    ("joint", "at", {"source_weight": 0.3}),
    ("joint_uot", "joint", {"source_classes": 20}),
    ("frozen_at", "at", {"wings": "frozen"}),
    ("at_natural", "at", {}), ("at_random", "at", {}), ("at_lr", "at", {}),
    ("at_split", "at", {"wings": "split"}),
    ("two_adaptive", "twins_at", {"wings": "two_adaptive"}),
    ("twins_shared", "twins_at", {"share_affine": True}),
    ("twins_attack_frozen", "twins_at", {"attack_wing": "frozen"}),
    ("twins_attack_alternating", "twins_at", {"attack_wing": "alternating"}),
    ("trades_beta3", "trades", {"trades_beta": 3.0}),
    ("twins_trades_wing", "twins_trades", {"kl_divisor": "wing"}),
    ("noise", "natural", {}), ("mixed_noise", "natural", {}),
    ("natural_frozen", "natural", {"wings": "frozen"}),
    ("linear_probe", "natural", {"trains": "head"}),
    ("at_awp", "at", {"awp_gamma": 0.01}),
    ("at_cosine", "at", {}), ("at_cyclic", "at", {}), ("at_slow_fast", "at", {}),
    ("at_short_plateau", "at", {}), ("at_long_plateau", "at", {}),
    ("at_scratch", "at", {}), ("trades_scratch", "trades", {}), ("free_at", "at", {"replays": 8}), ("fast_at", "at", {}),
    ("aft_l2_random", "at", {}), ("aft_free", "aft", {"replays": 4}), ("aft_twins", "twins_at", {}),
    *((name, "at", {}) for name in METHODS if name.startswith("aft") and name not in ("aft_free", "aft_twins")),
])
def test_baselines_and_controls_differ_in_one_thing(name: str, base: str, changes: dict) -> None:
    """Each is its base with one switch changed, or another start, rate, schedule or noise that the study gives it."""
    assert METHODS[name] == replace(METHODS[base], name=name, **changes)


def test_a_followed_run_is_another_run() -> None:
    """What is followed is part of a run's hash, as its results are kept with it; a run that is not has the hash it always had.
    AWP may be followed, without a recorder."""
    follows = (None, FollowSpec(), FollowSpec(every=2), FollowSpec(dense=1))
    assert len({replace(TUNED, follow=f).hash for f in follows}) == 4
    assert "follow" not in canonical_json(TUNED) and '"follow":{}' in canonical_json(replace(TUNED, follow=FollowSpec()))
    followed = replace(TUNED, method=METHODS["at_awp"], follow=FollowSpec(train_images=5))
    assert from_dict(RunSpec, json.loads(canonical_json(followed))) == followed


def test_methods_by_name() -> None:
    """Every method is registered under its own name; `method` changes switches and nothing else, and checks them."""
    assert {name: m.name for name, m in METHODS.items()} == {name: name for name in GOLDEN_METHODS}
    assert method("twins_at", twins_weight=0.4) == replace(METHODS["twins_at"], twins_weight=0.4)
    assert method("twins_at", name="other").name == "other"
    assert type(method("l2sp", l2sp_weight=1).l2sp_weight) is float
    with pytest.raises(TypeError, match="expected bool for MethodSpec.normalize_loss"):
        method("twins_at", normalize_loss=1)
    with pytest.raises(TypeError, match="expected int for MethodSpec.source_classes, got 3.0"):
        method("joint", source_classes=3.0)


@pytest.mark.parametrize(("wings", "halves", "two_branches"), [
    ("single", False, False), ("twins", True, True), ("two_adaptive", True, True), ("split", True, False),
    ("frozen", False, False),
])
def test_wings(wings: str, halves: bool, two_branches: bool) -> None:
    """Which wings weigh two halves of the batch, and which have two branches in each batch norm."""
    m = MethodSpec(name="a", wings=wings)
    assert (m.halves, m.two_branches) == (halves, two_branches)


def test_who_needs_the_start_network() -> None:
    """Distillation and joint training use the start network and its head all along; L2-SP keeps its own copy of weights."""
    assert [name for name, m in METHODS.items() if m.needs_origin] == ["distill", "feature_distill", "joint", "joint_uot"]


@pytest.mark.parametrize(("spec", "name"), [
    (EvalSpec(kind="clean", images=1), "none"),
    (EvalSpec(kind="pgd", images=1, eps=0.1, steps=10), "pgd10"),
    (EvalSpec(kind="pgd", images=1, eps=0.1, restarts=5), "pgd20x5"),
    (EvalSpec(kind="autoattack", images=1, eps=0.1), "apgd-ce+apgd-t+fab-t+square"),
])
def test_attack_names(spec: EvalSpec, name: str) -> None:
    """An evaluation's attack is named by what determines it in tables."""
    assert spec.attack_name == name
