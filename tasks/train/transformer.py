"""What pre-training and fine-tuning share: starting the workers, and what each worker does."""

from __future__ import annotations

import json
from typing import Any, Literal

from infra.settings import ResourcesConfig
from infra.storage import Storage
from infra.store.block_cache import BlockCache
from infra.store.commit import entry_of_file
from infra.store.plan import load_plan
from infra.store.sequences import sequence_cache
from model.training.config import FinetuneConfig, PretrainConfig
from model.transformer.config import TransformerConfig
from tasks.context import StepContext
from tasks.progress import Progress
from tasks.train.drawings import asked_for, sheet_files, start_drawing
from tasks.train.history import History
from tasks.train.launch import StopRequest, launch
from tasks.train.live import LiveCurves, curves_file

FACTS = "training.json"
"""What the workers leave for the step's manifest."""
CURVES = "curves.png"


def run_training(
    context: StepContext,
    run: Literal["pretrain", "finetune"],
    model: TransformerConfig,
    config: PretrainConfig | FinetuneConfig,
    start: Storage | None = None,
) -> None:
    """Trains on Ray workers and commits the step; ``start`` is the folder of the weights that it starts from."""
    from model.training.monitors import read_metrics
    from tasks.train.curves import training_png

    recipe, store = context.recipe, context.store()
    context.manifest("mix")
    arguments = {
        "run": run,
        "model": model,
        "vocabulary_size": recipe.vocabulary.size,
        "config": config,
        "resources": recipe.resources,
        "watch": recipe.watch,
        "sources": [source.name for source in recipe.sources],
        "seed": recipe.seed,
        "store": store.root,
        "mix": context.store("mix").root,
        "start": None if start is None else start.root,
        "origin": None
        if config.continue_from is None
        else (context.workdir.sub(config.continue_from.training).root, config.continue_from.step),
        "workdir": context.root,
        "job": context.job,
        "drawings": asked_for(context, run),
    }
    launch(context, train_worker, arguments)
    facts: dict[str, Any] = json.loads(store.get(FACTS))
    history = History(read_metrics(store))
    store.put(CURVES, training_png(history, [source.name for source in recipe.sources]))
    files = [*facts.pop("files"), CURVES, *sheet_files(store)]
    context.finish(files=[entry_of_file(store, name) for name in files], facts=facts)


def train_worker(arguments: dict[str, Any]) -> None:
    """One worker of a training. Everything comes in by value; everything goes out through the step's folder."""
    import torch.distributed as dist

    from model.data.loader import SequenceLoader
    from model.data.steps import BatchSizes
    from model.training.loop import Training, train
    from model.training.monitors import METRICS
    from model.transformer.load import meta_transformer, read_config, read_weights, save_transformer

    config: PretrainConfig | FinetuneConfig = arguments["config"]
    resources: ResourcesConfig = arguments["resources"]
    store, mix = Storage(arguments["store"]), Storage(arguments["mix"])
    model_config: TransformerConfig = arguments["model"]
    size: int = arguments["vocabulary_size"]
    origin: tuple[str, int] | None = arguments["origin"]
    # On the meta device: the training gives it its weights one by one, and at ZeRO 3 no worker holds all of them.
    if arguments["start"] is None:
        model = meta_transformer(model_config, size)
        weights = model.draw(arguments["seed"])
    else:
        start = Storage(arguments["start"])
        model = meta_transformer(*read_config(start)).with_dropout(model_config.dropout)
        weights = read_weights(start, model)
    workdir, job = Storage(arguments["workdir"]), arguments["job"]
    progress = Progress(workdir, job)
    progress.curves = curves_file(job)
    outcome = train(
        Training(
            model=model,
            weights=weights,
            loader=SequenceLoader(
                mix,
                arguments["run"],
                BatchSizes.of(config.batch, ((phase.until, phase.batch) for phase in config.batch_ramp)),
                dist.get_rank(),
                dist.get_world_size(),
                resources.micro_batch,
                epochs=config.epochs if isinstance(config, FinetuneConfig) else None,
                cache=_cache(resources, mix),
            ),
            config=config,
            resources=resources,
            store=store,
            mix=mix,
            seed=arguments["seed"],
            watch=arguments["watch"],
            origin=None if origin is None else (Storage(origin[0]), origin[1]),
            drawings=start_drawing(arguments["drawings"], store, progress),
            report=lambda step, total, note: progress.update(step, total, "steps", note=note),
            observe=LiveCurves(workdir, job, store, arguments["sources"]),
            should_stop=StopRequest(arguments["workdir"], arguments["job"]),
        )
    )
    if outcome.finished and dist.get_rank() == 0:
        files = [*save_transformer(store, model_config, size, outcome.weights), METRICS]
        facts = {"files": files, "model": model_config.model_dump(mode="json"), **outcome.facts}
        store.put(FACTS, (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())


def _cache(resources: ResourcesConfig, mix: Storage) -> BlockCache | None:
    """The node's cache of sequences, where there is a use for one."""
    if mix.local or resources.cache_folder is None:
        return None
    return sequence_cache(resources.cache_folder, int(resources.cache_gb * 1e9), load_plan(mix).sequence_length)
