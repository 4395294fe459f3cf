"""``keysided root``: which root key is in use, and replacing it while the store is served."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from keyside._standard_streams import tell_done
from keyside.quantities import count_of
from keyside.timestamps import format_timestamp
from keyside_sidecar import hardening
from keyside_sidecar.commands.accounts import act_as, find_account
from keyside_sidecar.commands.apart import continue_as, leaving_as_it_was, settle_as
from keyside_sidecar.config import load_config
from keyside_sidecar.custody import FileCustodian, name_next, open_custodian
from keyside_sidecar.custody.succession import Succession
from keyside_sidecar.errors import CustodyError, SidecarError
from keyside_sidecar.keys.presence import describe_self, is_running
from keyside_sidecar.log import escape
from keyside_sidecar.store import Store
from keyside_sidecar.store.fleet import Fleet
from keyside_sidecar.store.location import locate_store
from keyside_sidecar.store.rewrap import rewrap_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from keyside_sidecar.config import Config
    from keyside_sidecar.custody import Custodian
    from keyside_sidecar.store.fleet import Member

_EX_TEMPFAIL: Final = 75
_EX_CONFIG: Final = 78
# A process looks for root keys once a second, and tells what it has found at once.
_ABLE_WAIT_S: Final = 15.0
_FOLLOW_WAIT_S: Final = 15.0
_STEP_S: Final = 0.1
# Others hold the store for moments; it is held for longer here.
_BUSY_TIMEOUT_S: Final = 15.0
_FORMER: Final = re.compile(r"\.[0-9a-f]{16}")


def run_root_rotate(config_path: Path, *, prepare_only: bool = False) -> int:
    """Replace the root key by a new one, or take up where an earlier run has ended.

    Args:
        config_path: The configuration file.
        prepare_only: Make the new root key, and leave the store as it is.

    Started by root, it makes and moves the root key's files itself where their directory is root's;
    the store it touches as the sidecar's account only.

    Raises:
        ConfigError: The configuration is wrong.
        StartupError: A row of the store does not fit, or another run is at it.
        StoreUnavailable: The store is away.
        CustodyError: The root key, or the one that is to follow, can't be used.
    """
    hardening.harden_process()  # it holds root keys, and waits
    config = load_config(config_path)
    account = find_account(config)
    path = config.root_key.path
    uid = account.uid if account else os.geteuid()
    gid = account.gid if account else os.getegid()
    if account is not None and _owner_of(path.parent) == uid:
        # Root never makes files where somebody else can change them.
        act_as(account)
        account = None
    files = Succession(path, uid, gid)
    with files.locked():
        former_id = files.load().key_id
        key_id, is_new = files.begin()
        following = name_next(path)
        if is_new:
            tell_done(f"made the root key {key_id} in {following}")
        else:
            made_at = datetime.fromtimestamp(following.stat().st_mtime, UTC)
            tell_done(
                f"goes on with the root key {key_id} that waits in {following} since "
                f"{format_timestamp(made_at)}"
            )
        if prepare_only:
            tell_done(
                "Back it up, and copy it to every other host with this store, at the same", ""
            )
            tell_done("place; then run keysided root rotate.", "")
            return 0
        code = continue_as(account)
        if code is None:
            code = _move_store(config, key_id)
            if account is not None:
                return code
        if code:
            return code
        kept = files.settle(key_id)
    tell_done(f"the root key {key_id} is in {path} now, the former one in {kept}")
    tell_done("")
    tell_done(f"Back up {path} now, and not in the same place as the store.", "")
    tell_done(f"Keep {kept}: backups made before now need the root key {former_id}.", "")
    tell_done(
        "On other hosts with this store, run keysided root rotate once, too: it finds the", ""
    )
    tell_done("store moved, and only puts the files in place there.", "")
    return 0


def run_root_show(config_path: Path, *, as_json: bool) -> int:
    """Print the root keys that lie beside one another here, and which the store belongs to.

    Raises:
        ConfigError: The configuration is wrong.
        StartupError: The account to run as can't be used.
    """
    config = load_config(config_path)
    settle_as(find_account(config))
    path = config.root_key.path
    files = [_describe(path, "in place"), _describe(name_next(path), "waits to follow")]
    files += [_describe(former, "former") for former in _list_formers(path)]
    files = [file for file in files if file["role"] == "in place" or file["is_there"]]
    belongs_to, problem = _read_root_key_id(config)
    place = locate_store(config.store.url).place
    if as_json:
        facts = {"files": files, "store": place, "root_key_id": belongs_to, "problem": problem}
        click.echo(json.dumps(facts, indent=2))
        return _EX_CONFIG if problem else 0
    for file in files:
        used = "; the store belongs to it" if belongs_to and file["id"] == belongs_to else ""
        said = f"{file['id']}  {file['role']}{used}" if file["id"] else file["problem"]
        click.echo(f"{file['path']}  {escape(said)}")
    if problem:
        click.echo(f"{place}  {escape(problem)}")
        return _EX_CONFIG
    click.echo(f"{place}  belongs to root key {belongs_to}")
    if belongs_to != files[0]["id"]:
        click.echo("  what to do: keysided root rotate, which puts that root key in place")
    return 0


def _move_store(config: Config, key_id: str) -> int:
    """Have the store belong to the root key that waits, and wait until all have followed it."""
    custodian = open_custodian(config.root_key)
    successor = custodian.find(key_id)
    store = Store.open(config.store.url, custodian, busy_timeout_s=_BUSY_TIMEOUT_S)
    try:
        with leaving_as_it_was("nothing was changed"):
            fleet = Fleet(store.session, describe_self().boot, is_running)
            live: Callable[[Member], bool] = lambda member: not member.is_silent  # noqa: E731
            if store.read_meta().root_key_id == key_id:
                tell_done(f"the store belongs to the root key {key_id} already")
            elif not _move(store, successor, fleet, config):
                return _EX_TEMPFAIL
        generation = store.read_meta().generation
        behind = _await_none(
            lambda: [it for it in fleet.list_members() if it.generation_seen < generation],
            _FOLLOW_WAIT_S,
            live,
        )
    finally:
        store.close()
    if behind:
        tell_done("These have not followed yet; they go on serving from memory, and will:")
        _list(behind)
    return 0


def _move(store: Store, successor: Custodian, fleet: Fleet, config: Config) -> bool:
    def list_lacking() -> list[Member]:
        return [it for it in fleet.list_members() if successor.key_id not in it.root_key_ids]

    lacking = _await_none(list_lacking, _ABLE_WAIT_S, lambda member: not member.is_silent)
    silent = [member for member in lacking if member.is_silent]
    lacking = [member for member in lacking if not member.is_silent]
    if not lacking:
        done = rewrap_store(store.session, successor, fleet)
        lacking = list(done.lacking)
        if done.contents is not None:
            tell_done(
                f"the store belongs to the root key {successor.key_id} now: "
                f"{count_of(done.contents.versions, 'version')} of "
                f"{count_of(done.contents.keys, 'key')}"
            )
    if lacking:
        following = name_next(config.root_key.path)
        click.echo("nothing was changed: these processes can't use the new root key yet", err=True)
        _list(lacking)
        click.echo(
            f"  what to do: copy {following} to the same place on those hosts, with the same owner "
            "and mode 0600, and run this again",
            err=True,
        )
        return False
    if silent:
        tell_done("These have not been heard of, and will need the new root key to come back:")
        _list(silent)
    return True


def _await_none(
    look: Callable[[], list[Member]], wait_s: float, counts: Callable[[Member], bool]
) -> list[Member]:
    """Wait until none that counts is left; return all that are left then, or after the time."""
    deadline_s = time.monotonic() + wait_s
    while True:
        left = look()
        if not any(map(counts, left)) or time.monotonic() >= deadline_s:
            return left
        time.sleep(_STEP_S)


def _list(members: Iterable[Member]) -> None:
    for member in members:
        seen = format_timestamp(member.seen_at)
        click.echo(f"  {escape(member.host)}, process {member.pid}, last seen {seen}", err=True)


def _describe(path: Path, role: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"path": str(path), "role": role, "is_there": os.path.lexists(path)}
    try:
        found = FileCustodian.load(path, owner_uids=frozenset({0, os.geteuid()}))
    except CustodyError as error:
        return {**facts, "id": None, "problem": str(error)}
    return {**facts, "id": found.key_id, "problem": None}


def _list_formers(path: Path) -> list[Path]:
    try:
        beside = sorted(path.parent.iterdir())
    except OSError:
        return []
    return [
        found
        for found in beside
        if found.name.startswith(path.name) and _FORMER.fullmatch(found.name, len(path.name))
    ]


def _read_root_key_id(config: Config) -> tuple[str | None, str | None]:
    """Return which root key the store belongs to, or why that can't be said."""
    try:
        store = Store.open(config.store.url, open_custodian(config.root_key))
    except SidecarError as error:
        return None, str(error)
    try:
        return store.read_meta().root_key_id, None
    except SidecarError as error:
        return None, str(error)
    finally:
        store.close()


def _owner_of(directory: Path) -> int | None:
    try:
        return directory.stat().st_uid
    except OSError:
        return None
