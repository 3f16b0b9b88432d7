/// \file
/// The launcher's calls of simt.cuh on the CUDA runtime. Include that one.
#pragma once

#include <cuda_runtime.h>

#include <norma/cuda/detail/simt.cuh>

namespace norma::cuda::detail {

/// A CUDA error as a sentence that says what to do. Reading it also clears errors that do not stick.
inline Status check(cudaError_t error, std::string_view who) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();
  const std::string name(who);
  switch (error) {
    case cudaErrorMemoryAllocation: return {Errc::out_of_memory, name + ": the device has not enough free memory"};
    case cudaErrorNoDevice: return {Errc::not_found, name + ": no CUDA device, expected an NVIDIA GPU that this process may use"};
    case cudaErrorInsufficientDriver:
      return {Errc::not_found, name + ": no usable CUDA driver, expected NVIDIA's driver for CUDA " + std::to_string(CUDART_VERSION / 1000) + " or newer"};
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion: {
      int device = 0, major = 0, minor = 0;
      (void)cudaGetDevice(&device);
      (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      return {Errc::unsupported, name + ": no kernel was compiled for this device, expected CMAKE_CUDA_ARCHITECTURES with " + std::to_string(major * 10 + minor)};
    }
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureMerge:
    case cudaErrorStreamCaptureUnmatched:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureImplicit:
    case cudaErrorStreamCaptureWrongThread:
    case cudaErrorIllegalState:  // a capture that is begun twice
      return {Errc::invalid_argument, name + ": not possible while a stream is captured (" + cudaGetErrorString(error) + ")"};
    default: return {Errc::io_error, name + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")"};
  }
}

inline cudaStream_t native(StreamRef stream) noexcept { return static_cast<cudaStream_t>(stream.handle); }

template <class... Parameters>
Result<int> kernel_arch(std::string_view who, void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes{};
  NORMA_CHECK(check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), who));
  return attributes.ptxVersion;
}

template <class... Parameters, class... Arguments>
Status launch(std::string_view who, StreamRef stream, const LaunchShape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  NORMA_CHECK(check_shape(who, shape));
  if (shape.blocks_x == 0 || shape.blocks_y == 0 || shape.blocks_z == 0) return {};
  const auto* entry = reinterpret_cast<const void*>(kernel);
  constexpr std::size_t kWithoutAsking = 48 * 1024;
  if (shape.shared_bytes > kWithoutAsking) {
    int device = 0, most = 0;
    NORMA_CHECK(check(cudaGetDevice(&device), who));
    NORMA_CHECK(check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), who));
    if (shape.shared_bytes > static_cast<std::size_t>(most)) {
      return {Errc::invalid_argument, std::string(who) + ": the problem is too large for this device, expected at most " + std::to_string(most) +
                                          " bytes of shared memory a block, found " + std::to_string(shape.shared_bytes)};
    }
    // Always to the device's limit: the attribute is the kernel's, and two threads may launch it with different sizes.
    NORMA_CHECK(check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, most), who));
  }
  kernel<<<dim3(static_cast<unsigned>(shape.blocks_x), static_cast<unsigned>(shape.blocks_y), static_cast<unsigned>(shape.blocks_z)),
           static_cast<unsigned>(shape.threads), shape.shared_bytes, native(stream)>>>(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  return check(cudaGetLastError(), who);
}

inline Status copy_async(std::string_view who, void* to, const void* from, std::size_t bytes, StreamRef stream) {
  if (bytes == 0) return {};
  return check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, native(stream)), who);
}
inline Status fill_async(std::string_view who, void* to, int byte, std::size_t bytes, StreamRef stream) {
  if (bytes == 0) return {};
  return check(cudaMemsetAsync(to, byte, bytes, native(stream)), who);
}

inline Result<void*> allocate(std::string_view who, std::size_t bytes) {
  void* p = nullptr;
  if (bytes == 0) return p;
  if (Status s = check(cudaMalloc(&p, bytes), who); !s) {
    return s.code() == Errc::out_of_memory ? Status(Errc::out_of_memory, s.message() + ", expected " + std::to_string(bytes) + " bytes") : s;
  }
  return p;
}
inline void release(void* p) noexcept { (void)cudaFree(p); }
inline Result<void*> allocate_pinned(std::string_view who, std::size_t bytes) {
  void* p = nullptr;
  if (bytes == 0) return p;
  if (Status s = check(cudaMallocHost(&p, bytes), who); !s) {
    return s.code() == Errc::out_of_memory
               ? Status(Errc::out_of_memory, std::string(who) + ": not enough host memory that can be pinned, expected " + std::to_string(bytes) + " bytes")
               : s;
  }
  return p;
}
inline void release_pinned(void* p) noexcept { (void)cudaFreeHost(p); }

inline Result<void*> create_stream(std::string_view who) {
  cudaStream_t stream = nullptr;
  NORMA_CHECK(check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), who));
  return static_cast<void*>(stream);
}
inline void destroy_stream(void* stream) noexcept { (void)cudaStreamDestroy(static_cast<cudaStream_t>(stream)); }
inline Status synchronize(std::string_view who, StreamRef stream) { return check(cudaStreamSynchronize(native(stream)), who); }
inline Status synchronize_device(std::string_view who) { return check(cudaDeviceSynchronize(), who); }

inline Result<void*> create_event(std::string_view who) {
  cudaEvent_t event = nullptr;
  NORMA_CHECK(check(cudaEventCreate(&event), who));
  return static_cast<void*>(event);
}
inline void destroy_event(void* event) noexcept { (void)cudaEventDestroy(static_cast<cudaEvent_t>(event)); }
inline Status record_event(std::string_view who, void* event, StreamRef stream) {
  return check(cudaEventRecord(static_cast<cudaEvent_t>(event), native(stream)), who);
}
inline Status wait_event(std::string_view who, StreamRef stream, void* event) {
  return check(cudaStreamWaitEvent(native(stream), static_cast<cudaEvent_t>(event), 0), who);
}
inline Status synchronize_event(std::string_view who, void* event) { return check(cudaEventSynchronize(static_cast<cudaEvent_t>(event)), who); }
inline Result<float> elapsed_ms(std::string_view who, void* from, void* to) {
  float ms = 0.0f;
  NORMA_CHECK(check(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(from), static_cast<cudaEvent_t>(to)), who));
  return ms;
}

inline Status begin_capture(std::string_view who, StreamRef stream) {
  return check(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal), who);
}
inline Result<void*> end_capture(std::string_view who, StreamRef stream) {
  cudaGraph_t graph = nullptr;
  NORMA_CHECK(check(cudaStreamEndCapture(native(stream), &graph), who));
  cudaGraphExec_t executable = nullptr;
  const Status made = check(cudaGraphInstantiate(&executable, graph, 0), who);
  (void)cudaGraphDestroy(graph);
  NORMA_CHECK(made);
  return static_cast<void*>(executable);
}
inline Status launch_graph(std::string_view who, void* graph, StreamRef stream) {
  return check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), native(stream)), who);
}
inline void destroy_graph(void* graph) noexcept { (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

inline int device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return count;
}
inline Result<DeviceInfo> device_info(std::string_view who) {
  int device = 0;
  cudaDeviceProp properties{};
  NORMA_CHECK(check(cudaGetDevice(&device), who));
  NORMA_CHECK(check(cudaGetDeviceProperties(&properties, device), who));
  return DeviceInfo{properties.name,
                    properties.major * 10 + properties.minor,
                    properties.multiProcessorCount,
                    properties.sharedMemPerBlockOptin,
                    static_cast<std::size_t>(properties.l2CacheSize),
                    properties.totalGlobalMem};
}

}  // namespace norma::cuda::detail
