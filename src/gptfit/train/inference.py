"""A trained model, ready to write or to be measured."""

from __future__ import annotations

from pathlib import Path

from gptfit.config import RunConfig
from gptfit.formats.hf import load_config, load_model
from gptfit.formats.integrity import MANIFEST, verify
from gptfit.generate import with_weights
from gptfit.model import GPT2
from gptfit.train.device import choose_device


def load_for_inference(folder: Path, device: str, weights: str) -> GPT2:
    """The model of a checkpoint folder, whose files are verified where they have a manifest.

    ``device`` is a word of the recipe's, ``weights`` one of ``generate.weights.WEIGHTS``.
    """
    if (folder / MANIFEST).is_file():
        verify(folder, without="training")
    config = load_config(folder)
    where = choose_device(RunConfig(device=device).device, "float32", config).torch_device
    return with_weights(load_model(folder, where).eval(), weights)
