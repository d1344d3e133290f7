"""What there is to do: training runs, what is measured on them, the tasks that both make, and what became of these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .measure import CertifySpec, EvalSpec
from .run import RunSpec


@dataclass(frozen=True, repr=False)
class Job:
    """A training run and what is measured on it, each measurement once; its sources are runs of their own."""

    study: str
    spec: RunSpec
    evals: tuple[EvalSpec, ...]
    ship: bool = False  # its weights are kept with the results, for others to start from (as those of any run's source are)
    settled: bool = True  # False while runs that choose its hyper-parameters are missing; `spec` then only stands in for it
    certs: tuple[CertifySpec, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()  # what tells it from others of its study, where method and data set do not
    candidates: tuple[RunSpec, ...] = ()  # the runs that choose, where it is not settled

    def __post_init__(self) -> None:
        for name in ("evals", "certs"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))

    def __repr__(self) -> str:
        s, labels = self.spec, "".join(f", {name} {value}" for name, value in self.labels)
        return (f"Job({self.study}{labels}: {s.method.name}, seed {s.seed}, {s.data.name} [{s.hash}], "
                f"{len(self.measurements)} measurements{'' if self.settled else ', waits for its candidates'})")

    @property
    def waits(self) -> bool:
        """For a choice among its candidates; a job that is not settled and has none is never run, but shown where it is done."""
        return not self.settled and bool(self.candidates)

    @property
    def measurements(self) -> tuple[EvalSpec | CertifySpec, ...]:
        """All that is measured on the finished network."""
        return (*self.evals, *self.certs)


Best = Callable[..., RunSpec | None]  # the best of some candidates (`Store.best`), None if one is missing or all diverged
Plan = Callable[..., Sequence[Job]]  # called with best=


@dataclass(frozen=True)
class Task:
    """One piece of work in the queue: train a run, or (with `evaluation`) measure it."""

    spec: RunSpec
    evaluation: EvalSpec | CertifySpec | None = None

    @property
    def name(self) -> str:
        """Hash of the run, and of the measurement if it is one: the name of its files."""
        return self.spec.hash if self.evaluation is None else f"{self.spec.hash}-{self.evaluation.hash}"

    def __str__(self) -> str:
        what = f"method {self.spec.method.name}, seed {self.spec.seed}, {self.spec.data.name} [{self.spec.hash}]"
        if self.evaluation is None:
            return f"train {what}"
        e = self.evaluation
        if e.kind == "certify":
            return f"certify {what}: sigma {e.sigma:g}, at most {e.n:,} draws, {e.images} images"
        return f"evaluate {what}: {e.kind} {e.attack_name} eps {e.eps * 255:.3g}/255 on {e.images} images"


def tasks_of(jobs: Sequence[Job]) -> list[Task]:
    """Every task of the jobs, done or not."""
    return list(dict.fromkeys(Task(job.spec, e) for job in jobs for e in (None, *job.measurements)))


@dataclass
class Report:
    """What a sweep did.

    Args:
        failed: with what went wrong; what needs a run that failed has failed too.
        diverged: with why. Results, not failures: kept, and done.
        waiting: runs whose hyper-parameters are not chosen yet; those of which every candidate diverged never will be, and do
            not count.
    """

    done: list[Task] = field(default_factory=list)
    failed: list[tuple[Task, str]] = field(default_factory=list)
    left: list[Task] = field(default_factory=list)
    diverged: list[tuple[Task, str]] = field(default_factory=list)
    waiting: int = 0

    def add(self, later: "Report") -> None:
        """Go on with what a later sweep of the same store did; what is left is what that one left."""
        for name in ("done", "failed", "diverged"):
            getattr(self, name).extend(getattr(later, name))
        self.left, self.waiting = later.left, later.waiting
