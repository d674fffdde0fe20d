#!/bin/sh
# Makes a CUDA toolkit to build with out of PyPI's wheels, where none is installed.
#
#   tests/gpu/toolkit.sh FOLDER
#
# FOLDER is then what CUDA_HOME should name. It takes 1.3 GB; the download is 640 MB. No wheel holds the
# driver's libcuda.so, so a stub that has its names and no code is put into FOLDER/stub: it serves the
# linker alone and must never be shipped or found at run time.
set -eu

folder=${1:?name the folder to make}
python=${PYTHON:-python3}
[ -e "$folder/.complete" ] && exit 0

wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$python" -m pip download --quiet --no-deps --dest "$wheels" \
    'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-nvrtc==13.0.*' \
    'nvidia-cuda-cccl==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' \
    'nvidia-curand==10.4.0.*' 'nvidia-cublas==13.0.*'
rm -rf "$folder"
mkdir -p "$folder"
for wheel in "$wheels"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$wheels/tree"
    rm "$wheel"
done
mv "$wheels"/tree/nvidia/cu13/* "$folder"

# Wheels keep neither run bits nor links.
chmod u+x "$folder"/bin/* "$folder"/nvvm/bin/*
ln -s lib "$folder/lib64"
for library in cudart nvrtc cublas cublasLt curand; do
    (cd "$folder/lib" && ln -s "$(ls "lib$library".so.* | head -n 1)" "lib$library.so")
done

# What cuda.h names, as functions or as macros for versions of functions; the profiler's are in a header
# that no wheel has.
mkdir "$folder/stub"
{
    grep -oEh '\bcu[A-Z][A-Za-z0-9_]*\b' "$folder/include/cuda.h"
    printf '%s\n' cuProfilerInitialize cuProfilerStart cuProfilerStop
} | sort -u | sed 's/.*/int &(void) { return 999; }/' > "$folder/stub/cuda.c"
cc -fPIC -shared -w -Wl,-soname,libcuda.so.1 -o "$folder/stub/libcuda.so" "$folder/stub/cuda.c"
touch "$folder/.complete"
