"""What the user did wrong, in one line; and how every script ends."""
import errno
import sys

import torch

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


class InputError(Exception):
    """Something of the user's does not fit. The message is one line: what, where, and the remedy."""


def run_script(name, main):
    """main() of script `name`. Exit code 2 and one line for bad input, full disks and full devices; 130 for Ctrl-C."""
    try:
        main()
        return
    except InputError as error:
        text = str(error)
    except torch.OutOfMemoryError:
        text = ("the device is out of memory; lower --image-size, or in training --micro-batch-size (images per rank "
                "at once; the batch stays the same), elsewhere --batch-size")
    except OSError as error:
        text = f"{error}" + ("; what was saved before is whole. Make room or write to another place, and run the same "
                             "command again" if error.errno in DISK_ERRORS else "")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"{name}: {text}", file=sys.stderr)
    sys.exit(2)
