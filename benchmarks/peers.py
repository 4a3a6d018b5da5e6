"""Other projects' readers, imported without what they need for other things than reading tokens.

``pip install --no-deps mosaicml-streaming==0.13.0 megatron-core==0.16.1``: by their own lists the first asks for
torchvision, three clouds' clients and an older numpy, and none of them is used to read a folder.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
import warnings
from typing import Any


def streaming() -> Any:
    """The package ``streaming``. It imports torchvision for its picture sets; a stand-in serves while it does."""
    import transformers.feature_extraction_utils  # noqa: F401 - it looks for torchvision too, and must not find this one

    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    made = {name: types.ModuleType(name) for name in names if name not in sys.modules}
    for name, module in made.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for name in ("VisionDataset", "CIFAR10", "ImageFolder"):
        setattr(made.get("torchvision.datasets"), name, object)
    setattr(made.get("torchvision.transforms.functional"), "to_tensor", None)  # noqa: B010 - made has no such field
    sys.modules |= made
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import streaming as found
    finally:
        for name in made:
            del sys.modules[name]
    return found


def megatron_indexed() -> Any:
    """megatron-core's class ``IndexedDataset``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.indexed_dataset import IndexedDataset
    return IndexedDataset
