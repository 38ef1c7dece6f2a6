"""The commands of `ltc`, a file each."""
