"""``python -m kvrt.integrations.dynamo``: serve until the process is told to end."""

from dynamo.common.backend.run import run

from kvrt.errors import KvrtError
from kvrt.integrations.dynamo.engine import KvrtEngine

try:
    run(KvrtEngine)
except KvrtError as error:
    raise SystemExit(f"error: {error}") from None
