"""Train a liquid time-constant network on text; on WikiText-2 when nothing else is said. Options: --help."""

import sys

from ltc_textgen.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
