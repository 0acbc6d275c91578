#!/usr/bin/env bash
# New rows -> a release that passed its gates -> served. Made to be copied, and to be run by cron:
#
#     17 2 * * *  SLMCTL=/srv/slmctl/bin/slmctl /srv/desk/pipeline.sh /srv/desk
#
# PROJECT is a folder with slmctl.yaml. A night without new rows costs seconds: stages whose inputs have not changed
# do no work, and the server is left alone. A night whose model fails its gates leaves the old release served.
#
#   SLMCTL   the program                                     (slmctl)
#   PORT     where the release is served, on the loopback    (8080)
#   RELOAD   a command that serves $RELEASE (of the version $VERSION) in place of the server that this script starts,
#            such as: ln -sfn "$RELEASE" /srv/desk/current && systemctl restart desk
#   FLAGS    of slmctl run, such as --yes, which trains also where a linear model leaves nothing to win
#   NOTIFY   a command that is given a message on its standard input when a person is needed,
#            such as: mail -s desk data-team@example.com
#
# Exit codes are slmctl's: 0 served or nothing new, 3 the rows cannot be used, 5 a gate or another check failed, 8 another run is under
# way, 9 the network, and so on.
set -euo pipefail

PROJECT=$(cd "${1:?usage: pipeline.sh PROJECT}" && pwd)
SLMCTL=${SLMCTL:-slmctl} PORT=${PORT:-8080} RELOAD=${RELOAD:-} NOTIFY=${NOTIFY:-} FLAGS=${FLAGS:-}
export SLMCTL # for RELOAD
STATE=$PROJECT/runs/.pipeline
PAUSE=${PAUSE:-60} # seconds before the network is tried again
umask 077
mkdir -p "$STATE"

say() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*" >> "$STATE/log"; }

# Cron mails what is written to stderr; whoever is paged otherwise is told by NOTIFY.
tell() {
  say "$*"
  printf '%s\n' "$*" >&2
  [ -z "$NOTIFY" ] || printf '%s\n' "$*" | sh -c "$NOTIFY" || say "NOTIFY failed"
}

# Stages that are not current: the path of the last one is printed, what they say goes to the log, and the exit code is
# the script's.
stage() {
  local code=0
  for attempt in 1 2 3; do
    say "slmctl $1"
    code=0
    "$SLMCTL" -C "$PROJECT" "$@" 2>> "$STATE/log" || code=$?
    [ "$code" = 9 ] && [ "$attempt" -lt 3 ] || break # only the network is worth another try
    sleep "$PAUSE"
  done
  case $code in
    0) return 0 ;;
    3) tell "$1: the rows cannot be used; rejected.jsonl or the log says why. The old release stays." ;;
    5) tell "$1: a gate or another check failed, so nothing was published: $(tail -n 2 "$STATE/log" | tr '\n' ' '). The old release stays." ;;
    130 | 143) say "$1: interrupted; the next run goes on where it stopped" ;;
    *) tell "$1 failed with $code: $(tail -n 2 "$STATE/log" | tr '\n' ' ')" ;;
  esac
  exit "$code"
}

# Whether the server that was started last still runs; the number alone may be another process's by now.
running() {
  local pid
  pid=$(cat "$STATE/pid" 2> /dev/null) && [ -n "$pid" ] && tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline" |
    grep -q -- "-C $PROJECT serve"
}

stop() {
  running || return 0
  kill "$(cat "$STATE/pid")" 2> /dev/null || true
  for _ in $(seq 100); do
    running || return 0
    sleep 0.1
  done
  kill -9 "$(cat "$STATE/pid")" 2> /dev/null || true
}

# Serve a release in the background. The server prints its address when it is ready, and keeps neither the lock
# nor cron's pipes.
start() {
  : > "$STATE/address"
  setsid "$SLMCTL" -C "$PROJECT" serve "$1" --port "$PORT" \
    < /dev/null > "$STATE/address" 2>> "$STATE/serve.log" 9>&- &
  echo $! > "$STATE/pid"
  while kill -0 $! 2> /dev/null; do  # it may not have its own command line yet, by which `running` knows it
    [ ! -s "$STATE/address" ] || return 0
    sleep 0.1
  done
  return 1
}

serve() { # release, version
  if [ -n "$RELOAD" ]; then # what it starts does not keep the lock
    RELEASE=$1 VERSION=$2 sh -c "$RELOAD" >> "$STATE/log" 2>&1 9>&-
    return
  fi
  stop
  start "$1"
}

exec 9> "$STATE/lock"
flock --nonblock 9 || { say "another run is under way"; exit 8; }

# shellcheck disable=SC2086 # FLAGS are words
ADAPTER=$(stage run --until finetune $FLAGS)

# A published version never changes, so another adapter or config is another version: the time it was first seen.
MADE_OF="$ADAPTER $(sha256sum < "$PROJECT/slmctl.yaml")"
if [ "$MADE_OF" != "$(cat "$STATE/made-of" 2> /dev/null || true)" ]; then
  date -u +%Y%m%d.%H%M%S > "$STATE/version"
  printf '%s\n' "$MADE_OF" > "$STATE/made-of"
fi
VERSION=$(cat "$STATE/version")

OLD=$(cat "$STATE/served" 2> /dev/null || true)
if [ -d "$OLD" ] && [ "$MADE_OF" = "$(cat "$STATE/served-of" 2> /dev/null || true)" ]; then
  RELEASE=$OLD # newly judged pairs or another slmctl would make it anew, and its version is taken
else
  # shellcheck disable=SC2086
  RELEASE=$(stage run --set "version=$VERSION" $FLAGS)
fi

if [ "$RELEASE" = "$OLD" ] && { [ -n "$RELOAD" ] || running; }; then
  say "nothing new: $RELEASE is served"
  exit 0
fi
if serve "$RELEASE" "$VERSION"; then
  printf '%s\n' "$MADE_OF" > "$STATE/served-of"
  printf '%s\n' "$VERSION" > "$STATE/served-version"
  printf '%s\n' "$RELEASE" > "$STATE/served"
  say "served: $RELEASE"
  exit 0
fi
tell "$RELEASE does not start; see $STATE/$([ -n "$RELOAD" ] && echo log || echo serve.log)"
[ -z "$OLD" ] || serve "$OLD" "$(cat "$STATE/served-version" 2> /dev/null)" || tell "the old release $OLD does not start either"
exit 6
