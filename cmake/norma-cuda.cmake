# norma::cuda: a library of the kernels for the usual types, one .cu for every operation under kernels/norma/cuda.
# nvcc compiles it; who links it may be plain C++.
file(GLOB norma_cuda_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/kernels/norma/cuda/*.cu")

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "NORMA_CUDA: expected nvcc of the CUDA Toolkit 12.8 or newer, found none (-DCMAKE_CUDA_COMPILER=<path of nvcc>, or NORMA_CUDA=OFF)")
endif()
# Tests and benchmarks instantiate kernels of their own. Unless the user names architectures they get one, whose code every later device can run,
# which halves what nvcc takes for them.
if(DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(norma_program_architectures ${CMAKE_CUDA_ARCHITECTURES})
else()
  set(CMAKE_CUDA_ARCHITECTURES 80 90)
  set(norma_program_architectures 80)
endif()
enable_language(CUDA)
find_package(CUDAToolkit 12.8 REQUIRED)
set(norma_has_cuda TRUE)
option(NORMA_CUDA_LINEINFO "Source lines in the kernels, for profilers and compute-sanitizer" OFF)

# Flags of everything here that nvcc compiles. CMake 3.25 knows no C++20 for nvcc 13, so it cannot be a feature.
set(norma_nvcc_flags "")
if(NOT "cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
  list(APPEND norma_nvcc_flags -std=c++20)
endif()
if(CUDAToolkit_VERSION VERSION_LESS 13)
  # Two files that compile one kernel for different devices must not share its host stub; later nvcc does so by itself.
  list(APPEND norma_nvcc_flags -static-global-template-stub=true)
endif()
if(NORMA_CUDA_LINEINFO)
  list(APPEND norma_nvcc_flags -lineinfo)
endif()
if(NORMA_WERROR)
  list(APPEND norma_nvcc_flags "SHELL:-Werror all-warnings")
endif()

if(PROJECT_IS_TOP_LEVEL AND NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER)
  find_program(NORMA_CCACHE ccache)
  if(NORMA_CCACHE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${NORMA_CCACHE}")
  endif()
endif()

# Warpgroup products exist in code for 9.0 alone that is compiled as 90a; the rest of the library runs elsewhere too.
set(norma_sm90a_sources ${norma_cuda_sources})
list(FILTER norma_sm90a_sources INCLUDE REGEX "_sm90a\\.cu$")
list(FILTER norma_cuda_sources EXCLUDE REGEX "_sm90a\\.cu$")
add_library(norma_cuda_sm90a OBJECT ${norma_sm90a_sources})
set_target_properties(norma_cuda_sm90a PROPERTIES CUDA_ARCHITECTURES 90a-real POSITION_INDEPENDENT_CODE ON)
target_link_libraries(norma_cuda_sm90a PRIVATE norma)
target_compile_options(norma_cuda_sm90a PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${norma_nvcc_flags}>")

# The runtime is linked statically: a program starts, and says what is missing, where no CUDA is installed.
add_library(norma_cuda STATIC ${norma_cuda_sources} $<TARGET_OBJECTS:norma_cuda_sm90a>)
add_library(norma::cuda ALIAS norma_cuda)
set_target_properties(norma_cuda PROPERTIES EXPORT_NAME cuda POSITION_INDEPENDENT_CODE ON)
target_link_libraries(norma_cuda PUBLIC norma CUDA::cudart_static)
target_compile_options(norma_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${norma_nvcc_flags}>")
