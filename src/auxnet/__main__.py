"""`python -m auxnet` is `auxnet`."""

import gc
import signal
import sys
import threading

main_thread = threading.current_thread() is threading.main_thread()
heard = main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # or Ctrl-C is ignored
if heard:  # while the program is imported, Ctrl-C ends it without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from auxnet.cli import main  # noqa: E402

if heard:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run() -> None:
    """Run the command; afterwards, while the interpreter shuts down, Ctrl-C ends it without a traceback."""
    try:
        sys.exit(main())
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # or it is ignored
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        gc.freeze()  # to look for garbage in all of PyTorch takes a second


if __name__ == "__main__":
    run()
