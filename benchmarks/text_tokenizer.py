"""How fast the text tokenizer trains and tokenises, how it scales over processes, and whether ``transformers`` agrees.

    python -m benchmarks.text_tokenizer [--json] [--megabytes 100] [--strings 1000000] [--rounds 9] [--processes 2]

``train_100mb_seconds`` and ``train_100mb_peak_mib``: SentencePiece BPE of all of Chameleon's 49,152 pieces on 100 MB of
different real texts (`benchmarks/texts.py` says which), in a process of its own; with other ``--megabytes`` the keys
say that number. Everything else is measured with that tokenizer.

``process_scaling``: n processes that each hold the tokenizer tokenise together, and one of them alone, in turns, warm,
every turn texts that the process has not met; the throughput of n, by the wall time of the last of them, over n times
that of one; the median of the rounds. ``process_scaling_cpu`` is the same by processor time: what running side by side
costs (caches, memory), whatever else the machine does. ``tokens_per_second_per_core`` is by processor time, one alone.
``ratio_to_tokenizers``: against the ``tokenizers`` library with the exported ``tokenizer.json`` on the same texts in
the same process, by processor time, as well with texts not met before.

``equal_strings``: the share of ``--strings`` strings, half real and half made to find faults, that become the same ids
in ``transformers`` with ``split_special_tokens=True`` as here, and come back from them as they were.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.common import emit, machine, machine_line, median, peak_mib, speed_ratio, timed
from benchmarks.texts import real_texts, strings
from infra.storage import Storage
from model.text_tokenizer.codec import TextTokenizer
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.convert import hf_tokenizer_files
from model.text_tokenizer.train import train
from model.vocabulary import Vocabulary

CUT = 20_000
"""Characters of a text that is tokenised at once."""


def train_in(folder: Path, size: int, pieces: int) -> dict[str, float]:
    """Trains on ``size`` bytes in this process and writes the tokenizer; seconds, peak MiB, pieces."""
    vocabulary = Vocabulary(size=16384 + pieces)
    begun, working = time.perf_counter(), time.process_time()
    tokenizer = train(real_texts(size), TextTokenizerConfig(), vocabulary)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - working
    store = Storage(folder)
    for name, data in tokenizer.files().items():
        store.put(name, data)
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak_mib(), "pieces": tokenizer.pieces}


def slices(count: int, size: int) -> list[list[str]]:
    """``count`` times ``size`` bytes of real texts in stretches, prose and code alike in each, no text in two."""
    stretches = [t[i : i + CUT] for t in real_texts(count * size) for i in range(0, len(t), CUT)]
    return [stretches[n::count] for n in range(count)]


def work(folder: str, count: int, size: int, pipe: Connection) -> None:
    """A process that tokenises the slice that it is told to, and says how many tokens it has and what it took."""
    tokenizer, texts = TextTokenizer.load(Storage(folder)), slices(count, size)
    for text in texts[0]:
        tokenizer.encode(text)
    pipe.send("warm")
    while number := pipe.recv():
        working = time.process_time()
        tokens = sum(len(tokenizer.encode(t)) for t in texts[number])
        pipe.send((tokens, time.perf_counter(), time.process_time() - working))


def scaling(folder: Path, processes: int, size: int, rounds: int) -> dict[str, float]:
    """Throughput of ``processes`` processes over that many times one's, and one's own."""
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        arguments = (str(folder), 2 * rounds + 1, size, theirs)
        workers.append(context.Process(target=work, args=arguments, daemon=True))
        workers[-1].start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()

    def go(members: Sequence[Connection], number: int) -> tuple[float, float]:
        """Tokens a second of each member, by the clock and by its processor time."""
        begun = time.perf_counter()
        for pipe in members:
            pipe.send(number)
        tokens, ended, working = zip(*(pipe.recv() for pipe in members), strict=True)
        # The clock is the system's, the same in all processes.
        return sum(tokens) / len(members) / (max(ended) - begun), sum(tokens) / sum(working)

    alone, together = [], []
    for number in range(rounds):
        for turn in (number % 2, 1 - number % 2):
            if turn:
                together.append(go(pipes, 2 * number + 2))
            else:  # each in its turn, so that no one process stands for all
                alone.append(go([pipes[number % processes]], 2 * number + 1))
    for pipe, worker in zip(pipes, workers, strict=True):
        pipe.send(0)
        worker.join()
    by_clock = [b / a for (a, _), (b, _) in zip(alone, together, strict=True)]
    return {
        "process_scaling": median(by_clock),
        "process_scaling_least": min(by_clock),
        "process_scaling_cpu": median(b / a for (_, a), (_, b) in zip(alone, together, strict=True)),
        "tokens_per_second_per_core": median(working for _, working in alone),
        "tokens_per_second_by_the_clock": median(clock for clock, _ in alone),
    }


def against_tokenizers(tokenizer: TextTokenizer, size: int, rounds: int) -> float:
    """How many times faster than the ``tokenizers`` library, one text at a time, by processor time."""
    from tokenizers import Tokenizer

    peer: Any = Tokenizer.from_str(hf_tokenizer_files(tokenizer)["tokenizer.json"].decode())
    peer.encode_special_tokens = True
    parts = slices(rounds + 1, size)  # the first one warms up
    theirs, ours = iter(parts), iter(parts)
    seconds = timed(
        {
            "peer": lambda: [peer.encode(t, add_special_tokens=False).ids for t in next(theirs)],
            "ours": lambda: [tokenizer.encode(t) for t in next(ours)],
        },
        rounds,
        time.process_time,
    )
    return speed_ratio(seconds["peer"], seconds["ours"])


def equality(tokenizer: TextTokenizer, count: int) -> dict[str, float]:
    """Shares of strings with equal ids in ``transformers``, that come back as they were, and that keep to text ids."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, data in hf_tokenizer_files(tokenizer).items():
            (Path(folder) / name).write_bytes(data)
        theirs = AutoTokenizer.from_pretrained(folder)
    equal = back = safe = characters = 0
    start = tokenizer.vocabulary.text_start
    source = strings(count)
    while texts := list(islice(source, 1000)):
        found = theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for text, ids in zip(texts, found, strict=True):
            ours = tokenizer.encode(text)
            characters += len(text)
            equal += ours == ids
            back += tokenizer.decode(ours) == text
            safe += not ours or min(ours) > start
            if ours != ids:
                print(f"unequal: {text!r}: {ours} here, {ids} in transformers")
    return {
        "strings": count,
        "string_characters": characters,
        "equal_strings": equal / count,
        "strings_that_come_back": back / count,
        "strings_of_text_ids_alone": safe / count,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark with a command line's arguments, the process's own by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    parser.add_argument("--megabytes", type=float, default=100, help="10^6 bytes of text to train on")
    parser.add_argument("--pieces", type=int, default=49152, help="text pieces of the vocabulary")
    parser.add_argument("--strings", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--work", type=float, default=2, help="10^6 bytes of text that a process tokenises in a round")
    parser.add_argument("--folder", type=Path, help="a finished step's folder: measure that tokenizer, train none")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.train:
        print(json.dumps(train_in(args.train, int(1e6 * args.megabytes), args.pieces)))
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    packages = ("sentencepiece", "tokenizers", "transformers")
    print(machine_line(*packages))
    print(f"load before: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    figures: dict[str, Any] = {"load": os.getloadavg()[0], "processes": args.processes}
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        if args.folder is None:
            name = f"train_{args.megabytes:g}mb"
            figures |= {f"{name}_{key}": value for key, value in _trained(folder, args).items()}
        tokenizer = TextTokenizer.load(Storage(folder))
        figures["pieces"] = tokenizer.pieces
        size = int(1e6 * args.work)
        figures |= scaling(folder, args.processes, size, args.rounds)
        figures["ratio_to_tokenizers"] = against_tokenizers(tokenizer, size, max(1, args.rounds // 2))
        figures |= equality(tokenizer, args.strings)
    figures |= {"load_after": os.getloadavg()[0], "machine": machine(*packages)}
    emit(figures, args.json)


def _trained(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Trains in a process of its own, whose memory is then the training's alone."""
    command = [sys.executable, "-m", "benchmarks.text_tokenizer", "--train", str(folder)]
    command += ["--megabytes", str(args.megabytes), "--pieces", str(args.pieces)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(", ".join(f"{name} {value:,.0f}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    main()
