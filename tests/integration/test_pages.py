"""README and docs, word for word: every block is run on a host of its own, from the wheel.

The host's /etc, /var, /opt and accounts are private (``support/private_host.py``). What each block
is for stands in ``support/page_blocks.py``. The tests follow one another: the host that the README
has set up is the one on which the other pages go on.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.page_host import PageHost
from support.pages import find_blocks
from support.private_host import private_host
from support.transcripts import Player

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root
ELEVATED = 'alice$ keyside access request mail-credentials --reason "lost mail, INC-4711"'
OPERATORS = "keyside keys list"
SECOND_PYTHON = "for row, result"
PEOPLE = {
    "alice": "datacenter-admins",
    "bob": "datacenter-managers",
    "carol": "legal",
    "dave": "legal",
    "olga": "keyside-operators",
    "audrey": "keyside-auditors",
}
# What reaches registries here, for npm.
NETWORK = {
    name: value
    for name, value in os.environ.items()
    if name.lower().endswith("_proxy") or name.lower().startswith(("npm_config_", "node_extra_"))
}


@pytest.fixture(scope="module")
def place() -> Iterator[PageHost]:
    """A host on which nothing is installed."""
    with private_host(NO_COLOR="1", **NETWORK) as host:
        made = PageHost(host, Player(host, {name: f"{name}-S3cret" for name in PEOPLE}))
        yield made
    made.close()


def test_readme_from_top_to_bottom(place: PageHost) -> None:
    """It gets from nothing to a first envelope, a program, a shell, an operator and Node."""
    place.follow("README.md", skip=(SECOND_PYTHON, OPERATORS, ELEVATED))
    # "where the key's policy has allow_data_keys"
    place.configure(
        ("[keys.mail-credentials]\n", "[keys.mail-credentials]\nallow_data_keys = true\n")
    )
    place.stop()
    place.start_unit("keyside.service")
    place.follow("README.md", only=SECOND_PYTHON)
    # "an account in keyside-operators"
    place.host.must("useradd --uid 2005 --user-group --create-home -G keyside-operators olga")
    place.follow("README.md", only=OPERATORS)


def test_elevation_as_each_of_them_sees_it(place: PageHost) -> None:
    """docs/elevation.md, and what the README and docs/cli.md show of it: real people, passwords."""
    settle_people(place)
    place.player.replace["8f261194…7a954f99"] = place.public_key
    (block, *_) = find_blocks("docs/elevation.md")
    place.configure(('[operators]\ngroups = ["keyside-operators"]\n', block.text))
    place.stop()
    place.start()
    place.follow("docs/elevation.md")
    place.follow("README.md", only=ELEVATED)


def settle_people(place: PageHost) -> None:
    """Make the people of docs/elevation.md, each with a password and a directory for the session."""
    host = place.host
    for group in ("datacenter-admins", "datacenter-managers", "legal", "keyside-auditors"):
        host.must(f"groupadd {group}")
    for number, (name, group) in enumerate(PEOPLE.items(), start=2001):
        if name != "olga":
            host.must(f"useradd --uid {number} --user-group --create-home -G {group} {name}")
        password = place.player.passwords[name]
        host.must(f"echo {name}:{password} | chpasswd --crypt-method=SHA512 --sha-rounds=1000")
        host.must(f"install -d -o {name} -g {name} -m 0700 /run/user/$(id -u {name})")
    host.must("keysided files install pam/keyside")
    host.must("install -m 0755 /bin/true /usr/local/sbin/tell-approvers")
    host.must(
        "printf 'refresh token of mailbox 42\\n' | runuser -u mailgw -- "
        "keyside encrypt mail-credentials --context mailbox=42 > /home/alice/token.sealed"
    )
