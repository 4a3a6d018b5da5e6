"""Step ``export``: the fine-tuned model as a folder that ``transformers`` loads, checked by loading it.

Output: ``transformers/`` with configuration, weights (the image tokenizer's encoder among them; in shards where they
are large), tokenizer, generation settings and processor; with ``export.original`` also ``original/``, the transformer
in the original layout. The step fails unless ``transformers`` computes the same hidden states and, through ``lm_head``,
the same logits within 1e-4 in float32. Its ``.logits`` cannot be compared: they hide all image codes.

Three lines in a notebook::

    from transformers import AutoProcessor, ChameleonForConditionalGeneration
    model = ChameleonForConditionalGeneration.from_pretrained("transformers")
    processor = AutoProcessor.from_pretrained("transformers", trust_remote_code=True)

That processor is ours, a file of the folder that keeps a user's text text. Without ``trust_remote_code`` it is
``transformers``' own, which takes ``<racm3:break>`` in a text for the begin of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infra.storage import Storage
from infra.store.commit import entry_of_file
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.convert import to_transformers as image_to_transformers
from model.processor import colour, interleave
from model.text_tokenizer.convert import hf_token, hf_tokenizer_files, image_placeholder
from model.transformer.config import TransformerConfig
from model.transformer.convert import to_transformers, transformers_config
from model.transformer.load import meta_transformer, open_weights, read_config
from model.transformer.original import save_original
from model.transformer.tensors import SHARD_BYTES, LazyTensors, save_tensors
from model.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from tasks.artifacts import Tokenizers, load_tokenizers
from tasks.context import StepContext
from tasks.export_check import check_export, check_original

FOLDER, ORIGINAL = "transformers", "original"
VQ_PREFIX = "model.vqmodel."
PROCESSOR = Path(interleave.__file__).with_name("processing_calumma.py")
PROCESSOR_FILES = (PROCESSOR, Path(interleave.__file__), Path(colour.__file__))
"""The processor and what it imports, so that users need no Calumma for it."""


def run(context: StepContext) -> None:
    """Exports, checks and commits the step."""
    recipe, tokenizers, store = context.recipe, load_tokenizers(context.store), context.store()
    finetuned, length = context.store("finetune"), context.recipe.mix.sequence_length
    config, size = read_config(finetuned)
    copies = 2 if recipe.export.original else 1
    store.need(config.parameters(size) * 4 * copies, "the exported model")
    with open_weights(finetuned) as weights:
        folder = store.sub(FOLDER)
        names = export_folder(folder, config, weights, tokenizers, length, int(recipe.export.max_shard_gb * 1e9))
        files = [f"{FOLDER}/{name}" for name in names]
        if recipe.export.original:
            saved = save_original(store.sub(ORIGINAL), config, size, weights)
            files += [f"{ORIGINAL}/{name}" for name in saved]
    facts = {"folder": FOLDER, **check_export(folder, finetuned, tokenizers, length)}
    if recipe.export.original:
        check_original(store.sub(ORIGINAL), finetuned)
        facts["original"] = ORIGINAL
    context.finish(files=[entry_of_file(store, name) for name in sorted(files)], facts=facts)


def export_folder(
    store: Storage,
    config: TransformerConfig,
    weights: Mapping[str, Tensor],
    tokenizers: Tokenizers,
    length: int,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes the folder that ``transformers`` loads; the names of its files.

    Args:
        weights: Ours, asked for one by one: of a lazy mapping one shard at a time is in memory.
        length: The longest context in positions.
    """
    vocabulary, image = tokenizers.vocabulary, tokenizers.image
    theirs = to_transformers(weights, config)
    shapes = {name: tuple(w.shape) for name, w in to_transformers(_meta(config, vocabulary.size), config).items()}
    vq_config, encoder = image_to_transformers(image.config, image.model.state_dict())
    vq = {VQ_PREFIX + name: w for name, w in encoder.items()}
    tensors = LazyTensors(
        {name: partial(theirs.__getitem__, name) for name in shapes} | {n: partial(vq.__getitem__, n) for n in vq}
    )
    shapes |= {name: tuple(w.shape) for name, w in vq.items()}
    documents = {
        "config.json": model_config(config, vocabulary, vq_config, length),
        "generation_config.json": generation_config(vocabulary, length),
        "preprocessor_config.json": image_processor_config(image.config),
        "processor_config.json": processor_config(vocabulary, image.config),
    }
    files = {
        name: (json.dumps(content, indent=1, sort_keys=True) + "\n").encode() for name, content in documents.items()
    }
    files |= {file.name: file.read_bytes() for file in PROCESSOR_FILES}
    files |= hf_tokenizer_files(tokenizers.text)
    for name, data in files.items():
        store.put(name, data)
    return [*files, *save_tensors(store, tensors, shapes, torch.float32, shard_bytes)]


def model_config(
    config: TransformerConfig, vocabulary: Vocabulary, vq_config: dict[str, Any], length: int
) -> dict[str, Any]:
    """The content of ``config.json``."""
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "dtype": "float32",
        **transformers_config(config, vocabulary.size),
        "max_position_embeddings": length,
        # Their configuration defaults to 1 for <s>; in this vocabulary, as in the released tokenizer, it is 0.
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "image_token_id": image_placeholder(vocabulary),
        "boi_token_id": vocabulary.boi,
        "eoi_token_id": vocabulary.eoi,
        "vocabulary_map": {hf_token(vocabulary, i): i for i in range(vocabulary.text_start)},
        "vq_config": vq_config,
    }


def generation_config(vocabulary: Vocabulary, length: int) -> dict[str, Any]:
    """The content of ``generation_config.json``: their ``generate`` writes text only, so pictures are not begun."""
    silent = {BOS, PAD, UNK, vocabulary.boi, vocabulary.eoi, vocabulary.eot, image_placeholder(vocabulary)}
    return {
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "max_length": length,
        "suppress_tokens": sorted(silent),
    }


def image_processor_config(image: ImageTokenizerConfig) -> dict[str, Any]:
    """The content of ``preprocessor_config.json``: as in training x/127.5 - 1, not their default 0.0078·x - 1."""
    side = image.resolution
    return {
        "image_processor_type": "ChameleonImageProcessor",
        "processor_class": "ChameleonProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 1,  # LANCZOS
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 127.5,
        "do_normalize": True,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
        "do_convert_rgb": True,
    }


def processor_config(vocabulary: Vocabulary, image: ImageTokenizerConfig) -> dict[str, Any]:
    """The content of ``processor_config.json``: ours with ``trust_remote_code=True``, else ``transformers``' own."""
    return {
        "processor_class": "ChameleonProcessor",
        "auto_map": {"AutoProcessor": f"{PROCESSOR.stem}.CalummaProcessor"},
        "image_seq_length": image.codes_per_image,
        "text_start": vocabulary.text_start,
    }


def _meta(config: TransformerConfig, size: int) -> dict[str, Tensor]:
    return meta_transformer(config, size).state_dict()
