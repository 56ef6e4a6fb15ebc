#!/usr/bin/env bash
# Installs the servers that tests need from Debian's packages: PostgreSQL and Redis. Does nothing
# where they are there already; without the right to install, says what to run.
set -euo pipefail

missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
command -v redis-server >/dev/null || missing+=(redis-server)
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

if ! command -v apt-get >/dev/null; then
  echo "the tests need ${missing[*]}, and this is no Debian: install them your way" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "the tests need ${missing[*]}: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "installing ${missing[*]} from Debian's packages (no service is left running)"
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
# RUNLEVEL=1: their services are not started; the tests start servers of their own.
if ! { "${as_root[@]}" apt-get update -qq \
    && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
      apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  exit 1
fi
