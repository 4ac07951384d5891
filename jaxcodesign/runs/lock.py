"""A folder that one living process owns."""

import errno
import fcntl
import pathlib
import time

# A killed process gives its locks up only once the kernel has taken it down.
_PATIENCE_S = 5.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
  """A lock that ends with the process at the latest, however that ends.

  On file systems without locks, as some that machines share, nothing is kept out.
  """

  def __init__(self, folder: pathlib.Path):
    """Waits a few seconds for `folder`, which must exist.

    Raises:
      OSError: If another process, or another lock in this one, holds it.
    """
    self._file = (folder / ".lock").open("w")
    deadline = time.monotonic() + _PATIENCE_S
    while True:
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
      except BlockingIOError as error:
        if time.monotonic() > deadline:
          self._file.close()
          raise OSError(
            f"{folder} is in use by another run that has not ended; wait for it, stop "
            "it, or choose another folder with --out"
          ) from error
      except OSError as error:
        if error.errno not in _NO_LOCKS:
          self._file.close()
          raise
        return
      time.sleep(0.1)

  def release(self) -> None:
    """Gives the folder up; again does no harm."""
    self._file.close()
