// <norma/cuda.hpp> is everything under norma/cuda, compiles without CUDA, and <norma/norma.hpp> leads to none of it.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>

#include <doctest/doctest.h>

#include <norma/cuda.hpp>

namespace {

namespace fs = std::filesystem;
const fs::path kInclude = fs::path(NORMA_SOURCE_DIR) / "include";

// The headers of norma that a header includes.
std::set<std::string> included(const fs::path& header) {
  std::ifstream file(header);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const std::string start = "#include <norma/";
  std::set<std::string> result;
  for (std::size_t at = text.find(start); at != std::string::npos; at = text.find(start, at + 1)) {
    const std::size_t begin = at + start.size() - 6;
    result.insert(text.substr(begin, text.find('>', begin) - begin));
  }
  return result;
}

}  // namespace

TEST_CASE("the umbrella of the device includes every header, and nothing else") {
  std::set<std::string> want;
  for (const auto& entry : fs::directory_iterator(kInclude / "norma/cuda")) {  // detail/ is the headers' own
    if (entry.is_regular_file()) want.insert("norma/cuda/" + entry.path().filename().string());
  }
  CHECK(want.size() > 1);
  CHECK(included(kInclude / "norma/cuda.hpp") == want);
}

TEST_CASE("the umbrella of the host leads to nothing of the device") {
  std::set<std::string> seen, open{"norma/norma.hpp"};
  while (!open.empty()) {
    const std::string header = *open.begin();
    open.erase(open.begin());
    if (!seen.insert(header).second) continue;
    for (const std::string& next : included(kInclude / header)) open.insert(next);
  }
  CHECK(seen.size() > 20);
  for (const std::string& header : seen) {
    CAPTURE(header);
    CHECK(!header.starts_with("norma/cuda"));
  }
}
