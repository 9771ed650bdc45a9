"""W&B as a mirror of metrics.jsonl: what is there is logged once, in order, whatever was killed and resumed.

Offline, a resumed run writes its whole history anew, since W&B keeps what a killed process logged last in memory, and
cannot append to a run offline: the newest `offline-run-*` folder is always the whole run, and `wandb sync` puts it in
place of what was uploaded of it before. Online, a resumed run asks the server for its last step, sends what the
server lacks, and does not send again what it has. Nothing that fails here ends the training.
"""

import netrc
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

from data_prep.errors import one_line
from pretrain.atomic_file import write_atomically
from pretrain.run_record import Figures

ADDRESS = "https://api.wandb.ai"
SECONDS_TO_START = 30
SECONDS_TO_FINISH = 10  # for what was logged last: a run that SIGTERM ends has few


def mode_of(setting: str) -> str:
    """`offline`, `online` or `off`, from --wandb and, for `auto`, from WANDB_MODE and whether the user is logged in."""
    if setting != "auto":
        return setting
    wished = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
    return {"disabled": "off", "dryrun": "offline", "run": "online"}.get(wished, wished)


class WandbLog:
    """A W&B run, the same one after a resume, but not after a start anew: its id lies in RUN_DIR/wandb_id.

    history: rows of metrics.jsonl; figures: by step, those of the run so far; mode: offline or online.
    """

    def __init__(
        self, run_dir: Path, history: list[dict], figures: dict[int, Figures], config: dict, mode: str, project: str
    ):
        self._run = None
        self._failed = False
        self._sent = 0  # the last step that W&B had before
        self._drawn = 0  # the last one whose figures it has

        def start() -> None:
            self._start(run_dir, config, mode, project, anew=not history)
            for number, row in enumerate(history):
                self._log(row)
                step = row["step"]
                if step in figures and (number + 1 == len(history) or history[number + 1]["step"] > step):
                    self._log_figures(step, figures[step])
            if mode == "offline":
                _remove_others(run_dir, Path(self._run.dir).parent, self._run.id)

        self._guarded(start)

    def write(self, row: dict) -> None:
        self._guarded(lambda: self._log(row))

    def figures(self, step: int, figures: Figures) -> None:
        self._guarded(lambda: self._log_figures(step, figures))

    def checkpoints(self, by_alias: dict[str, Path]) -> None:
        """Versions of one artifact, a checkpoint's folder each, by alias (`best`, `latest`).

        Online it returns once they are uploaded; offline no copy is made: `wandb sync` reads the folders.
        """

        def log() -> None:
            import wandb

            aliases: dict[Path, list[str]] = {}
            for alias, folder in by_alias.items():
                aliases.setdefault(folder, []).append(alias)
            for folder, names in aliases.items():
                artifact = wandb.Artifact(f"checkpoint-{self._run.id}", "model", metadata={"checkpoint": folder.name})
                artifact.add_dir(str(folder), skip_cache=True, policy="immutable")
                logged = self._run.log_artifact(artifact, aliases=names)
                if not self._run.offline:
                    logged.wait()

        self._guarded(log)

    def close(self, exit_code: int = 0) -> None:
        """Send what was logged last, within SECONDS_TO_FINISH. exit_code: 0, or 1 for a run that failed."""
        self._guarded(lambda: self._run.finish(exit_code))

    def _start(self, run_dir: Path, config: dict, mode: str, project: str, anew: bool) -> None:
        import wandb

        identity = run_dir / "wandb_id"
        # The server would hold back a curve that begins anew until it is past the one that it has by that id.
        if not identity.is_file() or (anew and mode == "online"):
            write_atomically(identity, secrets.token_hex(4))
        self._run = wandb.init(
            project=project,
            dir=run_dir,
            mode=mode,
            config=config,
            id=identity.read_text().strip(),
            name=run_dir.resolve().name,
            job_type="pretrain",
            tags=[Path(config["run"]["config"]).stem[:64], config["genome"]["name"][:64]],
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=SECONDS_TO_START,
                finish_timeout=SECONDS_TO_FINISH,
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("figures/step", hidden=True)
        self._run.define_metric("figures/*", step_metric="figures/step")
        if self._run.resumed:
            self._sent = int(self._run.summary.get("step") or 0)
            self._drawn = int(self._run.summary.get("figures/step") or 0)

    def _log(self, row: dict) -> None:
        # A run can be killed between the two rows of a step, that of training and that of the evaluation.
        held_out = any(name.startswith("val/") for name in row)
        if row["step"] > self._sent or (held_out and row["step"] == self._sent):
            self._run.log(row)

    def _log_figures(self, step: int, figures: Figures) -> None:
        import wandb

        # They come some steps late: with a count of their own they do not set the run's `step` back.
        if step > self._drawn:
            images = {f"figures/{name}": wandb.Image(str(path)) for name, path in figures.items()}
            self._run.log({"figures/step": step, **images})
            self._drawn = step

    def _guarded(self, call: Callable[[], None]) -> None:
        """Call; give W&B up at the first error, with a word."""
        if self._failed:
            return
        try:
            call()
        except Exception as error:
            self._failed = True
            print(f"warning: W&B: {one_line(error)}; the run goes on without it", file=sys.stderr, flush=True)


def _remove_others(run_dir: Path, newest: Path, identity: str) -> None:
    """Remove a run's older offline folders, all of which the newest holds."""
    for folder in (run_dir / "wandb").glob(f"offline-run-*-{identity}"):
        if folder.name != newest.name:
            shutil.rmtree(folder, ignore_errors=True)


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = urlparse(os.environ.get("WANDB_BASE_URL", ADDRESS)).hostname
        return netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
