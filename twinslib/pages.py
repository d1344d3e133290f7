"""The page of tables that each notebook leaves behind, as Markdown, from stored results alone."""

from collections.abc import Sequence
from pathlib import Path

from . import claims, compare, public, report, table
from .checkpoint import atomic_write
from .runs import Job, Store


def transfer(store: Store, jobs: Sequence[Job]) -> str:
    """Notebook 01: verdicts, accuracies, differences with their baselines and controls, what was tuned, public numbers."""
    tunes = [job for job in jobs if job.study == "transfer" and not job.ship]
    rows = table.rows(store, tunes)
    found = compare.differences(store, tunes, compare.comparisons(tunes))
    paired = compare.paired_rows(store, tunes, compare.comparisons(tunes))
    begun = paired.groupby(["dataset", "method", "baseline", "seed"])["value"].transform("count") > 0
    main = found.loc[[pair in compare.PAIRS for pair in zip(found["method"], found["baseline"], strict=True)]]
    parts = [
        f"# Robustness transfer, preset {store.preset}",
        "## Claims", report.to_markdown(claims.to_table(claims.judge_all(store, jobs, "01"))),
        "## Accuracy", "In percent.", report.caption(rows), report.to_markdown(report.accuracy_table(rows)),
        "## Differences", "In points, on the same test images. A star: significant at 5 % after correction over data sets.",
        compare.reading(main), report.to_markdown(compare.difference_table(found)),
        "## Differences seed by seed", "Of what is finished; the intervals speak about other test images only.",
        report.to_markdown(compare.paired_table(paired.loc[begun])),
        "## Hyper-parameters chosen on validation images", report.to_markdown(report.tuning_table(store, jobs)),
        "## Next to public numbers",
        f"TWINS-AT minus AT, mean over five data sets: {public.reported()} points. Public re-runs, TWINS-TRADES minus TRADES:",
        report.to_markdown(public.reference_differences()), report.to_markdown(public.reference_table(rows, store, tunes))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write(store: Store, number: str, text: str) -> Path:
    """Write `text` to tables/<number>.md of the store, whole or not at all."""
    path = store.root / "tables" / f"{number}.md"
    atomic_write(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))
    return path
