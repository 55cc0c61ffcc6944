"""The bank on disk: complete, resumable, checked, and of one owner."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from qua2sedimo.bank import Bank, Observed, making, stored_weight
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.sealed import content_digest
from qua2sedimo.options import Configuration, Option, SearchSpace, options_for, within_reach
from qua2sedimo.quantizers import METHODS, Moment, QuantizedWeight, dequantize_weight, quantization_error

SHAPES = {"in": (8, 12), "conv": (6, 4, 3, 3), "mid.0": (10, 10), "mid.1": (10, 10), "out": (3, 20), "narrow": (5, 1)}
SPACE = SearchSpace.of(SHAPES, "paper")
UNIFORM = SearchSpace.of(SHAPES, "uaq-3,uaq-4")
OWNER = "owner-1"
DTYPES = dict(zip(SHAPES, [torch.float32, torch.float16, torch.bfloat16] * 2))


def weight(layer: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SPACE.layers.index(layer))
    return torch.randn(SHAPES[layer], generator=generator).to(DTYPES[layer])


def build(folder: Path, weights: Callable[[str], torch.Tensor] = weight, **arguments) -> Bank:
    return Bank.build(folder, SPACE, OWNER, weights, **arguments)


def layer_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def contents(folder: Path) -> dict[str, tuple[dict[str, bytes], dict[str, str]]]:
    """Every file's tensors, byte for byte, and its metadata."""
    found = {}
    for path in layer_files(folder):
        tensors = {name: t.contiguous().view(torch.uint8).numpy().tobytes() for name, t in load_file(path).items()}
        with safe_open(path, "pt") as handle:
            found[path.name] = (tensors, handle.metadata())
    return found


def counting() -> tuple[list[str], Callable[[str], torch.Tensor]]:
    asked: list[str] = []

    def weights(layer: str) -> torch.Tensor:
        asked.append(layer)
        return weight(layer)

    return asked, weights


def test_every_option_of_every_layer_is_there_with_its_size_and_error(tmp_path: Path) -> None:
    built = build(tmp_path)
    for bank in (built, Bank(tmp_path, SPACE, OWNER)):
        for layer in SPACE.layers:
            assert set(bank.errors[layer]) == set(SPACE.options[layer])
            for option in SPACE.options[layer]:
                value = bank.get(layer, option)
                (expected,) = METHODS[option.method].quantize(weight(layer), [option.bits])
                assert (value.method, value.number, value.dtype) == (option.method, option.bits, DTYPES[layer])
                assert torch.equal(dequantize_weight(value), dequantize_weight(expected))
                assert value.nbytes == option.nbytes(SHAPES[layer])
                error = bank.errors[layer][option]
                assert (error.loss, error.relative_mse) == pytest.approx(
                    quantization_error(weight(layer), dequantize_weight(expected))
                )
        bank.verify()


def test_values_and_relative_mse_are_those_of_the_configuration(tmp_path: Path) -> None:
    bank = build(tmp_path)
    configuration = SPACE.decode([i % 6 for i in range(len(SHAPES))])
    values = bank.values(configuration)
    assert list(values) == list(SPACE.layers)
    assert sum(value.nbytes for value in values.values()) == SPACE.nbytes(configuration)
    errors = [quantization_error(weight(layer), dequantize_weight(value))[1] for layer, value in values.items()]
    assert bank.error_sum(configuration) == pytest.approx(sum(errors))


def test_workers_change_nothing_but_the_time(tmp_path: Path) -> None:
    done: list[int] = []
    build(tmp_path / "one")
    build(tmp_path / "three", workers=3, progress=done.append)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert done == list(range(1, len(SHAPES) + 1))


def test_two_builds_write_the_same_files_byte_for_byte(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build(tmp_path / name)
    for one, two in zip(layer_files(tmp_path / "one"), layer_files(tmp_path / "two")):
        assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "one" / "index.json").read_bytes() == (tmp_path / "two" / "index.json").read_bytes()


def test_a_finished_bank_is_not_computed_again(tmp_path: Path) -> None:
    build(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in layer_files(tmp_path)}
    asked, weights = counting()
    build(tmp_path, weights)
    assert asked == []
    assert {path: path.stat().st_mtime_ns for path in layer_files(tmp_path)} == before


def test_layers_that_are_there_are_no_measure_of_the_time_that_is_left(tmp_path: Path) -> None:
    build(tmp_path / "bank")
    for path in layer_files(tmp_path / "bank")[2:4]:
        path.unlink()
    (tmp_path / "bank" / "index.json").unlink()
    done: list[int] = []
    build(tmp_path / "bank", progress=done.append)
    assert done == [len(SHAPES) - 1, len(SHAPES)], "of what was there, nothing is told"
    done.clear()
    build(tmp_path / "bank", progress=done.append)
    assert done == [len(SHAPES)]


def test_after_losing_half_its_files_only_those_are_made_again(tmp_path: Path) -> None:
    build(tmp_path)
    whole = contents(tmp_path)
    for path in layer_files(tmp_path)[::2]:
        path.unlink()
    (tmp_path / "index.json").unlink()
    asked, weights = counting()
    build(tmp_path, weights).verify()
    assert asked == list(SPACE.layers)[::2]
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_a_truncated_layer_file_is_made_again(tmp_path: Path, keep: float) -> None:
    build(tmp_path)
    whole = contents(tmp_path)
    victim = layer_files(tmp_path)[1]
    data = victim.read_bytes()
    victim.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    asked, weights = counting()
    build(tmp_path, weights).verify()
    assert asked == ["conv"]
    assert contents(tmp_path) == whole


def test_a_file_of_another_layer_is_made_again(tmp_path: Path) -> None:
    build(tmp_path)
    whole = contents(tmp_path)
    files = layer_files(tmp_path)
    files[2].write_bytes(files[3].read_bytes())
    build(tmp_path)
    assert contents(tmp_path) == whole


@pytest.fixture(scope="module")
def whole_bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    Bank.build(folder, UNIFORM, OWNER, weight)
    return folder


def everything(bank: Bank) -> tuple[object, list[bytes]]:
    """Errors, and the bits of every tensor of every option."""
    values = [bank.get(layer, option) for layer in UNIFORM.layers for option in UNIFORM.options[layer]]
    tensors = [tensor for value in values for tensor in (value.codes, *value.parameters.values())]
    return bank.errors, [tensor.view(torch.uint8).numpy().tobytes() for tensor in tensors]


def refused_or(expected: object, folder: Path, opened: Callable[[], Bank]) -> None:
    try:
        found = everything(opened())
    except Qua2SeDiMoError as error:
        assert str(folder) in error.message
        return
    assert found == expected


@settings(max_examples=150, deadline=None)
@given(which=st.integers(0, 10), share=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_flipped_bit_of_any_file_is_refused_or_changes_nothing(
    whole_bank: Path, which: int, share: float, bit: int
) -> None:
    expected = everything(Bank(whole_bank, UNIFORM, OWNER))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bank"
        shutil.copytree(whole_bank, folder)
        files = sorted(folder.iterdir())
        victim = files[which % len(files)]
        data = bytearray(victim.read_bytes())
        data[int(share * (len(data) - 1))] ^= 1 << bit
        victim.write_bytes(data)
        refused_or(expected, folder, lambda: Bank(folder, UNIFORM, OWNER))
        refused_or(expected, folder, lambda: Bank.build(folder, UNIFORM, OWNER, weight))


def test_a_damaged_file_is_refused_when_it_is_used_and_made_again_when_the_build_is_resumed(tmp_path: Path) -> None:
    build(tmp_path)
    whole = contents(tmp_path)
    victim = layer_files(tmp_path)[1]
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1  # a code of the last option
    victim.write_bytes(data)
    bank = Bank(tmp_path, SPACE, OWNER)
    bank.get("in", Option("uaq", 4))
    with pytest.raises(Qua2SeDiMoError, match=r"0001.safetensors \(layer 'conv'\) .* checksum") as refused:
        bank.get("conv", Option("uaq", 4))
    assert "Move the file away" in str(refused.value.remedy) and "qua2sedimo quantize" in str(refused.value.remedy)
    (tmp_path / "index.json").unlink()  # as if the build had been killed
    asked, weights = counting()
    build(tmp_path, weights).verify()
    assert asked == ["conv"] and contents(tmp_path) == whole


@pytest.mark.parametrize("position", [0.0, 0.5, 1.0], ids=["header", "middle", "last byte"])
def test_verify_names_the_layer_with_a_flipped_byte(tmp_path: Path, position: float) -> None:
    bank = build(tmp_path)
    victim = layer_files(tmp_path)[3]
    data = bytearray(victim.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1
    victim.write_bytes(data)
    with pytest.raises(Qua2SeDiMoError, match=r"0003.safetensors \(layer 'mid.1'\) is missing or damaged"):
        bank.verify()


def test_verify_names_a_missing_layer_file(tmp_path: Path) -> None:
    bank = build(tmp_path)
    layer_files(tmp_path)[4].unlink()
    with pytest.raises(Qua2SeDiMoError, match="layer 'out'"):
        bank.verify()


def test_reading_a_missing_or_damaged_layer_names_it(tmp_path: Path) -> None:
    build(tmp_path)
    first, second, *_ = layer_files(tmp_path)
    first.unlink()
    second.write_bytes(second.read_bytes()[:40])
    bank = Bank(tmp_path, SPACE, OWNER)
    for layer in ("in", "conv"):
        with pytest.raises(Qua2SeDiMoError, match=f"layer '{layer}'"):
            bank.get(layer, Option("uaq", 4))


def test_an_option_that_was_not_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="no option 'uaq-8' for layer 'in'"):
        build(tmp_path).values(Configuration({"in": Option("uaq", 8)}))


def test_another_owner_is_refused_whether_the_bank_is_finished_or_begun(tmp_path: Path) -> None:
    build(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(Qua2SeDiMoError, match="other weights"):
        Bank(tmp_path, SPACE, "owner-2")
    (tmp_path / "index.json").unlink()
    with pytest.raises(Qua2SeDiMoError, match="other weights"):
        Bank.build(tmp_path, SPACE, "owner-2", weight)
    assert contents(tmp_path) == before
    build(tmp_path)  # its own owner goes on


def test_an_unfinished_bank_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"index.json does not exist"):
        Bank(tmp_path, SPACE, OWNER)


def test_another_format_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | {"format": 3}))
    with pytest.raises(Qua2SeDiMoError, match="format 3 is not 2"):
        Bank(tmp_path, SPACE, OWNER)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_layer_with_nan_is_named_and_the_bank_stays_unfinished(tmp_path: Path, workers: int) -> None:
    def weights(layer: str) -> torch.Tensor:
        tensor = weight(layer)
        if layer == "mid.1":
            tensor[0, 0] = np.nan
        return tensor

    with pytest.raises(Qua2SeDiMoError, match=r"layer 'mid\.1': weight has 1 NaN or infinite values of 100"):
        build(tmp_path, weights, workers=workers)
    assert not (tmp_path / "index.json").exists()
    build(tmp_path).verify()  # a repaired checkpoint goes on


def test_a_weight_beyond_half_precision_is_named_with_the_remedy(tmp_path: Path) -> None:
    def weights(layer: str) -> torch.Tensor:
        return stored_weight(weight(layer).float() * (1e6 if layer == "conv" else 1))

    with pytest.raises(Qua2SeDiMoError, match=r"layer 'conv': \d+ of 216 weights are beyond ±65504") as refused:
        build(tmp_path, weights)
    assert "bfloat16" in str(refused.value.remedy)


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".0000.safetensors.123.tmp").write_bytes(b"half")
    build(tmp_path)
    assert not list(tmp_path.glob(".*"))


def exit_code(work: Callable[[], object]) -> int | None:
    """Do the work in another process, which may die of it."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
        try:
            Bank.build(tmp_path / "bank", UNIFORM, OWNER, weight)
        except Qua2SeDiMoError as error:
            sys.exit(0 if "0000.safetensors" in error.message else 3)

    assert exit_code(work) == 0
    Bank.build(tmp_path / "bank", UNIFORM, OWNER, weight).verify()  # when there is room again


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("victim", SHAPES)
def test_a_build_killed_between_layers_goes_on_and_gives_the_same_bank(tmp_path: Path, victim: str) -> None:
    def weights(layer: str) -> torch.Tensor:
        if layer == victim:
            die()
        return weight(layer)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert exit_code(lambda: Bank.build(killed, UNIFORM, OWNER, weights)) == -signal.SIGKILL
    done = UNIFORM.layers.index(victim)
    assert len(layer_files(killed)) == done
    assert not (killed / "index.json").exists()

    asked, weights_again = counting()
    Bank.build(killed, UNIFORM, OWNER, weights_again).verify()
    Bank.build(whole, UNIFORM, OWNER, weight)
    assert asked == list(UNIFORM.layers[done:])
    assert contents(killed) == contents(whole)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_build_killed_while_it_writes_leaves_no_half_layer(
    tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = making.save_file

    def save_a_part(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save(tensors, path, metadata=metadata)
        if json.loads(metadata["about"])["layer"] == "mid.0":
            data = path.read_bytes()
            path.write_bytes(data[: int(len(data) * share)])
            die()

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(making, "save_file", save_a_part)
        assert exit_code(lambda: Bank.build(killed, UNIFORM, OWNER, weight)) == -signal.SIGKILL
    assert [path.name for path in layer_files(killed)] == ["0000.safetensors", "0001.safetensors"]
    Bank.build(killed, UNIFORM, OWNER, weight).verify()
    Bank.build(whole, UNIFORM, OWNER, weight)
    assert contents(killed) == contents(whole)


# Statistics --------------------------------------------------------------------------------------------------------

EVERY = SearchSpace.of({"wide": (24, 40), "conv": (16, 8, 3, 3)}, "uaq-2,uaq-4,kmeans_a-3,kmeans_c-2,row-1,row-3,row-5")
DEFAULT = SearchSpace.of({"thin": (96, 160), "full": (64, 128), "conv": (48, 16, 3, 3), "tiny": (4, 8)}, "default")


def drawn(layer: str, shape: tuple[int, ...]) -> torch.Tensor:
    chance = torch.Generator().manual_seed(len(layer) + shape[0])
    return torch.randn(shape, generator=chance).half()


def statistics_of(layer: str, shape: tuple[int, ...]) -> Observed:
    """Inputs that are mixed and of uneven size, in six directions for a layer called thin; a gradient per channel."""
    chance, n = torch.Generator().manual_seed(5), int(np.prod(shape[1:]))
    directions = 6 if layer == "thin" else 2 * n
    mixing = torch.randn(directions, n, generator=chance) * torch.logspace(0, -1.5, n)
    x = torch.randn(500, directions, generator=chance) @ mixing + (0 if layer == "thin" else 0.3)
    return Observed(Moment((x.T @ x / len(x),)), torch.rand(shape[0], generator=chance).double() + 0.1)


def compensated(folder: Path, space: SearchSpace, **arguments: object) -> Bank:
    return Bank.build(
        folder, space, OWNER, lambda n: drawn(n, space.shapes[n]),
        observed=lambda n: statistics_of(n, space.shapes[n]), **arguments,
    )  # fmt: skip


def output_error(layer: str, shape: tuple[int, ...], value: QuantizedWeight) -> float:
    """E‖(W − Ŵ)·x‖² / E‖W·x‖², by the definition."""
    (block,) = statistics_of(layer, shape).moment.blocks
    w, q = (t.double().reshape(shape[0], -1) for t in (drawn(layer, shape), dequantize_weight(value)))
    h = block.double()
    return float(torch.trace((w - q) @ h @ (w - q).T) / torch.trace(w @ h @ w.T))


def test_with_statistics_the_error_of_the_output_is_lower_than_with_rounding_to_nearest(tmp_path: Path) -> None:
    with_them = compensated(tmp_path / "one", EVERY)
    without = Bank.build(tmp_path / "two", EVERY, OWNER, lambda n: drawn(n, EVERY.shapes[n]))
    for layer, shape in EVERY.shapes.items():
        for option in EVERY.options[layer]:
            one, two = (output_error(layer, shape, bank.get(layer, option)) for bank in (with_them, without))
            assert one < 0.9 * two, (layer, option)


def test_errors_are_those_of_weights_of_outputs_and_of_the_guided_output(tmp_path: Path) -> None:
    bank = compensated(tmp_path / "one", EVERY)
    for layer, shape in EVERY.shapes.items():
        w, observed = drawn(layer, shape), statistics_of(layer, shape)
        for option in EVERY.options[layer]:
            error, value = bank.errors[layer][option], bank.get(layer, option)
            quantized = dequantize_weight(value)
            assert (error.loss, error.relative_mse) == pytest.approx(quantization_error(w, quantized))
            assert error.output == error.relative == pytest.approx(output_error(layer, shape, value), rel=1e-3)
            e = (w.double() - quantized.double()).reshape(len(w), -1)
            each = torch.einsum("cn,nm,cm->c", e, observed.moment.blocks[0].double(), e)
            assert error.cost == pytest.approx(float(observed.gradient @ each), rel=1e-3)
            assert bank.costs()[layer][option] == error.cost
    assert Bank(tmp_path / "one", EVERY, OWNER).errors == bank.errors
    configuration = EVERY.uniform(Option("row", 3))
    assert bank.error_sum(configuration) == pytest.approx(
        sum(bank.errors[n][Option("row", 3)].output for n in EVERY.layers)
    )


def test_without_statistics_the_relative_error_is_that_of_the_weight_and_there_are_no_costs(tmp_path: Path) -> None:
    bank = build(tmp_path)
    for errors in bank.errors.values():
        assert all(e.output is None and e.cost is None and e.relative == e.relative_mse for e in errors.values())
    assert bank.costs() is None


def test_a_layer_without_statistics_among_others_has_a_cost_by_its_relative_error(tmp_path: Path) -> None:
    observed = {"wide": statistics_of("wide", EVERY.shapes["wide"]), "conv": Observed()}
    bank = Bank.build(tmp_path, EVERY, OWNER, lambda n: drawn(n, EVERY.shapes[n]), observed=observed.__getitem__)
    costs, errors = bank.costs(), bank.errors
    ratios = [e.cost / e.output for e in errors["wide"].values()]
    assert costs["wide"] == {o: e.cost for o, e in errors["wide"].items()}
    for option, error in errors["conv"].items():
        assert error.output is None and error.cost is None
        assert costs["conv"][option] == pytest.approx(float(np.median(ratios)) * error.relative_mse)


def dominated(bank: Bank, layer: str, option: Option) -> list[Option]:
    """Options of the layer that are no larger and no worse."""
    shape, errors = bank.space.shapes[layer], bank.errors[layer]
    return [
        o for o in errors
        if o != option and o.nbytes(shape) <= option.nbytes(shape) and errors[o].cost <= errors[option].cost
    ]  # fmt: skip


def rival(bank: Bank, layer: str, option: Option) -> Option | None:
    """Codes of the same width by another method that err at most a third more."""
    errors = bank.errors[layer]
    codes = [o for o in errors if o.method != "lowrank" and o != option and o.number == option.number]
    return next((o for o in codes if errors[o].cost <= 4 / 3 * errors[option].cost), None)


def test_heavy_tails_have_a_codebook_and_usual_weights_fixed_levels(tmp_path: Path) -> None:
    """A few weights far out: levels times a scale a row would be wasted on them, or cut them."""
    shape = (32, 96)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    tailed = weight.clone()
    tailed[3, 5], tailed[9, 40], tailed[20, 7] = 14.0, -12.0, 13.0
    space = SearchSpace(
        {"usual": shape, "tailed": shape}, dict.fromkeys(("usual", "tailed"), options_for("default", shape))
    )
    weights = {"usual": weight.half(), "tailed": tailed.half()}
    observed = {name: statistics_of(name, shape) for name in weights}
    bank = Bank.build(tmp_path, space, OWNER, weights.__getitem__, observed=observed.__getitem__, prune=True)
    methods = {n: {o.method for o in bank.errors[n] if o.number >= 5 and o.method != "lowrank"} for n in weights}
    assert methods["tailed"] == {"kmeans_a"}
    assert "row" in {o.method for o in bank.errors["usual"]}
    plain = Bank.build(tmp_path / "all", space, OWNER, weights.__getitem__, observed=observed.__getitem__)
    books, rows = (plain.errors["tailed"][Option(m, 6)].cost for m in ("kmeans_a", "row"))
    assert books < rows


def test_methods_are_compared_on_some_rows_of_a_large_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heaviest are among them: one row with far larger weights and a strong effect decides here."""
    shape = (160, 40)
    space = SearchSpace.of({"layer": shape}, "default")
    weight, observed = torch.randn(shape, generator=torch.Generator().manual_seed(2)), statistics_of("layer", shape)
    weight[101] *= 30
    seen: list[int] = []
    quantized = making._quantized

    def spying(weight: torch.Tensor, options: object, moment: Moment | None) -> dict[Option, QuantizedWeight]:
        if moment is None:
            seen.append(len(weight))
        return quantized(weight, options, moment)

    monkeypatch.setattr(making, "_quantized", spying)
    kept = []
    for name, large in (("all", 10**9), ("some", 1)):
        monkeypatch.setattr(making, "_LARGE", large)
        bank = Bank.build(tmp_path / name, space, OWNER, lambda _: weight, observed=lambda _: observed, prune=True)
        kept.append({o.method for o in bank.space.options["layer"] if o.number in (3, 4) and o.method != "lowrank"})
    assert seen[0] == 160 and seen[1] <= 20
    assert kept[0] == kept[1] == {"row"}


def test_a_pruned_bank_has_no_option_that_another_beats_and_its_space_is_what_it_holds(tmp_path: Path) -> None:
    pruned, whole = compensated(tmp_path / "pruned", DEFAULT, prune=True), compensated(tmp_path / "whole", DEFAULT)
    assert whole.space.options == DEFAULT.options
    left_out = 0
    for layer in DEFAULT.layers:
        kept = pruned.space.options[layer]
        assert kept and set(kept) == set(pruned.errors[layer]) <= set(DEFAULT.options[layer])
        assert list(kept) == sorted(kept)
        assert not any(dominated(pruned, layer, option) for option in kept)
        for option in set(DEFAULT.options[layer]) - set(kept):
            left_out += 1
            better = {o for o in (option, rival(whole, layer, option)) if o is not None}
            better |= {o for beaten in better for o in dominated(whole, layer, beaten)}
            assert option.method == "lowrank" or better & set(kept), (layer, option)
        for option in kept:
            value, same = pruned.get(layer, option), whole.get(layer, option)
            assert torch.equal(dequantize_weight(value), dequantize_weight(same))
            assert value.nbytes == option.nbytes(DEFAULT.shapes[layer])
    assert left_out > 0
    pruned.verify()
    assert any(o.method == "lowrank" for o in pruned.space.options["thin"])  # its inputs lie in six directions
    assert not any(o.method == "lowrank" for o in pruned.space.options["full"])


def test_an_option_that_a_pruned_bank_left_out_is_refused_by_name(tmp_path: Path) -> None:
    bank = compensated(tmp_path, DEFAULT, prune=True)
    gone = next((n, o) for n in DEFAULT.layers for o in DEFAULT.options[n] if o not in bank.errors[n])
    with pytest.raises(Qua2SeDiMoError, match=f"no option '{gone[1]}' for layer '{gone[0]}'"):
        bank.get(*gone)
    with pytest.raises(Qua2SeDiMoError, match="does not belong to this search space"):
        bank.space.encode(Configuration({n: bank.space.options[n][0] for n in DEFAULT.layers} | dict([gone])))


def test_workers_and_interruptions_change_nothing_in_a_bank_with_statistics(tmp_path: Path) -> None:
    compensated(tmp_path / "one", DEFAULT, prune=True)
    compensated(tmp_path / "two", DEFAULT, prune=True, workers=3)

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compensated(tmp_path / "three", DEFAULT, prune=True, progress=stop)
    assert 2 <= len(layer_files(tmp_path / "three")) < len(DEFAULT.layers)
    compensated(tmp_path / "three", DEFAULT, prune=True)
    for other in ("two", "three"):
        for path in (*layer_files(tmp_path / "one"), tmp_path / "one" / "index.json"):
            assert (tmp_path / other / path.name).read_bytes() == path.read_bytes(), (other, path.name)


def test_a_bank_of_format_1_is_still_read(tmp_path: Path) -> None:
    """As version 1 wrote it: two errors an option."""
    bank = build(tmp_path)
    path = tmp_path / "index.json"
    index = json.loads(path.read_text()) | {"format": 1}
    for entry in index["layers"].values():
        entry["errors"] = {option: errors[:2] for option, errors in entry["errors"].items()}
    del index["checksum"]
    for checksum in ({}, {"checksum": content_digest(index)}):
        path.write_text(json.dumps({**index, **checksum}))
        old = Bank(tmp_path, SPACE, OWNER)
        old.verify()
        assert old.errors == bank.errors and old.space.options == SPACE.options
        for layer in SPACE.layers:
            option = SPACE.options[layer][0]
            assert torch.equal(old.get(layer, option).codes, bank.get(layer, option).codes)
    path.write_text(json.dumps({**index, "checksum": "0" * 64}))
    with pytest.raises(Qua2SeDiMoError, match="its checksum differs"):
        Bank(tmp_path, SPACE, OWNER)


def test_the_default_options_take_at_most_one_and_a_half_times_the_weights_on_disk(tmp_path: Path) -> None:
    """On layers as large as those of the shipped models."""
    shapes = {"q": (192, 192), "ff.1": (768, 192), "ff.2": (192, 768), "conv": (128, 64, 3, 3), "embed": (192, 256)}
    space = SearchSpace.of(shapes, "default")
    stakes = {name: 10.0 ** (2 * i) for i, name in enumerate(shapes)}
    bank = Bank.build(
        tmp_path, space, OWNER, lambda n: drawn(n, shapes[n]), prune=True,
        observed=lambda n: Observed(Moment.identity(int(np.prod(shapes[n][1:])))), tried=within_reach(space, stakes),
    )  # fmt: skip
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written <= 1.5 * 2 * bank.space.weights
