"""A daemon like any other that never again looks for its signer once it has lost it."""

import sys
from collections.abc import Callable

import trio

from node.cli.main import main
from node.signer.errors import SignerUnavailable
from node.signer.protocol import Status
from node.signer.remote import SignerLink

RETRY_S = 0.2


async def _connect_once(link: SignerLink, on_connected: Callable[[Status], None]) -> None:
    while not link.connected:
        try:
            on_connected(link.connect())
        except SignerUnavailable:
            await trio.sleep(RETRY_S)
    await trio.sleep_forever()


if __name__ == "__main__":
    setattr(SignerLink, "run", _connect_once)  # noqa: B010 - replacing a method is the misdeed
    sys.exit(main())
