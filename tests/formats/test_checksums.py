"""Checksums of tensors: joined, compared in the background, and missing."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats import checksums
from qua2sedimo.formats.checksums import SumCheck, check_sums, checksum, checksum_metadata, joined
from qua2sedimo.formats.tensorfiles import read_layout

TENSORS = {name: torch.arange(n, dtype=torch.int16) for name, n in (("a", 700), ("b", 3000), ("c", 1), ("none", 0))}


def written(path: Path, leave_out: str = "") -> Path:
    sums = {name: checksum(tensor.numpy().tobytes()) for name, tensor in TENSORS.items() if name != leave_out}
    save_file(TENSORS, path, metadata={"format": "pt", **checksum_metadata(sums)})
    return path


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_sums_of_neighbours_are_joined(one: bytes, other: bytes) -> None:
    assert joined(zlib.crc32(one), zlib.crc32(other), len(other)) == zlib.crc32(one + other)


@pytest.mark.parametrize("piece", [50, 1000, 1 << 20])
def test_any_altered_byte_names_its_tensor(tmp_path: Path, piece: int) -> None:
    path = written(tmp_path / "x.safetensors")
    sound, layout = path.read_bytes(), read_layout(path)
    with patch.object(checksums, "_PIECE", piece):
        check_sums(path)
        for name, (begin, end) in layout.spans.items():
            if end > begin:
                path.write_bytes(sound[: end - 1] + bytes([sound[end - 1] ^ 4]) + sound[end:])
                with pytest.raises(Qua2SeDiMoError, match=f"tensor '{name}' in .*x.safetensors is not what"):
                    check_sums(path)


def test_a_file_without_checksums_passes_and_one_where_some_are_missing_does_not(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "plain.safetensors")
    check_sums(tmp_path / "plain.safetensors")
    with pytest.raises(Qua2SeDiMoError, match=r"tensor 'b' in .* has no checksum"):
        check_sums(written(tmp_path / "x.safetensors", leave_out="b"))


@pytest.mark.parametrize(
    "entry", ["[", "[1]", json.dumps({"a": "x"}), json.dumps({"a": None}), json.dumps({"a": "-1"})]
)
def test_unreadable_checksums(tmp_path: Path, entry: str) -> None:
    save_file({"a": TENSORS["a"]}, tmp_path / "x.safetensors", metadata={"qua2sedimo.crc32": entry})
    with pytest.raises(Qua2SeDiMoError, match="checksum"):
        check_sums(tmp_path / "x.safetensors")


def test_a_file_that_goes_or_shrinks_before_it_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors")
    layout, sound = read_layout(path), path.read_bytes()
    path.write_bytes(sound[:-1])
    with pytest.raises(Qua2SeDiMoError, match="is not what was exported"):
        SumCheck([layout]).result()
    path.unlink()
    with pytest.raises(Qua2SeDiMoError, match="cannot read"):
        SumCheck([layout]).result()
