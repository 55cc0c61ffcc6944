"""Measuring: the same records whatever happens on the way, and nothing measured is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import small_pipeline, small_settings

from qua2sedimo import Configuration, Qua2SeDiMoError, Study
from qua2sedimo.commands.collecting import measure
from qua2sedimo.measuring.measurer import Measurer
from qua2sedimo.measuring.run import Request, Workers, record_of
from qua2sedimo.measuring.switch import PackedSwitch
from qua2sedimo.measuring.workers import Outcome, RayWorkers, Work
from qua2sedimo.records import Failure, Record
from qua2sedimo.records.measurement import Measurement
from qua2sedimo.runtime import QuantizedLayer
from qua2sedimo.study.measurements import measure_requests
from qua2sedimo.study.worker import open_worker

COUNT = 60
OPTIONS = "uaq-2,uaq-4,kmeans_a-3"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that other processes can load."""
    folder = tmp_path_factory.mktemp("measuring") / "model"
    small_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    torch.set_num_threads(1)
    return made(model, tmp_path_factory.mktemp("undisturbed")).measure(COUNT)


def made(model: Path, folder: Path) -> Study:
    study = Study.create(folder / "study", small_settings(model=str(model), options=OPTIONS))
    study.quantize()
    return study


@pytest.fixture
def study(model: Path, tmp_path: Path) -> Study:
    return made(model, tmp_path)


def essence(records: list[Record]) -> list[Any]:
    """All of the records but their seconds."""
    return [(r.role, r.number, r.configuration, r.average_bits, replace(r.measurement, seconds=0)) for r in records]


# Kills -------------------------------------------------------------------------------------------------------------


def measure_in(folder: Path, interrupted: Any = None) -> None:
    """What the process does that is killed or interrupted."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born ignoring it
    try:
        Study(folder).measure(COUNT)
    except KeyboardInterrupt:
        interrupted.set()


def command_in(folder: Path, said: Path) -> None:
    """The command itself, as it is typed."""
    os.environ["COLUMNS"] = "140"
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    from qua2sedimo.cli import main

    sys.argv = ["qua2sedimo", "measure", str(folder), "--configurations", str(COUNT)]
    main()


def process_for(*arguments: Any, target: Any = measure_in) -> Any:
    """A process that has the imports behind it already, and no threads of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qua2sedimo.study", "diffusers.pipelines.dit.pipeline_dit", "pytest"])
    return context.Process(target=target, args=arguments)


def wait_for(study: Study, count: int, process: Any) -> None:
    while len(study.workspace.records.all()) < count and process.is_alive():
        time.sleep(0.02)


def test_killed_at_random_moments_it_ends_with_the_same_records(study: Study, undisturbed: list[Record]) -> None:
    chance = np.random.default_rng(0)
    kills, seen = 0, 0
    while seen < COUNT:
        process = process_for(study.folder)
        process.start()
        wait_for(study, min(COUNT, seen + int(chance.integers(8, 25))), process)
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.join(60)
        kills += process.exitcode == -signal.SIGKILL
        found = study.workspace.records.all()
        assert len(found) >= seen  # nothing is lost, and what is there is whole and right
        assert essence(found) == essence(undisturbed[: len(found)])
        seen = len(found)
    assert kills >= 2
    assert essence(study.measure(COUNT)) == essence(undisturbed)


def test_ctrl_c_keeps_what_is_being_measured_and_a_second_run_goes_on(study: Study, undisturbed: list[Record]) -> None:
    interrupted = multiprocessing.get_context("forkserver").Event()
    process = process_for(study.folder, interrupted)
    process.start()
    wait_for(study, 3, process)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert interrupted.is_set() and process.exitcode == 0
    found = study.workspace.records.all()
    assert 3 <= len(found) < COUNT
    assert essence(study.measure(COUNT)) == essence(undisturbed)


def test_the_command_says_how_far_it_came_with_the_best_so_far_and_how_to_resume(study: Study, tmp_path: Path) -> None:
    said = tmp_path / "said"
    process = process_for(study.folder, said, target=command_in)
    process.start()
    wait_for(study, 3, process)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    text = " ".join(said.read_text().split())  # whatever the width of a line
    done = len(study.workspace.records.all())
    best = max(record.value("psnr") for record in study.workspace.records.all())
    assert process.exitcode == 130 and 3 <= done < COUNT
    ended = rf"measuring configurations: ended at {done} of {COUNT}, .* s · best psnr {best:.4g}"
    assert re.search(ended, text), text
    assert "Every finished measurement is kept: run the same command again to resume." in text


# Configurations that cannot be measured ----------------------------------------------------------------------------


@pytest.fixture
def unlucky(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Exception]]:
    """Call number → exceptions that measuring the configuration then raises, one a try."""
    planned: dict[int, list[Exception]] = {}
    plain = Measurer.__call__
    order: list[str] = []

    def measured(self: Measurer, configuration: Configuration) -> Measurement:
        if configuration.digest not in order:
            order.append(configuration.digest)
        if planned.get(order.index(configuration.digest)):
            raise planned[order.index(configuration.digest)].pop(0)
        return plain(self, configuration)

    monkeypatch.setattr(Measurer, "__call__", measured)
    return planned


def memory_errors(count: int) -> list[Exception]:
    return [MemoryError(f"error {i}") for i in range(count)]


def test_one_that_fails_three_times_is_recorded_and_passed_over(study: Study, unlucky, undisturbed) -> None:
    unlucky |= {1: memory_errors(2), 3: memory_errors(3)}
    found = study.measure(6)
    assert [r.number for r in found] == [0, 1, 2, 4, 5, 6]  # six that are measured, whatever fails
    assert [r.origin.attempts for r in found] == [1, 3, 1, 1, 1, 1]
    (failure,) = study.workspace.records.failed()
    assert (failure.number, failure.error) == (3, "MemoryError: error 2")
    assert failure.configuration == undisturbed[3].configuration
    assert [r.number for r in study.measure(6)] == [0, 1, 2, 4, 5, 6]
    again = study.measure(6, again=True)
    assert essence(again) == essence(undisturbed[:7]) and study.workspace.records.failed() == []


def test_the_command_tells_of_failures_and_tries_them_again_when_asked(study: Study, unlucky, capsys) -> None:
    unlucky |= {1: memory_errors(3)}
    measure(study.folder, 3)
    said = " ".join(capsys.readouterr().out.split())
    assert "1 failed:" in said and "--again retries them" in said
    measure(study.folder, 4, again=True)
    assert "failed" not in capsys.readouterr().out
    assert [r.number for r in study.workspace.records.all()] == [0, 1, 2, 3] and study.workspace.records.failed() == []


def test_one_that_kills_its_worker_three_times_is_recorded_with_its_error(study: Study) -> None:
    request = Request(0, study.workspace.sampler(0), range(2))
    outcome = Outcome(request.job(0), 3, "there", "7", error="its worker died: killed")
    failure = record_of("sample", request, outcome, study.workspace.space)
    assert isinstance(failure, Failure)
    study.workspace.records.add_failure(failure)
    (kept,) = study.workspace.records.failed()
    assert (kept.number, kept.error, kept.configuration) == (0, "its worker died: killed", study.workspace.sampler(0))
    assert (kept.origin.attempts, kept.origin.host, kept.origin.worker) == (3, "there", "7")
    assert [r.number for r in study.measure(2)] == [1, 2]


def test_a_sequence_that_ends_has_nothing_to_put_in_place_of_a_failed_one(tmp_path: Path, unlucky) -> None:
    study = listed_study(tmp_path, LISTED)
    unlucky |= {1: memory_errors(3)}
    told: list[tuple[int, int]] = []
    assert [r.number for r in study.measure(3, lambda *one: told.append(one[:2]))] == [0, 2]
    assert told[-1] == (2, 2)
    assert [r.number for r in study.measure(3)] == [0, 2]


# A list of one's own -----------------------------------------------------------------------------------------------

LISTED = [{"*": "uaq-2"}, {"*": "uaq-4"}, {"*": "kmeans_a-3"}]


def listed_study(folder: Path, entries: list[dict[str, str]]) -> Study:
    (folder / "mine.json").write_text(json.dumps(entries))
    settings = small_settings(sampler="list", configurations=str(folder / "mine.json"), options=OPTIONS)
    return Study.create(folder / "study", settings, small_pipeline())


def test_a_list_may_grow_at_its_end_but_what_was_measured_must_stay(tmp_path: Path) -> None:
    first = listed_study(tmp_path, LISTED[:2]).measure(2)
    assert essence(listed_study(tmp_path, LISTED).measure(3)[:2]) == essence(first)
    with pytest.raises(Qua2SeDiMoError, match=r"entry 2 of .*mine.json is not the one that was measured"):
        listed_study(tmp_path, [LISTED[0], LISTED[2], LISTED[1]]).measure(3)
    with pytest.raises(Qua2SeDiMoError, match="entry 3 of"):
        listed_study(tmp_path, LISTED[:2]).measure(2)


def test_three_in_a_row_are_no_longer_the_configurations_fault(study: Study, unlucky) -> None:
    unlucky |= {i: memory_errors(3) for i in (1, 2, 3)}
    with pytest.raises(Qua2SeDiMoError, match=r"3 configurations in a row could not be measured, the last: .*error 2"):
        study.measure(8)
    assert [r.number for r in study.workspace.records.all()] == [0]
    assert [f.number for f in study.workspace.records.failed()] == [1, 2, 3]


def test_a_problem_with_the_input_is_no_failure_of_a_configuration(study: Study, unlucky) -> None:
    unlucky[1] = [Qua2SeDiMoError("bank/0000.safetensors is damaged")]
    with pytest.raises(Qua2SeDiMoError, match="is damaged"):
        study.measure(4)
    assert [r.number for r in study.workspace.records.all()] == [0] and study.workspace.records.failed() == []


# Roles, progress, origin -------------------------------------------------------------------------------------------


def test_a_configuration_of_one_layer_leaves_the_others_at_full_precision(study: Study) -> None:
    study.measure(2)  # whatever the denoiser was before
    layer = study.workspace.space.layers[0]
    option = study.workspace.space.options[layer][0]
    single = Configuration({layer: option})
    for number in (0, 1):
        measure_requests(study.workspace, "single", [Request(number, single, range(2))], [range(2)], "alone")
        study.workspace.switch.apply(study.workspace.space.uniform(option))
    first, second = study.workspace.records.all("single")
    assert first.measurement.values == second.measurement.values
    kept = 16 * (study.workspace.space.weights - np.prod(study.workspace.space.shapes[layer]))
    bits = (8 * option.nbytes(study.workspace.space.shapes[layer]) + kept) / study.workspace.space.weights
    assert first.average_bits == study.workspace.space.average_bits(single) == pytest.approx(bits)
    assert len(study.workspace.records.all("sample")) == 2


def test_progress_tells_how_many_and_the_best_so_far(study: Study) -> None:
    study.measure(2)
    told: list[tuple[int, int, str]] = []
    records = study.measure(4, lambda *one: told.append(one))
    assert [one[:2] for one in told] == [(2, 4), (3, 4), (4, 4)]
    best = max(r.value("psnr") for r in records)
    assert told[-1][2] == f"measuring configurations · best psnr {best:.4g}"


def test_a_record_says_where_it_was_measured_and_with_how_much_memory(study: Study) -> None:
    (record,) = study.measure(1)
    origin = record.origin
    assert origin.worker == str(os.getpid()) and origin.space == study.workspace.identity
    assert origin.versions["torch"] == torch.__version__.split("+")[0] or origin.versions["torch"] == torch.__version__
    assert origin.peak_memory is not None and 50e6 < origin.peak_memory < 1e12


def test_a_pipeline_in_memory_cannot_be_measured_by_workers(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", small_settings(options=OPTIONS), small_pipeline())
    with pytest.raises(Qua2SeDiMoError, match="passed in memory"):
        study.measure(2, workers=Workers(2))


# Several machines --------------------------------------------------------------------------------------------------


ALONE = 10  # configurations that a worker measures before both are ready


def patient_worker(folder: str) -> Work:
    """A worker as ever, but that the first of two does not measure everything before the other is there."""
    measure_one, done = open_worker(folder), [0]

    def work(content: str) -> str:
        until = time.monotonic() + 900
        while done[0] >= ALONE and not (Path(folder) / "both").exists() and time.monotonic() < until:
            time.sleep(0.05)
        done[0] += 1
        return measure_one(content)

    return work


@pytest.mark.usefixtures("quick_workers")
def test_a_node_that_is_killed_midway_changes_no_record(
    study: Study, undisturbed: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    def patient(factory: str, *arguments: Any, **more: Any) -> RayWorkers:
        return RayWorkers(f"{__name__}:patient_worker", *arguments, **more)

    monkeypatch.setattr("qua2sedimo.measuring.run.RayWorkers", patient)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = cluster.add_node(num_cpus=1)
    killed_at: list[int] = []

    def watch(done: int, total: int, what: str) -> None:
        if what == "starting workers" and done == total == 2:
            (study.folder / "both").touch()
        if what.startswith("measuring") and (study.folder / "both").exists() and not killed_at:
            killed_at.append(done)
            cluster.remove_node(lost, allow_graceful=False)

    try:
        found = study.measure(COUNT, watch, Workers(2, cluster.address))
    finally:
        cluster.shutdown()
    assert killed_at and killed_at[0] < COUNT
    assert essence(found) == essence(undisturbed)
    assert study.workspace.records.failed() == []
    assert os.getpid() not in {int(r.origin.worker) for r in found}


def test_packed_weights_give_the_same_records(study: Study, undisturbed: list[Record]) -> None:
    """It is a setting of where weights are, which may change between commands: nothing is measured again."""
    settings = study.workspace.settings
    study.measure(COUNT - 2)
    packed = Study.create(study.folder, settings.model_copy(update={"packed": True}))
    assert packed.workspace.settings.packed
    found = packed.measure(COUNT)
    assert isinstance(packed.workspace.switch, PackedSwitch)
    assert essence(found) == essence(undisturbed)
    packed.workspace.switch.apply(found[-1].configuration)
    assert any(isinstance(m, QuantizedLayer) for m in packed.workspace.denoiser.modules())


def test_weights_that_are_offloaded_layer_by_layer_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match=r"packed: .*\(offload: sequential\) stay plain"):
        small_settings(packed=True, offload="sequential")
