// What libstdc++ and the unwinder take from a C library that is newer than the oldest the addon loads with, see
// tools/build/glibc.mjs.
#if BNB_OLD_GLIBC
#include <elf.h>
#include <link.h>
#include <sys/stat.h>

// Since 2.32: whether the process has one thread yet. False is always right, and costs an atomic operation.
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;

// Since 2.33 a function of its own.
extern "C" int __fxstat64(int version, int descriptor, struct stat64* status);
extern "C" int fstat64(int descriptor, struct stat64* status) noexcept {
#if defined(__x86_64__)
  constexpr int version = 1;
#else
  constexpr int version = 0;
#endif
  return __fxstat64(version, descriptor, status);
}

#if defined(DLFO_STRUCT_HAS_EH_DBASE)
namespace {

struct Search {
  ElfW(Addr) address;
  dl_find_object* found;
};

// Fills `found` when the object holds the address in one of its segments and has a table of unwinding.
int look(dl_phdr_info* info, size_t, void* data) {
  Search& search = *static_cast<Search*>(data);
  ElfW(Addr) table = 0, start = 0, end = 0;
  bool inside = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = info->dlpi_phdr[i];
    const ElfW(Addr) first = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_GNU_EH_FRAME) table = first;
    if (header.p_type != PT_LOAD) continue;
    if (start == 0) start = first;
    end = first + header.p_memsz;
    if (search.address >= first && search.address < end) inside = true;
  }
  if (!inside || table == 0) return 0;
  search.found->dlfo_flags = 0;
  search.found->dlfo_map_start = reinterpret_cast<void*>(start);
  search.found->dlfo_map_end = reinterpret_cast<void*>(end);
  search.found->dlfo_link_map = nullptr;
  search.found->dlfo_eh_frame = reinterpret_cast<void*>(table);
  return 1;
}

}  // namespace

// Since 2.35: where the tables of unwinding for an address lie. The unwinder asks when an error is thrown.
extern "C" int _dl_find_object(void* address, dl_find_object* found) noexcept {
  Search search{reinterpret_cast<ElfW(Addr)>(address), found};
  return dl_iterate_phdr(look, &search) == 1 ? 0 : -1;
}
#endif
#endif
