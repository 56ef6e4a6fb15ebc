"""`python -m tenter.runtime`: the same as the command `tenter`."""

from .cli import main

raise SystemExit(main())
