// What the operating system says of this machine and this process.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace bnb {

int available_cores();      // those that this process may use
int64_t physical_memory();  // bytes that this process may use
std::string cpu_name();
// Tells the system that the block, aligned for them, is best kept in huge pages.
void ask_for_huge_pages(void* block, size_t nbytes);

}  // namespace bnb
