"""`python -m ltc_textgen` is `ltc`."""

from ltc_textgen.cli.main import main

main()
