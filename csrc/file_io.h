// Positioned reads and durable writes, the only file operations of the core. Errors are errno text, never thrown here.
#ifndef DDPM_RT_FILE_IO_H_
#define DDPM_RT_FILE_IO_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace ddpm_rt {

// -1 and `why` on failure. Refuses what is not a regular file without blocking on it.
int open_regular(const std::string& path, uint64_t* bytes, std::string* why);
// True when all `bytes` came; a short file is a failure. Safe from several threads on one descriptor.
bool read_at(int fd, uint64_t offset, void* out, size_t bytes, std::string* why);
void close_file(int fd);

// A new file beside `target`, renamed over it by commit(); removed by the destructor unless committed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& target) : target_(target) {}
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  bool open(std::string* why);
  bool write(const void* data, size_t bytes, std::string* why);
  bool commit(std::string* why);  // fsync, rename, fsync of the folder

 private:
  std::string target_, name_;
  int fd_ = -1;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_FILE_IO_H_
