"""The processor of an exported model for ``transformers``: as ``AutoProcessor`` with ``trust_remote_code=True``, or

    from model.processor.processing_calumma import CalummaProcessor
    processor = CalummaProcessor.from_pretrained(folder)

A text is only ever text: pictures stand among the segments of a document or message, never in its words, and the ids
that are theirs are put in after the text is tokenised. ``transformers``' own ChameleonProcessor writes ``<image>`` and
``<racm3:break>`` into the text instead, and then cannot tell them from a user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .colour import FORMATS, too_large, upright_rgb
from .interleave import Interleaver, Layout, Rows

MAX_PIXELS = 178_956_970
"""A picture that declares more is not decoded; the same as ``scan.max_pixels`` where a recipe says nothing."""


class CalummaProcessor(ProcessorMixin):  # type: ignore[misc]
    """Segments and chat messages to ``input_ids``, ``attention_mask`` and ``pixel_values``, and ids to segments.

    What segments and messages are, :class:`Interleaver` says. A picture that comes as codes becomes its ids; any other
    (PIL, array, ``pathlib.Path``) becomes placeholders, which the model fills with the codes of its ``pixel_values``.
    Pictures of PIL and from files are made upright, on white and sRGB as in training; arrays are taken as they are::

        batch = processor([["What is this? ", picture], "A text alone"], padding=True, return_tensors="pt")
        batch = processor.apply_chat_template([{"role": "user", "content": [picture, "What is this?"]}])
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, image_seq_length: int = 1024, text_start: int = 16384
    ) -> None:
        """``image_seq_length`` codes make a picture; text has ids from ``text_start`` on."""
        super().__init__(image_processor, tokenizer)
        self.image_seq_length, self.text_start = image_seq_length, text_start

        def token(attribute: str, name: str) -> int:
            return int(tokenizer.convert_tokens_to_ids(getattr(tokenizer, attribute, None) or name))

        first_code, eoi = token("", "IMGIMGAZ"), token("eoi_token", "<eoss>")
        layout = Layout(
            bos=tokenizer.bos_token_id,
            pad=tokenizer.pad_token_id,
            eos=tokenizer.eos_token_id,
            eot=token("sep_token", "<reserved08706>"),
            boi=token("boi_token", "<racm3:break>"),
            eoi=eoi,
            text_start=text_start,
            image_codes=eoi - first_code,
            codes_per_image=image_seq_length,
            first_code=first_code,
            placeholder=token("image_token", "<image>"),
        )
        self._interleaver = Interleaver(layout, self._encode, self._decode)

    def __call__(  # type: ignore[no-untyped-def]
        self,
        text: Any = None,
        images: Any = None,
        *,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        **kwargs,
    ) -> Any:
        """A batch of documents: a text, or a list of which each is a text or a list of segments.

        Args:
            text: The documents.
            images: Not here: pictures stand among the segments.
            add_bos_token: Begin with ``<s>``.
            add_eos_token: End with ``</s>``, as training documents do.
            kwargs: ``padding`` (True or "longest", "max_length" with ``max_length``, False), ``padding_side``,
                ``return_tensors``.

        Raises:
            ValueError, TypeError: What is no document; nothing is ever cut, so a row longer than ``max_length`` is one.
        """
        if images is not None or text is None:
            raise ValueError(
                "pictures stand among the segments, where they belong: processor([[picture, 'What is this?']]); a text "
                "has no place that stands for one"
            )
        documents = [text] if isinstance(text, str) else text
        rows = self._interleaver.documents(documents, bos=add_bos_token, eos=add_eos_token)
        return self._batch(rows, **kwargs)

    def apply_chat_template(  # type: ignore[no-untyped-def]
        self,
        conversation: Any,
        chat_template: None = None,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        return_dict: bool = True,
        **kwargs,
    ) -> Any:
        """A conversation, or a list of them, as ids; there is no text that stands for one, so it is always tokenised.

        Args:
            conversation: Messages ``{"role": …, "content": a text or a list of segments}``, or a list of such lists.
            chat_template: None: the form of a conversation is fixed.
            tokenize: True.
            add_generation_prompt: The last message must be a question. A question always ends with the end of turn.
            continue_final_message: The last message is an answer that goes on: no ``</s>`` after it.
            return_assistant_tokens_mask: Also ``assistant_masks``: 1 for the ids that fine-tuning counts.
            return_dict: False: the ids alone.
            kwargs: As for calling the processor.

        Raises:
            ValueError, TypeError: What is no conversation, or none that ends as was asked.
        """
        if chat_template is not None or not tokenize:
            raise ValueError("a conversation has one form and no spelling: leave chat_template alone and tokenize=True")
        listed = isinstance(conversation, list | tuple) and bool(conversation)
        conversations = conversation if listed and isinstance(conversation[0], list | tuple) else [conversation]
        rows = self._interleaver.conversations(conversations, open_answer=continue_final_message)
        if add_generation_prompt and any(messages[-1]["role"] == "assistant" for messages in conversations):
            raise ValueError("add_generation_prompt: the last message is the assistant's; there is nothing to answer")
        batch = self._batch(rows, masks=return_assistant_tokens_mask, **kwargs)
        return batch if return_dict else batch["input_ids"]

    def segments(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """The texts and pictures of a row of ids, in order; see :meth:`Interleaver.segments`."""
        return self._interleaver.segments(ids)

    def messages(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """The messages of a conversation's ids; see :meth:`Interleaver.messages`."""
        return self._interleaver.messages(ids)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def _batch(
        self,
        rows: Rows,
        *,
        masks: bool = False,
        padding: bool | str = False,
        max_length: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
    ) -> Any:
        layout, side = self._interleaver.layout, padding_side or self.tokenizer.padding_side
        if padding not in (True, False, "longest", "max_length", "do_not_pad") or side not in ("left", "right"):
            raise ValueError(f"padding is {padding!r} at {side!r}; expected True, 'max_length' or False, left or right")
        if padding == "max_length" and max_length is None:
            raise ValueError("padding to max_length needs max_length")
        longest = max(map(len, rows.ids), default=0)
        if max_length is not None and longest > max_length:
            raise ValueError(f"a row has {longest} ids, max_length is {max_length}; nothing is cut: give less")
        data: dict[str, Any] = {"input_ids": rows.ids, "attention_mask": [[1] * len(row) for row in rows.ids]}
        if masks:
            data["assistant_masks"] = rows.answers
        if padding and padding != "do_not_pad":
            length = max_length if padding == "max_length" and max_length is not None else longest
            fills = {"input_ids": layout.pad}
            data = {k: self._interleaver.padded(v, fills.get(k, 0), length, side) for k, v in data.items()}
        if rows.images:
            pictures = [_opened(image) for image in rows.images]
            data["pixel_values"] = self.image_processor(pictures, return_tensors=return_tensors)["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _opened(image: Any) -> Any:
    """A picture of PIL or from a file as training sees it; ValueError for one that cannot be read or is too large."""
    try:
        if isinstance(image, Path):
            Image.init()  # Pillow itself knows only five formats at first
            with Image.open(image, formats=[f for f in FORMATS if f in Image.OPEN]) as file:
                return _upright(file)
        return _upright(image) if isinstance(image, Image.Image) else image
    except Exception as e:  # a hostile file can make a decoder raise anything
        name = image if isinstance(image, Path) else "a picture"
        raise ValueError(f"{name}: cannot be read as a picture ({e})") from e


def _upright(image: Image.Image) -> Image.Image:
    if fault := too_large(image, MAX_PIXELS):
        raise ValueError(fault)
    return upright_rgb(image)


CalummaProcessor.register_for_auto_class("AutoProcessor")
