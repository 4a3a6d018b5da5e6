from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.sequences import INFO, SPANS, SequenceReader, SequencesInfo, encode_file, stem
from infra.store.tables import write_table


def make(store: Storage, info: SequencesInfo, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (info.sequences, info.length)
    tokens = rng.integers(0, 65536, shape).astype(np.uint16)
    starts, loss = rng.random(shape) < 0.1, rng.random(shape) < 0.5
    starts[:, 0] = True
    for file in range(info.files):
        rows = slice(file * info.file_sequences, file * info.file_sequences + info.rows(file))
        for suffix, data in encode_file(tokens[rows], starts[rows], loss[rows] if info.loss else None).items():
            store.put(f"{stem(file)}.{suffix}", data)
    store.put(INFO, info.dump())
    return tokens, starts, loss


@settings(max_examples=20, deadline=None)
@given(sequences=st.integers(0, 150), length=st.integers(1, 41), file_sequences=st.integers(1, 100), loss=st.booleans())
def test_reads_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, sequences: int, length: int, file_sequences: int, loss: bool
) -> None:
    store = Storage(tmp_path_factory.mktemp("store"))
    info = SequencesInfo(sequences=sequences, length=length, file_sequences=file_sequences, loss=loss)
    tokens, starts, bits = make(store, info)
    reader = SequenceReader(store)
    assert len(reader) == sequences
    for i in range(sequences):
        tokens_T, starts_T, loss_T = reader.sequence(i)
        assert tokens_T.dtype == np.uint16
        np.testing.assert_array_equal(tokens_T, tokens[i])
        np.testing.assert_array_equal(starts_T, starts[i])
        if loss:
            np.testing.assert_array_equal(loss_T, bits[i])
        else:
            assert loss_T is None
    reader.verify_all()


def test_full_size_offsets_are_those_of_the_design(tmp_path: Path) -> None:
    info = SequencesInfo(sequences=100_000, length=4096, file_sequences=32_768)
    assert info.row_bytes == {"u16": 8192, "starts": 512}
    assert info.file_sequences * info.row_bytes["u16"] == 256 << 20
    assert (info.files, info.rows(0), info.rows(3)) == (4, 32_768, 100_000 - 3 * 32_768)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    store = Storage(tmp_path_factory.mktemp("sound"))
    make(store, SequencesInfo(sequences=130, length=16, file_sequences=100, loss=True))
    return store


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.integers(0, 1),
    suffix=st.sampled_from(["u16", "starts", "loss", "sums"]),
    at=st.integers(0, 1 << 20),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_is_found(sound: Storage, file: int, suffix: str, at: int, bit: int) -> None:
    name = f"{stem(file)}.{suffix}"
    good = sound.get(name)
    bad = bytearray(good)
    bad[at % len(bad)] ^= 1 << bit
    sound.put(name, bytes(bad))
    try:
        with pytest.raises(StoreError, match=f"{stem(file)}: .*checksum"):
            SequenceReader(sound).verify_all()
        with pytest.raises(StoreError, match="checksum"):
            SequenceReader(sound).read(range(130))
    finally:
        sound.put(name, good)
    SequenceReader(sound).verify_all()


def test_reading_finds_the_damaged_block_and_only_that(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    make(store, SequencesInfo(sequences=200, length=16, file_sequences=200))
    data = bytearray(store.get("seq-000000.u16"))
    data[70 * 32] ^= 1  # in sequence 70: block 1, sequences 64 to 127
    store.put("seq-000000.u16", bytes(data))
    reader = SequenceReader(store)
    for fine in (0, 63, 128, 199):
        reader.sequence(fine)
    with pytest.raises(StoreError, match="sequences 64 to 127"):
        reader.sequence(100)
    SequenceReader(store, verify=False).sequence(100)


def test_ranged_reads_equal_mapped_ones(tmp_path: Path) -> None:
    remote = Storage("memory://areac-sequences")
    info = SequencesInfo(sequences=70, length=24, file_sequences=65, loss=True)
    try:
        tokens, _, _ = make(remote, info)
        make(Storage(tmp_path), info)
        a, b = SequenceReader(remote), SequenceReader(Storage(tmp_path))
        for i in (0, 64, 65, 69):
            for x, y in zip(a.sequence(i), b.sequence(i), strict=True):
                np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(a.sequence(69)[0], tokens[69])
    finally:
        fsspec.filesystem("memory").store.clear()


def test_errors_name_the_file_and_the_numbers(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    make(store, SequencesInfo(sequences=10, length=16, file_sequences=10))
    with pytest.raises(IndexError, match="holds 10"):
        SequenceReader(store).sequence(10)
    store.put("seq-000000.u16", store.get("seq-000000.u16")[:-1])
    with pytest.raises(StoreError, match=r"seq-000000\.u16: 319 bytes; 10 sequences take 320"):
        SequenceReader(store).sequence(0)
    store.delete("seq-000000.u16")
    with pytest.raises(StoreError, match="no such file"):
        SequenceReader(store).sequence(0)
    newer = SequencesInfo(sequences=1, length=1, file_sequences=1, version=3)
    store.put(INFO, newer.dump())
    with pytest.raises(StoreError, match="version 3"):
        SequenceReader(store)
    store.put(INFO, newer.model_copy(update={"version": 1}).dump())
    with pytest.raises(StoreError, match="version 1, of older checksums. Run `mix` again"):
        SequenceReader(store)
    store.put(INFO, b"{}")
    with pytest.raises(StoreError, match="does not describe"):
        SequenceReader(store)


def test_a_sequence_must_begin_with_a_start() -> None:
    tokens = np.zeros((1, 8), np.uint16)
    with pytest.raises(ValueError, match="start"):
        encode_file(tokens, np.zeros((1, 8), np.bool_))


def test_spans_come_back(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    make(store, SequencesInfo(sequences=1, length=16, file_sequences=10))
    row = {"sequence": 0, "offset": 0, "length": 16, "source": "a", "part": "a-00000", "row": 3, "occurrence": 1}
    row |= {"first_token": 0, "image_tokens": 0}
    store.put("seq-000000.parquet", write_table([row], SPANS))
    assert SequenceReader(store).spans(0).to_pylist() == [row]
