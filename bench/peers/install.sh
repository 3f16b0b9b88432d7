#!/usr/bin/env bash
# Installs what bench/peers/compare.py compares norma with: Debian's packages as root (else it says which are missing), and into build/peers what the Python
# package index has in newer builds than Debian.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=(python3-venv python3-torch python3-torchvision python3-sklearn python3-scipy libdnnl-dev)
missing=()
for package in "${packages[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if ((${#missing[@]})); then
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
  else
    echo "not installed, and their rows will be missing: ${missing[*]}" >&2
  fi
fi

[[ -x build/peers/bin/python ]] || /usr/bin/python3 -m venv --system-site-packages build/peers
build/peers/bin/python -m pip install --quiet --disable-pip-version-check "numpy<2" onnxruntime faiss-cpu scipy-openblas32
