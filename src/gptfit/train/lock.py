"""One process trains a run at a time.

The system holds the lock and gives it back when the process ends, however it ends, so none is ever
left behind. Beside it stands who holds it, for the message that the second one gets.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from gptfit.errors import CheckpointError

LOCK = ".lock"

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int, shared: bool = False) -> None:
        os.lseek(descriptor, 2**30, os.SEEK_SET)  # beyond the content, which others may read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(descriptor: int, shared: bool = False) -> None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


TAKEN = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Holder:
    """A process that trains, or has trained, a run."""

    pid: int
    host: str
    since: str

    @classmethod
    def this(cls) -> Holder:
        """This process, from now on."""
        return cls(os.getpid(), socket.gethostname(), datetime.now().isoformat(" ", "seconds"))

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """Who the file names, if anybody."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


@dataclass
class Holding:
    """The open file that carries a lock, and how many parts of this process rely on it."""

    descriptor: int
    note: str | None
    count: int = 0


HELD: dict[Path, Holding] = {}
"""What this process holds: setting a run up and training it are one use."""


def _give_back(path: Path) -> None:
    holding = HELD[path]
    holding.count -= 1
    if holding.count:
        return
    del HELD[path]
    with suppress(OSError):  # the disk may be gone; what is written there is only a name
        os.ftruncate(holding.descriptor, 0)
    os.close(holding.descriptor)


class RunLock:
    """The lock of the folder ``run``, which it makes where it is missing."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run.resolve() / LOCK
        self.note: str | None = None
        self._give_back: weakref.finalize[..., RunLock] | None = None

    def acquire(self) -> None:
        """Raises ``CheckpointError`` while another process has it, naming that process.

        ``note`` says afterwards what the lock cannot rule out.
        """
        if self._give_back is not None and self._give_back.alive:
            return
        holding = HELD.get(self.path) or self._open()
        HELD[self.path] = holding
        holding.count += 1
        self.note = holding.note
        self._give_back = weakref.finalize(self, _give_back, self.path)

    def release(self) -> None:
        """Give it back; once is enough, and not at all where the lock itself is let go."""
        if self._give_back is not None:
            self._give_back()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _open(self) -> Holding:
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(
                f"{self.run} cannot be made or written ({error.strerror}); choose --out"
            ) from None
        before = Holder.read(self.path)
        try:
            return Holding(descriptor, self._lock(descriptor, before))
        except BaseException:
            os.close(descriptor)
            raise

    def _lock(self, descriptor: int, before: Holder | None) -> str | None:
        """Take the lock and sign it; the note, if there is something to be said."""
        note = None
        try:
            _take(descriptor)
        except OSError as error:
            if error.errno in TAKEN:
                raise CheckpointError(
                    f"{self.run} is being trained by {before or 'another process'}; wait for it, or "
                    "end it first"
                ) from None
            if error.errno not in WITHOUT_LOCKS:
                raise CheckpointError(f"{self.path} cannot be locked ({error.strerror})") from None
            note = f"the disk of {self.run} knows no locks: see that no second process trains it"
        this = Holder.this()
        if before and before.host != this.host:
            # It was killed, or it lives and this disk does not carry locks from host to host.
            note = (
                f"{self.run} was not given back by {before}; if that still trains it, end one of "
                "the two"
            )
        with suppress(OSError):  # a full disk; the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps(asdict(this)).encode("utf-8"))
        return note


def is_held(run: Path) -> bool:
    """Whether a process trains the run now. Only a lock that nobody has given back is tried."""
    path = run / LOCK
    if Holder.read(path) is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        _take(descriptor, shared=True)
    except OSError as error:
        return error.errno in TAKEN
    finally:
        os.close(descriptor)
    return False
