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
    if ! { DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null &&
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }; then
      echo "apt-get could not install all of: ${missing[*]}; going on without, what needs them says so" >&2
    fi
  else
    echo "not found in the usual place: ${missing[*]}" >&2
    echo "on Debian or Ubuntu: sudo apt-get install ${missing[*]}" >&2
    echo "going on without; what needs them says so" >&2
  fi
}

# As many compilers at once as there are processors and, at a gigabyte each, memory for (a container's own limit included).
build_jobs() {
  local jobs memory limit
  jobs=$(nproc)
  memory=$(awk '/^MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo 2>/dev/null || echo "$jobs")
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  if [[ $limit =~ ^[0-9]+$ && $((limit / 1073741824)) -lt ${memory:-$jobs} ]]; then memory=$((limit / 1073741824)); fi
  if [[ ${memory:-$jobs} -lt $jobs ]]; then jobs=$memory; fi
  echo "$((jobs < 1 ? 1 : jobs))"
}
