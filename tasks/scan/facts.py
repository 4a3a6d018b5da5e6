"""What scanning finds out about a sample, and how its tables hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tasks.scan.faces import Face
from tasks.sources.base import RawSample


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of a picture before it is encoded."""

    sha256: bytes
    """Of the file's bytes."""
    phash: int
    """64-bit perceptual hash: DCT of the 32x32 grey picture, its low frequencies against their median."""
    width: int
    height: int
    url: str = ""
    faces: tuple[Face, ...] = ()
    """Where ``scan.faces`` is on."""

    def row(self) -> dict[str, Any]:
        """As the tables of scan and the sample store hold it."""
        return {
            "sha256": self.sha256,
            "phash": self.phash,
            "width": self.width,
            "height": self.height,
            "url": storable(self.url),
            "faces": [face._asdict() for face in self.faces],
        }

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> ImageFacts:
        """What :meth:`row` made."""
        return cls(**{**row, "faces": tuple(Face(**face) for face in row["faces"])})


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a sample, and what was measured on the way."""

    state: str
    """kept, filtered or quarantined."""
    reason: str = ""
    """The filter's name or the error's class."""
    message: str = ""
    held_out: bool = False
    content: bytes = bytes(32)
    """blake2b-256: equal for equal samples. A pair is its picture, whatever its captions say."""
    text_bytes: int = 0
    images: tuple[ImageFacts, ...] = ()
    dropped: tuple[int, ...] = ()
    """Numbers of the pictures that a document goes without, as the source counts them."""
    language: str = ""
    scores: tuple[tuple[str, float], ...] = ()
    near: tuple[int, ...] = ()
    """MinHash bands."""

    def row(self, sample_id: bytes, key: str, file: str, row: int) -> dict[str, Any]:
        """As a row of scan's table."""
        return {
            "sample_id": sample_id,
            "key": storable(key),
            "file": storable(file),
            "row": row,
            "state": self.state,
            "reason": self.reason,
            "held_out": self.held_out,
            "content": self.content,
            "text_bytes": self.text_bytes,
            "images": [image.row() for image in self.images],
            "dropped": list(self.dropped),
            "language": self.language,
            "scores": [{"name": name, "value": value} for name, value in self.scores],
            "near": list(self.near),
        }


def storable(text: str) -> str:
    """The text with whatever UTF-8 cannot hold (a file name that is not UTF-8) written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def without_images(sample: RawSample, numbers: tuple[int, ...]) -> RawSample:
    """The sample with these pictures and the segments that show them taken out, and the others numbered anew."""
    if not numbers:
        return sample
    gone = set(numbers)
    stay = [n for n in range(len(sample.images)) if n not in gone]
    new = {old: place for place, old in enumerate(stay)}
    segments = [
        s if s.image is None else replace(s, image=new[s.image]) for s in sample.segments if s.image not in gone
    ]
    return replace(sample, segments=tuple(segments), images=tuple(sample.images[n] for n in stay))
