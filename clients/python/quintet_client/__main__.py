"""`python -m quintet_client` is the `quintet` command."""

import sys

from quintet_client.cli import main

sys.exit(main())
