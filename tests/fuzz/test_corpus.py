"""Everything the fuzzer found worth keeping holds, without the fuzzer."""

import time
from pathlib import Path
from typing import Final

import pytest

from tests.fuzz.targets import TARGETS

CORPUS: Final = Path(__file__).with_name("corpus")
_SLOW_S: Final = 5.0  # the fuzzer's own limit is the same; an input takes milliseconds


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_is_answered(name: str, tmp_path: Path) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        started = time.monotonic()
        try:
            TARGETS[name](path.read_bytes(), tmp_path)
        except BaseException as error:
            error.add_note(f"the input is {path}")
            raise
        assert time.monotonic() - started < _SLOW_S, path


def test_every_folder_of_the_corpus_belongs_to_a_target() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)


def test_the_corpus_stays_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < 200_000
