#!/bin/sh
# {{ name }} in vLLM on this machine: pip install vllm, then ./vllm.sh; the gateway is in gateway.sh.
set -eu
cd "$(dirname "$0")"
: "${VLLM_API_KEY:?export VLLM_API_KEY first, see README.md}"
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
exec vllm serve {{ arguments | shell }} --host 127.0.0.1 --port {{ engine_port }}
