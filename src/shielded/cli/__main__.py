# SPDX-License-Identifier: Apache-2.0
"""`python -m shielded.cli` is the command, too."""

from shielded.cli import main

if __name__ == "__main__":
    main()
