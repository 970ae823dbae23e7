"""The trials of a sweep: an Optuna study in the sweep's folder, from which any number of workers claim one each.

    sweeps/a/study.txt      the name of the study; the folder is a sweep's once it is there
             journal.log    the study, if it is not in a database: settings, drawn values, errors by epoch
             claims/        a lock per trial, held by the worker that trains it: a lock dies with its process
             trials/0007/   the run directory of trial 7

A trial that is begun and not claimed has lost its worker; the next worker that comes continues it.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from auxnet.backbones.weights import file_of
from auxnet.batches import seed_of
from auxnet.documents import parsing
from auxnet.errors import first_line
from auxnet.fetching import pinned
from auxnet.files import claimed, is_held, sha256_of, write_text
from auxnet.sweeps.journal import BaseStorage, journal, optuna
from auxnet.sweeps.settings import (
    Settings,
    check_same,
    content_of,
    found_anywhere,
    is_sweep,
    pretrained_of,
    settings_from,
    with_weights,
)
from auxnet.sweeps.space import Choices, drawn_in_words

JOURNAL = b'{"op_code"'  # the beginning of every line of Optuna's journal
TRIALS = 20  # of a sweep, if no number is given


class OtherImagesError(RuntimeError):
    """A trial would be judged by other images than earlier trials, or trained on more or fewer."""


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    number: int
    state: str
    """complete, pruned, failed, running, or interrupted (the next worker continues it)"""
    objective: float | None
    """the validation error after its last epoch, a fraction; None before its first"""
    values: dict[str, Any]
    """of the fields that vary, as drawn"""
    in_words: dict[str, str]
    """the same values in words"""
    epochs: int
    """that are done"""
    seconds: float
    """of training, validation included"""
    error: str | None
    """why it failed, in a line"""
    twin: int | None
    """an earlier trial that drew the same values, whose result this one takes"""
    folder: Path

    @property
    def ended(self) -> bool:
        """Whether no worker has to continue it."""
        return self.state in ("complete", "pruned", "failed")


@dataclass(frozen=True)
class OpenSweep:
    """A sweep's study, opened."""

    folder: Path
    settings: Settings
    study: optuna.Study
    storage: BaseStorage


# ---- opening ---------------------------------------------------------------------------------------------------


def open_sweep(folder: Path, storage: str | None = None) -> OpenSweep:
    """Open a sweep that was begun. Raises FileNotFoundError if there is none, RuntimeError if its files are damaged."""
    if not is_sweep(folder):
        raise FileNotFoundError(f"there is no sweep in {folder}: begin one with --vary lr=0.01..0.5:log")
    with parsing(f"{folder / 'study.txt'} is damaged"):
        name = (folder / "study.txt").read_text(encoding="utf-8").strip()
    store, where = _storage(folder, storage), storage or folder / "journal.log"
    try:
        study = optuna.load_study(study_name=name, storage=store, sampler=optuna.samplers.RandomSampler())
    except KeyError:
        raise FileNotFoundError(
            f"{where} holds no study {name!r}: give the --storage that {folder} began with"
        ) from None
    with parsing(f"{where} is damaged: what it says of {folder} describes no sweep"):
        settings = settings_from(study.user_attrs["settings"])
        if study.direction.name != "MINIMIZE":
            raise ValueError("nothing is minimised")
    study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=settings.fewest_epochs // 3)
    return OpenSweep(folder, settings, study, store)


def join_sweep(
    folder: Path, settings: Settings, trials: int | None, storage: str | None, check: Callable[[], None]
) -> OpenSweep:
    """The sweep in a folder with these settings, begun if need be; `trials`, if given, becomes its total.

    `check` is called before a sweep is begun or joined, so that what this machine cannot do fails the worker, and not
    one trial after the other. Raises FileExistsError if the folder holds something else, ValueError if it is a sweep
    with other settings.
    """
    if trials is not None and trials < 1:
        raise ValueError(f"trials must be 1 or more, got {trials}")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder for the sweep")
    foreign = [path.name for path in _visible(folder) if not _of_a_beginning(path)]
    if foreign and not is_sweep(folder):  # asked after `foreign`: others may begin it meanwhile
        raise FileExistsError(f"{folder} holds other files ({foreign[0]}): name a new folder for the sweep")
    check()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not is_sweep(folder):
            _begin(folder, settings, storage)
        sweep = open_sweep(folder, storage)
        check_same(sweep.settings, settings, folder)
        if trials is not None:
            sweep.study.set_user_attr("trials", trials)
    return sweep


def check_same_data(sweep: OpenSweep, drawn: str, val_sha256: str, train: int) -> None:
    """Raise OtherImagesError if the images are others than when the sweep was begun: its trials would not compare.

    `drawn` and `val_sha256` tell the images that judge. Of the images that train only the number, `train`, is compared,
    and not even that if a field varies that changes it.
    """
    judging = [drawn, val_sha256]
    now = judging if {"train_images", "max_corrupt"} & sweep.settings.space.keys() else [*judging, train]
    with FileLock(sweep.folder / ".lock"):  # of two workers that come first, one sets them
        if "images" not in sweep.study.user_attrs:
            sweep.study.set_user_attr("images", now)
    then = sweep.study.user_attrs["images"]
    if then not in (now, judging):  # old sweeps hold no more than `judging`
        grown = isinstance(then, list) and then[:2] == judging
        others = f"trained on other images, {train:,} by now" if grown else "judged by other images"
        raise OtherImagesError(
            f"the data of {sweep.folder} have changed since it was begun, and its trials would be {others}: put the "
            "data back, or begin another sweep"
        )


def check_same_weights(sweep: OpenSweep, names: Iterable[str | None]) -> None:
    """Raise RuntimeError if these weights are others than when the sweep was begun: its trials would not compare."""
    for name in filter(None, names):
        now = sha256_of(file_of(name))
        with FileLock(sweep.folder / ".lock"):
            known = sweep.study.user_attrs.get("weights", {})
            if name not in known:
                sweep.study.set_user_attr("weights", known | {name: now})
        if known.get(name, now) != now:
            raise RuntimeError(
                f"{name} holds other weights than when {sweep.folder} was begun, and its trials would not compare: "
                "put them back, or begin another sweep"
            )


def total_of(sweep: OpenSweep) -> int:
    """How many trials there shall be in all, at least those begun; the number given last holds for every worker."""
    size = sweep.settings.grid_size
    with parsing(f"{sweep.folder}: how many trials it shall have is damaged"):
        total = int(sweep.study.user_attrs.get("trials", size if sweep.settings.sampler == "grid" else TRIALS))
    return max(min(total, size) if size else total, len(current_trials(sweep)))


def _begin(folder: Path, settings: Settings, storage: str | None) -> None:
    """Make the study, and then study.txt, which makes the folder a sweep's; called under the lock of the folder.

    Weights get names that are found from any folder, and a commit if they are on the hub: all trials begin with the
    same weights.
    """
    settings = found_anywhere(settings)
    settings = with_weights(settings, [name and pinned(name) for name in pretrained_of(settings)])
    name, store = f"{folder.resolve().name}-{uuid.uuid4().hex[:8]}", _storage(folder, storage)
    _check_alone(store, folder, settings, storage)
    study = optuna.create_study(study_name=name, storage=store, direction="minimize")
    study.set_user_attr("settings", content_of(settings))
    for name_of_folder in ("claims", "trials"):
        (folder / name_of_folder).mkdir(exist_ok=True)
    write_text(folder / "study.txt", name + "\n")


def _check_alone(store: BaseStorage, folder: Path, settings: Settings, storage: str | None) -> None:
    """Raise FileExistsError if a database holds the same sweep, with trials, of another folder of the same name.

    (Claims and runs are in the folder: workers that do not share it would train every trial twice.)
    """
    for study in optuna.get_all_study_summaries(store) if storage else ():
        if study.n_trials and study.study_name.rpartition("-")[0] == folder.resolve().name:
            with suppress(Exception):  # if its settings differ, or it has none
                check_same(settings_from(study.user_attrs["settings"]), settings, folder)
                break
    else:
        return
    raise FileExistsError(
        f"{storage} holds the same sweep, {study.study_name}, of another {folder.name}: workers share --out too, and "
        "would train each trial twice; for a sweep of its own, name --out otherwise"
    )


def _of_a_beginning(path: Path) -> bool:
    """Whether a worker that was killed in `_begin` may have left this path in the folder; else it is a user's."""
    if path.name in ("claims", "trials"):
        return path.is_dir() and not _visible(path)
    if path.name == "journal.log" and path.is_file():
        with path.open("rb") as file:
            return JOURNAL.startswith(file.read(len(JOURNAL)))
    return path.name == "journal.lock"


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, but for hidden files; nothing if there is no folder."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []


def _storage(folder: Path, url: str | None) -> BaseStorage:
    """A database, or the journal in the sweep's folder.

    Raises ValueError for a URL that cannot be used, RuntimeError for a journal that is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the caller says what there is to say
    if url is None:
        try:
            return journal(folder / "journal.log")
        except OSError:
            raise
        except Exception as error:  # Optuna expects its journal to be whole
            raise RuntimeError(f"{folder / 'journal.log'} is damaged: {first_line(error)}") from error
    try:
        return optuna.storages.RDBStorage(url)
    except Exception as error:  # every database has errors of its own
        why = first_line(error)
        raise ValueError(f"--storage {url} cannot be used ({why}): give a URL such as sqlite:///sweeps.db") from None


# ---- trials ----------------------------------------------------------------------------------------------------


def claim(sweep: OpenSweep) -> tuple[optuna.Trial, FileLock] | None:
    """A trial for this process alone, while it holds the lock: an interrupted one if there is any, else a new one.

    None once all trials are done, or claimed by others.
    """
    with FileLock(sweep.folder / ".lock"):
        begun = current_trials(sweep)
        for trial in begun:
            if not trial.state.is_finished() and (lock := claimed(_claim(sweep, trial.number))):
                if not sweep.storage.get_trial(trial._trial_id).state.is_finished():  # nor did it finish just now
                    return _drawn(sweep, trial.number, trial._trial_id), lock
                lock.release()
        if len(begun) >= total_of(sweep):
            return None
        new = sweep.study.ask()
        lock = claimed(_claim(sweep, new.number))
        assert lock is not None  # claims are made under the lock of the folder
        return _drawn(sweep, new.number, new._trial_id), lock


def try_again(sweep: OpenSweep, only: int | None = None) -> None:
    """Begin each failed trial (or `only` one) again, with its values under a new number; the new trial replaces it."""
    with FileLock(sweep.folder / ".lock"):
        for trial in current_trials(sweep):
            if trial.state == optuna.trial.TrialState.FAIL and only in (None, trial.number):
                again = optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs={"retries": trial.number},
                )
                sweep.study.add_trial(again)


def current_trials(sweep: OpenSweep) -> list[optuna.trial.FrozenTrial]:
    """All trials as Optuna has them, without those that failed and were begun again."""
    trials = sweep.study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retries") for trial in trials}
    return [trial for trial in trials if trial.number not in retried]


def values_drawn(sweep: OpenSweep, trial: optuna.Trial | optuna.trial.FrozenTrial) -> dict[str, Any]:
    """The values that a trial drew, as the recipe has them."""
    values = {}
    for field, value in trial.params.items():
        domain = sweep.settings.space[field]
        values[field] = domain.values[_choices(domain).index(value)] if isinstance(domain, Choices) else value
    return values


def trials_of(sweep: OpenSweep) -> tuple[Trial, ...]:
    """All trials as they are now, by their numbers, without those that failed and were begun again."""
    with FileLock(sweep.folder / ".lock"):  # nobody claims a trial while it is asked which are claimed
        frozen = current_trials(sweep)
        begun = [trial.number for trial in frozen if not trial.state.is_finished()]
        held = [number for number in begun if is_held(_claim(sweep, number))]
    with parsing(f"{sweep.folder}: its trials are damaged"):
        names = {"complete": "complete", "pruned": "pruned", "fail": "failed"}
        drawn = {trial.number: values_drawn(sweep, trial) for trial in frozen}
        space = sweep.settings.space
        return tuple(
            Trial(
                number=trial.number,
                state=names.get(trial.state.name.lower(), "running" if trial.number in held else "interrupted"),
                objective=trial.value
                if trial.value is not None
                else trial.intermediate_values.get(trial.last_step or 0),
                values=drawn[trial.number],
                in_words={field: drawn_in_words(space[field], value) for field, value in drawn[trial.number].items()},
                epochs=trial.last_step or 0,
                seconds=trial.user_attrs.get("seconds", 0.0),
                error=trial.user_attrs.get("error"),
                twin=trial.user_attrs.get("twin"),
                folder=numbered_folder(sweep, trial.user_attrs.get("twin", trial.number)),
            )
            for trial in frozen
        )


def twin_of(sweep: OpenSweep, trial: optuna.Trial) -> optuna.trial.FrozenTrial | None:
    """Another trial that drew the same and is complete or failed: a second training would only repeat its result."""
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    alike = (other for other in current_trials(sweep) if other.state in ended and other.params == trial.params)
    return next(alike, None)


def numbered_folder(sweep: OpenSweep, number: int) -> Path:
    """The run directory of a trial."""
    return sweep.folder / "trials" / f"{number:04}"


def _drawn(sweep: OpenSweep, number: int, trial_id: int) -> optuna.Trial:
    """The trial with a value for each field that varies, drawn now if it has none.

    The value follows from the seed, the number and the trials before, not from the process that draws.
    """
    seed, space = seed_of(sweep.settings.recipe.seed, number) % 2**32, sweep.settings.space
    if sweep.settings.sampler == "grid" or total_of(sweep) == sweep.settings.grid_size:  # each combination once
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            sampler: optuna.samplers.BaseSampler = optuna.samplers.BruteForceSampler(seed)
    elif sweep.settings.sampler == "random":
        sampler = _on_steps(optuna.samplers.RandomSampler)(seed)
    else:
        sampler = _on_steps(optuna.samplers.TPESampler)(seed=seed)
    drawing = optuna.load_study(
        study_name=sweep.study.study_name, storage=sweep.storage, sampler=sampler, pruner=sweep.study.pruner
    )
    trial = optuna.Trial(drawing, trial_id)
    for field, domain in space.items():
        if isinstance(domain, Choices):
            trial.suggest_categorical(field, _choices(domain))
        elif isinstance(domain.low, int):
            trial.suggest_int(field, domain.low, int(domain.high), step=int(domain.step or 1), log=domain.log)
        else:
            trial.suggest_float(field, domain.low, domain.high, step=domain.step, log=domain.log)
    return trial


def _on_steps(sampler: Any) -> Any:
    """A sampler that rounds the values of a range in steps: 0.3 is drawn as 0.3, and not as 0.1 + 2 * 0.1."""

    class OnSteps(sampler):  # type: ignore[misc]
        def sample_independent(self, *given: Any) -> Any:
            value = super().sample_independent(*given)
            return round(value, 12) if getattr(given[-1], "step", None) else value

    return OnSteps


def _choices(domain: Choices) -> list[Any]:
    """The values as Optuna takes them: it knows no lists, which are given as text."""
    return [" ".join(map(str, value)) if isinstance(value, tuple) else value for value in domain.values]


def _claim(sweep: OpenSweep, number: int) -> Path:
    return sweep.folder / "claims" / f"{number:04}.lock"
