# Install rules: headers, CMake package, pkg-config file, and the program norma. Every path is relative to the prefix.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(norma_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/norma")
set(norma_file_sets FILE_SET HEADERS COMPONENT norma_development)
if(norma_headers_not_alone)
  list(APPEND norma_file_sets FILE_SET not_alone COMPONENT norma_development)
endif()
if(norma_kernels)
  list(APPEND norma_file_sets FILE_SET kernels COMPONENT norma_development)
endif()

install(TARGETS norma EXPORT norma-targets ${norma_file_sets})
install(EXPORT norma-targets NAMESPACE norma:: DESTINATION "${norma_package_dir}" COMPONENT norma_development)
set(norma_any_architecture ARCH_INDEPENDENT)
if(TARGET norma_cuda)
  # A set of its own, read by find_package(norma COMPONENTS cuda) alone: who does not ask for it needs no CUDA.
  install(TARGETS norma_cuda EXPORT norma-cuda-targets ARCHIVE COMPONENT norma_development)
  install(EXPORT norma-cuda-targets NAMESPACE norma:: DESTINATION "${norma_package_dir}" COMPONENT norma_development)
  set(norma_any_architecture "")
endif()

configure_package_config_file(cmake/norma-config.cmake.in "${PROJECT_BINARY_DIR}/norma-config.cmake"
  INSTALL_DESTINATION "${norma_package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/norma-config-version.cmake" COMPATIBILITY SameMinorVersion ${norma_any_architecture})
install(FILES "${PROJECT_BINARY_DIR}/norma-config.cmake" "${PROJECT_BINARY_DIR}/norma-config-version.cmake"
    "${PROJECT_SOURCE_DIR}/cmake/norma-dependencies.cmake"
  DESTINATION "${norma_package_dir}" COMPONENT norma_development)

# ${pcfiledir} makes the pkg-config file relocatable.
set(norma_pkgconfig_dir "${CMAKE_INSTALL_DATADIR}/pkgconfig")
file(RELATIVE_PATH norma_includedir_from_pkgconfig
  "${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig" "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
configure_file(cmake/norma.pc.in "${PROJECT_BINARY_DIR}/norma.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/norma.pc" DESTINATION "${norma_pkgconfig_dir}" COMPONENT norma_development)

if(TARGET norma_program)
  install(TARGETS norma_program RUNTIME COMPONENT norma_program)
endif()
