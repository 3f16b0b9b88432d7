// Real weights and images that tests may use where they exist: a folder `shared` beside the checkout, or NORMA_SHARED_DIR.
// A user's checkout has none; such tests then say that they skip.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include <doctest/doctest.h>

namespace norma::test {

inline std::filesystem::path shared_root() {
  if (const char* set = std::getenv("NORMA_SHARED_DIR"); set != nullptr) return set;
#ifdef NORMA_SOURCE_DIR
  return std::filesystem::path(NORMA_SOURCE_DIR).parent_path() / "shared";
#else
  return std::filesystem::current_path().parent_path() / "shared";
#endif
}

/// The file or folder, or nothing (with a message) where it does not exist.
inline std::optional<std::filesystem::path> shared(const std::string& relative) {
  const auto path = shared_root() / relative;
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored)) return path;
  MESSAGE("skipped: " << path.string() << " does not exist");
  return std::nullopt;
}

/// A fresh folder that is removed when it leaves scope.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "norma_test_XXXXXX").string();
    const char* made = ::mkdtemp(pattern.data());
    if (made == nullptr) FAIL("no temporary folder " << pattern);  // not REQUIRE: a test that goes on to skip must have checked nothing
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace norma::test
