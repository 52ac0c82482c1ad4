"""Write results: JSON files, TensorBoard events of a run, and the recorded results."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import claims, processes

RESULTS = Path(__file__).parents[1] / "results"  # the documentation takes its figures from here
GPU = "gpu"  # the folder in it with the results of a GPU
RUN_FILE = "run.json"
DIFFERING = ("net", "optimizer", "implementation", "lr")  # TensorBoard's first columns
MOST_BYTES, DEEPEST = 2**26, 20  # of a file of results


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace a file as a whole: readers see the old content or the new."""
    claims.check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # JSON can hold halves of characters, which no file can.
    data = content.encode(errors="replace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)  # of a process that was killed and had this number
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Strictly valid JSON: NaN and infinities, which JSON does not know, become null."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(path, text + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object as `write_json` writes it: finite numbers, each name once, not deep.

    Raises:
        ValueError: it holds something else.
    """
    size = path.stat().st_size
    if not path.is_file() or size > MOST_BYTES:
        raise ValueError(f"it is no file, or too big for one ({size:,} bytes)")
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=_finite_number,
            parse_float=_finite_number,
            object_pairs_hook=_each_once,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it does not hold a JSON object")
    _check_depth(content, DEEPEST)
    return content


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name is there twice")
    return content


def _check_depth(content: Any, left: int) -> None:
    if not left:
        raise ValueError("it is nested too deeply")
    for value in content.values() if isinstance(content, dict) else content:
        if isinstance(value, (dict, list)):
            _check_depth(value, left - 1)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch-scratch-optim", "torch", "torchvision", "tensorboard"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": processes.count(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
    }


def _processor() -> str:
    """The processor's name. Python knows only its architecture on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def conditions(device: torch.device, command: str) -> dict[str, Any]:
    """What every file of results says: by which command, with what and on what it was made."""
    return {"command": command, "versions": versions(), "machine": machine(device)}


def publish(name: str, out: Path, patterns: Sequence[str]) -> Path:
    """Copy files of a job to the recorded results of its command, and return their folder.

    Those of a GPU have a place of their own beside the CPU's.
    """
    files = [path for pattern in patterns for path in sorted(out.glob(pattern))]
    devices = {read_json(path)["machine"]["device"] for path in files if path.suffix == ".json"}
    folder = RESULTS / name if devices == {"cpu"} else RESULTS / GPU / name
    for path in files:
        write_atomically(folder / path.relative_to(out), path.read_bytes())
    return folder


def provenance(recorded: dict[str, Any], command: str) -> str:
    """On what, with what and by which command something was measured."""
    machine, versions = recorded["machine"], recorded["versions"]
    device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    threads = machine["torch_threads"]
    return (
        f"{device}{machine['processor']}, {threads} thread{'s' * (threads != 1)}, "
        f"torch {versions['torch']}, Python {versions['python']}: `{command}`"
    )


class RunRecorder:
    """Writes one run's TensorBoard events as it goes on and its JSON file when it has ended.

    A run without a JSON file has not ended. What an earlier attempt left is removed, so that
    TensorBoard never shows two attempts as one curve.
    """

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # takes seconds to import

        claims.clear(directory)
        self.directory = directory
        self._writer = SummaryWriter(log_dir=str(directory))

    def scalar(self, tag: str, value: float, step: int, wall_time: float | None = None) -> None:
        """Add a point to a curve. A curve ends where its values are no longer finite."""
        if math.isfinite(value):
            self._writer.add_scalar(tag, value, step, walltime=wall_time)

    def flush(self) -> None:
        self._writer.flush()

    def finish(
        self,
        settings: Mapping[str, bool | str | float | int],
        metric_tags: Sequence[str],
        content: Mapping[str, Any],
    ) -> None:
        """Close the run: hyper-parameters beside the scalars `metric_tags`, then the JSON file.

        SummaryWriter.add_hparams would open a second run for the hyper-parameters; the same three
        summaries, written to this run, show them in one row with its curves.
        """
        # tensorboard comes without type hints.
        from tensorboard.plugins.hparams.plugin_data_pb2 import (  # type: ignore[import-untyped]
            HParamsPluginData,
        )
        from torch.utils.tensorboard.summary import hparams

        lines = [f"* {name}: {value}" for name, value in settings.items()]
        self._writer.add_text("settings", "\n".join(lines))
        events = self._writer.file_writer
        assert events is not None, "the writer is open until the run is closed"
        # As texts: a boolean would be shown as 0 or 1, with boxes for a minimum and a maximum.
        texts = {n: str(v) if isinstance(v, bool) else v for n, v in settings.items()}
        summaries = hparams(texts, dict.fromkeys(metric_tags, 0.0))
        plugin = summaries[0].value[0].metadata.plugin_data
        data = HParamsPluginData.FromString(plugin.content)
        for info in data.experiment.hparam_infos:
            info.differs = info.name in DIFFERING
        plugin.content = data.SerializeToString()
        for summary in summaries:
            events.add_summary(summary)
        self._writer.close()
        write_json(self.directory / RUN_FILE, content)

    def abandon(self) -> None:
        """Remove what there is of a run that was interrupted."""
        try:
            self._writer.close()
        finally:
            with suppress(OSError):  # what went wrong before is what is told
                claims.clear(self.directory)
