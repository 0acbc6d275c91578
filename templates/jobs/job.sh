#!/bin/bash
# {{ title }}: {{ "one part of the rows or files" if job.kind == "predict" else "every stage that is not current" }}, checked before and after.
set -euo pipefail
cd "$(dirname "$0")"
job=$PWD
sha256sum --check --quiet SHA256SUMS

scratch=$(mktemp -d "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/slmctl-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
if [[ "$(slmctl --version 2>/dev/null || true)" != *{{ (" " ~ version) | shell }} ]]; then
    python3 -m venv "$scratch/venv"
    "$scratch/venv/bin/python" -m pip install --quiet --find-links wheels {{ ("slmctl[" ~ extras ~ "]==" ~ version) | shell }} >&2
    export PATH="$scratch/venv/bin:$PATH"
fi

cd {{ job.folder | shell }}
{% if job.kind == "predict" %}
part=${SLURM_ARRAY_TASK_ID:-$((${JOB_COMPLETION_INDEX:-0} + 1))}
number=$(printf %04d "$part")
slmctl fetch {{ job.release | shell }} "$scratch/release" >&2
(cd "$scratch/release" && sha256sum --check --quiet "$job/RELEASE.sha256")
slmctl verify "$scratch/release" >&2

slmctl predict "$scratch/release" {{ job.words | shell }} --shard "$part/{{ job.shards }}" \
    --input {{ job.source | shell }} --output {{ output }} >&2
printf '%s\n' {{ output }}
{% else %}
sha256sum --check --quiet "$job/PROJECT.sha256"
if compgen -G 'runs/*/*/manifest.json' >/dev/null; then slmctl verify >&2; fi
slmctl pull{{ (" " ~ (job.words | shell)) if job.words else "" }} >&2

slmctl run{{ (" " ~ (job.words | shell)) if job.words else "" }} --until {{ job.until }}
{% endif %}
