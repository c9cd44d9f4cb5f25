#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Newer Prometheus, Alertmanager, Pushgateway and Docker Compose than this machine has installed: fetched, unpacked, never installed.
#
# Debian's mirrors carry every release side by side, and these programs are Go: of the system they need the C library only. So the
# packages of a later release run as they are, and nothing that is installed here changes.
#
#   scripts/get-binaries.sh DEST [SUITE]    SUITE is forky unless given
#
# Then DEST/bin has prometheus, promtool, alertmanager, amtool, pushgateway and docker-compose.
set -euo pipefail

fail() { echo "get-binaries: $*" >&2; exit 1; }

(($# == 1 || $# == 2)) || fail "usage: $0 DEST [SUITE]"
suite=${2:-forky}
programs=(prometheus promtool alertmanager amtool pushgateway docker-compose)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

{ command -v apt-get && command -v dpkg-deb; } >/dev/null \
  || fail "needs apt-get and dpkg-deb of a Debian machine; elsewhere put ${programs[*]} of the projects' own releases on PATH"
# shellcheck disable=SC2016  # these are apt's variables
mirror=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Identifier: Packages' \
  | awk '$1 == "Debian" && $2 == "main" && !seen++ { print $3 }')
[[ -n $mirror ]] || fail "apt knows no Debian mirror; configure one and run apt-get update"
[[ -r $keyring ]] || fail "$keyring is missing; get it with: apt-get install debian-archive-keyring"

mkdir -p "$1"
dest=$(cd "$1" && pwd)
apt=$dest/apt
mkdir -p "$apt"/lists/partial "$apt"/cache/archives/partial "$dest"/bin
echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
# A world of its own for apt: its sources, its lists, its cache.
cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
APT::Sandbox::User "$(id -un)";
CONF
export APT_CONFIG=$apt/apt.conf

apt-get -qq --error-on=any update || fail "the Debian mirror that apt uses does not serve $suite"
packages=(prometheus promtool prometheus-alertmanager prometheus-pushgateway docker-compose)
(cd "$apt" && apt-get -qq download "${packages[@]}") || fail "$suite lacks one of the packages ${packages[*]}"
for package in "$apt"/*.deb; do
  dpkg-deb --extract "$package" "$dest/unpacked"
done
rm -rf "$apt"

for program in "${programs[@]}"; do
  for packaged in "bin/$program" "bin/prometheus-$program" "libexec/docker/cli-plugins/$program"; do
    [[ ! -e $dest/unpacked/usr/$packaged ]] || break
  done
  [[ -e $dest/unpacked/usr/$packaged ]] || fail "the packages of $suite have no $program"
  ln -sf "../unpacked/usr/$packaged" "$dest/bin/$program"
  "$dest/bin/$program" --version 2>&1 | sed -n 1p
done
