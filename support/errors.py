"""What the user did wrong, in one line; and how every script ends."""
import errno
import os
import re
import sys

DISK = "what was saved before is whole. Make room or write to another place, and run the same command again"
HANDLES = "too few file handles; allow more (ulimit -n 4096), or lower --workers"
REMEDIES = {**dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO), DISK),
            **dict.fromkeys((errno.EMFILE, errno.ENFILE), HANDLES),
            errno.EISDIR: "a folder is in the way; move it away, and run the same command again"}

# of torch, on a CPU and on CUDA; any other RuntimeError keeps its trace
OUT_OF_MEMORY = "^OutOfMemoryError|can't allocate memory|CUDA error: out of memory|ALLOC_FAILED"


class InputError(Exception):
    """Something of the user's does not fit. The message is one line: what, where, and the remedy."""


def unfit(name):
    """Whether a name of a file or a class has control characters, which steer terminals, or is no UTF-8."""
    return bool(re.search("[\0-\x1f\x7f-\x9f\ud800-\udfff]", name))


def with_remedy(text):
    """The text of an OSError, and what to do about it."""
    number = re.search(r"\[Errno (\d+)\]", text)
    remedy = number and REMEDIES.get(int(number[1]))
    return f"{text}; {remedy}" if remedy else text


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def out_of_memory(error):
    """Whether memory is what a RuntimeError or a MemoryError is about."""
    return isinstance(error, MemoryError) or bool(re.search(OUT_OF_MEMORY, f"{type(error).__name__}: {error}"))


class Diverged(InputError):
    """A loss or a parameter is not finite."""


def run_script(name, main):
    """main() of script `name`, which may return an exit code, as 75: stopped by a signal, to be started again.

    Exit code 2 and one line for bad input, full disks and full devices; 130 for Ctrl-C."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by who called
            setattr(sys, stream, open(os.devnull, "w"))
        if hasattr(getattr(sys, stream), "reconfigure"):  # a notebook's has none
            getattr(sys, stream).reconfigure(errors="backslashreplace")  # for names that the terminal cannot show
    try:
        code = main()
        sys.stdout.flush()
        if isinstance(code, int):
            sys.exit(code)
        return
    except InputError as error:
        text = str(error)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        text = ("the device is out of memory; lower --image-size, or in training --micro-batch-size (images per rank "
                "at once; the batch stays the same), elsewhere --batch-size")
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        text = with_remedy(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)  # names can steer a terminal
    print(f"{name}: {text}", file=sys.stderr)
    sys.exit(2)
