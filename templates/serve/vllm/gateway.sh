#!/bin/sh
# slmctl's gateway in front of ./vllm.sh: pip install 'slmctl[serve]=={{ version }}', then ./gateway.sh.
set -eu
cd "$(dirname "$0")"
: "${VLLM_API_KEY:?export VLLM_API_KEY first, see README.md}"
exec slmctl -C contract serve contract "$@"
