# Finds what norma's headers include. Used by the build and, installed beside norma-config.cmake, by find_package(norma).
# Result: Eigen3::Eigen, norma::stb, Threads::Threads; `xtensor` where it exists; and `norma_missing`, a list of sentences.
set(norma_missing "")

find_package(Eigen3 QUIET NO_MODULE)
if(NOT TARGET Eigen3::Eigen)
  list(APPEND norma_missing "Eigen 3.4 or newer, found none (Debian: libeigen3-dev, elsewhere: -DEigen3_DIR=<folder of Eigen3Config.cmake>)")
elseif(Eigen3_VERSION AND Eigen3_VERSION VERSION_LESS 3.4)
  list(APPEND norma_missing "Eigen 3.4 or newer, found ${Eigen3_VERSION} in ${Eigen3_DIR} (Debian: libeigen3-dev)")
endif()

# stb has no CMake package: three headers in a folder `stb`.
if(NOT TARGET norma::stb)
  find_path(NORMA_STB_INCLUDE_DIR NAMES stb/stb_image.h DOC "Folder that holds stb/stb_image.h")
  if(NORMA_STB_INCLUDE_DIR)
    add_library(norma::stb INTERFACE IMPORTED)
    set_target_properties(norma::stb PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${NORMA_STB_INCLUDE_DIR}")
  else()
    list(APPEND norma_missing "stb/stb_image.h, found none (Debian: libstb-dev, elsewhere: -DNORMA_STB_INCLUDE_DIR=<folder above stb/>)")
  endif()
endif()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads QUIET)
if(NOT TARGET Threads::Threads)
  list(APPEND norma_missing "a thread library that CMake's FindThreads knows, found none")
endif()

# Only <norma/interop/xtensor.hpp> uses it, so its absence is no error.
find_package(xtensor QUIET)
if(TARGET xtensor AND xtensor_VERSION AND xtensor_VERSION VERSION_LESS 0.24)
  list(APPEND norma_missing "xtensor 0.24 or newer or none at all, found ${xtensor_VERSION} in ${xtensor_DIR} (Debian: libxtensor-dev)")
endif()
