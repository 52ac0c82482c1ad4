"""The command: its files, its curves in TensorBoard, and what it says to bad input."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, NoReturn

import matplotlib as mpl
import pytest
import torch

# tensorboard comes without type hints.
from tensorboard.plugins.hparams.plugin_data_pb2 import (  # type: ignore[import-untyped]
    HParamsPluginData,
)

from benchmarks.common.data import DATA_DIR_VARIABLE, MNIST_NAME, SYNTHETIC_NAME
from benchmarks.common.implementations import torchs_default_is_its_loop
from benchmarks.common.optimizers import DEFAULT_NAMES, OPTIMIZERS
from benchmarks.mnist import __main__ as mnist
from benchmarks.mnist.__main__ import main
from benchmarks.mnist.figures import describe_outcome
from benchmarks.mnist.report import Pair, markdown_table
from tests.benchmarks.conftest import SMALL_NET, TINY, Job
from tests.benchmarks.cuda_graphs import Graph
from tests.benchmarks.files import TWO, events, read, run_files
from tests.cuda_without_gpu.on_cpu import DEVICE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small job with two optimizers on both nets, pictures included."""
    out = tmp_path_factory.mktemp("finished") / "job"
    looks = dict(mpl.rcParams)
    names = ("--optimizers", "momentum", "adam")
    assert main([*TINY, *SMALL_NET, *names, "--epochs", "2", "--out", str(out)]) == 0
    assert dict(mpl.rcParams) == looks, "the settings of matplotlib belong to the caller"
    return out


def test_the_summary_has_every_run_and_every_comparison(finished: Path) -> None:
    summary = read(finished / "summary.json")
    assert summary["dataset"] == SYNTHETIC_NAME
    assert summary["settings"]["lr"] == {"momentum": 0.05, "adam": 0.001}
    assert {"torch", "python"} <= set(summary["versions"])
    assert {"cores", "device"} <= set(summary["machine"])
    assert "torchs_default_differs" not in summary
    assert "data_dir" not in summary, "a summary is passed on; where the data lie is private"
    found = [(run["net"], run["optimizer"], run["implementation"]) for run in summary["runs"]]
    assert found == [
        (net, optimizer, implementation)
        for net in ("sigmoid", "relu")
        for optimizer in ("momentum", "adam")
        for implementation in ("scratch", "torch")
    ]
    for run in summary["runs"]:
        assert run["seed"] == 0
        assert run["epochs"] == 2
        assert not run["diverged"]
        for name in ("lr", "train_loss", "test_loss", "seconds", "optimizer_ms_per_step"):
            assert run[name] > 0
        for name in ("train_accuracy", "test_accuracy", "optimizer_share"):
            assert 0 < run[name] < 1
    assert summary["comparisons"] == [
        {
            "net": net,
            "optimizer": optimizer,
            "max_abs_loss_difference": 0.0,
            "parameters_equal": True,
        }
        for net in ("sigmoid", "relu")
        for optimizer in ("momentum", "adam")
    ]


def test_every_file_says_that_the_digits_are_not_mnist(finished: Path) -> None:
    for path in [*finished.rglob("*.json"), *finished.rglob("*.md")]:
        assert SYNTHETIC_NAME in path.read_text(), path


def test_the_pictures_are_pictures(finished: Path) -> None:
    for name in ("curves.png", "gradient_flow.png"):
        content = (finished / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 20_000


def test_nothing_temporary_is_left(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "relu", "sigmoid", "settings.json", "summary.json", "summary.md", "curves.png",
        "gradient_flow.png",
    }  # fmt: skip


def test_one_run_is_one_directory_in_tensorboard(finished: Path) -> None:
    found = {str(path.parent.relative_to(finished)) for path in finished.rglob("events*")}
    assert found == {
        f"{net}/{optimizer}/{implementation}"
        for net in ("sigmoid", "relu")
        for optimizer in ("momentum", "adam")
        for implementation in ("ours", "torch")
    }


def test_tensorboard_has_every_curve_and_the_settings_beside_them(finished: Path) -> None:
    directory = finished / "relu" / "adam" / "ours"
    found = events(directory)
    layers = ("layer_1", "layer_2", "output")
    assert set(found.Tags()["scalars"]) == {
        "loss/train_batches", "loss/train", "loss/test", "accuracy/train", "accuracy/test",
        "generalization_gap/loss", "generalization_gap/accuracy", "time/optimizer_step_ms",
        *(f"gradient_norm/{layer}" for layer in layers),
        *(f"update_to_weight/{layer}" for layer in layers),
    }  # fmt: skip
    run = read(directory / "run.json")
    assert found.Scalars("loss/test")[-1].value == pytest.approx(run["test_loss"])
    assert found.Scalars("accuracy/train")[-1].step == run["steps"] == 10
    gap = run["test_loss"] - run["train_loss"]
    assert found.Scalars("generalization_gap/loss")[-1].value == pytest.approx(gap)
    plugin = found.summary_metadata["_hparams_/session_start_info"].plugin_data
    assert plugin.plugin_name == "hparams"
    assert b"learning" not in plugin.content
    for setting in (b"lr", b"batch_size", b"scratch", SYNTHETIC_NAME.encode()):
        assert setting in plugin.content
    experiment = found.summary_metadata["_hparams_/experiment"].plugin_data.content
    assert b"accuracy/test" in experiment
    settings = HParamsPluginData.FromString(experiment).experiment.hparam_infos
    first = {setting.name for setting in settings if setting.differs}
    assert first == {"net", "optimizer", "implementation", "lr"}
    values = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    assert values["reference"].string_value == "True"


def test_the_terminal_shows_tables_and_the_next_command(
    job: Job, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert job(*TWO) == 0
    shown = capsys.readouterr().out
    assert f"{SYNTHETIC_NAME}: deep ReLU net" in shown
    assert "2 of 2 pairs are equal, bit for bit" in shown
    assert "torch's default" not in shown
    assert f"tensorboard --logdir {tmp_path / 'job'}\n" in shown
    assert max(map(len, shown.splitlines()[-20:])) <= 80 + len(str(tmp_path))


@pytest.fixture
def gpu(graphs: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is a CPU."""
    monkeypatch.setattr(mnist, "pick_device", lambda name: DEVICE)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a GPU")
    # Lightning sets it. torch then counts devices to find out whether there is a GPU.
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)


def let_torchs_default_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's Adam take other steps by default than by its loop."""

    def make(parameters: Any, lr: float, foreach: bool | None = None) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr * (1.001 if foreach is None else 1))

    monkeypatch.setitem(OPTIMIZERS, "adam", dataclasses.replace(OPTIMIZERS["adam"], reference=make))


@pytest.mark.parametrize(
    ("differing", "sentence"),
    [
        (["adam"], "torch's default differs from torch's own loop on this device: Adam."),
        ([], "torch's default has the bits of torch's own loop on this device."),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_a_job_on_a_gpu_says_whether_torchs_default_is_its_loop(
    differing: list[str],
    sentence: str,
    job: Job,
    graphs: list[Graph],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if differing:
        let_torchs_default_differ(monkeypatch)
    for more in ([], ["--resume"]):  # which says what was measured
        assert job(*TWO, *more) == 0
        assert sentence in capsys.readouterr().out
        monkeypatch.setattr(mnist, "torchs_default_is_its_loop", None)
    out = tmp_path / "job"
    summary = read(out / "summary.json")
    assert summary["torchs_default_differs"] == differing
    assert f"\n{sentence}\n" in (out / "summary.md").read_text()
    assert summary["settings"]["device"] == "cuda"
    assert summary["settings"]["capture"]
    assert len(graphs) == len(summary["runs"]) == 4


@pytest.mark.parametrize("option", [["--no-reference"], ["--torch-engine", "default"]])
@pytest.mark.usefixtures("gpu")
def test_a_job_that_does_not_compare_with_torchs_loop_says_nothing_of_it(
    option: list[str], job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job(*TWO, *option) == 0
    assert "torch's default" not in capsys.readouterr().out
    assert "torchs_default_differs" not in read(tmp_path / "job" / "summary.json")


def test_torchs_default_is_its_loop_on_a_cpu_unless_it_takes_other_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def differing() -> list[str]:
        cpu = torch.device("cpu")
        return [
            name for name in OPTIMIZERS if not torchs_default_is_its_loop(OPTIMIZERS[name], cpu)
        ]

    assert differing() == []
    let_torchs_default_differ(monkeypatch)
    assert differing() == ["adam"]


def test_without_reference_only_ours_is_trained(job: Job, tmp_path: Path) -> None:
    assert job(*TWO, "--no-reference") == 0
    assert set(run_files(tmp_path / "job")) == {"relu/sgd/ours", "relu/adam/ours"}
    summary = read(tmp_path / "job" / "summary.json")
    assert len(summary["runs"]) == 2
    assert summary["comparisons"] == []


def test_a_loss_that_grows_without_end_is_called_diverged_and_takes_few_digits() -> None:
    run = {
        "net": "relu", "optimizer": "adam", "lr": 1e3, "optimizer_ms_per_step": 1.0,
        "comparison": None,
        "optimizer_share": 0.5, "diverged": False, "diverged_at_step": None, "test_accuracy": 0.1,
        "train_accuracy": 0.1, "train_loss": 1.234567e24, "test_loss": 2e24,
    }  # fmt: skip
    table = markdown_table([Pair(run, None)])
    assert "| 1.2e+24 | 2.0e+24 |" in table
    assert describe_outcome([run]) == "diverged: Adam"
    stuck = run | {"train_loss": 2.3, "test_loss": 2.3}
    assert "| 2.3000 | 2.3000 |" in markdown_table([Pair(stuck, None)])
    assert describe_outcome([stuck]) == "stuck at chance: Adam"
    assert describe_outcome([stuck | {"test_accuracy": 0.9}]) == "every optimizer learns"


def test_a_diverged_run_is_reported_and_the_job_goes_on(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job(*TWO, "--lr", "sgd=1e30") == 0
    assert "relu SGD: diverged at step" in capsys.readouterr().out
    summary = read(tmp_path / "job" / "summary.json")
    flags = {run["optimizer"]: run["diverged"] for run in summary["runs"]}
    assert flags == {"sgd": True, "adam": False}
    assert "| diverged |" in (tmp_path / "job" / "summary.md").read_text()


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("data were loaded before the input was checked")

    monkeypatch.setattr(mnist, "_load", refuse)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--optimizers", "foo"], "valid are sgd, momentum, adagrad, rmsprop, adam, adamw"),
        (["--nets", "tanh"], "valid are sigmoid, relu"),
        (["--epochs", "0"], "'0' is not a whole number from 1 up"),
        (["--batch-size", "-1"], "'-1' is not a whole number from 1 up"),
        (["--depth", "2.5"], "'2.5' is not a whole number from 1 up"),
        (["--seed", "-1"], "'-1' is not a whole number from 0 up"),
        (["--lr", "adam"], "'adam' is not NAME=VALUE"),
        (["--lr", "adam=0"], "must be a positive number"),
        (["--lr", "adam=nan"], "must be a positive number"),
        (["--lr", "adam=fast"], "must be a positive number"),
        (["--lr", "foo=1"], "valid are sgd"),
        (["--lr", "sgd=1", "--lr", "sgd=2"], "sgd is given twice"),
        (["--lr", "adamw=1"], "adamw, which is not among the optimizers"),
        (["--dataset", "cifar"], "valid are auto, mnist, synthetic"),
        (["--resum"], "there is no option --resum; did you mean --resume?"),
        (["--resume"], "there is no job to resume in runs"),
        (["--resume", "--out", "nowhere"], "there is no job to resume in nowhere"),
        (["--out", "file/inside"], "file is not a directory"),
        (["--out", "/proc/inside"], "cannot be written"),
        (["--out", "full"], "full is not empty"),
    ],
)
@pytest.mark.usefixtures("nothing_is_loaded")
def test_bad_input_is_refused_in_one_line(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert ending.value.code == 2
    shown = capsys.readouterr()
    assert complaint in shown.err
    assert shown.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("nothing_is_loaded")
def test_an_absent_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--device", "cuda", "--out", str(tmp_path / "new")])
    assert "no CUDA device" in capsys.readouterr().err


def test_corrupt_data_end_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(SystemExit) as ending:
        main(["--data-dir", str(tmp_path), "--out", str(tmp_path / "new")])
    assert ending.value.code == 2
    assert "train-labels-idx1-ubyte is missing" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "change",
    [
        ["--epochs", "3"],
        ["--lr", "adam=0.5"],
        ["--optimizers", "adam"],
        ["--dataset", "mnist"],
        ["--engine", "foreach"],
    ],
)
def test_a_job_is_not_resumed_with_other_settings(
    change: list[str], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run_files(finished)
    with pytest.raises(SystemExit) as ending:
        main(["--resume", "--out", str(finished), *change])
    assert ending.value.code == 2
    assert f"{change[0]} differs from the job" in capsys.readouterr().err
    assert run_files(finished) == before


def test_the_help_names_the_variable_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["--help"])
    assert ending.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (DATA_DIR_VARIABLE, "(default: 128)", " ".join(DEFAULT_NAMES), "adam=0.001"):
        assert part in shown


@pytest.mark.skipif(
    DATA_DIR_VARIABLE not in os.environ,
    reason=f"needs the real MNIST; {DATA_DIR_VARIABLE} names its directory",
)
def test_on_the_real_mnist_a_relu_net_learns_and_the_pair_is_equal(
    tmp_path: Path, no_pictures: None
) -> None:
    out = tmp_path / "job"
    arguments = ["--dataset", "mnist", "--nets", "relu", "--optimizers", "adam", "--epochs", "1"]
    assert main([*arguments, "--out", str(out)]) == 0
    summary = read(out / "summary.json")
    assert summary["dataset"] == MNIST_NAME
    assert summary["comparisons"][0]["max_abs_loss_difference"] == 0
    assert summary["comparisons"][0]["parameters_equal"]
    assert summary["runs"][0]["test_accuracy"] > 0.94
