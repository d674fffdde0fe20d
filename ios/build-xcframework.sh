#!/usr/bin/env bash
# Builds FleetuneFFI.xcframework for iOS, its simulator and macOS (Metal) on a Mac with Xcode.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

targets=(aarch64-apple-ios aarch64-apple-ios-sim x86_64-apple-ios aarch64-apple-darwin x86_64-apple-darwin)
target=${CARGO_TARGET_DIR:-target}
out=ios/FleetuneFFI.xcframework
export IPHONEOS_DEPLOYMENT_TARGET=16.0 MACOSX_DEPLOYMENT_TARGET=13.0

rustup target add "${targets[@]}"
for triple in "${targets[@]}"; do
    cargo build --profile app -p fleetune-ffi --features metal --target "$triple"
done
cargo xtask bindings

# Two architectures of one platform go into one library.
join() {
    local name=$1
    shift
    mkdir -p "$target/xcframework/$name"
    lipo -create "$@" -output "$target/xcframework/$name/libfleetune_ffi.a"
}
archive() { echo "$target/$1/app/libfleetune_ffi.a"; }
join simulator "$(archive aarch64-apple-ios-sim)" "$(archive x86_64-apple-ios)"
join macos "$(archive aarch64-apple-darwin)" "$(archive x86_64-apple-darwin)"

headers=$target/xcframework/headers
rm -rf "$headers" "$out"
mkdir -p "$headers"
cp ios/generated/FleetuneFFI.h "$headers/"
cp ios/generated/FleetuneFFI.modulemap "$headers/module.modulemap"
xcodebuild -create-xcframework \
    -library "$(archive aarch64-apple-ios)" -headers "$headers" \
    -library "$target/xcframework/simulator/libfleetune_ffi.a" -headers "$headers" \
    -library "$target/xcframework/macos/libfleetune_ffi.a" -headers "$headers" \
    -output "$out"
