"""twins: does adversarial robustness survive fine-tuning?

    tuned = twinslib.fine_tune(network, images, "twins_at")        # any torch classifier, any images
    twinslib.robust_accuracy(tuned, test_images, attack="pgd20")
    twinslib.certify(tuned, test_images, sigma=0.25)
    twinslib.export(tuned, "net.safetensors", images=test_images)  # for whoever has torchvision or timm only
    twinslib.load("03c9501ee176", preset="small")                  # the network of a finished run

They are imported when they are first used, so that `import twinslib` is quick and needs no torch.
"""

import importlib
import sys
import types

__version__ = "0.1.0"
__all__ = ["certify", "export", "fine_tune", "load", "robust_accuracy"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".finished" if name in ("export", "load") else ".api", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """This package, of which `certify` is the function, also once the room of that name has been imported from."""

    @property
    def certify(self) -> object:
        return __getattr__("certify")

    @certify.setter
    def certify(self, room: types.ModuleType) -> None:
        """Python puts a room here when it is imported; `from twinslib.certify import smoothing` finds it all the same."""


sys.modules[__name__].__class__ = _Package
