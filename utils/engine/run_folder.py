"""One training run on disk: its folder, log, checkpoints and pictures."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from utils.commands.errors import UserError, listed
from utils.commands.files import claimed, read_json, write_atomically, write_json, write_table
from utils.engine.checkpoint import FORMAT, _read_history, read_checkpoint
from utils.engine.distributed import ALONE, ProcessGroup, wait_for_all
from utils.masks.geometry import as_png
from utils.method.settings import ESTIMATED, flag_of

if TYPE_CHECKING:  # slow to import, and not needed before an epoch is over
    from matplotlib.figure import Figure

RUN_FILES = (
    *("checkpoint.pt", "best.pt", "log.csv", "result.json", "per_image.csv", "split.json"),
    *("curves.png", "panels.png", "predictions.png"),
)

TENSORBOARD = "tensorboard"
FROM_CHECKPOINT = ("result.json", "best.pt", "log.csv", "per_image.csv")  # never there before checkpoint.pt is
# Settings that say where a run happens, not what it computes: --resume may change them.
PLACE_SETTINGS = {"data_root", "slic_root", "output_root", "device", "gpu", "cache"}
# Not set: found in the data, its last digits may depend on the machine; and in words, where tau comes from.
FOUND = {"intensity", "tau_from"}
SCHEDULES = "the schedules of drop rate, distance weights, transfer and learning rate"
PROCESSES = "processes"  # the setting that is the number of processes that train together
DATA = "data"  # the setting that is a digest of the files that are read


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Name TensorBoard's ``folder`` where it cannot be written to: its writer only gives the reason."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); free some space, then --resume") from error


def _close(writer: SummaryWriter) -> None:
    with _writing(Path(writer.get_logdir())):
        writer.close()


def check_free(folder: Path, resume: bool, overwrite: bool) -> None:
    """Raises `UserError` if there is a run in ``folder``, or what is left of one, and neither flag says what becomes of
    it."""
    there = (folder / "checkpoint.pt").is_file()
    if overwrite or (there and resume):
        return
    if there:
        raise UserError(
            f"{folder}: a run is there already; --resume continues it, --overwrite starts it again, "
            "--exp NAME keeps both"
        )
    left = [name for name in FROM_CHECKPOINT if (folder / name).is_file()]
    if left:  # somebody made room, or copied the results alone
        raise UserError(
            f"{folder}: {listed(left)} of a run whose checkpoint.pt is gone, without which it cannot go on; "
            "--overwrite removes them and starts it again, --exp NAME begins another run beside it"
        )


class Run:
    """A run folder: args.json, log.csv, checkpoint.pt, result.json, per_image.csv, curves.png, panels.png,
    predictions.png, tensorboard/; with validation cases best.pt too.

    ``history`` holds one row an epoch; it travels in the checkpoint, so that log.csv never says more or less than the
    checkpoint beside it.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict,
        resume: bool,
        overwrite: bool,
        group: ProcessGroup = ALONE,
        prepared: dict | None = None,
    ):
        """Open ``folder`` for a run of ``settings``; with ``resume`` read its checkpoint where there is one.

        settings: flags by name; "data", if it is there, a digest of all files that are read. prepared: how the images
        were prepared (`dataloaders.prepare.settings`), for whoever predicts others.
        Of a process group only the main process writes; the others open the run after it, and read. The folder is its
        own for as long as the run is used.
        Raises `UserError` if a run is there already and neither flag is given, if it was made with other settings, or
        if another process is writing there.
        """
        self.folder = folder
        self.prepared = prepared
        self.writes = group.is_main
        self._claim = ExitStack()
        if self.writes:
            self._claim.enter_context(claimed(folder))
        else:
            wait_for_all()
        self.settings = settings = dict(settings)
        settings[PROCESSES] = group.size  # each selects, votes and mixes within its part of a batch
        self.history: list[dict] = []
        self.checkpoint: dict | None = None
        path = folder / "checkpoint.pt"
        if path.is_file() and resume:
            self.checkpoint = read_checkpoint(path)
            self.history = _read_history(path, self.checkpoint)
            before = {PROCESSES: 1, **self.checkpoint["args"]}
            changed = self._differing(self.checkpoint["args"])
            flags = [k for k in changed if k != DATA and not self._follows(k, before)]  # a flag may change data, too
            if changed and not flags:  # held-out images might else be trained on, and the result be of other masks
                raise UserError(
                    f"{path}: the images, masks or superpixels are no longer those of the run, so --resume cannot "
                    "continue it; --overwrite starts it again, --exp NAME keeps both"
                )
            if flags:
                names = {k: flag_of(k) if k != PROCESSES else "torchrun --nproc_per_node" for k in flags}
                was = ", ".join(f"{names[k]} {before.get(k)} (now {settings[k]})" for k in flags)
                reason = f"; a run cannot be made longer or shorter, for {SCHEDULES} are shares of --max_epochs"
                reason = reason if "max_epochs" in flags else ""
                raise UserError(
                    f"{path}: --resume needs the settings of the run, which had {was}{reason}; --exp NAME begins "
                    "another run beside it, --overwrite in place of it"
                )
        elif self.writes:
            check_free(folder, resume, overwrite)
        if self.writes:
            self._tidy()
            self.write_json("args.json", settings)
            if self.result is None:  # TensorBoard would get an empty file of a complete run each time
                self.writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=len(self.history))
                self._claim.callback(_close, self.writer)
            wait_for_all()

    def _differing(self, before: dict) -> list[str]:
        """The settings that say what a run computes and are not as ``before``."""
        before = {PROCESSES: 1, **before}
        return [k for k, v in self.settings.items() if k not in PLACE_SETTINGS | FOUND and before.get(k) != v]

    def _follows(self, name: str, before: dict) -> bool:
        """Whether a setting was found in the data, then and now: other data have another."""
        return name == "tau" and all(
            str(settings.get("tau_from")).startswith(ESTIMATED) for settings in (before, self.settings)
        )

    def _tidy(self) -> None:
        """Remove what a run that starts again, or one that was killed, has left."""
        if self.history:
            # The run may have been killed between its checkpoint and its log.
            self.write_table("log.csv", self.history)
        else:
            for old in (*map(self.folder.joinpath, RUN_FILES), *(self.folder / TENSORBOARD).glob("events.*")):
                old.unlink(missing_ok=True)

    @property
    def epochs_done(self) -> int:
        """Number of complete epochs in the checkpoint; the next epoch has this number."""
        return len(self.history)

    @property
    def result(self) -> dict | None:
        """The contents of result.json if the run is complete, else None."""
        path = self.folder / "result.json"
        if not path.is_file():
            return None
        result = read_json(path, "remove it, and --resume makes it again")
        if not isinstance(result, dict):
            raise UserError(f"{path}: not a run's result; remove it, and --resume makes it again")
        return result

    def restore(self, networks: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Bring everything to the state of the checkpoint; without one, nothing changes.

        Raises `UserError` if it does not fit, or if best.pt should be there and is not.
        """
        if self.checkpoint is None:
            return
        try:
            networks.load_state_dict(self.checkpoint["networks"])
            optimiser.load_state_dict(self.checkpoint["optimiser"])
            generator.set_state(self.checkpoint["random"]["generator"])
            torch.set_rng_state(self.checkpoint["random"]["torch"])
        except Exception as error:  # what does not fit raises nearly any
            raise UserError(
                f"{self.folder / 'checkpoint.pt'}: does not fit this run ({str(error)[:200]!a}); it is damaged or of "
                "another version; --overwrite starts the run again"
            ) from error
        self._keep_best(self.checkpoint)  # the run may have been killed between its checkpoint and best.pt
        if self.writes and "val_dice" in self.history[-1]:
            self._read_best()  # not to find it lost when all epochs are done

    def close_epoch(
        self,
        row: dict,
        networks: nn.Module,
        optimiser: torch.optim.Optimizer,
        generator: torch.Generator,
        model: dict,
    ) -> None:
        """Log one epoch and write its checkpoint, which comes first: the other files can be made again from it.

        model: what a reader of the checkpoint needs to rebuild and feed the networks (channels, classes, intensity).
        """
        self.history.append(row)
        if not self.writes:
            return
        checkpoint = {
            "format": FORMAT,
            "epoch": len(self.history),
            "networks": networks.state_dict(),
            "optimiser": optimiser.state_dict(),
            # The generator draws everything a run draws; torch's own is kept in case a layer ever uses it.
            "random": {"generator": generator.get_state(), "torch": torch.get_rng_state()},
            "args": self.settings,
            "model": model,
            "prepared": self.prepared,
            "history": self.history,
        }
        self._save("checkpoint.pt", checkpoint)
        self._keep_best(checkpoint)
        self.write_table("log.csv", self.history)
        with _writing(self.folder / TENSORBOARD):
            for name, value in row.items():
                if name != "epoch" and isinstance(value, int | float):
                    self.writer.add_scalar(name, value, row["epoch"])
            self.writer.flush()

    @property
    def best_epoch(self) -> dict:
        """The row of the first epoch with the highest Dice on the validation cases."""
        return max(self.history, key=lambda row: row["val_dice"])

    def load_best(self, networks: nn.Module) -> None:
        """Bring the networks to the state of the best epoch. Raises `UserError` if best.pt is not of that epoch."""
        try:
            networks.load_state_dict(self._read_best()["networks"])
        except RuntimeError as error:
            raise UserError(f"{self.folder / 'best.pt'}: does not fit this run ({str(error)[:200]!a})") from error

    def _read_best(self) -> dict:
        path, epoch = self.folder / "best.pt", self.best_epoch["epoch"]
        remedy = "bring the file back, or start the run again with --overwrite"
        try:
            best = read_checkpoint(path)
        except UserError as error:
            raise UserError(f"{error}; epoch {epoch} was the best so far: {remedy}") from error
        if best["epoch"] != epoch + 1:
            raise UserError(f"{path}: of epoch {best['epoch'] - 1}, not {epoch} as log.csv says; {remedy}")
        if differ := self._differing(best["args"]):
            raise UserError(f"{path}: of a run with other settings ({listed(differ)}); {remedy}")
        return best

    def _keep_best(self, checkpoint: dict) -> None:
        """Write best.pt if the checkpoint's epoch is the best so far on the validation cases."""
        if self.writes and "val_dice" in self.history[-1] and self.best_epoch is self.history[-1]:
            self._save(
                "best.pt",
                {name: checkpoint[name] for name in ("format", "epoch", "networks", "args", "model", "prepared")},
            )

    def _save(self, name: str, contents: dict) -> None:
        buffer = io.BytesIO()
        torch.save(contents, buffer)
        write_atomically(self.folder / name, buffer.getvalue())

    def draw(self, pictures: Callable[[], Mapping[str, "Figure"]]) -> None:
        """Draw the pictures of the epoch just closed, each as NAME.png and into TensorBoard, and curves.png up to it.

        pictures: makes them, with their names; only the main process asks for them.
        """
        if not self.writes:
            return
        from utils.engine.figures import pixels

        self.draw_curves()
        for name, figure in pictures().items():
            drawn = pixels(figure)
            write_atomically(self.folder / f"{name}.png", as_png(drawn[..., ::-1]))
            with _writing(self.folder / TENSORBOARD):
                self.writer.add_image(name, drawn, self.epochs_done - 1, dataformats="HWC")

    def draw_curves(self) -> None:
        """Draw curves.png from the history."""
        from utils.engine.figures import png
        from utils.engine.pictures import learning_curves

        write_atomically(self.folder / "curves.png", png(learning_curves(self.history, self.settings.get("tau"))))

    def write_table(self, name: str, rows: Sequence[dict]) -> None:
        """Write ``rows`` as a CSV file of the run folder (`utils.commands.files.write_table`)."""
        if self.writes:
            write_table(self.folder / name, rows)

    def write_json(self, name: str, value: object) -> None:
        """Write ``value`` as a JSON file of the run folder."""
        if self.writes:
            write_json(self.folder / name, value)

    def close(self) -> None:
        """Give the folder back."""
        self._claim.close()

    def finish(self, result: dict, per_image: Sequence[dict]) -> None:
        """Write per_image.csv and then result.json, which says that the run is complete."""
        if not self.writes:
            return
        self.write_table("per_image.csv", per_image)
        self.draw_curves()
        self.write_json("result.json", result)
        self.close()
