"""How processes find each other, and what one process's error is to the others."""

import json
import pathlib
import re
import sys

import jax
import pytest

from scripts.reliability import processes
from sparsejax import training
from sparsejax.training.parallel import _distributed as distributed

WORKER = pathlib.Path(__file__).with_name("two_processes.py")
MANUAL = {
  "SPARSEJAX_COORDINATOR": "first:1234",
  "SPARSEJAX_NUM_PROCESSES": "4",
  "SPARSEJAX_PROCESS_ID": "3",
}
JOINED = {"coordinator_address": "first:1234", "num_processes": 4, "process_id": 3}
SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_PROCID": "1",
  "SLURM_NTASKS": "2",
  "SLURM_LOCALID": "0",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
TPU = {"TPU_WORKER_HOSTNAMES": "host0,host1", "TPU_WORKER_ID": "0"}


@pytest.fixture
def calls(monkeypatch):
  """The arguments of every call of `jax.distributed.initialize`, which joins nobody."""
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **kw: calls.append(kw))
  return calls


def test_flags_tell_who_a_process_is(calls):
  assert distributed.initialize("first:1234", 4, 3, environment={}) is True
  assert calls == [JOINED]


def test_variables_tell_who_a_process_is(calls, monkeypatch):
  assert distributed.initialize(environment=MANUAL) is True
  for name, value in MANUAL.items():
    monkeypatch.setenv(name, value)
  assert distributed.initialize() is True
  assert calls == [JOINED, JOINED]


@pytest.mark.parametrize("cluster", [{}, SLURM, TPU], ids=["alone", "slurm", "tpu"])
def test_flags_come_before_variables_and_these_before_the_cluster(cluster, calls):
  assert distributed.initialize("other:1", 2, 0, environment={**cluster, **MANUAL})
  assert distributed.initialize(environment={**cluster, **MANUAL})
  flags = {"coordinator_address": "other:1", "num_processes": 2, "process_id": 0}
  assert calls == [flags, JOINED]


@pytest.mark.parametrize("cluster", [SLURM, OPEN_MPI, TPU], ids=["slurm", "mpi", "tpu"])
def test_a_cluster_is_left_to_jax(cluster, calls):
  assert distributed.initialize(environment=cluster) is True
  assert calls == [{}]


@pytest.mark.parametrize(
  "environment",
  [
    {},
    SLURM | {"SLURM_NTASKS": "1"},
    {"SLURM_NTASKS": "2"},  # of an allocation, in which nothing was launched by srun
    {"OMPI_COMM_WORLD_SIZE": "1"},
    {"TPU_WORKER_HOSTNAMES": "host0"},
  ],
)
def test_a_process_alone_joins_nobody(environment, calls):
  assert distributed.initialize(environment=environment) is False
  assert calls == []


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("first:1", 2), "must be given together; got no process_id"),
    (("", 2, 0), "must be given together; got no coordinator"),
    (("first:1", 2, 2), r"process_id must be in \[0, num_processes\), with 2 .* got 2"),
    (("first:1", 2, -1), "process_id must be in"),
    (("first", 2, 0), "coordinator must be host:port; got 'first'"),
  ],
)
def test_half_of_what_is_needed_is_refused(arguments, message, calls):
  with pytest.raises(training.ConfigError, match=message):
    distributed.initialize(*arguments, environment={})
  assert calls == []


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"SPARSEJAX_PROCESS_ID": None}, "got no SPARSEJAX_PROCESS_ID"),
    ({"SPARSEJAX_NUM_PROCESSES": "two"}, "_PROCESSES must be an integer; got 'two'"),
    ({"SPARSEJAX_PROCESS_ID": "4"}, r"_PROCESS_ID must be in \[0, .* got 4"),
  ],
)
def test_variables_that_break_a_rule_are_named(changed, message, calls):
  environment = {k: v for k, v in {**MANUAL, **changed}.items() if v is not None}
  with pytest.raises(training.ConfigError, match=message):
    distributed.initialize(environment=environment)
  assert calls == []


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_processes_that_do_not_meet_are_an_error_of_ours(error, monkeypatch):
  def refuse(**_):
    raise error("nobody there")

  monkeypatch.setattr(jax.distributed, "initialize", refuse)
  with pytest.raises(training.ConfigError, match="do not meet: nobody there"):
    distributed.initialize(environment=MANUAL)


def test_a_process_alone_decides():
  assert distributed.all_processes(True) is True
  assert distributed.all_processes(False) is False


def test_an_error_of_a_process_alone_is_its_own():
  with pytest.raises(KeyError, match="mine"), distributed.sync_errors():
    raise KeyError("mine")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """What two processes of two devices each report, and their folder."""
  folder = tmp_path_factory.mktemp("two")
  for code, output in processes.run([sys.executable, str(WORKER), str(folder)], 2, 2):
    assert code == 0, output
  texts = [(folder / f"found{i}.json").read_text() for i in range(2)]
  return folder, [json.loads(text) for text in texts]


@pytest.mark.slow
def test_two_processes_find_each_other(found):
  for report in found[1]:
    assert report["joined"] is True
    assert report["devices"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
  ("case", "process", "reason"),
  [
    ("files 0", 0, r"\[Errno 27\] File too large"),
    # Whichever of its files comes first.
    ("files 1", 1, r"(OUT_OF_RANGE: Error writing|\[Errno 27\] File too large)"),
    ("digests 0", 0, "No space left on device"),
  ],
)
def test_a_checkpoint_that_one_process_cannot_write_stops_both(
  case, process, reason, found
):
  folder, reports = found
  where = folder / case / "checkpoints"
  says = f"CheckpointError: the checkpoint of step 20 could not be written to {where}: "
  for i, report in enumerate(reports):
    said = report[case]["said"]
    other = "" if i == process or case == "digests 0" else f"process {process}: "
    assert re.match(re.escape(says) + other + reason, said)
    assert said.endswith("the same command resumes from step 10, which is kept.")
    # Nothing is lost, and the next one can be written.
    assert report[case]["steps"] == [10]
    assert report[case]["good"] is True
    assert report[case]["again"] == [10, 30]


@pytest.mark.slow
def test_a_checkpoint_that_no_process_can_write(found):
  for report in found[1]:
    assert "File too large" in report["files all"]["said"]
    assert report["files all"]["steps"] == [10]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("case", "process", "reason"),
  [
    ("digests 0", 0, "is not what was written"),
    ("digests 1", 1, "is not what was written"),
    ("state 1", 1, r"\[Errno 5\] Input/output error: state"),
    ("meta 0", 0, r"\[Errno 5\] Input/output error: meta"),
  ],
)
def test_a_checkpoint_that_one_process_cannot_read_is_damaged_to_both(
  case, process, reason, found
):
  for i, report in enumerate(found[1]):
    report = report[f"unread {case}"]
    assert report["extra"] == {"at": 10}
    assert report["good"] is True
    assert report["left"] == [10]
    (lost,) = report["lost"]
    other = "" if i == process else f"process {process}: "
    says = r"the checkpoint of step 20 is damaged \(" + other
    assert re.match(says + ".*" + reason, lost)


@pytest.mark.slow
def test_processes_that_do_not_see_the_same_checkpoints_stop(found):
  folder, reports = found
  for report in reports:
    assert report["unseen"].startswith(
      "ConfigError: the checkpoints (in a workdir that all share) must be the same in"
      " all processes; got 0x"
    )
  assert sorted(p.name for p in (folder / "unseen/checkpoints").iterdir()) == [
    "10",
    "20",
  ]


@pytest.mark.slow
def test_files_that_only_the_first_process_writes_stop_both_too(found):
  folder, (first, second) = found
  file = folder / "metrics"
  said = f"{file / 'metrics.jsonl'} cannot be written: File too large"
  assert first["metrics"] == f"WorkdirError: {said}"
  assert second["metrics"] == f"TrainingError: process 0: {said}"
  assert first["workdir free"] is second["workdir free"] is None
  held = f"workdir {file} is in use: another process is training there"
  assert first["workdir held"] == f"WorkdirInUseError: {held}"
  assert second["workdir held"] == f"TrainingError: process 0: {held}"
