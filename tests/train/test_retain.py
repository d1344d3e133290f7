"""What keeps a fine-tune near its start, each against a small calculation of its own."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.train import made
from tests.train.made import close, equal, gradients, network, state
from twinslib.attack import pgd
from twinslib.data.augment import to_float
from twinslib.data.sets import DeviceSet
from twinslib.nets.heads import replace_head
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, RunSpec
from twinslib.train import step as train_step
from twinslib.train.retain import distillation, feature_distance, nearest_classes
from twinslib.train.step import Step

SOURCE_CLASSES, CLASSES = 6, 10
def spec(name: str, *, optim: dict | None = None, source: dict | None = None, **switches) -> RunSpec:
    """A run of a method whose source run attacked with other settings (`source`: changes to that attack)."""
    run = made.spec(name, optim=optim, **switches)
    run = replace(run, data=replace(run.data, augment="none"))
    attack = AttackSpec(**({"eps": 2 / 255, "step_size": 1 / 255, "steps": 3} | (source or {})))
    origin = RunSpec(data=replace(run.data, name="toy_source"), model=run.model, method=method("at"), optim=run.optim,
                     attack=attack)
    return replace(run, source=origin)


def networks(moved: bool = False) -> tuple[nn.Module, nn.Module]:
    """(network to train, the network it starts from, with a head for the source classes), in float64; the first may already
    have moved away."""
    start = network(classes=SOURCE_CLASSES).double()
    model = replace_head(start, CLASSES, image_size=16, seed=1)
    if moved:
        model.network.conv1.weight.data.mul_(1.5)
    return model, start


def sources(n: int = 24) -> DeviceSet:
    """Random images of the source classes, each class among the training images."""
    data = made.device_set(n, 4)
    y = torch.arange(n + 4) % SOURCE_CLASSES
    return replace(data, train_y=y[:n], val_y=y[n:], test_y=y[n:], class_names=tuple("012345"))


def batch(n: int = 8, dtype: torch.dtype = torch.float64, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return made.batch(n, dtype, seed, SOURCE_CLASSES)


def backbone(model: nn.Module) -> nn.Module:
    """A copy of a tiny network without its head: images to features."""
    model = copy.deepcopy(model)
    model.network.fc = nn.Identity()
    return model


def test_distances_by_hand() -> None:
    """KL(start || network) averaged over the images, in this direction, with gradient (q - p) / n."""
    g = torch.Generator().manual_seed(0)
    p, q = ((3 * torch.randn(7, 5, generator=g)).requires_grad_() for _ in range(2))
    loss = distillation(p, q)
    categorical = [torch.distributions.Categorical(logits=z) for z in (p, q)]
    torch.testing.assert_close(loss, torch.distributions.kl_divergence(*categorical).mean())
    loss.backward()
    torch.testing.assert_close(q.grad, (q.softmax(1) - p.softmax(1)).detach() / 7)
    start, own = (torch.tensor(v, requires_grad=True) for v in ([[1.0, 2], [0, 4], [5, 5]], [[3.0, 2], [0, 1], [5, 6]]))
    loss = feature_distance(start, own)
    loss.backward()
    assert loss.item() == pytest.approx((4 + 0 + 0 + 9 + 0 + 1) / 6)
    torch.testing.assert_close(own.grad, torch.tensor([[2.0, 0], [0, -3], [0, 1]]) / 3)
    assert p.grad is None and start.grad is None


def term_by_hand(name: str, model: nn.Module, start: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The term for images x, from two networks without heads and the start's head; gradients reach `model` alone."""
    fc, model.network.fc = model.network.fc, nn.Identity()
    own, kept = model.train()(x), backbone(start).eval()(x).detach()
    model.network.fc = fc
    if name == "feature_distill":
        return (own - kept).square().sum() / own.numel()
    p, q = start.network.fc(kept).softmax(1).detach(), start.network.fc(own).softmax(1)
    return (p * (p / q).log()).sum() / len(x)


@pytest.mark.parametrize(("name", "field"), [("distill", "distill_weight"), ("feature_distill", "feature_weight")])
@pytest.mark.parametrize(("objective", "wings"), [("trades", "single"), ("at", "split")])
def test_distillation_term_of_a_step(name: str, field: str, objective: str, wings: str) -> None:
    """What a step adds to the loss and the gradients of the same method without the term is weight x the term by hand."""
    x, y = batch()
    found = {}
    for weight in (0.0, 0.3):
        model, start = networks(moved=True)
        run = spec(name, objective=objective, wings=wings, **{field: weight})
        loss = Step(model, run, "cpu", start=start).loss({"clean": x.flip(0), "adversarial": x}, y)[0]
        found[weight] = loss.item(), gradients(loss, model)
    model, start = networks(moved=True)
    halves = [x] if wings == "single" else [x[:4], x[4:]]
    term = sum(term_by_hand(name, model, start, half) * len(half) / len(x) for half in halves)
    extra = gradients(term, model)
    assert term > 1e-3 and found[0.3][0] - found[0.0][0] == pytest.approx(0.3 * term.item(), rel=1e-5)
    close(found[0.3][1], {k: g if extra[k] is None else g + 0.3 * extra[k] for k, g in found[0.0][1].items()})


def test_l2sp_equals_its_penalty_by_autograd() -> None:
    """Three steps with momentum equal those on loss + alpha/2 ||w - start||^2 + decay/2 ||head||^2, written out."""
    alpha, decay, lr = 0.3, 0.1, 0.05
    model = networks()[0]
    hand = copy.deepcopy(model).train()
    start = {k: p.detach().clone() for k, p in hand.named_parameters()}
    step = Step(model, spec("l2sp", objective="natural", l2sp_weight=alpha, optim={"weight_decay": decay}), "cpu")
    with torch.no_grad():
        for p, q in zip(model.parameters(), hand.parameters(), strict=True):
            p.copy_(q.add_(0.1 * torch.randn_like(p)))
    optimizer = torch.optim.SGD(hand.parameters(), lr=lr, momentum=0.9)
    for count in range(3):
        x, y = batch(seed=count)
        step(x, y, count, lr)
        penalty = sum(decay / 2 * p.square().sum() if ".fc." in k else alpha / 2 * (p - start[k]).square().sum()
                      for k, p in hand.named_parameters())
        optimizer.zero_grad()
        (F.cross_entropy(hand(x), y) + penalty).backward()
        optimizer.step()
    close(model, hand, rtol=1e-9, atol=1e-12)


def joint_by_hand(model: nn.Module, start: nn.Module, x: torch.Tensor, y: torch.Tensor, source_x: torch.Tensor,
                  source_y: torch.Tensor, weight: float) -> tuple[torch.Tensor, nn.Module, nn.Module]:
    """(loss, network, source head) of one pass of both kinds of images through one backbone, each kind to its own head."""
    hand, head = copy.deepcopy(model).train(), copy.deepcopy(start.network.fc)
    fc, hand.network.fc = hand.network.fc, nn.Identity()
    features = hand(torch.cat((x, source_x)))
    hand.network.fc = fc
    loss = F.cross_entropy(fc(features[:len(x)]), y) + weight * F.cross_entropy(head(features[len(x):]), source_y)
    return loss, hand, head


def test_joint_loss_with_distillation_by_hand() -> None:
    """CE(target) + weight x CE(source) + weight x distance of the target's features; statistics of one batch of both."""
    (x, y), (source_x, source_y) = batch(8), batch(8, seed=6)
    model, start = networks()
    want, _, _ = joint_by_hand(model, start, x, y, source_x, source_y, 0.3)
    own, kept = backbone(model).train()(torch.cat((x, source_x)))[:8], backbone(start).eval()(x)
    step = Step(model, spec("joint", feature_weight=0.5), "cpu", start=start, source=sources())
    loss, logits, _ = step.loss({"clean": x, "adversarial": x}, y, (source_x, source_y))
    torch.testing.assert_close(loss, want + 0.5 * (own - kept).square().mean(), rtol=1e-6, atol=0)
    assert logits.shape == (8, CLASSES)


def draw(step: Step, n: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return step.retention.draw(n, lambda purpose: train_step.generator("cpu", seed, purpose, count))


def test_joint_step_by_hand() -> None:
    """A step (images not attacked) moves backbone, statistics and both heads as SGD on that loss; the start keeps its head."""
    x, y = batch()
    model, start = networks()
    run = replace(spec("joint", optim={"weight_decay": 0.1}, source={"steps": 0}), attack=AttackSpec(steps=0))
    step = Step(model, run, "cpu", start=start, source=sources())
    source_x, source_y = draw(step, 8, 3)
    loss, hand, head = joint_by_hand(model, start, x, y, source_x.double(), source_y, 0.3)
    optimizer = torch.optim.SGD([*hand.parameters(), *head.parameters()], lr=0.1, momentum=0.9, weight_decay=0.1)
    loss.backward()
    optimizer.step()
    before = copy.deepcopy(start.network.fc)
    torch.testing.assert_close(step(x, y, 3, 0.1)[0], loss.detach(), rtol=1e-6, atol=0)
    close(model, hand, rtol=1e-6)
    close(step.retention.source_head, head, rtol=1e-6)
    assert equal(start.network.fc, before) and not equal(step.retention.source_head, before)


def joint_step(source: DeviceSet | None = None, origin: dict | None = None, augment: str = "none", **changes) -> Step:
    """A step of joint training in float32; `changes` of the source run's attack, `origin` of the source run."""
    run = spec("joint", source=changes)
    run = replace(run, source=replace(run.source, data=replace(run.source.data, augment=augment), **(origin or {})))
    model, start = (n.float() for n in networks())
    return Step(model, run, "cpu", start=start, source=source or sources())


def test_source_images_are_drawn_from_the_source_set() -> None:
    """Each drawn image is one of the set with its own label, with the source run's augmentation, not the target's."""
    source = sources()
    source.train_x.clamp_(min=1)  # so that zeros are borders of a crop
    step, images = joint_step(source, steps=0), to_float(source.train_x)
    x, y = draw(step, 8, 0)
    rows = (images[:, None] == x).flatten(2).all(2).nonzero()
    assert len(rows) == 8 and torch.equal(source.train_y[rows[:, 0]], y[rows[:, 1]])
    again, *others = [draw(step, 8, *key)[1].tolist() for key in ((0,), (1,), (0, 1))]
    assert again == y.tolist() and all(other != again for other in others) and len(draw(step, 3, 0)[1]) == 3
    cropped, _ = draw(joint_step(source, augment="crop", steps=0), 16, 0)
    assert (cropped == 0).any() and cropped.shape == (16, 3, 16, 16)


@pytest.mark.parametrize("eps", [1 / 255, 12 / 255])
def test_source_images_are_attacked_as_in_the_source_run(eps: float) -> None:
    """They stay in the ball of the source run's attack, whether smaller or larger than the target's, and reach its edge."""
    (clean, labels), (x, y) = (draw(joint_step(origin={"method": method(name)}, eps=eps, step_size=eps / 2), 8, 0)
                               for name in ("natural", "at"))
    assert torch.equal(labels, y) and (clean * 255).round().sub(clean * 255).abs().max() < 1e-4  # whole pixel values
    assert (x - clean).abs().max() == pytest.approx(eps, rel=1e-3) and x.min() >= 0 and x.max() <= 1


def test_source_attack_goes_through_the_source_head() -> None:
    """What is attacked is the network in training with the source head in training, in eval mode, after each step anew."""
    step = joint_step(eps=8 / 255, step_size=2 / 255)
    (x, y), (z, _) = batch(dtype=torch.float32), batch(dtype=torch.float32, seed=9)
    step(x, y, 0, 0.1)
    hand = copy.deepcopy(step.model).eval().requires_grad_(False)
    hand.network.fc = copy.deepcopy(step.retention.source_head).requires_grad_(False)
    step.retention.attack.copy.refresh()
    torch.testing.assert_close(step.retention.attack.copy(z), hand(z), rtol=1e-4, atol=1e-4)
    a, g = step.spec.source.attack, lambda: train_step.generator("cpu", 0, "source_attack", 1)
    want = pgd.pgd(hand, z, y, eps=a.eps, step_size=a.step_size, steps=a.steps, generator=g())
    got = step.retention.attack(z, y, g())
    assert ((got - want).abs() > 1e-6).float().mean() < 0.01  # rounding turns the sign of a few tiny gradients
    assert F.cross_entropy(hand(got), y) > F.cross_entropy(hand(z), y)
    assert isinstance(step.retention.attack, train_step.Attacker) and step.model.training


COLOURS = torch.tensor([[250, 30, 30], [30, 250, 30], [30, 30, 250], [240, 240, 20], [20, 240, 240], [240, 20, 240]],
                       dtype=torch.uint8)


def painted(colours: torch.Tensor, per_class: int = 4) -> DeviceSet:
    """Images of one colour per class, with a little noise, in a random order."""
    g = torch.Generator().manual_seed(len(colours))
    y = torch.arange(len(colours)).repeat(per_class)[torch.randperm(len(colours) * per_class, generator=g)]
    x = colours[y][:, :, None, None] + torch.randint(0, 5, (len(y), 3, 16, 16), generator=g, dtype=torch.uint8)
    return DeviceSet(x, y, x[:1], y[:1], x[:1], y[:1], tuple(f"colour {i}" for i in range(len(colours))))


@pytest.mark.parametrize("wanted", [[5], [0, 2, 3]])
def test_nearest_classes_keeps_images_of_similar_classes(wanted: list[int]) -> None:
    """Source classes with the colours of the target's classes are kept, all their images in order and with their labels."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(3, 6)).train()
    model[0].running_mean.fill_(0.5)
    model[3].eval()
    source, before, modes = painted(COLOURS), state(model), [m.training for m in model.modules()]
    kept = nearest_classes(model, source, painted(COLOURS[wanted], 3), len(wanted))
    mask = torch.tensor([label in wanted for label in source.train_y.tolist()])
    assert torch.equal(kept.train_y, source.train_y[mask]) and torch.equal(kept.train_x, source.train_x[mask])
    assert kept.class_names == source.class_names and kept.test_y is source.test_y and len(source.train_y) == 24
    assert equal(model, before) and [m.training for m in model.modules()] == modes


@pytest.mark.parametrize(("name", "missing"), [("distill", "start network"), ("joint", "source images")])
def test_what_a_method_needs_is_asked_for(name: str, missing: str) -> None:
    """Without the start network or the source images the method is refused by name; methods that need none take none."""
    model, start = networks()
    with pytest.raises(ValueError, match=f"expected the {missing} for method '{name}', got None"):
        Step(model, spec(name), "cpu", start=start if missing == "source images" else None)
    assert Step(model, spec("l2sp"), "cpu").retention.draw(8, lambda purpose: None) is None
