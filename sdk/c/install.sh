#!/usr/bin/env bash
# install.sh PREFIX [FOLDER]: installs header, libraries and pkg-config file; FOLDER has the built libraries, target/release by default.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
prefix="${1:?install.sh PREFIX [FOLDER]}"
built="${2:-$here/../../target/release}"
install -Dm644 "$here/include/kvtier.h" "$prefix/include/kvtier.h"
install -Dm755 "$built/libkvtier_c.so" "$prefix/lib/libkvtier_c.so"
install -Dm644 "$built/libkvtier_c.a" "$prefix/lib/libkvtier_c.a"
install -Dm644 "$here/kvtier.pc" "$prefix/lib/pkgconfig/kvtier.pc"
