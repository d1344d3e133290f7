"""Numbers of others that are shipped with the package, reference/*.csv, where each line names its source."""

import csv
from importlib import resources


def published_network(file: str) -> dict | None:
    """What the publisher of a network says of it: dataset, clean_acc over so many images, source; None if not listed."""
    with (resources.files("twinslib") / "reference" / "networks.csv").open(encoding="utf-8") as lines:
        row = next((row for row in csv.DictReader(lines) if row["file"] == file), None)
    return row and {**row, "clean_acc": float(row["clean_acc"]), "images": int(row["images"])}
