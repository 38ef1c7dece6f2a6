"""Write text with the network that train.py trained: python run.py --prompt "The sea". Options: --help."""

import sys

from ltc_textgen.cli.main import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
