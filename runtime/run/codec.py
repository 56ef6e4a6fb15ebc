"""Results as bytes: JSON, the same everywhere in a run."""

import msgspec

encode = msgspec.json.encode
decode = msgspec.json.decode
