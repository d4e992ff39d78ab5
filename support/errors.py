"""What the user did wrong, in one line; and how every script ends."""
import errno
import os
import sys

import torch

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


class InputError(Exception):
    """Something of the user's does not fit. The message is one line: what, where, and the remedy."""


def run_script(name, main):
    """main() of script `name`. Exit code 2 and one line for bad input, full disks and full devices; 130 for Ctrl-C."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # for names that the terminal cannot show
    try:
        main()
        sys.stdout and sys.stdout.flush()
        return
    except InputError as error:
        text = str(error)
    except torch.OutOfMemoryError:
        text = ("the device is out of memory; lower --image-size, or in training --micro-batch-size (images per rank "
                "at once; the batch stays the same), elsewhere --batch-size")
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        text = f"{error}" + ("; what was saved before is whole. Make room or write to another place, and run the same "
                             "command again" if error.errno in DISK_ERRORS else "")
    except KeyboardInterrupt:
        sys.exit(130)
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)  # names can steer a terminal
    print(f"{name}: {text}", file=sys.stderr)
    sys.exit(2)
