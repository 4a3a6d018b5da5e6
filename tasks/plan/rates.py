"""What machines do in a second and what they cost: the numbers behind ``calumma plan``, read from a benchmark file.

``python -m benchmarks.rates`` measures what can be measured on the machine it runs on and writes the file; every rate
says whether it was measured, where and by what, or how it was derived.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from infra.config import Config
from infra.errors import RecipeError

DEFAULT = Path(__file__).resolve().parents[2] / "recipes" / "rates.json"


class Rate(Config):
    """One figure and where it comes from."""

    value: float = Field(gt=0)
    unit: str
    measured: bool
    basis: str
    """The script, machine and date; or the arithmetic it was derived by."""


class Rates(Config):
    """Rates of one core and one accelerator, sizes of what is stored, and prices."""

    device: str
    """The accelerator that ``encode`` and ``train_utilisation`` speak of."""
    device_flops: Rate
    """Dense bf16 FLOP/s that its maker names."""
    train_utilisation: Rate
    """Share of it that training reaches."""
    train_utilisation_of: dict[str, Rate] = {}
    """The same by the recipe's name, where pre-training reaches another one."""
    encode: Rate
    """512x512 pictures a second on one device, by Chameleon's encoder of 550 GFLOP; other encoders by their FLOPs."""
    scan: Rate
    """Pictures a second and core that are hashed and measured."""
    decode: Rate
    """Pictures a second and core from file to square."""
    scan_text: Rate
    """Bytes of text a second and core."""
    tokenize: Rate
    """Text tokens a second and core."""
    pack: Rate
    """Tokens a second and core that are laid out and written."""
    scan_row: Rate
    """Bytes of the scan's and the selection's tables a sample."""
    sample_row: Rate
    """Bytes of the sample store a sample, besides codes and texts."""
    codes_ratio: Rate
    """Stored bytes a byte of codes, compressed: 13 of 16 bits at most where there are 8,192 codes."""
    text_ratio: Rate
    """Stored bytes a byte of text, compressed."""
    request_bytes: Rate
    """Bytes a request that reads."""
    upload_bytes: Rate
    """Bytes a request that writes, of a multipart upload."""
    device_hour: Rate
    core_hour: Rate
    stored_month: Rate
    """A GB for a month."""
    read_requests: Rate
    """1,000 of them."""
    write_requests: Rate
    """1,000 of them."""

    def share(self, recipe: str) -> float:
        """The share of ``device_flops`` that pre-training reaches by a recipe of that name."""
        return self.train_utilisation_of.get(recipe, self.train_utilisation).value


def load_rates(path: Path | None = None) -> Rates:
    """The rates of a file; RecipeError says what is wrong with it."""
    where = path or DEFAULT
    try:
        return Rates.model_validate_json(where.read_bytes())
    except OSError as e:
        raise RecipeError(
            f"{where}: the rates cannot be read ({e.strerror}). Make the file: python -m benchmarks.rates"
        ) from e
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in e.errors())
        raise RecipeError(f"{where}: not a file of rates: {faults}. Make it: python -m benchmarks.rates") from e
