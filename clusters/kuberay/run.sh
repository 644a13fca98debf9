#!/bin/bash
# The entrypoint of job.yaml, on the head; a retry finds the run in the storage and goes on with it.
set -euo pipefail
: "${TASK:?}" "${STORAGE:?}" "${BUDGET:?}" "${RUN_ID:?}" "${WORKERS:?}"
RESUME=()
if raysearch status "$RUN_ID" --storage "$STORAGE" > /dev/null 2>&1; then
    RESUME=(--resume)
fi
exec raysearch run "$TASK" --address auto --storage "$STORAGE" --budget "$BUDGET" --run-id "$RUN_ID" \
    --workers "$WORKERS" "${RESUME[@]}"
