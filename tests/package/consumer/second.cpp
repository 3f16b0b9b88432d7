#include <norma/norma.hpp>

const char* version_seen_by_second_file() { return norma::kVersion.data(); }
norma::Status status_from_second_file() { return {norma::Errc::not_found, "consumer: works"}; }
