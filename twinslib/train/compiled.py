"""An attack step compiled by torch, kept where it is measured to be faster."""

import logging
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attack.pgd import input_gradient
from ..nets.fold import FoldedCopy

log = logging.getLogger(__name__)
TURNS = 5  # of each, of which the fastest counts
LEAST = 1.02  # times as fast, below which rounding otherwise is not worth it
ALIKE = 0.99  # least cosine between the gradients; rounding alone stays far above


def compile_if_faster(copy: FoldedCopy, images: Tensor, *, always: bool = False) -> bool:
    """Compile the network that an attack on batches like `images` (B, C, H, W) passes, with CUDA graphs on a GPU; True if that is
    kept.

    It is kept where the gradient comes at least `LEAST` times as fast, compiling not counted, and is the same up to rounding;
    with `always` however fast it is. Where torch cannot compile it (no C++ compiler, an operator it does not know) the copy
    stays as it is. What `refresh` brings in place reaches the compiled network too; one that is copied anew is not compiled.
    """
    plain, labels = copy.network, torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def gradient(network: torch.nn.Module) -> tuple[Tensor, float]:
        copy.network, begun = network, time.perf_counter()
        found = input_gradient(copy, images, labels).clone()
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return found, time.perf_counter() - begun

    kept = plain
    try:
        compiled = torch.compile(plain, dynamic=False, mode="reduce-overhead" if images.is_cuda else None)
        compiled.register_forward_hook(lambda module, args, logits: logits.clone())  # a graph writes the next ones over them
        for _ in range(3):  # compiled by the first, warmed up and captured by the others
            alike = F.cosine_similarity(*(gradient(network)[0].flatten() for network in (plain, compiled)), 0).item()
        turns = [[gradient(network)[1] for network in (plain, compiled)] for _ in range(TURNS)]
        before, after = map(min, zip(*turns, strict=True))
        if alike >= ALIKE and (always or before >= LEAST * after):
            kept = compiled
        log.info("attack compiled: %.2f times as fast, cosine of the gradients %.4f, %s", before / after, alike,
                 "kept" if kept is compiled else "not kept")
    except Exception as error:  # the boundary: whatever a compiler raises, the attack can do without it
        log.warning("the attack is not compiled: %s", next(iter(str(error).splitlines()), type(error).__name__))
    copy.network = kept
    return kept is not plain
