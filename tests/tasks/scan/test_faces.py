from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tasks.scan.faces import Face, Faces
from tests.tasks.scan.test_examine import look, pair

Box = tuple[float, float, float, float]


def overlap(face: Face, box: Box) -> float:
    """Intersection over union."""
    across = min(face.x + face.width, box[2]) - max(face.x, box[0])
    down = min(face.y + face.height, box[3]) - max(face.y, box[1])
    both = max(0.0, across) * max(0.0, down)
    return both / (face.width * face.height + (box[2] - box[0]) * (box[3] - box[1]) - both)


@pytest.fixture(scope="module")
def portraits(shared_data: Path) -> list[tuple[Path, Box]]:
    """Pictures in which another detector saw one large face and nothing else."""
    records = map(json.loads, (shared_data / "pairs" / "pairs.jsonl").open(encoding="utf-8"))
    found = []
    for record in records:
        faces = record.get("auto_faces_res10ssd") or []
        if len(faces) == 1 and faces[0][4] > 0.98 and faces[0][2] - faces[0][0] > 0.15:
            width, height = record["width"], record["height"]
            x0, y0, x1, y1, _ = faces[0]
            box = (x0 * width, y0 * height, x1 * width, y1 * height)
            found.append((shared_data / "pairs" / record["file"], box))
    return found[:16]


def test_large_faces_are_found_where_they_are(portraits: list[tuple[Path, Box]]) -> None:
    faces = Faces()
    hits = 0
    for path, box in portraits:
        with Image.open(path) as image:
            found = faces.find(image.convert("RGB"))
        assert found == tuple(sorted(found, key=lambda f: f.y))
        hits += any(overlap(face, box) > 0.3 for face in found)
    assert len(portraits) == 16
    assert hits >= 10


def test_boxes_are_of_the_original_and_the_same_every_time(portraits: list[tuple[Path, Box]]) -> None:
    path, _ = portraits[0]
    with Image.open(path) as image:
        small = image.convert("RGB")
    large = small.resize((small.width * 3, small.height * 3), Image.Resampling.BICUBIC)
    one, other = Faces().find(small), Faces().find(small)
    assert one == other
    grown = [f for f in Faces().find(large) if one and overlap(f, _times(one[0], 3)) > 0.6]
    assert not one or grown, "a face of the large picture lies where it lay in the small one"


def test_pictures_without_faces_have_none() -> None:
    assert Faces().find(Image.new("RGB", (400, 300), "white")) == ()
    assert Faces().find(Image.new("RGB", (3, 3000), "white")) == ()


def test_faces_are_recorded_only_where_they_are_asked_for(portraits: list[tuple[Path, Box]]) -> None:
    data = [path.read_bytes() for path, _ in portraits[:6]]
    found = [look(pair("x", data=d), "pairs", faces=True).images[0] for d in data]
    assert any(image.faces for image in found)
    assert all(look(pair("x", data=d), "pairs").images[0].faces == () for d in data[:2])
    row = next(image for image in found if image.faces).row()
    assert set(row["faces"][0]) == {"x", "y", "width", "height"}


def _times(face: Face, factor: int) -> Box:
    x, y, width, height = (value * factor for value in face)
    return x, y, x + width, y + height
