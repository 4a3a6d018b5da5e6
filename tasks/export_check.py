"""Whether an exported model is the model: ``transformers`` computes the same, and files read back are the same bits."""

from __future__ import annotations

from typing import Any

import torch

from infra.errors import StepFailed
from infra.storage import Storage
from model.image_tokenizer.load import ImageTokenizer
from model.transformer.foreign_files import find_model
from model.transformer.importing import open_import
from model.transformer.load import load_transformer, open_weights
from model.vocabulary import BOS
from tasks.artifacts import Tokenizers

TOLERANCE = 1e-4
"""Largest difference of a hidden state or logit, float32."""


@torch.inference_mode()
def check_export(store: Storage, finetuned: Storage, tokenizers: Tokenizers, length: int) -> dict[str, Any]:
    """Loads the folder with ``transformers`` and compares; the facts that the report shows.

    One model is in memory at a time: theirs computes first, and is gone when ours, of ``finetuned``, is loaded.

    Raises:
        StepFailed: hidden states or logits differ by more than the tolerance, or its tokenizer gives other ids.
    """
    from transformers import AutoTokenizer, ChameleonForConditionalGeneration

    from model.processor.processing_calumma import CalummaProcessor

    vocabulary = tokenizers.vocabulary
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary.size, (2, min(length, 256)), generator=generator)
    prompt = torch.tensor([[BOS, *tokenizers.text.encode("A red")]])
    with store.on_disk(store.list()) as folder:  # as from_pretrained wants it
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = CalummaProcessor.from_pretrained(folder)
        theirs = ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        other = theirs.model(input_ids=tokens)[0]
        their_logits = theirs.lm_head(other)
        codes = equal_codes(theirs, tokenizers.image)
        generated = theirs.generate(prompt, do_sample=False, max_new_tokens=16, max_length=None)
        del theirs
    ours = load_transformer(finetuned).float()
    mine = ours(tokens)
    hidden = float((mine - other).abs().max())
    logits = float((ours.logits(mine) - their_logits).abs().max())
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
    written = generated[0, prompt.shape[1] :].tolist()
    return {
        "max_abs_diff_hidden": hidden,
        "max_abs_diff_logits": logits,
        "max_abs_diff": max(hidden, logits),
        "positions_compared": tokens.numel(),
        "equal_codes": codes,
        "generated": {"prompt": "A red", "text": tokenizers.text.decode(written)},
        "bytes": sum(store.size(name) for name in store.list()),
    }


def equal_codes(theirs: Any, image: ImageTokenizer) -> float:
    """Share of codes of random pictures in which their image tokenizer and ours agree."""
    side = image.config.resolution
    # Smooth pictures: noise would put every latent between two codes.
    small = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pictures_BCHW = torch.nn.functional.interpolate(small * 255, side, mode="bilinear").to(torch.uint8)
    codes_BN = theirs.model.vqmodel.encode(pictures_BCHW.float() / 127.5 - 1).image_tokens.view(8, -1)
    return float((codes_BN == image.encode(pictures_BCHW)).float().mean())


def check_original(store: Storage, finetuned: Storage) -> None:
    """StepFailed unless the folder in the original layout, read back, holds the same bits."""
    with open_import(find_model(store.root)) as found, open_weights(finetuned) as weights:
        for name in weights:
            if not torch.equal(found.weights[name], weights[name]):
                raise StepFailed(f"export: {name} differs after a round trip; a fault in model/transformer/original.py")
