"""The settings of the platform that runs, for commands that are typed beside it in another shell.

Belongs here: what such a command takes from it. Does not: what a setting means (`settings.py`).

A platform gets its settings where it is started: by a service's unit, in a terminal. Whoever asks
for its status later, from another one, means that platform and not what nobody has set there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil  # type: ignore[import-untyped]

from pulseguard_assets.running.children import CODE_SERVER, EMBEDDED, LOOKOUT
from pulseguard_assets.running.demo import folder_of
from pulseguard_assets.running.instance import Folders
from pulseguard_assets.running.processes import read_processes
from pulseguard_assets.settings import Settings, SettingsError, load_settings, variable_of

# The children that know every setting, secrets too.
_KNOW_ALL = (LOOKOUT, CODE_SERVER)
# Who names one of them means another access to the provider, of which the platform knows nothing.
_ACCESS = frozenset(
    ("plan", "api_key", "base_url", "calls_per_minute", "credits_per_month", "history_days")
)


@contextmanager
def settings_in_force(*, demo: bool = False) -> Iterator[None]:
    """Let `load_settings` take from the running platform what this shell does not set.

    The platform is the one in the data folder of this shell's settings, or the demo in it. Where
    none runs, or it is another user's, whose settings may not be read, nothing changes; nor where
    this shell's are wrong, which whoever loads them is told.
    """
    try:
        ours = load_settings()
    except SettingsError:
        yield
        return
    with _set(_missing(ours, _of_platform(Folders(folder_of(ours, demo=demo))))):
        yield


def _missing(ours: Settings, theirs: Mapping[str, str]) -> dict[str, str]:
    """The variables of theirs that ours do not speak of."""
    # By the folder it was found.
    set_here = {*ours.model_fields_set, "data_dir"}
    if set_here & _ACCESS:
        set_here |= _ACCESS
    names = [variable_of(field) for field in Settings.model_fields if field not in set_here]
    return {name: theirs[name] for name in names if name in theirs}


def _of_platform(folders: Folders) -> Mapping[str, str]:
    """The variables that its children were given; none if none runs that we may ask."""
    processes = read_processes(folders)
    if processes is None or processes.up.condition == "gone":
        return {}
    for child in processes.children:
        if child.name not in _KNOW_ALL or child.condition == "gone":
            continue
        try:
            variables: dict[str, str] = psutil.Process(child.pid).environ()
        except psutil.Error:
            continue
        # A shell finds that by its folder, and knows which one it is also when it is down.
        if variables.get(EMBEDDED) == "yes":
            variables.pop(variable_of("database_url"), None)
        return variables
    return {}


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
