/// \file
/// What <norma/cuda/runtime.hpp> needs of CUDA.
#pragma once

#include <norma/cuda/detail/simt.cuh>
#include <norma/cuda/runtime.hpp>

namespace norma::cuda::detail {

template <class Tag>
Result<void*> Runtime<Tag>::allocate(std::string_view who, std::size_t bytes) {
  return detail::allocate(who, bytes);
}
template <class Tag>
void Runtime<Tag>::release(void* memory) noexcept {
  detail::release(memory);
}
template <class Tag>
Result<void*> Runtime<Tag>::allocate_pinned(std::string_view who, std::size_t bytes) {
  return detail::allocate_pinned(who, bytes);
}
template <class Tag>
void Runtime<Tag>::release_pinned(void* memory) noexcept {
  detail::release_pinned(memory);
}
template <class Tag>
Status Runtime<Tag>::copy_async(std::string_view who, void* to, const void* from, std::size_t bytes, StreamRef stream) {
  return detail::copy_async(who, to, from, bytes, stream);
}
template <class Tag>
Status Runtime<Tag>::fill_async(std::string_view who, void* to, int byte, std::size_t bytes, StreamRef stream) {
  return detail::fill_async(who, to, byte, bytes, stream);
}
template <class Tag>
Result<void*> Runtime<Tag>::create_stream(std::string_view who) {
  return detail::create_stream(who);
}
template <class Tag>
void Runtime<Tag>::destroy_stream(void* stream) noexcept {
  detail::destroy_stream(stream);
}
template <class Tag>
Status Runtime<Tag>::synchronize(std::string_view who, StreamRef stream) {
  return detail::synchronize(who, stream);
}
template <class Tag>
Result<void*> Runtime<Tag>::create_event(std::string_view who) {
  return detail::create_event(who);
}
template <class Tag>
void Runtime<Tag>::destroy_event(void* event) noexcept {
  detail::destroy_event(event);
}
template <class Tag>
Status Runtime<Tag>::record_event(std::string_view who, void* event, StreamRef stream) {
  return detail::record_event(who, event, stream);
}
template <class Tag>
Status Runtime<Tag>::wait_event(std::string_view who, StreamRef stream, void* event) {
  return detail::wait_event(who, stream, event);
}
template <class Tag>
Status Runtime<Tag>::synchronize_event(std::string_view who, void* event) {
  return detail::synchronize_event(who, event);
}
template <class Tag>
Result<float> Runtime<Tag>::elapsed_ms(std::string_view who, void* from, void* to) {
  return detail::elapsed_ms(who, from, to);
}
template <class Tag>
Status Runtime<Tag>::begin_capture(std::string_view who, StreamRef stream) {
  return detail::begin_capture(who, stream);
}
template <class Tag>
Result<void*> Runtime<Tag>::end_capture(std::string_view who, StreamRef stream) {
  return detail::end_capture(who, stream);
}
template <class Tag>
Status Runtime<Tag>::launch_graph(std::string_view who, void* graph, StreamRef stream) {
  return detail::launch_graph(who, graph, stream);
}
template <class Tag>
void Runtime<Tag>::destroy_graph(void* graph) noexcept {
  detail::destroy_graph(graph);
}
template <class Tag>
int Runtime<Tag>::device_count() {
  return detail::device_count();
}
template <class Tag>
Result<DeviceInfo> Runtime<Tag>::device_info(std::string_view who) {
  return detail::device_info(who);
}

}  // namespace norma::cuda::detail
