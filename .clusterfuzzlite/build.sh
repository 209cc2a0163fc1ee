#!/bin/bash -eu
# Fills $OUT with fuzzers, as OSS-Fuzz and ClusterFuzzLite expect it: of each target TARGET,
# TARGET_seed_corpus.zip, TARGET.dict where it has words, and TARGET.options.
#
# SANITIZER is theirs: address, coverage or none. EXITLAB_FUZZ_TARGETS names some targets only.
if [ -z "${OUT:-}" ]; then
    echo "build.sh: OUT is not set; OSS-Fuzz's helper sets it, or give a directory: OUT=/tmp/out $0" >&2
    exit 2
fi
cd "$(dirname "$(readlink -f "$0")")/.."
# In the builder's image this script lies beside the sources.
if [ ! -d xtask ] && [ -d "${SRC:-/src}/exitlab" ]; then
    cd "${SRC:-/src}/exitlab"
fi
# The flags are the exporter's: those of the image are for other build systems.
unset RUSTFLAGS
for target in ${EXITLAB_FUZZ_TARGETS:-all}; do
    cargo xtask fuzz export "$target" --out "$OUT" --sanitizer "${SANITIZER:-address}"
done
