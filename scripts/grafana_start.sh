#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Starts Grafana in its container with an admin password that is not "admin": the one that is given, or one that is made at the first start
# and kept in /var/lib/grafana/admin-password. Grafana takes either only when it makes its database.
set -eu

case ${GF_SECURITY_ADMIN_PASSWORD:-} in
  '')
    unset GF_SECURITY_ADMIN_PASSWORD
    made=${GF_PATHS_DATA:-/var/lib/grafana}/admin-password
    if ! [ -s "$made" ]; then
      (umask 077; head -c 18 /dev/urandom | base64 >"$made")
    fi
    export GF_SECURITY_ADMIN_PASSWORD__FILE="$made"
    ;;
  admin)
    echo "GRAFANA_ADMIN_PASSWORD is 'admin', which everybody tries first; choose another, or none and one is made" >&2
    exit 2
    ;;
esac

exec "${GRAFANA_RUN:-/run.sh}" "$@"
