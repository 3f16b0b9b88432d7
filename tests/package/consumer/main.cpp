// Two source files that include everything: they link only if every definition in the headers is inline.
#include <cstdio>

#include <norma/norma.hpp>

const char* version_seen_by_second_file();
norma::Status status_from_second_file();

int main() {
  const norma::Status status = status_from_second_file();
  if (norma::kVersion != version_seen_by_second_file() || status.code() != norma::Errc::not_found) return 1;
  std::printf("norma %s: %s\n", version_seen_by_second_file(), status.message().c_str());
  return 0;
}
