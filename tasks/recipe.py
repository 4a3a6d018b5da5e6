"""The recipe: everything that decides a run, in one checked model, read from YAML plus ``--set key=value``.

Hyperparameters live here and nowhere else. Unknown keys are refused with the nearest known name.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from infra.config import Config
from infra.errors import RecipeError
from infra.settings import ResourcesConfig
from model.evaluation.config import EvaluationConfig
from model.generation.config import GenerationConfig
from model.image_tokenizer.config import ImageTokenizerConfig, ImageTokenizerTraining
from model.text_tokenizer.config import TextTokenizerConfig
from model.training.config import FinetuneConfig, PretrainConfig
from model.training.watch.config import WatchConfig
from model.transformer.config import ExportConfig, TransformerConfig
from model.vocabulary import Vocabulary
from tasks.documents.config import RemovalConfig
from tasks.encode.config import EncodeConfig, PicturesConfig
from tasks.mix.config import FinetuneMixConfig, MixConfig
from tasks.scan.config import ScanConfig, SelectConfig
from tasks.sources.config import SourceConfig
from tasks.train.config import ImageTokenizerImport, ModelImport

BUILT_IN = Path(__file__).resolve().parent.parent / "recipes"


class Recipe(Config):
    """One run, from sources to report."""

    name: str
    seed: int = 0
    vocabulary: Vocabulary = Vocabulary()
    sources: tuple[SourceConfig, ...]
    scan: ScanConfig = ScanConfig()
    select: SelectConfig = SelectConfig()
    removal: RemovalConfig = RemovalConfig()
    pictures: PicturesConfig = PicturesConfig()
    image_tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    image_tokenizer_training: ImageTokenizerTraining = ImageTokenizerTraining()
    image_tokenizer_import: ImageTokenizerImport = ImageTokenizerImport()
    encode: EncodeConfig = EncodeConfig()
    text_tokenizer: TextTokenizerConfig = TextTokenizerConfig()
    mix: MixConfig
    finetune_mix: FinetuneMixConfig
    model: TransformerConfig = TransformerConfig()
    model_import: ModelImport = ModelImport()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    watch: WatchConfig = WatchConfig()
    generation: GenerationConfig = GenerationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()
    resources: ResourcesConfig = ResourcesConfig()
    folder: str = "."
    """Where relative paths start; set to the recipe file's folder when it is read."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        kinds = {s.name: s.kind for s in self.sources}
        if len(kinds) != len(self.sources):
            raise ValueError("two sources have the same name")
        if self.image_tokenizer.codes != self.vocabulary.image_codes:
            raise ValueError(
                f"image_tokenizer.codes is {self.image_tokenizer.codes} and vocabulary.image_codes is "
                f"{self.vocabulary.image_codes}; they must be equal"
            )
        picture = self.image_tokenizer.codes_per_image + 2
        if picture + 2 > self.mix.sequence_length:
            raise ValueError(
                f"mix.sequence_length is {self.mix.sequence_length}; a picture is {picture} tokens and is never cut, "
                f"so it must be at least {picture + 2}"
            )
        if self.select.near_duplicates and not self.scan.near_duplicates:
            raise ValueError("select.near_duplicates compares what scan computes; set scan.near_duplicates: true, too")
        named = {n for stage in self.mix.stages for n in stage.weights}
        named |= {*self.mix.where, *self.finetune_mix.sources, *self.finetune_mix.where}
        named |= {*self.text_tokenizer.weights, *self.text_tokenizer.code}
        for name in sorted(named):
            if name not in kinds:
                near = difflib.get_close_matches(name, kinds, 1)
                raise ValueError(f"no source is named {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        self._check_drawings()
        asked = self.evaluation.source
        if asked is not None and kinds.get(asked) != "pairs":
            pairs = ", ".join(name for name, kind in kinds.items() if kind == "pairs")
            raise ValueError(f"evaluation.source is {asked!r}; it must be a source of kind pairs: {pairs}")
        for step in ("pretrain", "finetune"):
            origin = getattr(self, step).continue_from
            if origin is not None and not origin.training.startswith(f"{step}/"):
                raise ValueError(f"{step}.continue_from.training is {origin.training!r}; it must be a folder {step}/…")
        if self.pretrain.continue_from is not None and self.model_import.path is not None:
            raise ValueError("pretrain.continue_from and model_import.path are both set; a training begins with one")
        for name in self.finetune_mix.sources:
            if kinds[name] != "messages":
                raise ValueError(f"finetune_mix.sources names {name!r}, a source of kind {kinds[name]}, not messages")
        return self

    def _check_drawings(self) -> None:
        every = f"watch.drawings.every is {self.watch.drawings.every}"
        if not self.watch.drawings.every:
            return
        if self.resources.zero_stage == 3:
            raise ValueError(
                f"{every} and resources.zero_stage is 3, under which every code that is drawn would gather all "
                "parameters from all workers; set watch.drawings.every: 0, or a zero_stage of 0, 1 or 2"
            )
        if not any(s.kind == "pairs" for s in self.sources):
            raise ValueError(f"{every} and no source is of kind pairs, whose captions are drawn; set it to 0")
        if not self.scan.held_out:
            raise ValueError(f"{every} and scan.held_out is 0: captions of held-out pairs are drawn; set one of them")

    def source(self, name: str) -> SourceConfig:
        return next(s for s in self.sources if s.name == name)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def find_recipe(name: str | Path) -> Path:
    """The recipe's file: a path, or the name of a built-in recipe (``emoji``)."""
    path = Path(name)
    if path.is_file():
        return path
    built_in = BUILT_IN / f"{path.stem if path.suffix == '.yaml' else path.name}.yaml"
    if path.parent in (Path(), Path("recipes")) and built_in.is_file():
        return built_in
    known = sorted(p.stem for p in BUILT_IN.glob("*.yaml"))
    raise RecipeError(f"{name}: no such recipe file. Built-in recipes: {', '.join(known)}.")


def load_recipe(name: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Reads, overrides (``a.b=value``, the value as YAML) and checks a recipe."""
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise RecipeError(f"{path}: not valid YAML: {e}") from e
    return read_recipe(text, settings, str(path), str(path.resolve().parent))


def read_recipe(text: str | bytes, settings: Iterable[str], where: str, folder: str) -> Recipe:
    """The recipe in a YAML text; ``folder`` is where relative paths start unless it says so itself.

    ``like: FILE`` at its top begins with that recipe, in the same folder: sections are merged key by key, lists and
    values replaced.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise RecipeError(f"{where}: not valid YAML: {e}") from e
    if not isinstance(raw, dict):
        raise RecipeError(f"{where}: expected a mapping of sections at the top, got {type(raw).__name__}")
    raw = _with_like(raw, where, folder, ())
    for setting in settings:
        _apply(raw, setting)
    raw.setdefault("folder", folder)
    return parse_recipe(raw, where)


def _with_like(raw: dict[str, Any], where: str, folder: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """A recipe merged over the one that its ``like`` names, if it names one."""
    name = raw.pop("like", None)
    if name is None:
        return raw
    path = Path(folder) / str(name)
    if str(path) in seen:
        raise RecipeError(f"{where}: like: {name}; that one is, in the end, like this one")
    if not path.is_file():
        raise RecipeError(f"{where}: like: {name}; there is no recipe file {path}")
    try:
        base = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path}: not valid YAML: {e}") from e
    if not isinstance(base, dict):
        raise RecipeError(f"{path}: expected a mapping of sections at the top, got {type(base).__name__}")
    return _merged(_with_like(base, str(path), folder, (*seen, str(path))), raw)


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in over.items():
        below = found.get(key)
        found[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return found


def parse_recipe(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Checks a recipe given as plain data; RecipeError lists every fault with its key."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as e:
        lines = [_explain(dict(err)) for err in e.errors()]
        raise RecipeError(f"{where}: {len(lines)} fault{'s' if len(lines) > 1 else ''}\n" + "\n".join(lines)) from e


def _apply(raw: dict[str, Any], setting: str) -> None:
    key, sign, text = setting.partition("=")
    if not sign or not key:
        raise RecipeError(f"--set {setting}: expected KEY=VALUE, for example --set pretrain.batch=16")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise RecipeError(f"--set {setting}: the value is not valid YAML: {e}") from e
    node: Any = raw
    *parents, last = key.split(".")
    for name in parents:
        if isinstance(node, list):
            node = _element(node, name, setting)
            continue
        node = node.setdefault(name, {})
        if not isinstance(node, dict | list):
            raise RecipeError(f"--set {setting}: {name} is a value, not a section")
    if isinstance(node, list):
        raise RecipeError(f"--set {setting}: {key.rpartition('.')[0]} is a list; name one of its entries' keys")
    node[last] = value


def _element(items: list[Any], name: str, setting: str) -> Any:
    """An entry of a list of sections, by its ``name`` or number: ``sources.emoji.limit=100``."""
    for i, item in enumerate(items):
        if str(i) == name or (isinstance(item, dict) and item.get("name") == name):
            return item
    raise RecipeError(f"--set {setting}: no entry is named {name!r}")


def _explain(error: dict[str, Any]) -> str:
    where = ".".join(str(p) for p in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"  {where}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"  {where}: missing, and it has no default"
    given = error.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f" (got {json.dumps(given, default=str)[:80]})"
    return f"  {where}: {str(error['msg']).removeprefix('Value error, ')}{shown}"


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    cls: Any = Recipe
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = cls.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        cls = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), cls)
    return sorted(cls.model_fields)
