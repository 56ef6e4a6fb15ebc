"""The campaign is a package, so that it also runs by itself (`campaign.py`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
