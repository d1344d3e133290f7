"""Source networks that ship with the presets, for studies of one's own: what is there need not be trained again."""

import logging
import shutil
from collections.abc import Sequence

from ..base import paths
from ..base.files import atomic_write
from ..specs.jobs import Job
from .store import Store

log = logging.getLogger(__name__)


def take(store: Store, jobs: Sequence[Job]) -> list[str]:
    """Copy the pre-trained networks that `jobs` ask for, the store lacks and the repository ships, with their records and masks;
    returns their hashes. The record comes last, so that one that is there is whole."""
    taken = []
    for spec in dict.fromkeys(job.spec for job in jobs if job.ship and store.run(job.spec) is None):
        weights = next(iter(sorted(paths.shipped_dir().glob(f"*/weights/{spec.hash}.safetensors"))), None)
        root = weights and weights.parents[1]
        if root is None or root == store.root or (record := Store(root.name, root=root).run(spec)) is None:
            continue
        files = [*root.glob(f"masks/{spec.hash}*"), *root.glob(f"weights/{spec.hash}*"), root / f"splits/{record['split']}.npz"]
        for file in (*files, root / f"runs/{spec.hash}.json"):
            if not (to := store.root / file.relative_to(root)).exists():
                atomic_write(to, lambda tmp, file=file: shutil.copyfile(file, tmp))
        log.info("start network %s is that of %s", spec.hash, root.name)
        taken.append(spec.hash)
    return taken
