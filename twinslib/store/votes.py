"""Votes of noisy copies, as integers: what is stored of a certification, and radii at any alpha from it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..base.bounds import bound_radius, check_alpha, check_draws
from ..base.certified import ABSTAIN, Certified
from ..base.files import DAMAGED, read_npz, refused, write_npz
from ..base.logits import IMAGES, check_same
from ..base.sequential import Plan

ARRAYS = ("index", "label", "image_crc", "chosen", "pilot", "votes", "draws", "history", "finished", "seconds")


@dataclass(frozen=True, eq=False)
class Votes:
    """Integer counts of N images over C classes, and everything they were drawn with."""

    plan: Plan
    seed: int
    precision: str
    model_hash: str
    noise: str  # how it was made, such as "cpu-64": kind of device and draws per block
    index: np.ndarray  # (N,) int64
    label: np.ndarray  # (N,) int64, -1 if unknown
    image_crc: np.ndarray  # (N,) checksum of the pixels
    chosen: np.ndarray  # (N,) class chosen by the pilot draws, -1 before
    pilot: np.ndarray  # (N, C) their votes
    votes: np.ndarray  # (N, C) votes of the other draws
    draws: np.ndarray  # (N,) how many there are
    history: np.ndarray  # (N, looks) votes for the chosen class at each look, -1 where it was not reached
    finished: np.ndarray  # (N,) whether the plan needs nothing more
    seconds: np.ndarray  # (N,) share of the time
    fingerprint: np.ndarray | None = None  # logits on fixed images, float32 (images, C); None in files of earlier versions

    @property
    def settings(self) -> dict:
        """All that must agree for two files of votes to be parts of one."""
        plan = dataclasses.asdict(self.plan)
        return {**plan, "seed": self.seed, "precision": self.precision, "model_hash": self.model_hash, "noise": self.noise,
                "classes": self.votes.shape[1]}

    def rows(self, selection: np.ndarray) -> "Votes":
        """The images that a mask or an array of positions selects."""
        return dataclasses.replace(self, **{name: getattr(self, name)[selection] for name in ARRAYS})

    def certified(self, alpha: float | None = None) -> Certified:
        """Prediction and radius of each image, each true with probability at least 1 - alpha (see the plan). `alpha`: another one
        than the plan's, chosen before looking; the looks share it in the same way. ValueError: unfinished images (leaving them
        out would select the easy ones), alpha outside (0, 1), or one so small that n draws could never give an answer."""
        if not self.finished.all():
            raise ValueError(f"expected finished images, got {(~self.finished).sum()} of {len(self.finished)} unfinished; call "
                             "collect_votes again with the same file")
        alpha = self.plan.alpha if alpha is None else alpha
        check_alpha(alpha)
        check_draws(self.plan.n, alpha, len(self.plan.looks), self.plan.method)
        radius = bound_radius(self.shares(alpha).low, self.plan.sigma)
        prediction = np.where(radius > 0, self.chosen, ABSTAIN)
        return Certified(self.index, self.label, prediction, radius, self.seconds, self.plan.stop_if_wrong)

    def shares(self, alpha: float | None = None) -> "Shares":
        """How sure the network is of each image under noise: the distribution behind every average.

        After a sequential plan the point estimates are slightly biased, since draws ended when the votes said so; the
        bound is not.
        """
        low = self.plan.bound(self.history, alpha)
        rows, draws = np.arange(len(self.votes)), np.where(self.draws > 0, self.draws, np.nan)
        label = np.where(self.label >= 0, self.votes[rows, np.maximum(self.label, 0)] / draws, np.nan)
        return Shares(np.where(self.chosen >= 0, self.votes[rows, self.chosen] / draws, np.nan), low, label)

    def save(self, path: str | Path, about: Mapping | None = None) -> None:
        """Write everything to an .npz, whole or not at all; `load_votes` gives it back. `about`: what run and certification they
        belong to, and their provenance."""
        arrays = {name: getattr(self, name) for name in (*ARRAYS, "fingerprint") if getattr(self, name) is not None}
        write_npz(Path(path), {"settings": np.array(json.dumps(self.settings)), **arrays}, about or {}, compress=True)


class Shares(NamedTuple):
    """pA, shape (N,): votes for the chosen class over draws, the lower bound of its probability, votes for the label over
    draws; NaN without draws or label."""

    estimate: np.ndarray
    low: np.ndarray
    label: np.ndarray


def load_votes(path: str | Path, about: Mapping | None = None) -> Votes:
    """The votes stored at `path`, checked. `about`: what they must belong to, if the file says anything. FileNotFoundError: no
    such file. ValueError: a damaged or foreign file, or counts that contradict each other, such as votes above n."""
    path = Path(path)
    arrays = read_npz(path, about)
    try:
        settings = json.loads(str(arrays.pop("settings")))
        arrays = {name: arrays[name] for name in (*ARRAYS, "fingerprint") if name in (*ARRAYS, *arrays)}
        classes = settings.pop("classes")
        rest = {name: settings.pop(name) for name in ("seed", "precision", "model_hash", "noise")}
        plan = Plan(**{key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()})
    except DAMAGED as error:
        raise refused(path, "a file of votes", f"another one ({error})") from error
    found = Votes(plan, **rest, **arrays)
    if not _coherent(found, classes):
        raise refused(path, "votes that add up to the draws, at most n,", "counts that do not")
    return found


def _coherent(v: Votes, classes: int) -> bool:
    """Whether counts, draws and looks fit together: no look may hold more votes than were drawn for the class."""
    looks, rows = np.array(v.plan.looks), np.arange(len(v.draws))
    if v.votes.shape != (rows.size, classes) or v.pilot.shape != v.votes.shape or v.history.shape != (rows.size, looks.size) or (
            (v.label >= classes).any() or (v.chosen >= classes).any()):
        return False
    if v.fingerprint is not None and (v.fingerprint.shape != (IMAGES, classes) or not np.isfinite(v.fingerprint).all()):
        return False
    own = v.votes[rows, v.chosen]
    wrong = ((v.votes < 0) | (v.pilot < 0)).any(1) | (v.votes.sum(1) != v.draws) | (v.draws > v.plan.n)
    wrong |= (v.pilot.sum(1) > v.plan.n0) | ((v.history >= 0) != (looks <= v.draws[:, None])).any(1)
    return not (wrong | (v.history > np.minimum(own[:, None], looks)).any(1)).any()


def join_votes(parts: Sequence[Votes]) -> Votes:
    """The votes of disjoint sets of images, drawn in several places with the same settings, as one. ValueError: no parts, another
    sigma, network, plan or seed mixed in, or an image that comes twice."""
    if not parts:
        raise ValueError("expected at least one set of votes, got none")
    for part in parts[1:]:
        _check_same(parts[0], part, "the first part")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS}
    index, times = np.unique(joined["index"], return_counts=True)
    if (times > 1).any():
        raise ValueError(f"expected each image once, got image {index[times > 1][0]} twice")
    return dataclasses.replace(parts[0], **joined)


def blank_votes(plan: Plan, index: np.ndarray, label: np.ndarray, crc: np.ndarray, classes: int, **rest: object) -> Votes:
    """No votes yet; `rest` is the remaining settings of `Votes`."""
    n = len(index)
    return Votes(plan, index=index, label=label.astype(np.int64), image_crc=crc, chosen=np.full(n, -1, np.int64),
                 pilot=np.zeros((n, classes), np.int32), votes=np.zeros((n, classes), np.int32), draws=np.zeros(n, np.int64),
                 history=np.full((n, len(plan.looks)), -1, np.int32), finished=np.zeros(n, bool), seconds=np.zeros(n), **rest)


def continued_votes(fresh: Votes, stored: Votes, name: str) -> Votes:
    """The fresh rows, filled in where `stored` has them, and after them whatever else it has. ValueError: stored with other
    settings, of another network, or another image or label under the same index."""
    _check_same(stored, fresh, name)
    place = {int(index): row for row, index in enumerate(stored.index)}
    old = np.array([place.pop(int(index), -1) for index in fresh.index])
    known = np.flatnonzero(old >= 0)
    for what, differs in (("pixels", fresh.image_crc[known] != stored.image_crc[old[known]]),
                          ("label", (fresh.label[known] != stored.label[old[known]]) & (fresh.label[known] >= 0)
                           & (stored.label[old[known]] >= 0))):
        if differs.any():
            raise ValueError(f"expected image {fresh.index[known[differs.argmax()]]} to have the same {what} as in {name}, got "
                             "others; use another file for other data")
    joined = {}
    for key in ARRAYS:
        value, before = getattr(fresh, key), getattr(stored, key)
        keep = known if key != "label" else known[value[known] < 0]
        value[keep] = before[old[keep]]
        joined[key] = np.concatenate([value, before[list(place.values())]])
    return dataclasses.replace(fresh, **joined)


def _check_same(one: Votes, other: Votes, where: str) -> None:
    """Refuse other settings than those of `one`, and another network."""
    expected, got = (json.loads(json.dumps(votes.settings)) for votes in (one, other))
    differs = [f"{key}: {got.get(key)} here, {expected.get(key)} there" for key in expected if got.get(key) != expected[key]]
    if differs:
        raise ValueError(f"expected the settings of {where}, got others; differs in {'; '.join(differs)}; use another file, and "
                         "never mix votes of two models or noise levels")
    check_same(other.fingerprint, one.fingerprint, one.precision, where)
