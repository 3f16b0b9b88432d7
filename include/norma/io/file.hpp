/// \file
/// Whole files in, whole files out: reading with a limit, mapping, and writing that never leaves half a file behind.
/// Errors name the path and the reason. Only functions that are called touch the operating system, so a program without a file
/// system may include this header.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/status.hpp>

#if NORMA_HAS_MMAP
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace norma::io {

/// The bytes of a text, for the functions that take bytes.
[[nodiscard]] inline std::span<const std::byte> as_bytes(std::string_view text) noexcept {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

/// The text that the bytes spell.
[[nodiscard]] inline std::string_view as_text(std::span<const std::byte> bytes) noexcept {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

namespace detail {

/// The error of the operating system as a Status: `function: 'path': reason`.
inline Status file_error(std::string_view function, const std::string& path, int error) {
  Errc code = Errc::io_error;
  std::string reason;
  switch (error) {
    case ENOENT:
      code = Errc::not_found;
      reason = "no such file or folder";
      break;
    case ENOTDIR:
      code = Errc::not_found;
      reason = "a part of the path is not a folder";
      break;
    case EISDIR:
      code = Errc::invalid_argument;
      reason = "is a folder, expected a file";
      break;
    case EACCES: reason = "permission denied"; break;
    case EPERM: reason = "operation not permitted"; break;
    case EROFS: reason = "read-only file system"; break;
    case ENOSPC: reason = "no space left on the device"; break;
    case EFBIG: reason = "larger than the file system or the limit of the process allows"; break;
    case EMFILE: reason = "too many open files in this process"; break;
    case ENFILE: reason = "too many open files in the system"; break;
    case ENAMETOOLONG:
      code = Errc::invalid_argument;
      reason = "name too long";
      break;
    case EIO: reason = "the device failed to read or write"; break;
    case ENOMEM:
      code = Errc::out_of_memory;
      reason = "not enough memory";
      break;
#ifdef ELOOP
    case ELOOP: reason = "too many symbolic links"; break;
#endif
#ifdef EDQUOT
    case EDQUOT: reason = "disk quota exceeded"; break;
#endif
    default: reason = "system error " + std::to_string(error);
  }
  return {code, std::string(function) + ": '" + path + "': " + reason};
}

inline Status too_large(std::string_view function, const std::string& path, std::int64_t max_bytes) {
  return {Errc::unsupported, std::string(function) + ": '" + path + "': larger than the limit of " + std::to_string(max_bytes) + " bytes"};
}

/// A path as C functions take it; an embedded zero would silently name another file.
inline Status check_path(std::string_view function, const std::string& path) {
  if (path.empty()) return {Errc::invalid_argument, std::string(function) + ": the path is empty"};
  if (path.find('\0') != std::string::npos) return {Errc::invalid_argument, std::string(function) + ": the path contains a zero byte"};
  return {};
}

#if NORMA_HAS_MMAP

/// An open descriptor that is closed when it leaves scope.
class Descriptor {
 public:
  explicit Descriptor(int fd) noexcept : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const noexcept { return fd_; }
  /// Closes now; 0 or the error number. Some file systems report a failed write only here.
  int close() noexcept {
    const int fd = std::exchange(fd_, -1);
    return fd >= 0 && ::close(fd) != 0 && errno != EINTR ? errno : 0;
  }

 private:
  int fd_;
};

/// Opens for reading and looks at what it is; folders are refused.
inline Result<Descriptor> open_for_reading(std::string_view function, const std::string& path, struct stat& about) {
  NORMA_CHECK(check_path(function, path));
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return file_error(function, path, errno);
  if (::fstat(file.get(), &about) != 0) return file_error(function, path, errno);
  if (S_ISDIR(about.st_mode)) return file_error(function, path, EISDIR);
  return file;
}

/// Reads to the end; `expected` only sizes the first allocation (a pipe has no size).
inline Result<std::vector<std::byte>> read_to_end(std::string_view function, const std::string& path, int fd, std::int64_t expected,
                                                  std::int64_t max_bytes) {
  constexpr std::int64_t kStep = 1 << 16;
  std::vector<std::byte> bytes;
  std::int64_t size = 0;
  bytes.resize(static_cast<std::size_t>(expected > 0 ? expected : kStep));
  for (;;) {
    if (size == static_cast<std::int64_t>(bytes.size())) {
      // The usual case: all of a file of known size was read and one more byte would be the first beyond it.
      std::byte probe{};
      const ssize_t got = ::read(fd, &probe, 1);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return file_error(function, path, errno);
      if (got == 0) break;
      if (size + 1 > max_bytes) return too_large(function, path, max_bytes);
      bytes.resize(bytes.size() + (bytes.size() > static_cast<std::size_t>(kStep) ? bytes.size() : static_cast<std::size_t>(kStep)));
      bytes[static_cast<std::size_t>(size++)] = probe;
    }
    const std::size_t room = bytes.size() - static_cast<std::size_t>(size);
    const ssize_t got = ::read(fd, bytes.data() + size, room < (std::size_t{1} << 30) ? room : (std::size_t{1} << 30));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return file_error(function, path, errno);
    if (got == 0) break;
    size += got;
    if (size > max_bytes) return too_large(function, path, max_bytes);
  }
  bytes.resize(static_cast<std::size_t>(size));
  return bytes;
}

#else

struct FileCloser {
  std::FILE* file = nullptr;
  explicit FileCloser(std::FILE* f) noexcept : file(f) {}
  FileCloser(FileCloser&& other) noexcept : file(std::exchange(other.file, nullptr)) {}
  FileCloser& operator=(FileCloser&& other) noexcept {
    std::swap(file, other.file);
    return *this;
  }
  ~FileCloser() {
    if (file != nullptr) std::fclose(file);
  }
};

#endif

}  // namespace detail

/// All bytes of a file of at most `max_bytes`. Pipes and devices are read to their end.
/// Errors: not_found; invalid_argument (a folder, an empty path); unsupported (larger than the limit); io_error with the reason.
inline Result<std::vector<std::byte>> read_file(const std::string& path, std::int64_t max_bytes = std::int64_t{1} << 32) {
  constexpr std::string_view kFunction = "io::read_file";
#if NORMA_HAS_MMAP
  struct stat about {};
  NORMA_TRY(const auto file, detail::open_for_reading(kFunction, path, about));
  const std::int64_t expected = S_ISREG(about.st_mode) ? std::int64_t{about.st_size} : 0;
  if (expected > max_bytes) return detail::too_large(kFunction, path, max_bytes);
  return detail::read_to_end(kFunction, path, file.get(), expected, max_bytes);
#else
  NORMA_CHECK(detail::check_path(kFunction, path));
  errno = 0;
  const detail::FileCloser file(std::fopen(path.c_str(), "rb"));
  if (file.file == nullptr) return detail::file_error(kFunction, path, errno != 0 ? errno : ENOENT);
  std::vector<std::byte> bytes;
  std::byte block[4096];
  while (const std::size_t got = std::fread(block, 1, sizeof block, file.file)) {
    if (static_cast<std::int64_t>(bytes.size() + got) > max_bytes) return detail::too_large(kFunction, path, max_bytes);
    bytes.insert(bytes.end(), block, block + got);
  }
  if (std::ferror(file.file) != 0) return detail::file_error(kFunction, path, errno != 0 ? errno : EIO);
  return bytes;
#endif
}

/// A file as text, byte for byte.
inline Result<std::string> read_text_file(const std::string& path, std::int64_t max_bytes = std::int64_t{1} << 26) {
  NORMA_TRY(const auto bytes, read_file(path, max_bytes));
  return std::string(as_text(bytes));
}

/// A file that appears under its name only when it is complete.
/// Bytes go to a temporary file in the same folder; `commit` flushes it to the device and renames it over the name. Without
/// `commit` the temporary file is removed. A symbolic link keeps pointing where it did; a device or pipe is written directly.
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept
      : path_(std::move(other.path_)), temporary_(std::exchange(other.temporary_, {})), file_(std::move(other.file_)) {}
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile() {
    if (!temporary_.empty()) std::remove(temporary_.c_str());
  }

  /// Appends.
  Status write(std::span<const std::byte> bytes);
  Status write(std::string_view text) { return write(as_bytes(text)); }
  /// Makes the file visible. Call once, last.
  Status commit();

 private:
  static constexpr std::string_view kFunction = "io::AtomicFile";
#if NORMA_HAS_MMAP
  using File = detail::Descriptor;
#else
  using File = detail::FileCloser;
#endif
  AtomicFile(std::string path, std::string temporary, File file) noexcept
      : path_(std::move(path)), temporary_(std::move(temporary)), file_(std::move(file)) {}

  std::string path_;
  std::string temporary_;  // empty: written directly, or already renamed
  File file_;
};

inline Result<AtomicFile> AtomicFile::create(const std::string& path) {
  NORMA_CHECK(detail::check_path(kFunction, path));
  std::string target = path;
#if NORMA_HAS_MMAP
  struct stat about {};
  if (::stat(path.c_str(), &about) == 0) {
    if (S_ISDIR(about.st_mode)) return detail::file_error(kFunction, path, EISDIR);
    if (!S_ISREG(about.st_mode)) {
      File direct(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
      if (direct.get() < 0) return detail::file_error(kFunction, path, errno);
      return AtomicFile(path, {}, std::move(direct));
    }
    if (::access(path.c_str(), W_OK) != 0) return detail::file_error(kFunction, path, errno);
    if (char* resolved = ::realpath(path.c_str(), nullptr); resolved != nullptr) {
      target = resolved;
      std::free(resolved);
    }
  } else if (path.back() == '/') {
    return detail::file_error(kFunction, path, ENOENT);
  }
  const std::size_t slash = target.rfind('/');
  const std::string folder = slash == std::string::npos ? std::string() : target.substr(0, slash + 1);
  // The exclusive open, not the name, is what keeps two writers apart.
  for (int attempt = 0;; ++attempt) {
    std::string temporary = folder + ".norma-" + std::to_string(::getpid()) + "-" + std::to_string(attempt) + ".tmp";
    File file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (file.get() >= 0) return AtomicFile(std::move(target), std::move(temporary), std::move(file));
    if (errno != EEXIST || attempt == 9999) return detail::file_error(kFunction, path, errno);
  }
#else
  std::string temporary = target + ".norma.tmp";
  errno = 0;
  File file(std::fopen(temporary.c_str(), "wb"));
  if (file.file == nullptr) return detail::file_error(kFunction, path, errno != 0 ? errno : EIO);
  return AtomicFile(std::move(target), std::move(temporary), std::move(file));
#endif
}

inline Status AtomicFile::write(std::span<const std::byte> bytes) {
#if NORMA_HAS_MMAP
  constexpr std::size_t kMost = std::size_t{1} << 30;  // some systems refuse larger single writes
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(file_.get(), bytes.data(), bytes.size() < kMost ? bytes.size() : kMost);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return detail::file_error(kFunction, path_, wrote < 0 ? errno : ENOSPC);
    bytes = bytes.subspan(static_cast<std::size_t>(wrote));
  }
#else
  errno = 0;
  if (!bytes.empty() && std::fwrite(bytes.data(), 1, bytes.size(), file_.file) != bytes.size()) {
    return detail::file_error(kFunction, path_, errno != 0 ? errno : ENOSPC);
  }
#endif
  return {};
}

inline Status AtomicFile::commit() {
#if NORMA_HAS_MMAP
  if (temporary_.empty()) {
    const int error = file_.close();
    return error == 0 ? Status{} : detail::file_error(kFunction, path_, error);
  }
  if (::fsync(file_.get()) != 0) return detail::file_error(kFunction, path_, errno);
  if (const int error = file_.close(); error != 0) return detail::file_error(kFunction, path_, error);
  struct stat about {};
  if (::stat(path_.c_str(), &about) == 0) ::chmod(temporary_.c_str(), about.st_mode & 07777);  // keep the rights of what is replaced
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) return detail::file_error(kFunction, path_, errno);
  temporary_.clear();
  // The rename itself must reach the device too; a file system that cannot sync a folder is no reason to fail.
  const std::size_t slash = path_.rfind('/');
  const std::string folder = slash == std::string::npos ? std::string(".") : path_.substr(0, slash + 1);
  const detail::Descriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) static_cast<void>(::fsync(directory.get()));
#else
  errno = 0;
  if (std::fclose(std::exchange(file_.file, nullptr)) != 0) return detail::file_error(kFunction, path_, errno != 0 ? errno : EIO);
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    // Not every system replaces an existing file.
    std::remove(path_.c_str());
    if (std::rename(temporary_.c_str(), path_.c_str()) != 0) return detail::file_error(kFunction, path_, errno != 0 ? errno : EIO);
  }
  temporary_.clear();
#endif
  return {};
}

/// Replaces or creates `path` with `bytes`; on failure what was there before is untouched and no temporary file stays.
inline Status write_file_atomically(const std::string& path, std::span<const std::byte> bytes) {
  NORMA_TRY(auto file, AtomicFile::create(path));
  NORMA_CHECK(file.write(bytes));
  return file.commit();
}
inline Status write_file_atomically(const std::string& path, std::string_view text) { return write_file_atomically(path, as_bytes(text)); }

/// A file's bytes without reading them first: mapped where the system can, else read.
/// The file must not be truncated in place while it is mapped (files replaced by rename, as norma writes them, are safe).
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path, std::int64_t max_bytes = std::numeric_limits<std::int64_t>::max()) {
#if NORMA_HAS_MMAP
    constexpr std::string_view kFunction = "io::MappedFile::open";
    struct stat about {};
    NORMA_TRY(const auto file, detail::open_for_reading(kFunction, path, about));
    MappedFile mapped;
    if (!S_ISREG(about.st_mode)) {
      NORMA_TRY(mapped.owned_, detail::read_to_end(kFunction, path, file.get(), 0, max_bytes));
      mapped.bytes_ = mapped.owned_;
      return mapped;
    }
    const std::int64_t size = std::int64_t{about.st_size};
    if (size > max_bytes) return detail::too_large(kFunction, path, max_bytes);
    if (size == 0) return mapped;
    void* address = ::mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (address == MAP_FAILED) return detail::file_error(kFunction, path, errno);
    mapped.bytes_ = {static_cast<const std::byte*>(address), static_cast<std::size_t>(size)};
    mapped.mapped_ = true;
    return mapped;
#else
    MappedFile read;
    NORMA_TRY(read.owned_, read_file(path, max_bytes));
    read.bytes_ = read.owned_;
    return read;
#endif
  }

  MappedFile() noexcept = default;
  // Moving a vector keeps its bytes where they are, so the span stays right.
  MappedFile(MappedFile&& other) noexcept
      : owned_(std::move(other.owned_)), bytes_(std::exchange(other.bytes_, {})), mapped_(std::exchange(other.mapped_, false)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(owned_, other.owned_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }
  ~MappedFile() {
#if NORMA_HAS_MMAP
    if (mapped_) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
#endif
  }

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::int64_t size() const noexcept { return static_cast<std::int64_t>(bytes_.size()); }

 private:
  std::vector<std::byte> owned_;
  std::span<const std::byte> bytes_;
  bool mapped_ = false;
};

}  // namespace norma::io
