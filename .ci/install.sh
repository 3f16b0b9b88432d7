# Sourced by tests/run.sh and examples/quickstart.sh: what building norma needs, and how to get it on Debian and Ubuntu.

# Package, and a file or command that shows it is there (so that other ways of installing count).
norma_build_packages=(
  "cmake cmake" "ninja-build ninja" "g++ c++" "pkg-config pkg-config"
  "libeigen3-dev /usr/include/eigen3/Eigen/Core" "libxtensor-dev /usr/include/xtensor/xtensor.hpp" "libstb-dev /usr/include/stb/stb_image.h"
  "doctest-dev /usr/include/doctest/doctest.h" "libbenchmark-dev /usr/include/benchmark/benchmark.h"
)

# install_missing "<package> <file or command>"...: installs as root, else says what to install and goes on.
install_missing() {
  local missing=() pair package sign
  for pair in "$@"; do
    read -r package sign <<<"$pair"
    case $sign in
      /*) [[ -e $sign ]] || missing+=("$package") ;;
      *) command -v "$sign" >/dev/null || missing+=("$package") ;;
    esac
  done
  if [[ ${#missing[@]} -eq 0 ]]; then
    return 0
  fi
  if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
    echo "installing: ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null &&
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "not found in the usual place: ${missing[*]}" >&2
    echo "on Debian or Ubuntu: sudo apt-get install ${missing[*]}" >&2
    echo "going on without; what needs them says so" >&2
  fi
}
