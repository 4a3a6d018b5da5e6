"""Step ``export``: the fine-tuned model as a folder that ``transformers`` loads, checked by loading it.

Output: ``transformers/`` with configuration, weights (the image tokenizer's encoder among them), tokenizer, generation
settings and processor. The step fails unless ``transformers`` computes the same hidden states and, through ``lm_head``,
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
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from infra.errors import StepFailed
from infra.store.commit import entry
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.convert import to_transformers as image_to_transformers
from model.image_tokenizer.load import ImageTokenizer
from model.processor import colour, interleave
from model.text_tokenizer.convert import hf_token, hf_tokenizer_files, image_placeholder
from model.transformer.convert import to_transformers, transformers_config
from model.transformer.load import load_transformer
from model.transformer.model import Transformer
from model.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from tasks.artifacts import Tokenizers, load_tokenizers
from tasks.context import StepContext

FOLDER = "transformers"
TOLERANCE = 1e-4
"""Largest difference of a hidden state or logit, float32."""
VQ_PREFIX = "model.vqmodel."
PROCESSOR = Path(interleave.__file__).with_name("processing_calumma.py")
PROCESSOR_FILES = (PROCESSOR, Path(interleave.__file__), Path(colour.__file__))
"""The processor and what it imports, so that users need no Calumma for it."""


def run(context: StepContext) -> None:
    """Exports, checks and commits the step."""
    tokenizers, store = load_tokenizers(context.store), context.store()
    transformer = load_transformer(context.store("finetune"))
    length = context.recipe.mix.sequence_length
    files = export_files(transformer, tokenizers, length)
    facts = check_export(files, transformer, tokenizers, length)
    store.need(sum(map(len, files.values())), "the exported model")
    for name, data in sorted(files.items()):
        store.put(f"{FOLDER}/{name}", data)
    context.finish(files=[entry(f"{FOLDER}/{name}", files[name]) for name in sorted(files)], facts=facts)


def export_files(transformer: Transformer, tokenizers: Tokenizers, length: int) -> dict[str, bytes]:
    """The folder's files by name; ``length`` is the longest context in positions."""
    from safetensors.torch import save

    vocabulary, image = tokenizers.vocabulary, tokenizers.image
    weights = {name: w.float() for name, w in to_transformers(transformer.state_dict(), transformer.config).items()}
    vq_config, encoder = image_to_transformers(image.config, image.model.state_dict())
    weights |= {VQ_PREFIX + name: w.float().contiguous() for name, w in encoder.items()}
    documents = {
        "config.json": model_config(transformer, vocabulary, vq_config, length),
        "generation_config.json": generation_config(vocabulary, length),
        "preprocessor_config.json": image_processor_config(image.config),
        "processor_config.json": processor_config(vocabulary, image.config),
    }
    files = {
        name: (json.dumps(content, indent=1, sort_keys=True) + "\n").encode() for name, content in documents.items()
    }
    files |= {file.name: file.read_bytes() for file in PROCESSOR_FILES}
    files["model.safetensors"] = save({k: weights[k] for k in sorted(weights)}, metadata={"format": "pt"})
    return files | hf_tokenizer_files(tokenizers.text)


def model_config(
    transformer: Transformer, vocabulary: Vocabulary, vq_config: dict[str, Any], length: int
) -> dict[str, Any]:
    """The content of ``config.json``."""
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "dtype": "float32",
        **transformers_config(transformer.config, transformer.vocabulary_size),
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


@torch.inference_mode()
def check_export(
    files: dict[str, bytes], transformer: Transformer, tokenizers: Tokenizers, length: int
) -> dict[str, Any]:
    """Loads the files with ``transformers`` and compares; the facts that the report shows.

    Raises:
        StepFailed: hidden states or logits differ by more than the tolerance, or its tokenizer gives other ids.
    """
    from transformers import AutoTokenizer, ChameleonForConditionalGeneration

    from model.processor.processing_calumma import CalummaProcessor

    vocabulary = tokenizers.vocabulary
    with _folder(files) as folder:
        theirs = ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = CalummaProcessor.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary.size, (2, min(length, 256)), generator=generator)
    ours = transformer.float()
    mine, other = ours(tokens), theirs.model(input_ids=tokens)[0]
    hidden = float((mine - other).abs().max())
    logits = float((ours.logits(mine) - theirs.lm_head(other)).abs().max())
    if not max(hidden, logits) <= TOLERANCE:
        raise StepFailed(
            f"export: transformers' hidden states differ from ours by {hidden:.2e} and its logits by {logits:.2e}; at "
            f"most {TOLERANCE:g} was expected. This is a fault in model/transformer/convert.py; nothing was committed."
        )
    text = "What is this? A red apple, 42 <racm3:break>"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if ids != tokenizers.text.encode(text):
        raise StepFailed(
            "export: transformers' tokenizer gives other ids. This is a fault in model/text_tokenizer/convert.py"
        )
    document = [text, [vocabulary.image_codes - 1] * tokenizers.codes_per_image, "<image>"]
    if processor([document])["input_ids"] != tokenizers.interleaver().documents([document]).ids:
        raise StepFailed("export: the exported processor gives other ids. This is a fault in model/processor")
    prompt = torch.tensor([[BOS, *tokenizers.text.encode("A red")]])
    written = theirs.generate(prompt, do_sample=False, max_new_tokens=16, max_length=None)[
        0, prompt.shape[1] :
    ].tolist()
    return {
        "folder": FOLDER,
        "max_abs_diff_hidden": hidden,
        "max_abs_diff_logits": logits,
        "max_abs_diff": max(hidden, logits),
        "positions_compared": tokens.numel(),
        "equal_codes": equal_codes(theirs, tokenizers.image),
        "generated": {"prompt": "A red", "text": tokenizers.text.decode(written)},
        "bytes": sum(map(len, files.values())),
    }


def equal_codes(theirs: Any, image: ImageTokenizer) -> float:
    """Share of codes of random pictures in which their image tokenizer and ours agree."""
    side = image.config.resolution
    # Smooth pictures: noise would put every latent between two codes.
    small = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pictures_BCHW = torch.nn.functional.interpolate(small * 255, side, mode="bilinear").to(torch.uint8)
    codes_BN = theirs.model.vqmodel.encode(pictures_BCHW.float() / 127.5 - 1).image_tokens.view(8, -1)
    return float((codes_BN == image.encode(pictures_BCHW)).float().mean())


@contextmanager
def _folder(files: dict[str, bytes]) -> Iterator[Path]:
    """The files in a temporary folder, as ``from_pretrained`` wants them."""
    folder = Path(tempfile.mkdtemp(prefix="calumma-export-"))
    try:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
