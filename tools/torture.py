"""Do to runs what happens to them in years, and compare: ``python -m tools.torture --minutes 30``.

One small made-up night is stacked undisturbed. Then, again and again, with a fixed sequence of random numbers: a run
is killed or asked to stop at a random moment (the command, its worker, a process that measures, all of them), stored
files are damaged, a frame is replaced while the run is at work, the disk is too small. Afterwards nothing may be left
running, the exit code has to be one of those documented, and the next undisturbed run has to give what the first one
gave, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from astropy.io import fits
from PIL import Image

from zemosaic_core.errors import ZeMosaicError
from zemosaic_io.demo_session import write_demo_night
from zemosaic_worker import run_hierarchical_mosaic

__all__ = ["Survival", "Torture", "main"]

ROOT = Path(__file__).parent.parent
STATE = ".zemosaic_state"
SETTINGS = {
    "gpu_mode": "off",
    "exclude_flagged_frames": False,
    "solver_method": "EMBEDDED",
    "save_variance": True,
}
# A stop by a signal is promised within this on an idle machine; a busy one gets more before it counts as lost.
PATIENCE_S = 60.0
# Cards of products that differ from run to run.
_OF_THE_RUN = ("DATE", "ZMRUNID", "RUNID", "ZM_RUN")


@dataclass
class Survival:
    """How often a fault was produced, what ended how, and what was wrong."""

    count: int = 0
    codes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds_to_end: list[float] = field(default_factory=list)
    reused: int = 0
    wrong: list[str] = field(default_factory=list)


class Torture:
    """A night, its undisturbed mosaic, and everything that can be done to a run."""

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self.folder = folder
        self.rng = np.random.default_rng([seed, 4711])
        self.raw = folder / "raw"
        write_demo_night(
            self.raw,
            panels=(1, 2),
            frames_per_panel=4,
            shape_hw=(240, 320),
            with_wcs=True,
            bad_frames=False,
            n_satellites=0,
        )
        (folder / "none").mkdir()
        self._env = {**os.environ, "ZEMOSAIC_CONFIG_DIR": str(folder / "none"), "PYTHONPATH": str(ROOT)}
        self.reference = folder / "reference"
        run_hierarchical_mosaic(self.raw, self.reference, num_processing_workers=1, **SETTINGS)
        self.expected = products(self.reference)
        self._lengths: dict[int, tuple[float, int]] = {}
        self._latest: _Command | None = None

    def _length(self, workers: int) -> tuple[float, int]:
        """Return the seconds of a run at the command line, and how often its folder changed meanwhile.

        The run gives what the one in this process gave.
        """
        if workers not in self._lengths:
            start = time.monotonic()
            out = self._fresh("second")
            run = self._command(out, workers)
            changes = run.wait_for_changes(out, 1_000_000)
            code, said = run.wait_for_end()
            if code != 0 or self._differs(out):
                raise RuntimeError(f"two undisturbed runs differ, or one failed ({code}): {said[-300:]}")
            self._lengths[workers] = (time.monotonic() - start, changes)
        return self._lengths[workers]

    # ------------------------------------------------------------------ the faults

    def faults(self) -> dict[str, Callable[[Survival], None]]:
        """Return every fault by what it is called in the table."""
        on_posix: dict[str, Callable[[Survival], None]] = {}
        for name, who in (
            ("SIGKILL", "command"),
            ("SIGKILL", "worker"),
            ("SIGKILL", "child"),
            ("SIGKILL", "group"),
            ("SIGTERM", "command"),
            ("SIGTERM", "worker"),
            ("SIGTERM", "group"),
            ("SIGHUP", "group"),
        ):
            on_posix[f"{name} to the {who}"] = lambda found, n=name, w=who: self.kill(found, n, w)
        return {
            "stored files damaged": self.damage,
            "a frame replaced during the run": self.replace_frame,
            "a disk too small": self.small_disk,
            **(on_posix if os.name == "posix" else {}),
        }

    def kill(self, found: Survival, name: str, who: str) -> None:
        """Send a signal to a run, then run again.

        Half of the signals come at a random second; the others right after a random change of the output folder,
        which is when files are written and renamed. A third of the runs have a finished mosaic in their folder.
        """
        with_mosaic = bool(self.rng.random() < 0.33)
        out = self._fresh("killed", self.reference if with_mosaic else None)
        workers = 2 if who == "child" else int(self.rng.integers(1, 3))
        run_s, n_changes = self._length(workers)
        share, by_change = float(self.rng.uniform(0.05, 0.9)), bool(self.rng.integers(2))
        run = self._command(out, workers)
        if by_change:
            run.wait_for_changes(out, max(1, round(share * n_changes)))
        else:
            time.sleep(share * run_s)
        family = run.family()
        start = time.monotonic()
        if run.process.poll() is not None or not run.send(getattr(signal, name), who, family):
            # It had ended, or there was no such process: nothing was done to it.
            run.wait_for_end()
            return
        self._look_after(run, found, name, family, start)
        # A list of results that was begun to be moved is finished by the next run.
        if with_mosaic and not (out / ".zemosaic_new").exists() and self._differs(out):
            found.wrong.append(
                f"the mosaic that was there is neither kept nor replaced: {self._differs(out)}"
            )
        unanswered = str(-getattr(signal, name)) in found.codes and name != "SIGKILL"
        if unanswered and not with_mosaic and (out / STATE).exists():
            found.wrong.append(f"{name} was not answered")
        self._again(found, out)

    def _look_after(
        self, run: _Command, found: Survival, name: str, family: list[psutil.Process], start: float
    ) -> None:
        """Wait until all processes have ended; note how long it took, and what should not be."""
        number = int(getattr(signal, name))
        code, said = run.wait_for_end()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
        if code != 0:
            found.seconds_to_end.append(time.monotonic() - start)
        found.codes[str(code)] += 1
        if alive:
            found.wrong.append(f"left running: {[p.pid for p in alive]}")
            for process in alive:
                process.kill()
        # A signal that comes before the program can handle it ends it in the way of the system. Only who kills a
        # part of a run makes it fail; one that is asked to stop has been stopped.
        allowed = (0, 1, -number) if name == "SIGKILL" else (0, 130, -number)
        if code not in allowed:
            found.wrong.append(f"exit code {code}: {said[-2000:]}")
        if "Traceback" in said:
            found.wrong.append(f"traceback: {said[-600:]}")

    def damage(self, found: Survival) -> None:
        """Flip bits in, cut, empty, fill or remove stored files, then run again."""
        out = self._fresh("damaged", self.reference)
        files = sorted(p for p in (out / STATE).rglob("*") if p.is_file() and p.name != "run.lock")
        for _ in range(int(self.rng.integers(1, 4))):
            self._damage_file(files[int(self.rng.integers(len(files)))])
        self._again(found, out)

    def replace_frame(self, found: Survival) -> None:
        """Write other pixels over a frame at a random event of a run, with or without its old times.

        The mosaic of that run must be the one of the old frames, of the new ones, or say that the frame is left out.
        """
        out = self._fresh("replaced")
        raw = self.folder / "own_raw"
        shutil.rmtree(raw, ignore_errors=True)
        shutil.copytree(self.raw, raw)
        frames = sorted(raw.glob("*.fit*"))
        victim = frames[int(self.rng.integers(len(frames)))]
        keeps_times = bool(self.rng.integers(2))
        events, when = 0, int(self.rng.integers(1, 45))

        def report(_event: object) -> None:
            nonlocal events
            events += 1
            if events == when:
                self._overwrite(victim, keeps_times)

        code, report_facts = self._here(raw, out, report)
        if events < when:
            return
        found.codes[str(code)] += 1
        if code == 0:
            left = {Path(item["path"]).name: item["key"] for item in report_facts["left_out"]}
            if victim.name not in left and self._differs(out):
                fresh = self._fresh("fresh")
                self._here(raw, fresh)
                if products(fresh) != products(out):
                    found.wrong.append(f"{victim.name} replaced at event {when}: a mosaic of neither state")
        shutil.rmtree(raw)
        shutil.copytree(self.raw, raw)
        self._again(found, out, raw)

    def small_disk(self, found: Survival) -> None:
        """Run on a disk of random size, then on one that is large enough."""
        with self._disk(int(self.rng.integers(200_000, 26_000_000))) as disk:
            code, facts = self._here(self.raw, disk / "out")
            found.codes[str(code)] += 1
            if code == 0 and self._differs(disk / "out"):
                found.wrong.append("a mosaic that differs")
            if code not in (0, 1):
                found.wrong.append(f"ended by {facts}")
            out = self._fresh("moved", disk / "out")
        self._again(found, out)

    # ------------------------------------------------------------------ tools

    def _again(self, found: Survival, out: Path, raw: Path | None = None) -> None:
        """Run undisturbed in the same folder and compare."""
        found.count += 1
        code, facts = self._here(raw or self.raw, out)
        if code != 0:
            found.wrong.append(f"the next run failed: {facts}")
            return
        found.reused += any("reused" in message["key"] for message in facts["messages"])
        if self._differs(out):
            found.wrong.append(f"the next run gave something else: {self._differs(out)}")
        rest = [*out.rglob("*.part"), *(out / STATE).glob("run_*")]
        if rest:
            found.wrong.append(f"left behind: {rest}")

    def _differs(self, out: Path) -> list[str]:
        """Return the products that are not those of the undisturbed run.

        Others may lie beside them: a run with one frame less gives its files other names.
        """
        found = products(out)
        return [name for name, content in self.expected.items() if found.get(name) != content]

    def _here(
        self, raw: Path, out: Path, report: Callable[[Any], None] | None = None
    ) -> tuple[int | str, Any]:
        """Run in this process; return the exit code the command would have, and the report or the error."""
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                result = run_hierarchical_mosaic(
                    raw, out, reporter=report, num_processing_workers=1, **SETTINGS
                )
        except ZeMosaicError as error:
            return 1, f"{error.key}: {error}"
        except Exception as error:  # noqa: BLE001 - what nobody expected is what is looked for
            return repr(error), repr(error)
        return 0, result.report

    def _command(self, out: Path, workers: int) -> _Command:
        settings = [f"{key}={value}" for key, value in SETTINGS.items()]
        settings.append(f"num_processing_workers={workers}")
        assignments = [word for setting in settings for word in ("--set", setting)]
        line = [
            sys.executable,
            str(ROOT / "run_zemosaic.py"),
            "run",
            str(self.raw),
            str(out),
            "--quiet",
            *assignments,
        ]
        self._latest = _Command(line, self._env)
        return self._latest

    def end(self) -> None:
        """End what a torture that was broken off leaves running."""
        if self._latest is not None and self._latest.process.poll() is None:
            os.killpg(self._latest.process.pid, signal.SIGKILL)

    def _fresh(self, name: str, source: Path | None = None) -> Path:
        out = self.folder / name
        shutil.rmtree(out, ignore_errors=True)
        if source is not None and source.exists():
            shutil.copytree(source, out)
        return out

    def _damage_file(self, path: Path) -> None:
        if not path.exists():
            return
        content = bytearray(path.read_bytes())
        how = int(self.rng.integers(5))
        if how == 0 and content:
            for position in self.rng.integers(0, len(content), int(self.rng.integers(1, 20))):
                content[position] ^= 1 << int(self.rng.integers(8))
        elif how == 1:
            del content[int(self.rng.integers(len(content) + 1)) :]
        elif how == 2:
            content = bytearray(len(content))
        elif how == 3:
            content += self.rng.bytes(int(self.rng.integers(1, 5000)))
        else:
            path.unlink()
            return
        path.write_bytes(content)

    def _overwrite(self, path: Path, keeps_times: bool) -> None:
        before = path.stat()
        with fits.open(path, mode="update", memmap=False) as hdus:
            data = hdus[0].data.astype(np.int32)
            hdus[0].data = np.clip(data + self.rng.integers(-30, 400, data.shape), 0, 65535).astype(np.uint16)
        if keeps_times:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    @contextmanager
    def _disk(self, size: int) -> Iterator[Path]:
        """Give a folder on a disk of that size; without the right to mount one, no file may grow beyond it."""
        folder = self.folder / "disk"
        folder.mkdir(exist_ok=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
        if mounted.returncode == 0:
            try:
                yield folder
            finally:
                subprocess.run(["umount", str(folder)], check=True)
            return
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 20, hard))
        try:
            yield folder
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            shutil.rmtree(folder)


class _Command:
    """A run started at the command line, in a group of processes of its own."""

    def __init__(self, line: Sequence[str], env: dict[str, str]) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end of the run
        self.process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            env=env,
            start_new_session=True,
        )

    def family(self) -> list[psutil.Process]:
        """Return the command and everything it started."""
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def wait_for_changes(self, folder: Path, n: int) -> int:
        """Wait until files in a folder came, went or were renamed ``n`` times, or the run ended; return the times."""
        changes, seen = 0, set[str]()
        while changes < n and self.process.poll() is None:
            now = {os.path.join(place, name) for place, _, names in os.walk(folder) for name in names}
            if now != seen:
                changes, seen = changes + 1, now
            time.sleep(0.01)
        return changes

    def send(self, number: int, who: str, family: list[psutil.Process]) -> bool:
        """Send a signal to the command, its worker, a process that measures or all; tell whether it was sent."""
        try:
            if who == "group":
                os.killpg(self.process.pid, number)
                return True
            if who == "command":
                os.kill(self.process.pid, number)
                return True
            at_work = [p for p in family if is_worker(p)]
            worker = next((p for p in at_work if p.ppid() == self.process.pid), None)
            measuring = [p for p in at_work if worker is not None and p.ppid() == worker.pid]
            victims = measuring if who == "child" else [worker] if worker is not None else []
            for victim in victims[:1]:
                victim.send_signal(number)
            return bool(victims)
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False

    def wait_for_end(self) -> tuple[int, str]:
        """Return the exit code and what was said."""
        try:
            code = self.process.wait(timeout=PATIENCE_S + 60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = 999
        self.output.seek(0)
        said = self.output.read().decode("utf-8", "replace")
        self.output.close()
        return code, said


def is_worker(process: psutil.Process) -> bool:
    """Tell whether a process is one that Python started to work for another."""
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def products(folder: Path) -> dict[str, Any]:
    """Return everything that must be the same, by name: headers and pixels of FITS files, pixels of pictures."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("zemosaic_*")):
        if path.suffix == ".fits":
            with fits.open(path, memmap=False) as hdus:
                for number, hdu in enumerate(hdus):
                    cards = [str(card) for card in hdu.header.cards if card.keyword not in _OF_THE_RUN]
                    found[f"{path.name}[{number}] header"] = cards
                    if hdu.data is not None:
                        found[f"{path.name}[{number}]"] = np.ascontiguousarray(hdu.data).tobytes()
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                found[path.name] = np.asarray(picture).tobytes()
    return found


def table(found: dict[str, Survival]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| fault | how often | exit codes | longest until all had ended | runs that reused work | wrong |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for name, survival in found.items():
        codes = ", ".join(f"{code}: {n}" for code, n in sorted(survival.codes.items()))
        longest = f"{max(survival.seconds_to_end):.1f} s" if survival.seconds_to_end else ""
        lines.append(
            f"| {name} | {survival.count} | {codes} | {longest} | {survival.reused} | {len(survival.wrong)} |"
        )
    return "\n".join(lines)


def gathered(lines: Sequence[str]) -> dict[str, Survival]:
    """Return the results by fault; one JSON object per line and fault, as `main` writes them."""
    found: dict[str, Survival] = {}
    for line in lines:
        facts = json.loads(line)
        survival = found.setdefault(facts.pop("fault"), Survival())
        survival.count += facts["count"]
        survival.reused += facts["reused"]
        survival.seconds_to_end += facts["seconds_to_end"]
        survival.wrong += facts["wrong"]
        for code, n in facts["codes"].items():
            survival.codes[code] += n
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 1 when something was lost or different."""
    parser = argparse.ArgumentParser(prog="python -m tools.torture", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--faults", type=int, default=0, help="stop after so many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument(
        "--log", default="", help="add every fault to this file, and show the table of all in it"
    )
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    # So that what was mounted is unmounted. And a signal that is ignored here would be ignored by every run.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    until = time.monotonic() + 60 * options.minutes
    lines: list[str] = []
    tried = 0
    with tempfile.TemporaryDirectory(prefix="zemosaic_torture_") as name:
        torture = Torture(Path(name), options.seed)
        faults = {key: fault for key, fault in torture.faults().items() if options.only in key}
        try:
            while time.monotonic() < until and (not options.faults or len(lines) < options.faults):
                key = list(faults)[tried % len(faults)]
                survival = Survival()
                faults[key](survival)
                tried += 1
                if not survival.count:
                    continue
                lines.append(json.dumps({"fault": key, **vars(survival)}))
                for wrong in survival.wrong:
                    print(f"{key}: {wrong}", flush=True)
                if options.log:
                    with open(options.log, "a", encoding="utf-8") as file:
                        file.write(lines[-1] + "\n")
        finally:
            torture.end()
    shown = Path(options.log).read_text(encoding="utf-8").splitlines() if options.log else lines
    print(table(gathered(shown)))
    return 1 if any(survival.wrong for survival in gathered(lines).values()) else 0


if __name__ == "__main__":
    sys.exit(main())
