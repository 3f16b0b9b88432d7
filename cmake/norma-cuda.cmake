# norma::cuda: a library of the kernels for the usual types, one .cu for every operation under kernels/norma/cuda.
file(GLOB norma_cuda_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/kernels/norma/cuda/*.cu")
if(NOT norma_cuda_sources)
  message(STATUS "norma: kernels/norma/cuda holds no .cu file, so there is no norma::cuda")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90)
endif()
enable_language(CUDA)
find_package(CUDAToolkit 12 REQUIRED)
set(norma_has_cuda TRUE)

add_library(norma_cuda STATIC ${norma_cuda_sources})
add_library(norma::cuda ALIAS norma_cuda)
set_target_properties(norma_cuda PROPERTIES EXPORT_NAME cuda POSITION_INDEPENDENT_CODE ON)
target_link_libraries(norma_cuda PUBLIC norma CUDA::cudart)

# CMake 3.25 knows no C++20 for nvcc 13.
if("cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
  set(CMAKE_CUDA_STANDARD 20)
  set_target_properties(norma_cuda PROPERTIES CUDA_STANDARD 20)
else()
  set(norma_cuda_standard $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  target_compile_options(norma_cuda PRIVATE ${norma_cuda_standard})
endif()
