"""Pictures of features in the plane: from made-up clouds whose neighbours are known."""

import numpy as np
import pytest

from twinslib.show.embedding import course_projections, project

N, D = 45, 12
LABELS = np.arange(N) % 3
QUICK = {"seed": 0, "perplexity": 10}


def clouds(spread=0.3, move=0.0):
    """(clean, attacked): three classes around three far corners; attacked images are moved this share of the way to the next."""
    rng = np.random.default_rng(1)
    corners, noise = 10 * np.eye(3, D), spread * rng.normal(size=(2, N, D))
    return corners[LABELS] + noise[0], ((1 - move) * corners[LABELS] + move * corners[(LABELS + 1) % 3]) + noise[1]


@pytest.mark.parametrize("move, agreement", [(0.0, (1.0, 1.0)), (0.9, (1.0, 0.0))])
def test_neighbours(move, agreement):
    """Each image is near its class; attacked ones moved to another class are not, and the plane shows both."""
    p = project(*clouds(move=move), LABELS, **QUICK)
    assert p.agreement == agreement and 0.9 < p.trustworthiness <= 1
    assert p.clean.shape == p.attacked.shape == (N, 2) and p.labels.tolist() == LABELS.tolist()
    centres = np.stack([p.clean[LABELS == c].mean(0) for c in range(3)])
    nearest = np.linalg.norm(p.attacked[:, None] - centres, axis=-1).argmin(1)
    assert (nearest == (LABELS + (move > 0.5)) % 3).all()


def test_the_image_itself_is_left_out():
    """Where each image is its own only neighbour of its class, no image agrees: its copy under attack does not vote for it."""
    clean, _ = clouds()
    labels = np.arange(N)
    assert project(clean, clean, labels, **QUICK).agreement == (0.0, 0.0)


@pytest.mark.parametrize("size, agreement", [(5, 1.0), (3, 0.0)])
def test_majority(size, agreement):
    """Groups of one class in a row of other classes in turn: of the five nearest four or two are of the same."""
    groups = np.repeat(np.arange(N // size), size)
    x = np.random.default_rng(0).normal(size=(N, 2)) * 0.01 + np.stack([groups * 10.0, np.zeros(N)], 1)
    assert project(x, x, groups, **QUICK).agreement == (agreement, agreement)


def test_same_input_same_output():
    """Bit for bit, in half precision too and whatever NumPy's own generator does."""
    features = [x.astype(np.float16) for x in clouds()]
    one = project(*features, LABELS, **QUICK)
    np.random.seed(5)
    two = project(*(x.astype(np.float64) for x in features), LABELS, **QUICK)
    assert (one.clean == two.clean).all() and (one.attacked == two.attacked).all()
    assert (one.trustworthiness, one.agreement) == (two.trustworthiness, two.agreement)


@pytest.mark.parametrize("change, message", [
    ({"attacked": np.ones((N, D + 1))}, r"expected clean and attacked features of shape \(N, d\).*got \(45, 12\), \(45, 13\)"),
    ({"perplexity": 30}, "expected at least 46 images for perplexity 30, got 45; lower it"),
    ({"clean": np.full((N, D), np.nan)}, "expected finite features, got 540 that are not; see whether the run diverged"),
    ({"clean": np.ones((N, D)), "attacked": np.ones((N, D))}, "expected features that differ between images, got the same"),
])
def test_errors(change, message):
    """What a user can get wrong is named, with what to do."""
    clean, attacked = clouds()
    call = {"clean": clean, "attacked": attacked, "labels": LABELS, **QUICK} | change
    with pytest.raises(ValueError, match=message):
        project(**call)


def test_course():
    """One projection for each epoch that was kept, the same as from its features; none for a run that kept none."""
    pairs = [clouds(), clouds(move=0.9)]
    course = {"feature_epoch": np.array([0, 7]), "feature_label": LABELS,
              "features_clean": np.stack([c for c, _ in pairs]), "features_attacked": np.stack([a for _, a in pairs])}
    found = course_projections(course, seed=0)
    assert [epoch for epoch, _ in found] == [0, 7] and [p.agreement[1] for _, p in found] == [1.0, 0.0]
    assert (found[1][1].clean == project(*pairs[1], LABELS, seed=0).clean).all()
    assert course_projections({"epoch": np.arange(3)}, seed=0) == []
