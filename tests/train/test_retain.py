"""What keeps a fine-tune near its start, each against a small calculation of its own."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from twinslib.attack import pgd
from twinslib.data.augment import to_float
from twinslib.data.sets import DeviceSet
from twinslib.nets.heads import replace_head
from twinslib.nets.models import make_model
from twinslib.nets.norms import twinsify
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.train import step as train_step
from twinslib.train.loop import fit
from twinslib.train.retain import Retention, distillation, feature_distance, image_features, nearest_classes
from twinslib.train.step import OutOfTime, Step

SOURCE_CLASSES, CLASSES = 6, 10
TIED = ("distill", "feature_distill", "l2sp", "joint", "joint_uot")


def spec(name: str, *, optim: dict | None = None, source: dict | None = None, **switches) -> RunSpec:
    """A run of a method whose source run attacked with other settings (`source`: changes to that attack)."""
    data, model = DataSpec(name="toy", image_size=16, augment="none"), ModelSpec(arch="tiny_resnet")
    optim = OptimSpec(**({"epochs": 2, "batch_size": 8, "lr": 0.05, "val_every": 2, "val_steps": 2} | (optim or {})))
    origin = RunSpec(data=replace(data, name="toy_source"), model=model, method=method("at"), optim=optim,
                     attack=AttackSpec(**({"eps": 2 / 255, "step_size": 1 / 255, "steps": 3} | (source or {}))))
    return RunSpec(data=data, model=model, method=method(name, **switches), optim=optim, attack=AttackSpec(steps=2),
                   source=origin)


def start_network(seed: int = 0) -> nn.Module:
    """A tiny network with statistics and affine parameters of its own, and a head for the source classes."""
    model, g = make_model("tiny_resnet", SOURCE_CLASSES, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2, generator=g)
                module.running_var.uniform_(0.5, 2, generator=g)
                module.weight.uniform_(0.5, 1.5, generator=g)
                module.bias.normal_(0, 0.2, generator=g)
    return model


def networks() -> tuple[nn.Module, nn.Module]:
    """(network to train, the network it starts from)."""
    start = start_network()
    return replace_head(start, CLASSES, image_size=16, seed=1), start


def image_set(classes: int, n: int = 24, seed: int = 1) -> DeviceSet:
    """Random images, each class among the training images."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n + 4, 3, 16, 16), generator=g, dtype=torch.uint8)
    y = torch.arange(n + 4) % classes
    return DeviceSet(x[:n], y[:n], x[n:], y[n:], x[n:], y[n:], tuple(f"class {i}" for i in range(classes)))


def batch(n: int = 8, dtype: torch.dtype = torch.float64, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 16, 16, generator=g).to(dtype), torch.randint(0, SOURCE_CLASSES, (n,), generator=g)


def gradients(loss: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True), strict=True))


def backbone(model: nn.Module) -> nn.Module:
    """A copy of a tiny network without its head: images to features."""
    model = copy.deepcopy(model)
    model.network.fc = nn.Identity()
    return model


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- distillation ----------------------------------------------------------------------------------------------------


def test_distillation_is_the_mean_divergence() -> None:
    """KL(start || network) averaged over the images, in this direction, with gradient (q - p) / n for the network only."""
    g = torch.Generator().manual_seed(0)
    p, q = (3 * torch.randn(7, 5, generator=g)).requires_grad_(), (3 * torch.randn(7, 5, generator=g)).requires_grad_()
    loss = distillation(p, q)
    categorical = [torch.distributions.Categorical(logits=z) for z in (p, q)]
    torch.testing.assert_close(loss, torch.distributions.kl_divergence(*categorical).mean())
    loss.backward()
    torch.testing.assert_close(q.grad, (q.softmax(1) - p.softmax(1)).detach() / 7)
    assert p.grad is None


def test_feature_distance_is_the_mean_square() -> None:
    """The squared differences averaged over images and entries, with gradient 2 (f - start) / (n d) for the network only."""
    start, own = torch.tensor([[1.0, 2], [0, 4], [5, 5]], requires_grad=True), torch.tensor([[3.0, 2], [0, 1], [5, 6]])
    own.requires_grad_()
    loss = feature_distance(start, own)
    loss.backward()
    assert loss.item() == pytest.approx((4 + 0 + 0 + 9 + 0 + 1) / 6)
    torch.testing.assert_close(own.grad, torch.tensor([[2.0, 0], [0, -3], [0, 1]]) / 3)
    assert start.grad is None


@pytest.mark.parametrize("name", ["distill", "feature_distill"])
def test_a_network_is_at_no_distance_from_itself(name: str) -> None:
    """With frozen statistics, distillation of a network with itself adds nothing to the loss, and rounding to gradients."""
    x, y = batch()
    results = {}
    for m in ("frozen_at", name):
        model, start = (n.double() for n in networks())
        step = Step(model, spec(m, **({} if m == "frozen_at" else {"wings": "frozen"})), "cpu", start=start)
        loss = step.loss({"clean": x, "adversarial": x}, y)[0]
        results[m] = loss.item(), gradients(loss, model)
    (plain, expected), (loss, got) = results.values()
    assert loss == plain
    for k, gradient in expected.items():
        torch.testing.assert_close(got[k], gradient, rtol=0, atol=1e-7)
    assert distillation(*[torch.randn(4, 5)] * 2) == 0 == feature_distance(*[torch.randn(4, 5)] * 2)


def term_by_hand(name: str, model: nn.Module, start: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The term for images x, from two networks without heads and the start's head."""
    own, kept = backbone(model).train()(x), backbone(start).eval()(x)
    if name == "feature_distill":
        return (own - kept).square().sum() / own.numel()
    p, q = start.network.fc(kept).softmax(1), start.network.fc(own).softmax(1)
    return (p * (p / q).log()).sum() / len(x)


@pytest.mark.parametrize(("name", "field"), [("distill", "distill_weight"), ("feature_distill", "feature_weight")])
@pytest.mark.parametrize(("objective", "wings"), [("at", "single"), ("trades", "single"), ("at", "split")])
def test_distillation_term_of_a_step(name: str, field: str, objective: str, wings: str) -> None:
    """What a step adds to the loss of the same method without the term is weight x the term by hand, on the adversarial
    images only, the network in training mode and its start in eval mode."""
    x, y = batch()
    inputs = {"clean": x.flip(0), "adversarial": x}
    losses = {}
    for weight in (0.0, 0.3, 0.6):
        model, start = (n.double() for n in networks())
        model.network.conv1.weight.data.mul_(1.5)  # it has moved away
        run = spec(name, objective=objective, wings=wings, **{field: weight})
        halves = [x] if wings == "single" else [x[:4], x[4:]]
        term = sum(term_by_hand(name, model, start, half) * len(half) / len(x) for half in halves)
        losses[weight] = Step(model, run, "cpu", start=start).loss(inputs, y)[0].item()
    assert term > 1e-3
    for weight in (0.3, 0.6):
        assert losses[weight] - losses[0.0] == pytest.approx(weight * term.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["distill", "feature_distill"])
def test_distillation_gradient_of_a_step(name: str) -> None:
    """The gradient reaches the backbone through the features, as by hand; the network's own head has only that of AT."""
    x, y = batch()
    inputs = {"clean": x, "adversarial": x}
    (model, start), (other, _) = networks(), networks()
    model, start, other = model.double(), start.double(), other.double()
    plain = gradients(Step(other, spec("at"), "cpu").loss(inputs, y)[0], other)
    hand = copy.deepcopy(model)
    hand.network.fc = nn.Identity()
    own, kept = hand.train()(x), backbone(start).eval()(x).detach()
    if name == "distill":
        target = start.network.fc(kept).softmax(1).detach()
        term = 0.3 * (target * (target.log() - start.network.fc(own).log_softmax(1))).sum() / len(x)
    else:
        term = (own - kept).square().mean()
    extra = gradients(term, hand)
    got = gradients(Step(model, spec(name), "cpu", start=start).loss(inputs, y)[0], model)
    for k, gradient in got.items():
        want = plain[k] + extra[k] if k in extra else plain[k]
        torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-7, msg=lambda m, k=k: f"{k}: {m}")


@pytest.mark.parametrize("name", TIED)
def test_nothing_is_left_in_the_networks(name: str) -> None:
    """After steps, no network carries a hook, the attacked copies neither, and the start is as it was, without gradients."""
    model, start = networks()
    before = copy.deepcopy(start.state_dict())
    step = Step(model, spec(name), "cpu", start=start, source=image_set(SOURCE_CLASSES))
    x, y = batch(dtype=torch.float32)
    for count in range(2):
        step(x, y, count, 0.05)
    copies = [a.copy for a in (*step.attackers, step.retention.attack) if a is not None]
    assert len(copies) == (2 if name.startswith("joint") else 1)
    for network in (model, start, *copies):
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())
    assert same(start.state_dict(), before) and all(p.grad is None for p in start.parameters())


@pytest.mark.parametrize("name", TIED)
def test_measurements_do_not_disturb(name: str) -> None:
    """Weights and losses are bit-identical whether validation images are measured after each epoch or never."""
    results = []
    for every in (1, 0):
        model, start = networks()
        rows = fit(spec(name, optim={"val_every": every}), model, image_set(CLASSES), device="cpu", start=start,
                   source=image_set(SOURCE_CLASSES)).epochs
        results.append((model.state_dict(), [row["train_loss"] for row in rows]))
        assert all(("val_robust_acc" in row) is (every == 1) for row in rows)
    assert same(results[0][0], results[1][0]) and results[0][1] == results[1][1]


# -- L2-SP -----------------------------------------------------------------------------------------------------------


def test_l2sp_step_in_closed_form() -> None:
    """Without momentum a step is w - lr (g + alpha (w - start)) in the backbone, and w - lr (g + decay w) in the head."""
    alpha, decay, lr = 0.7, 0.2, 0.1
    model = networks()[0].double()
    start = copy.deepcopy(dict(model.named_parameters()))
    run = spec("l2sp", objective="natural", l2sp_weight=alpha, optim={"momentum": 0.0, "weight_decay": decay})
    step = Step(model, run, "cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    moved = copy.deepcopy(model)
    x, y = batch()
    step(x, y, 0, lr)
    g = gradients(F.cross_entropy(moved.train()(x), y), moved)
    for (name, p), w in zip(model.named_parameters(), moved.parameters(), strict=True):
        pull = decay * w if ".fc." in name else alpha * (w - start[name])
        torch.testing.assert_close(p, w - lr * (g[name] + pull), rtol=1e-10, atol=1e-12, msg=lambda m, k=name: f"{k}: {m}")


def test_l2sp_equals_its_penalty_by_autograd() -> None:
    """Three steps with momentum equal those on loss + alpha/2 ||w - start||^2 + decay/2 ||head||^2, written out."""
    alpha, decay, lr = 0.3, 0.1, 0.05
    model = networks()[0].double()
    hand = copy.deepcopy(model).train()
    start = {k: p.detach().clone() for k, p in hand.named_parameters()}
    step = Step(model, spec("l2sp", objective="natural", l2sp_weight=alpha, optim={"weight_decay": decay}), "cpu")
    optimizer = torch.optim.SGD(hand.parameters(), lr=lr, momentum=0.9)
    for count in range(3):
        x, y = batch(seed=count)
        step(x, y, count, lr)
        penalty = sum(decay / 2 * p.square().sum() if ".fc." in k else alpha / 2 * (p - start[k]).square().sum()
                      for k, p in hand.named_parameters())
        optimizer.zero_grad()
        (F.cross_entropy(hand(x), y) + penalty).backward()
        optimizer.step()
    for got, want in zip(model.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_l2sp_gradient_is_alpha_times_the_way_from_the_start() -> None:
    """For every parameter of the backbone that has a gradient, none for the head; nothing at the start itself."""
    model = networks()[0].double()
    retention = Retention(model, spec("l2sp", l2sp_weight=0.25), start=None, source=None, make_attack=None)
    parameters = dict(model.named_parameters())
    unused = parameters.pop("network.conv1.weight")
    for share in (0.0, 1.0):
        way = {k: share * torch.randn_like(p) for k, p in parameters.items()}
        for k, p in parameters.items():
            p.data.add_(way[k])
            p.grad = torch.ones_like(p)
        retention.add_gradients()
        assert unused.grad is None
        for k, p in parameters.items():
            want = torch.ones_like(p) + (0 if ".fc." in k else 0.25 * way[k])
            torch.testing.assert_close(p.grad, want, rtol=1e-9, atol=1e-12, msg=lambda m, k=k: f"{k}: {m}")


# -- joint training --------------------------------------------------------------------------------------------------


def joint_by_hand(model: nn.Module, start: nn.Module, x: torch.Tensor, y: torch.Tensor, source_x: torch.Tensor,
                  source_y: torch.Tensor, weight: float) -> tuple[torch.Tensor, nn.Module, nn.Module]:
    """(loss, network, source head) of one pass of both kinds of images through one backbone, each kind to its own head."""
    hand, head = copy.deepcopy(model).train(), copy.deepcopy(start.network.fc)
    fc, hand.network.fc = hand.network.fc, nn.Identity()
    features = hand(torch.cat((x, source_x)))
    hand.network.fc = fc
    loss = F.cross_entropy(fc(features[:len(x)]), y) + weight * F.cross_entropy(head(features[len(x):]), source_y)
    return loss, hand, head


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_joint_loss_and_gradients_by_hand(weight: float) -> None:
    """CE(target) + weight x CE(source), one batch norm batch for both, separate heads: loss, gradients, statistics."""
    (x, y), (source_x, source_y) = batch(8), batch(8, seed=6)
    model, start = (n.double() for n in networks())
    want, hand, head = joint_by_hand(model, start, x, y, source_x, source_y, weight)
    step = Step(model, spec("joint", source_weight=weight), "cpu", start=start, source=image_set(SOURCE_CLASSES))
    loss, logits, _ = step.loss({"clean": x, "adversarial": x}, y, (source_x, source_y))
    torch.testing.assert_close(loss, want, rtol=1e-6, atol=0)
    assert logits.shape == (8, CLASSES)
    for network, other in ((model, hand), (step.retention.source_head, head)):
        for (name, got), expected in zip(gradients(loss, network).items(), gradients(want, other).values(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
    for got, expected in zip(model.buffers(), hand.buffers(), strict=True):
        torch.testing.assert_close(got, expected)


def test_joint_step_by_hand() -> None:
    """A whole step (images not attacked) moves backbone and both heads as SGD on that loss; the start keeps its head."""
    x, y = batch()
    model, start = (n.double() for n in networks())
    run = spec("joint", optim={"weight_decay": 0.1}, source={"steps": 0})
    run = replace(run, attack=AttackSpec(steps=0))
    step = Step(model, run, "cpu", start=start, source=image_set(SOURCE_CLASSES))
    source_x, source_y = step.retention.draw(8, lambda purpose: train_step.generator("cpu", run.seed, purpose, 3))
    loss, hand, head = joint_by_hand(model, start, x, y, source_x.double(), source_y, 0.3)
    optimizer = torch.optim.SGD([*hand.parameters(), *head.parameters()], lr=0.1, momentum=0.9, weight_decay=0.1)
    loss.backward()
    optimizer.step()
    before = copy.deepcopy(start.network.fc)
    got, _ = step(x, y, 3, 0.1)
    torch.testing.assert_close(got, loss.detach(), rtol=1e-6, atol=0)
    for network, other in ((model, hand), (step.retention.source_head, head)):
        for a, b in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert torch.equal(start.network.fc.weight, before.weight)
    assert not torch.equal(step.retention.source_head.weight, before.weight)


def draw(step: Step, n: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return step.retention.draw(n, lambda purpose: train_step.generator("cpu", seed, purpose, count))


def test_source_images_are_drawn_from_the_source_set() -> None:
    """Each drawn image is one of the set with its own label; other steps and seeds draw others, the same step the same."""
    model, start = networks()
    source = image_set(SOURCE_CLASSES)
    step = Step(model, spec("joint", source={"steps": 0}), "cpu", start=start, source=source)
    x, y = draw(step, 8, 0)
    images = to_float(source.train_x)
    for image, label in zip(x, y, strict=True):
        rows = (images == image).flatten(1).all(1).nonzero()
        assert len(rows) == 1 and source.train_y[rows.item()] == label
    again, *others = [draw(step, 8, *key)[1].tolist() for key in ((0,), (1,), (0, 1))]
    assert again == y.tolist() and all(other != again for other in others)
    assert len(draw(step, 3, 0)[1]) == 3
    assert Step(networks()[0], spec("at"), "cpu").retention.draw(8, lambda purpose: None) is None


@pytest.mark.parametrize("eps", [1 / 255, 12 / 255])
def test_source_images_are_attacked_as_in_the_source_run(eps: float) -> None:
    """They stay in the ball of the source run's attack, whether smaller or larger than the target's, and reach its edge; a
    natural source run attacks nothing."""
    clean = None
    for name in ("natural", "at"):
        model, start = networks()
        run = spec("joint", source={"eps": eps, "step_size": eps / 2})
        run = replace(run, source=replace(run.source, method=method(name)))
        x, y = draw(Step(model, run, "cpu", start=start, source=image_set(SOURCE_CLASSES)), 8, 0)
        if clean is None:
            clean = x, y
    assert torch.equal(clean[1], y)
    assert (clean[0] * 255).round().sub(clean[0] * 255).abs().max() < 1e-4  # whole pixel values
    assert (x - clean[0]).abs().max() == pytest.approx(eps, rel=1e-3)
    assert x.min() >= 0 and x.max() <= 1


def test_source_attack_goes_through_the_source_head() -> None:
    """What is attacked is the network in training with the source head in training, in eval mode, after each step anew;
    the attack raises the loss of that network."""
    model, start = networks()
    step = Step(model, spec("joint", source={"eps": 8 / 255, "step_size": 2 / 255}), "cpu", start=start,
                source=image_set(SOURCE_CLASSES))
    x, y = batch(dtype=torch.float32)
    step(x, y, 0, 0.1)
    hand = copy.deepcopy(model).eval()
    hand.network.fc = copy.deepcopy(step.retention.source_head)
    z, _ = batch(dtype=torch.float32, seed=9)
    step.retention.attack.copy.refresh()
    torch.testing.assert_close(step.retention.attack.copy(z), hand(z), rtol=1e-4, atol=1e-4)
    g = train_step.generator("cpu", 0, "source_attack", 1)
    a = step.spec.source.attack
    want = pgd.pgd(hand.requires_grad_(False), z, y, eps=a.eps, step_size=a.step_size, steps=a.steps, generator=g)
    got = step.retention.attack(z, y, train_step.generator("cpu", 0, "source_attack", 1))
    assert ((got - want).abs() > 1e-6).float().mean() < 0.01  # rounding turns the sign of a few tiny gradients
    assert F.cross_entropy(hand(got), y) > F.cross_entropy(hand(z), y)
    assert isinstance(step.retention.attack, train_step.Attacker) and model.training


def test_source_images_are_augmented_as_in_the_source_run() -> None:
    """Drawn with the source run's augmentation, not the target's."""
    model, start = networks()
    run = spec("joint", source={"steps": 0})
    run = replace(run, source=replace(run.source, data=replace(run.source.data, augment="crop")))
    source = image_set(SOURCE_CLASSES)
    source.train_x.clamp_(min=1)  # so that zeros are borders of the crop
    x, _ = draw(Step(model, run, "cpu", start=start, source=source), 16, 0)
    assert (x == 0).any() and x.shape == (16, 3, 16, 16)


# -- the images of joint training ------------------------------------------------------------------------------------


COLOURS = torch.tensor([[250, 30, 30], [30, 250, 30], [30, 30, 250], [240, 240, 20], [20, 240, 240], [240, 20, 240]],
                       dtype=torch.uint8)


def painted(colours: torch.Tensor, per_class: int = 4) -> DeviceSet:
    """Images of one colour per class, with a little noise, in a random order."""
    g = torch.Generator().manual_seed(len(colours))
    y = torch.arange(len(colours)).repeat(per_class)[torch.randperm(len(colours) * per_class, generator=g)]
    noise = torch.randint(0, 5, (len(y), 3, 16, 16), generator=g, dtype=torch.uint8)
    x = colours[y][:, :, None, None] + noise
    return DeviceSet(x, y, x[:1], y[:1], x[:1], y[:1], tuple(f"colour {i}" for i in range(len(colours))))


def colour_network() -> nn.Module:
    """Features are the mean colours, through a batch norm; one layer in training mode, one in eval mode."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(3, 6)).train()
    model[0].running_mean.fill_(0.5)
    model[3].eval()
    return model


@pytest.mark.parametrize("wanted", [[1, 4], [5], [0, 2, 3]])
def test_nearest_classes_keeps_images_of_similar_classes(wanted: list[int]) -> None:
    """Source classes with the colours of the target's classes are kept, all their images in order and with their labels;
    nothing else of the set changes, nor modes, weights and statistics of the network."""
    model, source = colour_network(), painted(COLOURS)
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    kept = nearest_classes(model, source, painted(COLOURS[wanted], 3), len(wanted))
    mask = torch.tensor([label in wanted for label in source.train_y.tolist()])
    assert torch.equal(kept.train_y, source.train_y[mask]) and torch.equal(kept.train_x, source.train_x[mask])
    assert kept.class_names == source.class_names and kept.num_classes == 6
    assert kept.val_x is source.val_x and kept.test_y is source.test_y and len(source.train_y) == 24
    assert same(model.state_dict(), state) and [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("batch_size", [5, 500])
def test_image_features_by_hand(batch_size: int) -> None:
    """What enters the head in eval mode, image by image, in whatever batches."""
    model, images = start_network().train(), image_set(SOURCE_CLASSES, 12).train_x
    got = image_features(model, images, batch_size=batch_size)
    with torch.no_grad():
        want = backbone(model).eval()(images / 255).numpy()
    assert got.shape == (12, 32) and got.dtype == want.dtype
    assert abs(got - want).max() < 1e-5 and model.training


# -- all together ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "stop_at"), [*((name, 2) for name in (*TIED, "twins_attack_alternating")),
                                               ("l2sp", 3), ("joint", 3)])
def test_stopped_and_resumed_equals_undisturbed(tmp_path, name: str, stop_at: int) -> None:
    """Stopped in the middle of an epoch or at its end, a run goes on from newly loaded networks to bit-identical weights."""
    run, data, source = spec(name), image_set(CLASSES), image_set(SOURCE_CLASSES)
    results, done = [], [0]

    def go(stop: Callable[[], bool], **where) -> None:
        model, start = networks()
        if run.method.two_branches:
            model = twinsify(model)
        images = nearest_classes(start, source, data, 3) if run.method.source_classes else source
        fit(run, model, data, device="cpu", start=start, source=images, stop=stop,
            on_step=lambda step, total: done.__setitem__(0, step), **where)
        results.append(model.state_dict())

    go(lambda: False)
    assert done == [6]
    with pytest.raises(OutOfTime, match=f"step {stop_at} of 6"):
        go(lambda: done[0] == stop_at, checkpoint=tmp_path / "run.ckpt")
    go(lambda: False, checkpoint=tmp_path / "run.ckpt")
    assert same(*results)


def test_distances_add_up() -> None:
    """Logits and features can be held at once: the loss exceeds AT's by the sum of what each adds alone."""
    x, y = batch()
    weights = {"distill_weight": 0.3, "feature_weight": 0.5}
    losses = []
    for chosen in ({}, {"distill_weight": 0.3}, {"feature_weight": 0.5}, weights):
        model, start = (n.double() for n in networks())
        model.network.conv1.weight.data.mul_(1.5)
        losses.append(Step(model, spec("at", **chosen), "cpu", start=start).loss({"clean": x, "adversarial": x}, y)[0].item())
    plain, one, other, both = losses
    assert min(one, other) > plain + 1e-3 and both - plain == pytest.approx(one + other - 2 * plain, rel=1e-5)


def test_distillation_in_joint_training_is_of_target_images() -> None:
    """With both, the joint loss grows by the distance on the target images alone, though all pass at once."""
    (x, y), (source_x, source_y) = batch(8), batch(8, seed=6)
    model, start = (n.double() for n in networks())
    loss, _, _ = joint_by_hand(model, start, x, y, source_x, source_y, 0.3)
    own, kept = backbone(model).train()(torch.cat((x, source_x)))[:8], backbone(start).eval()(x)
    want = loss + 0.5 * (own - kept).square().mean()
    step = Step(model, spec("joint", feature_weight=0.5), "cpu", start=start, source=image_set(SOURCE_CLASSES))
    got, *_ = step.loss({"clean": x, "adversarial": x}, y, (source_x, source_y))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "missing"), [
    ("distill", "start network"), ("feature_distill", "start network"), ("joint", "start network"),
    ("joint", "source images"),
])
def test_what_a_method_needs_is_asked_for(name: str, missing: str) -> None:
    """Without the start network or the source images the method is refused by name; methods that need none take none."""
    model, start = networks()
    with pytest.raises(ValueError, match=f"expected the {missing} for method '{name}', got None"):
        Step(model, spec(name), "cpu", start=start if missing == "source images" else None)
    for other in ("at", "l2sp", "frozen_at"):
        Step(networks()[0], spec(other), "cpu")
