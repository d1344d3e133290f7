"""The page of tables that each notebook leaves behind, as Markdown, from stored results alone."""

from collections.abc import Sequence
from pathlib import Path

from ..base import markdown
from ..base import markdown as base_markdown
from ..base.files import atomic_write
from ..claims import ledger
from ..evidence import cells, course, networks, pairs, public
from ..evidence import rows as evidence_rows
from ..specs import labels
from ..store.jobs import Job
from ..store.store import Store
from ..studies import finetuning, smoothing
from . import (
    aft_tables,
    by_rate,
    level_tables,
    norm_tables,
    origins,
    overfit_tables,
    rate_tables,
    smoothing_tables,
    tables,
)


def transfer(store: Store, jobs: Sequence[Job]) -> str:
    """Notebook 01: verdicts, accuracies, differences with their baselines and controls, what was tuned, public numbers."""
    tunes = [job for job in jobs if job.study == "transfer" and not job.ship]
    rows = evidence_rows.rows(store, tunes)
    found = pairs.differences(store, tunes, pairs.comparisons(tunes), ledger.standing(store, jobs, "01"))
    paired = pairs.paired_rows(store, tunes, pairs.comparisons(tunes))
    begun = paired.groupby(["dataset", "method", "baseline", "seed"])["value"].transform("count") > 0
    parts = [
        f"# Robustness transfer, preset {store.preset}",
        "## Claims", markdown.to_markdown(ledger.to_table(ledger.judge_all(store, jobs, "01"))),
        "## Accuracy", "In percent.", tables.caption(rows), markdown.to_markdown(tables.accuracy_table(rows)),
        "## Differences", "In points, on the same test images; comparisons that are judged, of the runs that count. A star: "
        "significant at 5 % after correction over data sets, of what is judged also over clean and robust accuracy.",
        markdown.to_markdown(tables.difference_table(found)),
        "## Differences seed by seed", "Of what is finished; the intervals speak about other test images only.",
        markdown.to_markdown(tables.paired_table(paired.loc[begun])),
        "## Hyper-parameters chosen on validation images", markdown.to_markdown(origins.tuning_table(store, jobs)),
        "## Next to public numbers",
        f"TWINS-AT minus AT, mean over five data sets: {public.reported()} points. Public re-runs, TWINS-TRADES minus TRADES:",
        markdown.to_markdown(public.reference_differences()), markdown.to_markdown(public.reference_table(rows, store, tunes))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def rates(store: Store, jobs: Sequence[Job]) -> str:
    """Notebook 02: verdicts, accuracy against the learning rate, effective rates and their ratios, gradients of the wings, drift,
    leaving the start."""
    found, steps = course.finished(store, jobs), by_rate.frame(store, jobs)
    parts = [
        f"# Effective learning rate, preset {store.preset}",
        "## Claims", markdown.to_markdown(ledger.to_table(ledger.judge_all(store, jobs, "02"))),
        "## Accuracy against the learning rate", "Clean / robust in percent, means over the seeds in brackets.",
        markdown.to_markdown(rate_tables.accuracy_table(steps)),
        "## Rates", "Medians over convolutions of means over recorded steps; means over seeds with 95 % intervals (Student).",
        markdown.to_markdown(rate_tables.rate_table(found)),
        "## Ratios", "Geometric means over seeds with 95 % intervals (Student, of the logarithms).",
        markdown.to_markdown(rate_tables.ratio_table(found)),
        "## Wings", "Medians over convolutions.", markdown.to_markdown(rate_tables.wing_table(found)),
        "## Drift", "Of the means after the last epoch, in standard deviations of the start; mean over layers and seeds.",
        markdown.to_markdown(rate_tables.drift_table(found)),
        "## Leaving the start", "PGD loss on fixed training images, in nats, after each epoch; 95 % intervals over seeds.",
        markdown.to_markdown(rate_tables.loss_table(found)),
        "Epochs until the training loss falls below the threshold (half of the way to AT's lowest).",
        markdown.to_markdown(rate_tables.time_table(found))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def overfitting(store: Store, jobs: Sequence[Job]) -> str:
    """Notebook 03: verdicts, best and last epochs with gaps, differences of gaps, schedules, random start and plateaus."""
    found = course.finished(store, jobs)
    parts = [
        f"# Robust overfitting, preset {store.preset}",
        "## Claims", markdown.to_markdown(ledger.to_table(ledger.judge_all(store, jobs, "03"))),
        "## Best and last", overfit_tables.caption(found),
        markdown.to_markdown(overfit_tables.best_last_table(found, jobs)),
        "## Differences of gaps", "In points, on the same test images and seeds; below 0 the first method overfits less.",
        markdown.to_markdown(overfit_tables.difference_table(found, jobs)),
        "## Schedules", markdown.to_markdown(overfit_tables.schedule_table(found, jobs)),
        "## From random weights", markdown.to_markdown(overfit_tables.scratch_table(found, jobs)),
        "## Plateaus", "Public runs.",
        markdown.to_markdown(overfit_tables.public_plateaus())]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def norms_under_noise(store: Store, jobs: Sequence[Job]) -> str:
    """Notebook 04: verdicts, start networks, certified accuracy of every cell at each noise level, losses, mismatches."""
    found = cells.finished(store, jobs)
    frame, parts = smoothing_tables.estimates(found), ["# Noise in pre-training and the norm, preset " + store.preset]
    parts += _certified_parts(store, jobs, "04")
    for sigma in _levels(jobs):
        parts += [f"## Certified at σ {sigma:g}", markdown.to_markdown(smoothing_tables.certified_table(frame, store, jobs, sigma))]
    for dataset in _targets(jobs):
        losses = norm_tables.losses(found, dataset, level_tables.levels(jobs))
        parts += [f"## Lost by clean fine-tuning, {labels.dataset_label(dataset)}", markdown.to_markdown(norm_tables.loss_table(losses))]
    mismatch = norm_tables.shown_statistics(store, jobs)
    parts += ["## Mismatch of statistics", "Means over layers, first seed.",
              markdown.to_markdown(norm_tables.mismatch_table(mismatch))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def certified_curves(store: Store, jobs: Sequence[Job]) -> str:
    """Notebook 05: verdicts, certified accuracy of every cell, one network against several, strength, abstention, costs, networks
    of notebook 01, public numbers."""
    found = cells.finished(store, jobs)
    frame, parts = smoothing_tables.estimates(found), ["# One network for all noise levels, preset " + store.preset]
    parts += _certified_parts(store, jobs, "05")
    for sigma in _levels(jobs):
        parts += [f"## Certified at σ {sigma:g}", markdown.to_markdown(smoothing_tables.certified_table(frame, store, jobs, sigma))]
    levels, first = level_tables.levels(jobs), _targets(jobs)[0]
    best, strength = (level_tables.envelope_table(found, first, levels), level_tables.strengths(frame, jobs))
    parts += ["## One network against one for each level", markdown.to_markdown(best),
              "## Strength of clean fine-tuning", markdown.to_markdown(level_tables.strength_table(strength)),
              "## Abstention", markdown.to_markdown(level_tables.confidence_table(found, first, levels)),
              markdown.to_markdown(level_tables.abstention_table(frame)),
              "## Cost", "Image passes; a training pass counts as three.",
              markdown.to_markdown(level_tables.cost_table(store, found, first, levels)),
              "## Networks of notebook 01",
              markdown.to_markdown(level_tables.crossed_table(frame, jobs)),
              "## Next to public numbers", markdown.to_markdown(level_tables.public_table(frame, jobs, first))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def adversarial_finetuning(store: Store, jobs: Sequence[Job]) -> str:
    """Notebook 06: verdicts, accuracy and cost against rivals, start networks, schedules, less data, widths, threats, checks."""
    found = networks.finished(store, jobs)
    frame, markdown = networks.frame(found), base_markdown.to_markdown
    parts = [f"# Adversarial fine-tuning, preset {store.preset}",
             "## Claims", markdown(ledger.to_table(ledger.judge_all(store, jobs, "06"))),
             "## Accuracy and cost", aft_tables.caption(frame)]
    for d in labels.unique(job.spec.data.name for job in jobs if job.study == finetuning.STUDY):
        parts += [f"### {labels.dataset_label(d)}", markdown(aft_tables.accuracy_table(frame, d, jobs)),
                  markdown(aft_tables.difference_table(found, d)), markdown(aft_tables.cost_table(frame, d)),
                  "#### Start networks", markdown(aft_tables.starts_table(found, d)),
                  "#### Schedules", "Validation accuracy: clean / PGD, by learning rate.",
                  markdown(aft_tables.schedule_table(store, jobs, frame, d)),
                  "#### Less data, other widths", markdown(aft_tables.data_width_table(frame, d, jobs)),
                  markdown(aft_tables.data_width_differences(found, d, jobs)),
                  "#### Threats", markdown(aft_tables.threat_table(frame, d))]
    parts += ["## Catastrophic overfitting", markdown(aft_tables.collapse_table(store, jobs)),
              "## Checks", "\n".join(f"- {what}: {'yes' if holds else 'no'}" for what, holds in aft_tables.sanity(found).items())]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _certified_parts(store: Store, jobs: Sequence[Job], number: str) -> list[str]:
    frame = smoothing_tables.estimates(cells.finished(store, jobs))
    return ["## Claims", markdown.to_markdown(ledger.to_table(ledger.judge_all(store, jobs, number))),
            "## Setting", smoothing_tables.certifications(jobs), markdown.to_markdown(smoothing_tables.settings(jobs)),
            "## Start networks", markdown.to_markdown(smoothing_tables.sources_table(store, jobs)),
            "## Certified accuracy", smoothing_tables.caption(frame)]


def _levels(jobs: Sequence[Job]) -> list[float]:
    """Noise levels of the grid's own networks."""
    return sorted({p.certification.sigma for p in cells.planned(jobs) if p.cell.pretraining != smoothing.CROSSED})


def _targets(jobs: Sequence[Job]) -> list[str]:
    return labels.unique(p.dataset for p in cells.planned(jobs))


def page(store: Store, number: str, jobs: Sequence[Job]) -> str:
    """All tables of notebook `number`, with the precision that its rows were computed in under the title."""
    title, _, rest = PAGES[number](store, jobs).partition("\n\n")
    return f"{title}\n\nRuns {origins.computed_in(store, jobs)}; accuracies are measured in float32.\n\n{rest}"


def write(store: Store, number: str, jobs: Sequence[Job]) -> Path:
    """Write the page of notebook `number` to tables/<number>.md of the store, whole or not at all."""
    path = store.root / "tables" / f"{number}.md"
    text = page(store, number, jobs)
    atomic_write(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))
    return path


PAGES = {"01": transfer, "02": rates, "03": overfitting, "04": norms_under_noise, "05": certified_curves,
         "06": adversarial_finetuning}  # by notebook
