"""How far the stored statistics of batch norms are from those of noisy images, measured on finished networks."""

import io
from collections.abc import Sequence

import pandas as pd

from ..base.files import atomic_write
from ..specs.jobs import Job
from ..store.statistics import STATISTICS, statistics, statistics_path
from ..studies.smoothing import CROSSED, cell_of
from ..train import noise
from .networks import Networks


def measure_statistics(networks: Networks, jobs: Sequence[Job], sigmas: Sequence[float], images: int) -> pd.DataFrame:
    """Measure `noise.mismatch` on the first test images for every batch-norm network of `jobs`, start networks on their own
    test images, whose weights are at hand, and keep it in rows/statistics.csv; what is there is not measured again."""
    store, frame = networks.store, statistics(networks.store)
    known = set(zip(frame["run"], frame["sigma"], frame["images"], strict=True))
    lines = []
    for job in jobs:
        spec, labels = job.spec, dict(job.labels)
        if "pretraining" not in labels or labels["pretraining"] == CROSSED or spec.model.norm != "batch":
            continue
        if not job.settled or store.run(spec) is None or store.weights_path(spec) is None:
            continue
        data = networks.data(spec.data)
        left = [s for s in sigmas if (spec.hash, s, min(images, len(data.test_x))) not in known]
        model = networks.trained(spec).eval() if left else None
        for sigma in left:
            x = data.test_x[:images]
            name = str(cell_of(job)) if cell_of(job) else f"{labels['pretraining']}/-/{labels['norm']}"
            lines += [[spec.hash, spec.data.name, name, spec.seed, sigma, len(x), layer, *values.values()]
                      for layer, values in noise.mismatch(model, x, sigma).items()]
    if lines:
        fresh = pd.DataFrame(lines, columns=STATISTICS)
        frame = pd.concat([frame, fresh], ignore_index=True) if len(frame) else fresh
        text = frame.to_csv(index=False)
        path = statistics_path(store)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda tmp: tmp.write_text(text))
        frame = pd.read_csv(io.StringIO(text))
    return frame
