"""A folder that one living process owns."""

import errno
import pathlib

import filelock

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
    self._lock = filelock.FileLock(folder / ".lock")
    try:
      self._lock.acquire(timeout=_PATIENCE_S, poll_interval=0.1)
    except filelock.Timeout as error:
      raise OSError(
        f"{folder} is in use by another run that has not ended; wait for it, stop it, "
        "or choose another folder with --out"
      ) from error
    except NotImplementedError:
      pass  # how filelock says that the file system has none
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise

  def release(self) -> None:
    """Gives the folder up, without a trace of the lock; again does no harm."""
    if self._lock.is_locked:
      # While it is held: whoever waits for this file notices, and makes another.
      pathlib.Path(self._lock.lock_file).unlink(missing_ok=True)
    self._lock.release()
