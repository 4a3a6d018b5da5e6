"""Every file of the robustness set becomes a sample or a named error, in one process within the stated memory.

What is expected of a file was decided by looking at it: at its header, at the picture, and at what its name says of
the decoder bug it was made for. What is not listed here is a good picture.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
MAX_PIXELS = 24_000_000  # the largest good picture has just these
PROGRAM_BYTES = 256 << 20  # as docs/pictures.md states: the interpreter with its libraries
BYTES_PER_PIXEL = 40  # as docs/pictures.md states

GREEDY_SIDE = 1600

PEAK = """
def peak():  # of this program; what getrusage says may be that of the process that started it
    from pathlib import Path
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
"""

REFUSED: dict[str, tuple[str, ...]] = {
    "not-an-image": ("Pillow__hopper.spider",),  # bare floats, no signature to know it by
    "bomb": (
        "Pillow__decompression_bomb.gif",
        "Pillow__decompression_bomb.ico",
        "Pillow__png_decompression_dos.png",  # a text chunk that inflates
        "Pillow__l2rgb_read.bmp",  # 57 bytes that declare 3158064x48
        "image__Bad_unusual_extend_buffer_usage.bmp",  # 253 bytes that declare 2554x18803
    ),
    "truncated": (
        "Pillow__balloon_eciRGBv2_aware.jp2",  # 7 kB of 2717x3701
        "Pillow__shortfile.bmp",
        "Pillow__truncated_image.png",
        "Pillow__truncated_jpeg.jpg",
        "image__rle_overflow.bmp",
        "osbooks-anatomy-physiology__openstax_lungs.jpg",
    ),
    "corrupt": (
        "Pillow__00r1_graya_la.jp2",
        "Pillow__badpalettesize.bmp",
        "Pillow__broken.png",
        "Pillow__crash-4f085cc12ece8cde18758d42608bed6a2a2cfb1c.tif",
        "Pillow__crash-63b1dffefc8c075ddc606c0a2f5fdc15ece78863.tif",
        "Pillow__pal8oversizepal.bmp",
        "Pillow__syntax_num_frames_zero.png",  # no pixels at all
        "Pillow__unknown_compression_method.png",
        "Pillow__zero_width.gif",
        "image__Bad_clrsUsed.bmp",
    ),
    "unsupported": (
        # Formats that are not on the list.
        *("Pillow__bgr15.dds", "Pillow__uncompressed_la.dds", "Pillow__blp2_dxt1a.blp", "Pillow__hopper.xpm"),
        "Pillow__timeout-8073b430977660cdd48d96f6406ddfd4114e69c7.blp",
        *("Pillow__hopper_palette_chunk_second.fli", "Pillow__initial.fli", "Pillow__mask_L.cur"),
        *("Pillow__psd-oob-write-x.psd", "Pillow__sunraster.im1"),
        *(f"debian-handbook__{n}.svg" for n in (1, 10, 11, 12)),
        # Floats, of which nothing says what is white.
        *("Pillow__hopper.pfm", "Pillow__hopper_be.pfm", "python3-skimage__multipage_rgb.tif"),
        *("image__image1.hdr.tiff", "image__rgbr4x4.hdr.tiff", "image__scale.hdr.tiff"),
        # Five channels; and BMP's rarer headers, bit fields and compressions.
        "image__TODO_hpredict_cmyk.tiff",
        *("Pillow__badheadersize.bmp", "Pillow__pal8os2v2-16.bmp", "Pillow__rgb16-231.bmp", "Pillow__rgb32bf.bmp"),
        *("Pillow__rgb24jpeg.bmp", "Pillow__rgb24png.bmp", "Pillow__rgba16-4444.bmp", "image__rgb24rle24.bmp"),
        *("image__V3_A4_R4_G4_B4_Top_Down.bmp", "image__rgb32-111110.bmp", "image__rgba32-61754.bmp"),
    ),
}

ALIKE: tuple[tuple[str, ...], ...] = (
    tuple(f"Pillow__g4_orientation_{n}.tif" for n in (2, 3, 4, 5, 7, 8)),
    (
        *(f"Pillow__hopper_orientation_{n}.webp" for n in (2, 3, 5, 6, 7)),
        *("Pillow__hopper_orientation_3.jpg", "Pillow__hopper_orientation_7.jpg", "Pillow__hopper.qoi"),
        *("Pillow__hopper.Lab.tif", "Pillow__hopper16.rgb", "Pillow__hopper_webp_write.ppm", "Pillow__hopper.gif"),
        "Pillow__hopper-missing-pixi.avif",
    ),
    ("Pillow__pil_sample_cmyk.jpg", "Pillow__tiff_tiled_cmyk_jpeg.tif", "Pillow__tiff_strip_cmyk_jpeg.tif"),
    ("Pillow__16_bit_binary.pgm", "Pillow__16_bit_binary_pgm.tiff"),
    ("Pillow__icc_profile.png", "Pillow__icc_profile.avif"),
    ("image__lossy_alpha.webp", "image__lossy_alpha.webp.png"),
    ("Pillow__rgb_trns_ycbc.jp2", "Pillow__rgb_trns_ycbc.j2k"),
    (
        "Pillow__16bit.cropped.jp2",
        "Pillow__16bit.cropped.j2k",
        "Pillow__16bit.deflate.tif",
        "Pillow__16bit.MM.cropped.tif",
    ),
)
"""Files of one picture, in several formats, modes and orientations."""

CHILD = """
import json, resource, sys
from pathlib import Path
import numpy as np
from tasks.encode.decode import ImageError, open_image
from tasks.encode.transforms import transform

max_pixels, allowed = int(sys.argv[2]), int(sys.argv[3])
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + allowed, mapped + allowed))
for path in sorted(Path(sys.argv[1]).iterdir()):
    data, answer = path.read_bytes(), {"file": path.name}
    try:
        image = open_image(data, max_pixels)
        answer |= {"size": image.size, "small": np.asarray(image.resize((8, 8))).ravel().tolist()}
    except ImageError as e:
        answer["open"] = e.error_class
    for name in ("reference-1", "fast-1"):
        for way in ("crop_file", "pad_file"):
            try:
                square = getattr(transform(name), way)(data, 256, max_pixels)
                answer[f"{name} {way}"] = [*square.shape, str(square.dtype), round(float(square.mean()), 1)]
            except ImageError as e:
                answer[f"{name} {way}"] = e.error_class
    print(json.dumps(answer))
print(json.dumps({"peak": peak()}))
"""


GREEDY = """
import io, sys
import numpy as np
from PIL import Image
from tasks.encode.transforms import transform

def files(side):
    ramp = np.add.outer(np.arange(side), np.arange(side)) // 5
    bands = np.stack([ramp % 256, 255 - ramp % 256, ramp % 97, 128 + ramp % 128], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode, form, options in (
        ("RGBA", "JPEG2000", {}),
        ("RGBA", "WEBP", {"method": 0}),
        ("RGBA", "AVIF", {"speed": 10, "subsampling": "4:4:4"}),
        ("LA", "PNG", {}),
        ("CMYK", "JPEG", {"progressive": True, "exif": exif}),
        ("RGBA", "TIFF", {"compression": "tiff_lzw", "exif": exif}),
    ):
        picture = Image.fromarray(bands, "CMYK" if mode == "CMYK" else "RGBA")
        out = io.BytesIO()
        (picture if mode in ("RGBA", "CMYK") else picture.convert(mode)).save(out, form, **options)
        yield form, out.getvalue()

if sys.argv[1] == "write":
    for form, data in files(int(sys.argv[2])):
        open(f"{sys.argv[3]}/{form}", "wb").write(data)
else:
    for way in ("crop_file", "pad_file"):
        getattr(transform(sys.argv[4]), way)(open(sys.argv[3], "rb").read(), 512, int(sys.argv[2]) ** 2)
    print(peak())
"""


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("greedy")
    _python(GREEDY, "write", str(GREEDY_SIDE), str(folder))
    return folder


def _python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", PEAK + code, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("form", ["JPEG2000", "WEBP", "AVIF", "PNG", "JPEG", "TIFF"])
def test_the_greediest_files_stay_within_the_stated_memory(form: str, greedy: Path) -> None:
    """Of each format the kind that was found to need most, as large as is allowed."""
    peak = int(_python(GREEDY, "read", str(GREEDY_SIDE), str(greedy / form), "reference-1"))
    assert peak <= PROGRAM_BYTES + BYTES_PER_PIXEL * GREEDY_SIDE**2
    assert peak - _base() <= BYTES_PER_PIXEL * GREEDY_SIDE**2


@lru_cache
def _base() -> int:
    return int(_python("import tasks.encode.transforms\nprint(peak())"))


@pytest.fixture(scope="module")
def outcomes(shared_data: Path) -> dict[str, dict[str, Any]]:
    """One process's answers for all files, by name; under ``""`` its peak memory."""
    allowed = BYTES_PER_PIXEL * MAX_PIXELS
    done = _python(CHILD, str(shared_data / "robustness" / "files"), str(MAX_PIXELS), str(allowed))
    answers = [json.loads(line) for line in done.splitlines()]
    return {answer.pop("file", ""): answer for answer in answers}


def test_every_file_has_the_expected_outcome(outcomes: dict[str, dict[str, Any]], shared_data: Path) -> None:
    folder = shared_data / "robustness"
    manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = {name: error for error, names in REFUSED.items() for name in names}
    files = {Path(entry["file"]).name: entry["pillow"] for entry in manifest}
    assert len(files) == 247
    assert expected.keys() <= files.keys()
    assert set(outcomes) - {""} == set(files)
    wrong = []
    for name, pillow in files.items():
        answer = outcomes[name]
        ways = {answer[f"{t} {w}"] if isinstance(answer[f"{t} {w}"], str) else "square" for t, w in WAYS}
        if name in expected:
            got: object = {answer.get("open", "ok"), *ways}
            want: object = {expected[name]}
        else:
            turned = (pillow.get("exif_orientation") or 1) >= 5 and pillow["fmt"] != "TIFF"  # there Pillow turned it
            size = [pillow["h"], pillow["w"]] if turned else [pillow["w"], pillow["h"]]
            got, want = (answer.get("open", "ok"), answer.get("size"), ways), ("ok", size, {"square"})
        if got != want:
            wrong.append(f"{name}: {got}, expected {want}")
    assert not wrong


WAYS = [(t, w) for t in ("reference-1", "fast-1") for w in ("crop_file", "pad_file")]


def test_squares_are_squares_and_both_transforms_see_one_picture(outcomes: dict[str, dict[str, Any]]) -> None:
    for name, answer in outcomes.items():
        if "size" not in answer:
            continue
        for t, w in WAYS:
            assert answer[f"{t} {w}"][:4] == [256, 256, 3, "uint8"], name
        for w in ("crop_file", "pad_file"):
            assert answer[f"fast-1 {w}"][4] == pytest.approx(answer[f"reference-1 {w}"][4], abs=2.5), (name, w)


@pytest.mark.parametrize("family", ALIKE, ids=lambda f: f[0])
def test_one_picture_in_many_files_is_one_picture(family: tuple[str, ...], outcomes: dict[str, dict[str, Any]]) -> None:
    first = np.array(outcomes[family[0]]["small"])
    for name in family[1:]:
        assert np.abs(np.array(outcomes[name]["small"]) - first).mean() < 6, name


def test_memory_stays_within_the_stated_bound(outcomes: dict[str, dict[str, Any]]) -> None:
    peak = outcomes[""]["peak"]
    assert peak <= PROGRAM_BYTES + BYTES_PER_PIXEL * MAX_PIXELS
    assert peak > 24_000_000 * 4  # it did decode the largest one
